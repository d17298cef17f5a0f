"""``make demos``, with demos that are made up and a Python that stands for the environment's."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

MAKEFILE = Path(__file__).parents[2] / "Makefile"
WRITES = """
import sys
from pathlib import Path

Path(__file__).with_suffix(".ran").write_text(" ".join(sys.argv[1:]))
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    shutil.copy(MAKEFILE, tmp_path)
    (tmp_path / "demos").mkdir()
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    return tmp_path


def make_demos(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["make", "--old-file=setup", "demos", *arguments]
    # Where make runs the suite itself, its flags would have this one print the folders that it enters.
    environment = {name: value for name, value in os.environ.items() if "MAKE" not in name}
    return subprocess.run(command, cwd=project, capture_output=True, text=True, env=environment)


def test_every_demo_gets_the_arguments_and_one_folder(project: Path):
    for name in ("a", "b"):
        (project / f"demos/{name}.py").write_text(WRITES)
    done = make_demos(project, "ARGS=--quick")
    assert (done.returncode, done.stdout) == (0, "== demos/a.py\n== demos/b.py\n"), done.stderr
    assert {file.read_text() for file in project.glob("demos/*.ran")} == {"--output demos/output --quick"}


def test_the_first_that_fails_is_named_and_the_last_to_run(project: Path):
    (project / "demos/a.py").write_text(WRITES)
    (project / "demos/b.py").write_text("raise SystemExit(3)\n")
    (project / "demos/c.py").write_text(WRITES)
    done = make_demos(project)
    assert done.returncode != 0
    assert "error: demos/b.py ended with status 3\n" in done.stderr
    assert [file.name for file in project.glob("demos/*.ran")] == ["a.ran"]
