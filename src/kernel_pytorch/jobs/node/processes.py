"""Processes of this node, from ``/proc``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

DEAD = ("Z", "X")
"""Letters of states in which a process has ended."""


def state(pid: int) -> str | None:
    """The letter of a process's state, such as S, T or D; None: there is no such process."""
    fields = _stat(pid)
    return fields[0] if fields else None


def lives(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    return state(pid) not in (None, *DEAD)


def waits_in(pid: int) -> str | None:
    """The kernel function in which a process waits; None: it waits in none, or this user may not know."""
    with suppress(OSError):
        name = Path(f"/proc/{pid}/wchan").read_text()
        return None if name in ("", "0") else name
    return None


def started_with(pid: int, environment: Mapping[str, str]) -> bool:
    """Whether a process of this user was started with these variables, among others."""
    with suppress(OSError):
        given = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        return all(os.fsencode(f"{name}={value}") in given for name, value in environment.items())
    return False


class Family:
    """The processes that were started with certain variables, and all others of their sessions.

    Ranks have sessions of their own, in which a child stays that was given another environment.

    Args:
        environment: what tells the family from others.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = dict(environment)
        self._sessions: set[int] = set()

    def living(self) -> list[int]:
        """Those that have not ended."""
        own, sessions = [], {}
        for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
            if pid == os.getpid() or not (fields := _stat(pid)) or fields[0] in DEAD:
                continue
            session = int(fields[3])
            if started_with(pid, self._environment):
                own.append(pid)
                self._sessions.add(session)
            else:
                sessions[pid] = session
        self._sessions.discard(os.getsid(0))
        return own + [pid for pid, session in sessions.items() if session in self._sessions]


def _stat(pid: int) -> list[str]:
    """The fields of ``/proc/PID/stat`` from the state on; none if there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return []
    return stat.rpartition(")")[2].split()  # the name before may have spaces and parentheses
