"""The time that commands take, and that of a beat."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_BEAT = """
import sys, time
from kernel_pytorch.jobs import rank
job = rank.current()
best = []
for _ in range(21):
    begin = time.perf_counter()
    for step in range(10_000):
        job.beat(step)
    best.append((time.perf_counter() - begin) / 10_000)
print(sorted(best)[10])
"""


def measured(target: str, scratch: Path, times: int) -> Iterator[dict[str, Any]]:
    """Wall time of ``submit`` and ``status``, and of a beat, each in a process of its own."""
    root = scratch / "figure-jobs"
    for _ in range(times):
        begin = time.perf_counter()
        words = ["submit", "--to", target, "--nodes", "1", "--ranks-per-node", "1", "--time", "5m"]
        told, torch = _run(root, *words, "--json", "--", "sleep", "60")
        submit_s = time.perf_counter() - begin
        job = json.loads(told)["job_id"]
        begin = time.perf_counter()
        _, torch_too = _run(root, "status", job)
        status_s = time.perf_counter() - begin
        _run(root, "cancel", job)
        yield {"by": "command", "target": target, "figure": "submit_s", "value": submit_s, "torch": torch}
        yield {"by": "command", "target": target, "figure": "status_s", "value": status_s, "torch": torch_too}
        yield {"by": "command", "target": target, "figure": "beat_s", "value": _beat_s(scratch)}


def _run(root: Path, *words: str) -> tuple[str, bool]:
    """What the command printed, and whether it has loaded torch."""
    script = (
        "import sys; from kernel_pytorch.cli import main; status = main(sys.argv[1:]); "
        "print('torch' in sys.modules, file=sys.stderr); sys.exit(status)"
    )
    environment = {**os.environ, "KERNEL_PYTORCH_JOBS": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", script, *words], env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"kernel-pytorch {' '.join(words)}: {done.stderr}")
    return done.stdout, done.stderr.split()[-1] == "True"


def _beat_s(scratch: Path) -> float:
    from kernel_pytorch.jobs.folder import JobFolder
    from kernel_pytorch.jobs.rank.gate import allow_restart

    job = {"name": "beat", "argv": [], "environment": {}, "secrets": {}, "cwd": "/"}
    folder = JobFolder.create(scratch / "beat-jobs", job)
    folder.claim_attempt({"nodes": ["here"]})
    beats = scratch / "beats"
    beats.mkdir(exist_ok=True)
    allow_restart(beats, 0)
    environment = {
        **os.environ,
        "KERNEL_PYTORCH_JOB": str(folder.path),
        "KERNEL_PYTORCH_ATTEMPT": "1",
        "KERNEL_PYTORCH_BEATS": str(beats),
        "KERNEL_PYTORCH_CHECKPOINT_EVERY": "600",
        "RANK": "0",
        "LOCAL_RANK": "0",
        "TORCHELASTIC_RESTART_COUNT": "0",
    }
    done = subprocess.run(
        [sys.executable, "-c", _BEAT], env=environment, capture_output=True, text=True, check=True
    )
    return float(done.stdout)
