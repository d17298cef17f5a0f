"""Processes of this node, from ``/proc``."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
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


def session_of(pid: int) -> int | None:
    """The id of a process's session; None: there is no such process."""
    fields = _stat(pid)
    return int(fields[3]) if fields else None


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


def answer_of(command: Sequence[str], within_s: float) -> subprocess.CompletedProcess[bytes]:
    """Run a command that may hang.

    Raises:
        OSError: it cannot be started.
        TimeoutError: it has not ended in time. It is killed, but if a driver holds it, it stays.
    """
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, **pipes)  # type: ignore[call-overload]
    try:
        out, errors = process.communicate(timeout=within_s)
    except subprocess.TimeoutExpired:
        process.kill()
        for pipe in (process.stdout, process.stderr):
            pipe.close()
        with suppress(subprocess.TimeoutExpired):
            process.wait(1)
        raise TimeoutError(f"no answer for {within_s:g} s") from None
    return subprocess.CompletedProcess(command, process.returncode, out, errors)


def oom_kills(root: str = "/") -> int | None:
    """Processes of this process's cgroup that the kernel has killed for want of memory.

    Args:
        root: folder that holds ``proc`` and ``sys``.

    Returns:
        None: it cannot be read, as with version 1 of cgroups.
    """
    with suppress(OSError):
        lines = Path(root, "proc/self/cgroup").read_text().splitlines()
        for path in (line[3:] for line in lines if line.startswith("0::")):
            events = Path(root, f"sys/fs/cgroup{path}", "memory.events").read_text()
            if found := re.search(r"^oom_kill (\d+)$", events, re.MULTILINE):
                return int(found[1])
    return None


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
