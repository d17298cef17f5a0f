"""What Slurm says of jobs, from the first of its commands that knows them."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence

from ..facts import JobState
from ..status import FINAL, ClusterWord
from . import commands
from .states import long_word, reason_of, state_of


def words(ids: Sequence[str], patience_s: float = commands.PATIENCE_S) -> Mapping[str, ClusterWord]:
    """What Slurm says of jobs, by its ids.

    Args:
        ids: of the jobs.
        patience_s: how long each of its commands may take, in seconds.

    Raises:
        ClusterUnavailableError, SlurmError: it could not be asked.
    """
    now = time.time()
    rows = commands.queue(ids, "TNDbSer", patience_s)
    return {id: _word(now, rows[id]) if id in rows else _asked_again(now, id, patience_s) for id in ids}


def _word(now: float, row: Sequence[str]) -> ClusterWord:
    native, hosts, num_nodes, gres, start, end, reason = row
    state = state_of(native)
    per_node = re.search(r"gpu(?::[^:,]+)*:(\d+)", gres)
    has_nodes = state is not JobState.PENDING and hosts
    return ClusterWord(
        as_of=now,
        native_state=long_word(native),
        state=state,
        reason=reason_of(state, reason),
        nodes=commands.hostnames(hosts) if has_nodes else None,
        num_gpus=int(per_node[1]) * int(num_nodes) if per_node and has_nodes else None,
        start_time=time_of(start) if state is not JobState.PENDING else None,
        end_time=time_of(end) if state in FINAL else None,
    )


def _asked_again(now: float, native_id: str, patience_s: float) -> ClusterWord:
    """A job that squeue does not have: from other sources, before it counts as gone."""
    if (job := commands.show_job(native_id, patience_s)) is not None:
        state = state_of(job["JobState"])
        ended = time_of(job.get("EndTime", "")) if state in FINAL else None
        reason = reason_of(state, job.get("Reason", ""))
        return ClusterWord(
            as_of=now, native_state=job["JobState"], state=state, reason=reason, end_time=ended
        )
    row = commands.accounted(native_id, ("State", "Start", "End", "NodeList"), patience_s)
    if row is None or not row[0]:
        return ClusterWord(as_of=now)
    state = state_of(row[0])
    return ClusterWord(
        as_of=now,
        native_state=row[0],
        state=state,
        nodes=commands.hostnames(row[3]) or None,
        start_time=time_of(row[1]),
        end_time=time_of(row[2]) if state in FINAL else None,
    )


def time_of(text: str) -> float | None:
    """Seconds since 1970, as ``SLURM_TIME_FORMAT=%s`` has them."""
    return float(text) if text.isdecimal() and text != "0" else None
