"""What of a job lives on this machine: its supervisor, which holds a lock, and its other processes."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import struct
import time
from contextlib import suppress
from pathlib import Path

from ...errors import KernelPytorchError
from ..atomic import one_line
from ..folder import JobFolder
from ..node.processes import Family

LOG = "supervisor.log"
_LOCK = "supervisor.lock"
_FLOCK = struct.Struct("hhqqi4x")
"""``struct flock`` of Linux, 64 bits: type, whence, start, length, process id."""
_LOOK_EVERY_S = 0.05


def take_lock(folder: Path) -> int | None:
    """Become the supervisor of a job until this process ends, or closes any descriptor of the lock's file.

    Not ``flock``: a look at such a lock is an attempt to take it, in which a supervisor's own attempt fails.

    Returns:
        The descriptor that holds the lock; None: another process has it.

    Raises:
        JobFolderError: files cannot be locked there.
    """
    with one_line(folder / _LOCK, "locked"):
        descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if error.errno in (errno.EACCES, errno.EAGAIN):
                return None
            raise
    return descriptor


def supervisor_of(folder: Path) -> int | None:
    """Process id of a job's supervisor; 0 if it lives where it has none here, such as in another container.

    Returns:
        None: there is no supervisor.
    """
    with one_line(folder / _LOCK, "read"):
        try:
            descriptor = os.open(folder / _LOCK, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            kind, *_, pid = _FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_GETLK, asked))
        finally:
            os.close(descriptor)
    return None if kind == fcntl.F_UNLCK else max(0, pid)


def end_supervisor(folder: JobFolder, patience_s: float) -> None:
    """Have the supervisor of a job end, and return when it has.

    Args:
        folder: the job's.
        patience_s: seconds that it has, with the ranks, before it is killed.

    Raises:
        KernelPytorchError: it cannot be ended from here.
    """
    kill_at, told = time.monotonic() + patience_s, False
    while (pid := supervisor_of(folder.path)) is not None:
        if pid == 0:
            raise KernelPytorchError(f"{folder.id} runs in another container", "cancel it there")
        late = time.monotonic() > kill_at
        if late or not told:
            told = True
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL if late else signal.SIGTERM)
        time.sleep(_LOOK_EVERY_S)


def end_processes(folder: JobFolder, within_s: float = 10.0) -> None:
    """Kill all processes of a job but its supervisor, and return when none is left.

    Raises:
        KernelPytorchError: one is left after ``within_s`` seconds.
    """
    family = Family({"KERNEL_PYTORCH_JOB": str(folder.path)})
    give_up = time.monotonic() + within_s
    while left := family.living():
        if time.monotonic() > give_up:
            pids = ", ".join(map(str, left))
            raise KernelPytorchError(
                f"processes {pids} of {folder.id} are left {within_s:g} s after SIGKILL",
                "they wait for a device or a disk, which may take a restart of the machine",
            )
        for pid in left:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(_LOOK_EVERY_S)


def last_line(folder: JobFolder) -> str:
    """The last line of the supervisor's log, where programs say why they did not begin."""
    path = folder.path / "logs" / LOG
    with one_line(path, "read"), path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 10_000))
        lines = file.read().decode(errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
