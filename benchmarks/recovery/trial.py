"""One fault in one job: whether it recovered, how fast, and what was lost."""

from __future__ import annotations

import json
import os
import random
import shutil
import statistics
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.cluster.slurm.cluster import SlurmCluster
from tests.support.running_jobs import Running, arguments_of, environment_of, kill

from kernel_pytorch.jobs.manage import Jobs
from kernel_pytorch.jobs.rank.beats import Beat
from kernel_pytorch.jobs.read import spec_of
from kernel_pytorch.jobs.recovery.timing import hang_limit
from kernel_pytorch.jobs.target import target_named

from .faults import FAULTS, HANG_S, Case, Fault
from .training import (
    EVERY,
    LIMIT_S,
    LONG_STEPS,
    RANKS_PER_NODE,
    STEPS,
    Reference,
    command,
    differences,
    losses,
    resumed_at,
)

WORLD = 2 * RANKS_PER_NODE
_LOOK_EVERY_S = 0.1
_RECOVERS_IN_S = 150.0

Trial = dict[str, Any]


def run_trial(
    name: str,
    target: str,
    scratch: Path,
    run: Path,
    data: Path,
    expected: Reference,
    cluster: SlurmCluster | None,
    failures: Path,
) -> Trial:
    """Submit, inject, wait for the end.

    Args:
        name: of the fault.
        target: local or slurm.
        scratch: an empty folder for the job.
        run: folder of the run, which does not exist; removed in the end.
        data: the text.
        expected: the uninterrupted runs.
        cluster: of Slurm.
        failures: folder for the job's folder and the run's files if it does not recover.
    """
    fault = FAULTS[name]
    seed = random.SystemRandom().randrange(10**6)
    found: Trial = {"by": "job", "target": target, "fault": name, "at": time.time(), "seed": seed}
    found["load"] = os.getloadavg()[0]
    if fault.at_time_limit:
        found["limit_s"] = LIMIT_S[target]
    steps = LONG_STEPS if fault.at_time_limit else STEPS
    jobs = Jobs(scratch / "jobs")
    job: Running | None = None
    try:
        with _exported(fault.environment):
            spec = {
                "name": name,
                "command": command(run, data, steps),
                "nodes": fault.nodes,
                "ranks_per_node": RANKS_PER_NODE,
                **({"max_runtime_hours": LIMIT_S[target] / 3600} if fault.at_time_limit else {}),
            }
            (submitted,) = jobs.submit(spec_of(spec), target_named(target))
            job = Running(jobs, submitted.job_id)
            found |= _observe(job, fault, run, cluster, random.Random(seed))
        end = job.end()
        rows = losses(run)
        steps = len(rows) if fault.at_time_limit else steps
        found["difference"] = differences(rows, expected(steps), steps)
        found["end"] = end["state"]
        wanted = "cancelled" if fault.at_time_limit else "completed"
        found["recovered"] = end["state"] == wanted and found["difference"] is not None
    except AssertionError as error:
        found |= {"recovered": False, "error": str(error).partition("\n")[0]}
        if isinstance(error, NoFaultError):
            found["injected"] = False
    except Exception:
        found |= {"recovered": False, "error": traceback.format_exc()[-1000:]}
    finally:
        if job is not None:
            if not found.get("recovered"):
                _keep(job, run, failures)
            if job.folder.ended() is None:
                jobs.cancel(job.id)
            kill(*job.processes())
        shutil.rmtree(run, ignore_errors=True)
    return found


class NoFaultError(AssertionError):
    """The job did not get as far as the step of the fault, as on a machine that is too busy."""


