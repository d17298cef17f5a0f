"""Ranks without torch, and waiting for what they do."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from kernel_pytorch.jobs.folder import JobFolder
from kernel_pytorch.jobs.node.agent import Launch
from kernel_pytorch.jobs.rank.gate import allow_restart
from kernel_pytorch.jobs.recovery.timing import torchrun_timeouts

T = TypeVar("T")

LOOP = """\
import os, signal, subprocess, sys, time
from pathlib import Path
from kernel_pytorch.jobs import rank

def nap():
    time.sleep(0.02)

def main(here):
    job = rank.current()
    job.handle_signals()
    step = 0
    while not job.must_stop():
        nap()
        step += 1
        job.beat(step)
    while not (here / "may leave").exists():
        time.sleep(0.02)
    job.left(step)

main(Path(sys.argv[1]))
"""
"""Steps until it is asked to stop, then leaves when the file ``may leave`` is there."""


def write_loop(folder: JobFolder, here: Path, loop: str = LOOP) -> None:
    """Make a program the job's command; its argument is the folder that has it."""
    (here / "loop.py").write_text(loop)
    folder.write_job({**folder.job(), "argv": [sys.executable, str(here / "loop.py"), str(here)]})


def launch(folder: JobFolder, here: Path, **options: object) -> Launch:
    """Two ranks on one node, in the first attempt."""
    beats = here / "beats"
    beats.mkdir(exist_ok=True)
    for restart in range(1, 10):
        allow_restart(beats, restart)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    values = {
        "folder": folder.path,
        "attempt": 1,
        "python": sys.executable,
        "nodes": (1, 1),
        "ranks_per_node": 2,
        "endpoint": f"127.0.0.1:{port}",
        "local_address": "127.0.0.1",
        "is_host": True,
        "max_restarts": 3,
        "beats": beats,
        "checkpoint_every_s": 60.0,
        "timeouts": {name: figure.value for name, figure in torchrun_timeouts().items()},
    }
    return Launch(**{**values, **options})


def until(condition: Callable[[], T], what: str, within_s: float = 120.0) -> T:
    """The first true value of ``condition``, which is asked again and again."""
    give_up = time.monotonic() + within_s
    while not (value := condition()):
        assert time.monotonic() < give_up, f"waited {within_s:g} s for: {what}"
        time.sleep(0.02)
    return value


def is_gone(pid: int) -> bool:
    """Whether a process has ended."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
