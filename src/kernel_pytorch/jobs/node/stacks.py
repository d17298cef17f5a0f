"""Where ranks are that hang, from their Python stacks."""

from __future__ import annotations

import os
import re
import resource
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from ..folder import JobFolder, JobFolderError, write_atomically
from . import processes

WITHIN_S = 3.0
_READ = 1 << 20
_FATAL = b"Fatal Python error: "
_FRAME = re.compile(r'^  File "(?P<file>.*)", line (?P<line>\d+) in (?P<function>.*)$', re.MULTILINE)
_THREAD = re.compile(r"^(?=Current thread |Thread )", re.MULTILINE)


def take(
    pids: Mapping[int, int], folder: JobFolder, attempt: int, within_s: float = WITHIN_S
) -> dict[int, str]:
    """Write the stacks of ranks to ``stacks/attempt-N/rank-R.txt``, and end the ranks.

    Python prints its stack when it is aborted (``PYTHONFAULTHANDLER``), also from within a collective. Of a
    rank that prints none, ``/proc`` says a little. Ranks that are stopped are continued, to die.

    Args:
        pids: the processes, by rank.
        within_s: seconds after which a rank that has not ended is killed.

    Returns:
        By rank, the innermost line, ``loop.py:88 in step``, or what ``/proc`` said.
    """
    family = {"KERNEL_PYTORCH_JOB": str(folder.path), "KERNEL_PYTORCH_ATTEMPT": str(attempt)}
    pids = {rank: pid for rank, pid in pids.items() if processes.started_with(pid, family)}
    logs = {rank: folder.path / "logs" / f"attempt-{attempt}" / f"rank-{rank}.log" for rank in pids}
    sizes = {rank: _size(log) for rank, log in logs.items()}
    known = {rank: _of_proc(pid) for rank, pid in pids.items()}
    for pid in pids.values():
        with suppress(OSError):
            _no_core(pid)
            os.kill(pid, signal.SIGABRT)
            os.kill(pid, signal.SIGCONT)  # after it, so that nothing else is done
    give_up = time.monotonic() + within_s
    while any(processes.lives(pid) for pid in pids.values()) and time.monotonic() < give_up:
        time.sleep(0.02)
    where = {}
    for rank, pid in pids.items():
        with suppress(OSError):
            os.kill(pid, signal.SIGKILL)
        stack = _stack(logs[rank], sizes[rank])
        where[rank] = _innermost(stack) or known[rank]
        path = folder.path / "stacks" / f"attempt-{attempt}" / f"rank-{rank}.txt"
        with suppress(OSError, JobFolderError):  # a full disk: what was read is worth more than the file
            path.parent.mkdir(0o700, exist_ok=True)
            write_atomically(path, (stack or f"no Python stack: {known[rank]}\n").encode(errors="replace"))
    return where


def _no_core(pid: int) -> None:
    """Have the process dump no core, to a file or to a program: the latter is not told of a limit of 0."""
    _, hard = resource.prlimit(pid, resource.RLIMIT_CORE)
    resource.prlimit(pid, resource.RLIMIT_CORE, (0 if hard == 0 else 1, hard))


def _size(path: Path) -> int:
    with suppress(OSError):
        return path.stat().st_size
    return 0


def _of_proc(pid: int) -> str:
    names = {"R": "runs", "S": "sleeps", "D": "waits for a disk or a device", "T": "is stopped"}
    state = processes.state(pid)
    text = f"process {pid} {names.get(state or '', 'has ended')}"
    waits_in = processes.waits_in(pid)
    return text if waits_in is None else f"{text} in {waits_in}"


def _stack(log: Path, start: int) -> str:
    """What Python printed to a log after the first ``start`` bytes."""
    with suppress(OSError), log.open("rb") as file:
        file.seek(start)
        data = file.read(_READ)
        if _FATAL in data:
            return data[data.index(_FATAL) :].decode(errors="replace")
    return ""


def _innermost(stack: str) -> str | None:
    """The first line of the thread that was aborted, or of the last one that has a Python stack."""
    found = None
    for thread in _THREAD.split(stack):
        if frame := _FRAME.search(thread):
            found = f"{os.path.basename(frame['file'])}:{frame['line']} in {frame['function']}"
            if thread.startswith("Current"):
                break
    return found