@contextmanager
def _exported(environment: Mapping[str, str]) -> Iterator[None]:
    """Slurm and the supervisor pass on what is exported when the job is submitted."""
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _observe(
    job: Running, fault: Fault, run: Path, cluster: SlurmCluster | None, draw: random.Random
) -> Trial:
    try:
        first = job.step(1, ranks=WORLD)
        if not fault.at_time_limit:
            job.step(EVERY + draw.randrange(4, EVERY - 6), ranks=WORLD)
    except AssertionError as error:
        raise NoFaultError(str(error)) from error
    pids = {rank: beat.pid for rank, beat in first.items()}
    start_s = max(beat.time_s - _started_s(beat.pid) for beat in first.values())
    old = set(pids.values())
    folders = {Path(environment_of(pid)["KERNEL_PYTORCH_BEATS"]) for pid in old}
    case = Case(job=job, run=run, cluster=cluster, pids=pids, beats=tuple(folders), draw=draw)
    before = job.beats()
    attempts = len(resumed_at(run))  # those before this one did not get as far as a step
    began = time.time()
    began = fault.inject(case) or began
    reached, saved = _furthest(before.values())
    deadline = time.time() + _RECOVERS_IN_S
    stopped_at = 0.0
    while True:
        beats = job.beats()
        known = [beat for beat in beats.values() if beat.pid in old]
        step, save = _furthest(known)
        reached, saved = max(reached, step), max(saved, save)
        of_rank = [beat.time_s for beat in known if beat.rank == case.facts.get("rank")]
        stopped_at = max([stopped_at, *of_rank])
        new = [b for b in beats.values() if b.pid not in old and b.phase == "training" and b.step]
        if new:
            break
        if job.folder.ended() is not None or time.time() > deadline:
            raise AssertionError(f"no step after the fault; end: {job.folder.ended()}")
        time.sleep(_LOOK_EVERY_S)
    next_step = min(beat.time_s for beat in new) + time.time() - time.monotonic()
    if fault.at_time_limit:
        job.jobs.cancel(job.id)
    job.end()
    resumed = resumed_at(run)[attempts:]
    left = [
        record["left"]
        for attempt in job.folder.attempt_numbers()
        for record in job.folder.records(attempt).values()
        if fault.asked and record.get("left") is not None
    ]
    reached = max([reached, case.facts.get("reached", 0), *left[:WORLD]])
    found: Trial = {
        "seconds": next_step - began,
        "start_s": start_s,
        "reached": reached,
        "resumed": resumed,
        "steps_lost": reached - resumed[0] if resumed else None,
        "steps_since_save": reached - saved,
        "events": [event["kind"] for event in job.folder.events()],
    }
    found = {**case.facts, **found}
    if "KERNEL_PYTORCH_HANG_S" in fault.environment:
        found |= _of_hang(job, case, stopped_at, run)
    return found


def _of_hang(job: Running, case: Case, stopped_at: float, run: Path) -> Trial:
    failure = job.event("failure")["failure"]
    stacks = sorted((job.folder.path / "stacks" / "attempt-1").glob("rank-*.txt"))
    written = max((path.stat().st_mtime for path in stacks), default=float("nan"))
    rate = statistics.median(_rates(run))
    limit = hang_limit("training", 2048 / rate, HANG_S).value
    wall = stopped_at + time.time() - time.monotonic()
    return {
        "stacks": len(stacks),
        "stacks_late_s": written - wall - limit,
        "right_rank": failure["kind"] == "hang" and failure["rank"] == case.facts["rank"],
        "named": failure["text"],
    }


def _rates(run: Path) -> list[float]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["tokens_per_s"] for line in lines]


def _furthest(beats: Iterable[Beat]) -> tuple[int, int]:
    """The last step of any rank, and that of the last checkpoint."""
    found = list(beats)
    return (
        max((beat.step or 0 for beat in found), default=0),
        max((beat.save_step or 0 for beat in found), default=0),
    )


def _started_s(pid: int) -> float:
    """When a process was started, by the monotonic clock."""
    ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    return ticks / os.sysconf("SC_CLK_TCK") - (time.clock_gettime(time.CLOCK_BOOTTIME) - time.monotonic())


def _keep(job: Running, run: Path, failures: Path) -> None:
    place = failures / job.id
    shutil.copytree(job.folder.path, place / "job", dirs_exist_ok=True)
    for name in ("metrics.jsonl", "config.json", "attempt.json"):
        if (run / name).exists():
            shutil.copy(run / name, place / name)
    alive = [f"{pid} {' '.join(arguments_of(pid))}" for pid in sorted(job.processes())]
    (place / "processes.txt").write_text("\n".join(alive))
