"""No figure without green tests."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent


def failure_of(tests: tuple[str, ...]) -> str | None:
    """What pytest printed when ``tests`` did not all pass, else None.

    Args:
        tests: files or folders, relative to the repository. One that is missing or holds no test fails.
    """
    command = [sys.executable, "-m", "pytest", "--quiet", "--exitfirst", *tests]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    return None if result.returncode == 0 else result.stdout + result.stderr
