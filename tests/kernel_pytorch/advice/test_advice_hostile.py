"""Models that end, block or upset their process: a run ends with what can be said, and leaves nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from advice_hostile import HOSTILE, Hostile

from kernel_pytorch.jobs.node.processes import lives

QUICK = {
    "os._exit on import",
    "sys.exit in forward",
    "segmentation fault",
    "prints",
    "leaves a child",
    "closes all files",
}
"""The others take as long together as all tests of this folder."""


@pytest.mark.parametrize(
    "hostile",
    [pytest.param(one, id=one.name, marks=() if one.name in QUICK else pytest.mark.slow) for one in HOSTILE],
)
def test_hostile_models(hostile: Hostile, tmp_path: Path):
    gone, path = tmp_path / "gone", tmp_path / "model.py"
    path.write_text(hostile.source.replace("GONE", repr(str(gone))))
    folder = tmp_path / "temporary"
    folder.mkdir()
    command = [sys.executable, "-m", "kernel_pytorch.cli", "advise", f"{path}:make", "--input", "randn(2, 8)"]
    done = subprocess.run(
        [*command, "--level", "conservative", "--budget", "5s" if hostile.slow else "120s", "--json"],
        env={**os.environ, "TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == hostile.status, done.stderr
    assert "Traceback" not in done.stderr
    assert hostile.says in (done.stderr.splitlines() or [""])[-1]
    if hostile.status == 2:
        assert done.stdout == ""
    else:
        report = json.loads(done.stdout)
        assert report["facts"]["parameters"] == 72
        assert bool(report["facts"]["failed"]) == (hostile.status == 1)
    assert list(folder.iterdir()) == []
    assert not any(lives(int(pid)) for pid in (gone.read_text().split() if gone.exists() else ()))
