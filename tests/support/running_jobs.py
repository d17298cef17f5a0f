"""A job that runs, its processes, and waiting for what it does."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from kernel_pytorch.jobs.folder import JobFolder
from kernel_pytorch.jobs.manage import Jobs
from kernel_pytorch.jobs.rank.beats import Beat, Beats

T = TypeVar("T")
ENDS_IN_S = 120.0
"""Long enough for a slow machine; every wait ends as soon as what it waits for is there."""


class Running:
    """A submitted job of which every process is on this machine."""

    def __init__(self, jobs: Jobs, job_id: str) -> None:
        self.jobs, self.id = jobs, job_id
        self.folder = JobFolder(jobs.root / job_id)

    def until(self, found: Callable[[], T | None], what: str) -> T:
        """What ``found`` returns when it is neither None nor False."""
        deadline = time.monotonic() + ENDS_IN_S
        while (result := found()) is None or result is False:
            assert time.monotonic() < deadline, f"no {what}\n{self.told()}"
            time.sleep(0.05)
        return result

    def event(self, kind: str, count: int = 1) -> dict[str, Any]:
        """The ``count``-th event of a kind, when there is one."""
        return self.until(
            lambda: next(iter([e for e in self.folder.events() if e["kind"] == kind][count - 1 :]), None),
            f"{kind} event",
        )

    def end(self) -> dict[str, Any]:
        """The end record, when there is one."""
        return self.until(self.folder.ended, "end")

    def step(self, least: int, attempt: int = 1, ranks: int = 2) -> dict[int, Beat]:
        """The ranks' beats when all are at a step of at least ``least``."""

        def reached() -> dict[int, Beat] | None:
            beats = self.beats()
            steps = [beat.step or 0 for beat in beats.values()]
            known = len(self.folder.attempt_numbers()) >= attempt
            return beats if known and len(steps) == ranks and min(steps) >= least else None

        return self.until(reached, f"step {least} of attempt {attempt}")

    def beats(self) -> dict[int, Beat]:
        """The last beat of each rank that lives, by rank."""
        found = {}
        for rank, pid in self.ranks().items():
            folder = environment_of(pid).get("KERNEL_PYTORCH_BEATS")
            if folder and Path(folder).exists():
                for beat in Beats(folder).read().values():
                    if beat.pid == pid:
                        found[rank] = beat
        return found

    def ranks(self) -> dict[int, int]:
        """Process id of each rank that lives, by rank."""
        found = {}
        for pid in self.processes():
            environment = environment_of(pid)
            if "RANK" in environment and str(self.folder.path) not in arguments_of(pid):
                found[int(environment["RANK"])] = pid
        return found

    def node_programs(self) -> dict[int, int]:
        """Process id of each node program, by the number of its node in the newest attempt."""
        found = {}
        for pid in self.processes():
            if "kernel_pytorch.jobs.node" in arguments_of(pid) and "srun" not in arguments_of(pid)[0]:
                environment = environment_of(pid)
                index = environment.get("KERNEL_PYTORCH_NODE") or environment.get("SLURM_NODEID")
                if index is not None:
                    found[int(index)] = pid
        return found

    def processes(self) -> set[int]:
        """All processes of the job: those that name its folder."""
        name = os.fsencode(self.folder.path)
        found = set()
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if name in (process / "cmdline").read_bytes() + (process / "environ").read_bytes():
                    found.add(int(process.name))
            except OSError:  # it has ended
                pass
        return found - {os.getpid()}

    def rows(self, out: Path, rank: int) -> list[int]:
        """The steps that a rank has taken, in order."""
        return [int(line.split()[0]) for line in (out / f"rank-{rank}.rows").read_text().splitlines()]

    def told(self) -> str:
        """All that the job's folder has to say, for the message of a test."""
        events = [json.dumps(event) for event in self.folder.events()]
        logs = [
            f"== {log.relative_to(self.folder.path)}\n{log.read_text(errors='replace')[-3000:]}"
            for log in sorted((self.folder.path / "logs").rglob("*"))
            if log.is_file()
        ]
        return "\n".join([*events, *logs])


def kill(*pids: int, number: int = signal.SIGKILL) -> None:
    """Send a signal to processes that may have ended."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def descendants(pid: int) -> set[int]:
    """A process and all that it has started."""
    parents = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            stat = (process / "stat").read_text(errors="replace")
        except OSError:
            continue
        parents[int(process.name)] = int(stat.rpartition(")")[2].split()[1])
    found, grown = {pid}, True
    while grown:
        more = {child for child, parent in parents.items() if parent in found} - found
        found, grown = found | more, bool(more)
    return found


def environment_of(pid: int) -> dict[str, str]:
    """With what a process was started; empty if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return {}
    return dict(os.fsdecode(line).partition("=")[::2] for line in lines if b"=" in line)


def arguments_of(pid: int) -> list[str]:
    """The words of a process's command; one empty word if it has ended."""
    try:
        return [os.fsdecode(word) for word in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")] or [""]
    except OSError:
        return [""]
