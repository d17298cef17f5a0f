"""Have Slurm start a job again, from inside of the job or not, without nodes that are to be avoided.

Slurm changes the nodes to exclude only of jobs that wait. A requeued job waits at once, while its processes
are still being ended, and does not start before they are gone: so the job is requeued first and changed then.
The other order, requeue and hold, would leave the job held for ever if this process were killed in between.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from ..target import ClusterUnavailableError
from .commands import PATIENCE_S, SlurmError, hostnames, run, show_job

ASKS_FOR_S = 300.0
"""How long a slurmctld that does not answer is asked again: a backup takes over after SlurmctldTimeout, by
default 120 s."""
_PAUSE_S = 0.5
_QUICK_S = 2.0
"""For an answer that a program waits for which has other things to do."""
LEFT_AFTER_S = 1.0
"""How long this process waits for a change that may not be made while it lives."""
_REFUSED_TWICE = re.compile("Job is pending execution")
_OURS_TO_END = ("RUNNING", "SUSPENDED", "STOPPED", "SIGNALING", "RESIZING", "CONFIGURING")


def requeue(job_id: str, exclude: Sequence[str] = ()) -> tuple[str, ...]:
    """Requeue the job of this process. Any number of its processes may call this at once.

    The requeue signals all processes of the job, this one too; meanwhile SIGTERM and SIGUSR1 are ignored. A
    job that was cancelled, or has ended otherwise than by its time limit, is left alone.

    Args:
        job_id: of Slurm; ``17`` or ``17_3``.
        exclude: names of nodes to avoid; ignored where too few would be left.

    Returns:
        The nodes that the job will avoid, as far as is known.

    Raises:
        ClusterUnavailableError: no slurmctld answers, or this node has no scontrol.
        SlurmError: Slurm refused, or the job is over.
    """
    until = time.monotonic() + ASKS_FOR_S
    with _unsignalled():
        while True:
            try:
                return _requeue_own(job_id, exclude)
            except ClusterUnavailableError:  # slurmctld may be slow just when it has lost a node
                if time.monotonic() > until:
                    raise
            time.sleep(_PAUSE_S)


def is_timed_out(job_id: str) -> bool:
    """Whether Slurm ends the job of this process because its time is over, and nobody has requeued it.

    Args:
        job_id: as of :func:`requeue`.

    Raises:
        ClusterUnavailableError, SlurmError: as :func:`requeue`.
    """
    job = _known(job_id, _QUICK_S)
    return _has_timed_out(job) and not _is_requeued(job)


def requeue_other(job_id: str, exclude: Sequence[str] = ()) -> bool:
    """Requeue any job, also one that has ended.

    Args:
        job_id: as of :func:`requeue`.
        exclude: likewise.

    Returns:
        False: Slurm does not know the job any more.

    Raises:
        ClusterUnavailableError, SlurmError: as :func:`requeue`.
    """
    job = show_job(job_id)
    if job is None:
        return False
    if job["JobState"] != "PENDING":
        _requeue(job_id, job)
    _change(job_id, exclude, inside=False)
    return True


def _requeue_own(job_id: str, exclude: Sequence[str]) -> tuple[str, ...]:
    job = _known(job_id)
    if not _is_requeued(job):
        if job["JobState"] not in _OURS_TO_END and not _has_timed_out(job):
            raise SlurmError(f"job {job_id} is not requeued: it is {job['JobState']}")
        _requeue(job_id, job)
    return _change(job_id, exclude, inside=True)


def _requeue(job_id: str, job: Mapping[str, str]) -> None:
    if job.get("Requeue") == "0":  # Slurm itself is not to restart it; we are
        run("scontrol", "update", f"JobId={job_id}", "Requeue=1")
    try:
        run("scontrol", "requeue", job_id)
    except SlurmError as error:
        if not _REFUSED_TWICE.search(error.why):  # another process of the job was faster
            raise


def _change(job_id: str, exclude: Sequence[str], *, inside: bool) -> tuple[str, ...]:
    """Add to the nodes that a waiting job avoids, and undo that it lost nodes; what it avoids afterwards.

    While a job that has lost a node still has processes, a cluster without accounts takes no changes. So the
    request is left with slurmctld, which waits 5 s for their end, and this process may end meanwhile. Where
    that was too late, a job that begins on too few nodes can be requeued again, and gets them then.
    """
    job = _known(job_id)
    before = hostnames(job.get("ExcNodeList", ""))
    script = _script(job_id)
    fewest, asked = int(job.get("NumNodes", "1").partition("-")[0]), _option(script, "--nodes")
    changes, shrunk = [], False
    at_start = int(os.environ.get("SLURM_JOB_NUM_NODES") or 0) if inside else 0
    if asked is not None and fewest < max(at_start, int(asked.partition("-")[0])):
        changes.append(f"NumNodes={asked}")
        fewest, shrunk = int(asked.partition("-")[0]), True
    names = before
    if not set(exclude) <= set(before):
        names = _avoidable(job, before, exclude, fewest, _users(script, before))
        changes += [f"ExcNodeList={','.join(names)}"] if names != before else []
    if changes:
        try:
            patience_s = LEFT_AFTER_S if inside and shrunk else PATIENCE_S
            run("scontrol", "update", f"JobId={job_id}", *changes, timeout_s=patience_s)
        except ClusterUnavailableError:
            pass  # it has the request
        except SlurmError as error:  # the job runs again all the same, and Slurm itself avoids what is down
            print(f"{job_id} runs again, but not with {' '.join(changes)}: {error}", file=sys.stderr)
            return tuple(before)
    return tuple(names)


def _avoidable(
    job: Mapping[str, str], before: Sequence[str], exclude: Sequence[str], fewest: int, users: Sequence[str]
) -> list[str]:
    """Nodes to avoid such that enough are left: all, or all but those of earlier requeues, or as before."""
    ask = ["sinfo", "--noheader", "--Node", f"--partition={job['Partition']}", "--format=%N"]
    every = run(*ask).split()
    required = set(hostnames(job.get("ReqNodeList", "")))
    for wanted in ([*before, *exclude], [*users, *exclude]):
        names = list(dict.fromkeys(name for name in wanted if name not in required))
        if names and len(set(every) - set(names)) >= fewest:
            return names
    return list(before)


def _users(script: str | None, before: Sequence[str]) -> list[str]:
    """The nodes that the user excluded, and not an earlier requeue; all, where that is not known."""
    if script is None:
        return list(before)
    excluded = _option(script, "--exclude?")  # sbatch takes --exclud too
    if excluded is None:
        return []
    return list(before) if "/" in excluded else hostnames(excluded)  # a file's name


def _script(job_id: str) -> str | None:
    """The job's script, which has what the user asked for, also where the job has lost nodes since."""
    try:
        return run("scontrol", "write", "batch_script", job_id, "-")
    except SlurmError:
        return None


def _option(script: str | None, pattern: str) -> str | None:
    """The value of an option in the header of a script."""
    found = re.search(rf'^#SBATCH {pattern}[= ] *"?([^"\n]*)"?$', script or "", re.MULTILINE)
    return None if found is None else found[1]


def _has_timed_out(job: Mapping[str, str]) -> bool:
    return job["JobState"] == "TIMEOUT" or job.get("Reason") == "TimeLimit"


def _is_requeued(job: Mapping[str, str]) -> bool:
    """Whether the job has been requeued since this process was started in it."""
    return int(job.get("Restarts", "0")) > int(os.environ.get("SLURM_RESTART_COUNT") or "0")


def _known(job_id: str, timeout_s: float = PATIENCE_S) -> dict[str, str]:
    job = show_job(job_id, timeout_s)
    if job is None:
        raise SlurmError(f"Slurm does not know job {job_id}")
    return job


@contextmanager
def _unsignalled() -> Iterator[None]:
    """Ignore signals here and in commands run meanwhile, where Python lets this thread do so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
