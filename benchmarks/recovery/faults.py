"""The faults, and how each is injected into a job that runs."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.cluster.slurm.cluster import SlurmCluster
from tests.support.running_jobs import Running, descendants, kill

from kernel_pytorch.jobs.rank.beats import Beats

HANG_S = 3.0
"""Limit for a hang in these trials; the usual one is at least 60 s."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A trial as the faults see it."""

    job: Running
    run: Path
    cluster: SlurmCluster | None
    pids: Mapping[int, int]
    """Of the ranks before the fault."""
    beats: tuple[Path, ...]
    """Where they beat."""
    draw: random.Random
    facts: dict[str, Any] = field(default_factory=dict)
    """What is noted of the fault."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A kind of fault."""

    inject: Callable[[Case], float | None]
    """Returns when, in seconds since 1970; None: now."""
    what: str
    asked: bool = False
    """Whether it is a request to stop, which loses no step."""
    nodes: str = "2"
    same_world: bool = True
    at_time_limit: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)


def _kill_worker(case: Case) -> None:
    rank = case.draw.choice(sorted(case.pids))
    case.facts["rank"] = rank
    kill(case.pids[rank])


def _lose_node(case: Case, index: int = 1) -> None:
    if case.cluster is not None:
        names = case.job.event("attempt", len(case.job.folder.attempt_numbers()))["nodes"]
        case.cluster.kill_node(names[index])
        return
    victims = descendants(case.job.node_programs()[index])
    kill(*victims, number=signal.SIGSTOP)  # before any is killed: none can report the end of another
    kill(*victims)


def _lose_first_node(case: Case) -> None:
    _lose_node(case, 0)


def _hang(case: Case) -> None:
    rank = case.draw.choice(sorted(case.pids))
    case.facts["rank"] = rank
    kill(case.pids[rank], number=signal.SIGSTOP)


def _signals_twice(case: Case) -> None:
    nodes: set[int] = set().union(*(descendants(pid) for pid in case.job.node_programs().values()))
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGTERM, signal.SIGUSR1):
        kill(*nodes, number=number)


def _requeue(case: Case) -> None:
    case.job.jobs.requeue(case.job.id)


def _time_limit(case: Case) -> float:
    return float(case.job.event("stop")["at"])


def _full_disk(case: Case) -> float:
    """Fill it, wait for the job's end, make room, run the job again."""
    filler = case.run.parent / "filler"
    if shutil.disk_usage(filler.parent).total > 1e8:
        raise AssertionError(f"{filler.parent} is not the small disk that was mounted")
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(65536))
    filled = time.time()
    end = case.job.end()
    case.facts.update(ended_s=end["at"] - filled, reason=end["reason"], reached=end["step"] or 0)
    filler.unlink()
    if end["state"] != "failed" or "no space" not in end["reason"].lower():
        raise AssertionError(f"a full disk, but {end}")
    began = time.time()
    case.job.jobs.requeue(case.job.id)
    return began


def _kill_while_saving(case: Case) -> None:
    rank = case.draw.choice(sorted(case.pids))
    case.facts["rank"] = rank

    def saving() -> bool:
        beats = [beat for folder in case.beats for beat in Beats(folder).read().values()]
        return any(beat.pid == case.pids[rank] and beat.phase == "saving" for beat in beats)

    deadline = time.monotonic() + 60
    while not saving():
        if time.monotonic() > deadline:
            raise AssertionError(f"rank {rank} was not seen saving")
        time.sleep(0.002)
    kill(case.pids[rank])


FAULTS = {
    "kill-worker": Fault(inject=_kill_worker, what="kill -9 a worker"),
    "lose-node": Fault(inject=_lose_node, what="lose a node, of 2"),
    "lose-node-smaller": Fault(inject=_lose_node, what="lose a node, of 1:2", nodes="1:2", same_world=False),
    "lose-first-node": Fault(inject=_lose_first_node, what="lose the first node"),
    "hang": Fault(inject=_hang, what="SIGSTOP a rank", environment={"KERNEL_PYTORCH_HANG_S": str(HANG_S)}),
    "signals-twice": Fault(inject=_signals_twice, what="TERM and USR1 to all processes, twice", asked=True),
    "requeue": Fault(inject=_requeue, what="requeue", asked=True),
    "time-limit": Fault(inject=_time_limit, what="the time limit", asked=True, at_time_limit=True),
    "full-disk": Fault(inject=_full_disk, what="full disk, then room, then requeue"),
    "kill-while-saving": Fault(inject=_kill_while_saving, what="kill -9 a worker while it saves"),
}


@contextmanager
def small_disk(folder: Path, size: str = "6m") -> Iterator[Path | None]:
    """A small file system mounted there while the context lasts; None where that is not allowed."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
