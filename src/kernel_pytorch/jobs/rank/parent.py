"""Processes that end with the one that started them. Linux only."""

from __future__ import annotations

import ctypes
import os
import signal
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent(ancestor: int | None = None) -> bool:
    """Have the kernel kill this process, and what it execs, when the thread that started it ends.

    Args:
        ancestor: process id of one that started this process's parent, directly or through others. It
            tells a parent from what adopts orphans. None: only the death of a parent during this call is
            noticed.

    Returns:
        False if the parent was dead before: the kernel will not kill, so this process must leave by itself.

    Raises:
        OSError: the kernel refuses.
    """
    parent = os.getppid()
    if _libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), *[ctypes.c_ulong(0)] * 3):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    if ancestor is None:
        return os.getppid() == parent
    return os.getppid() != ancestor and _is_below(ancestor, os.getppid())


def _is_below(ancestor: int, pid: int) -> bool:
    while pid > 1:
        try:
            stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
        except OSError:  # it has died, or belongs to another user
            return False
        pid = int(stat.rpartition(")")[2].split()[1])  # the name before may have spaces and parentheses
        if pid == ancestor:
            return True
    return False
