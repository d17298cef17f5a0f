"""What the ranks of a node do: their beats, and the evidence when something went wrong."""

from __future__ import annotations

import os
import shutil
import statistics
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from ..folder import JobFolder, JobFolderError, as_bytes
from ..rank.beats import Beat, Beats
from ..recovery.evidence import Beat as BeatEvidence
from ..recovery.evidence import Evidence, RankError
from ..recovery.timing import hang_limit
from .agent import Agent, RankExit
from .place import positive_seconds
from .processes import DEAD, oom_kills, state
from .starts import Start, Starts

_STEPS_KEPT = 101


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What one look at the ranks of a node showed. Ranks are those of the job, not of the node."""

    step: int | None
    """The lowest of the ranks; None: one of them has not finished any, or is not heard of."""
    save_s: float | None
    """What the last save took the slowest; None: none was measured."""
    median_step_s: float | None
    """None: no step was measured yet."""
    late: tuple[int, ...]
    """Without a beat for longer than the limit of their phase."""
    pids: Mapping[int, int]
    """The process that beats, or the rank's first one if none has."""
    world: int = 0
    """Number of ranks, of all nodes, with which those of this node started that live; 0: none does."""


class Watch:
    """Looks at the ranks of this node in one attempt.

    Args:
        folder: of the job.
        attempt: its number.
        beats: the ranks' ``$KERNEL_PYTORCH_BEATS``.
        name: of this node.
        min_hang_s: the shortest limit for a hang; None: ``$KERNEL_PYTORCH_HANG_S``, else the usual one.

    Raises:
        PlaceError, ValueError: it is not a positive number.
    """

    def __init__(
        self,
        folder: JobFolder,
        attempt: int,
        beats: Path,
        name: str,
        *,
        min_hang_s: float | None = None,
    ) -> None:
        self.folder, self.attempt, self.name = folder, attempt, name
        self._min_hang_s = positive_seconds("KERNEL_PYTORCH_HANG_S") if min_hang_s is None else min_hang_s
        hang_limit("training", min_s=self._min_hang_s)
        self._beats, self._starts = Beats(beats), Starts(beats)
        self._steps: deque[float] = deque(maxlen=_STEPS_KEPT)
        self._oom_before = oom_kills()

    def look(self, closing: Collection[int] = ()) -> Seen:
        """Read the beats. To be called a few times a second: so are steps measured, and ends noticed.

        Args:
            closing: processes that are told to end. They are not late: they wait for others, which failed.
        """
        self._read()
        now, newest, late, world = monotonic(), self._starts.newest(), [], 0
        for start in newest:
            letter = state(start.beating_pid)
            if letter in (None, *DEAD):
                continue
            world = max(world, start.world)
            if start.pid not in closing:
                start.alive_s, start.state = now, letter
                late += [start.rank] * self._late(start)
        known = [start.beat for start in newest if start.beat is not None]
        steps = [None if start.beat is None else start.beat.step for start in newest]
        saves = [beat.save_s for beat in known if beat.save_s is not None]
        return Seen(
            step=None if None in steps else min((step for step in steps if step is not None), default=None),
            save_s=max(saves, default=None),
            median_step_s=self._median(),
            late=tuple(sorted(late)),
            pids={start.rank: start.beating_pid for start in newest},
            world=world,
        )

    def restart(self) -> int:
        """The most restarts of torchrun, on this node, of which a rank has been heard."""
        self._read()
        return max((start.restart for start in self._starts.newest()), default=0)

    def all_left(self, but: Collection[int]) -> bool:
        """Whether all ranks have ended by themselves, that is none as one of the processes ``but``."""
        self._read()
        newest = self._starts.newest()
        return bool(newest) and all(
            start.pid not in but and state(start.pid) in (None, *DEAD) for start in newest
        )

    def evidence(
        self,
        exits: Iterable[RankExit] = (),
        agent: Agent | None = None,
        *,
        where: Mapping[int, str] = {},
        **more: Any,
    ) -> Evidence:
        """What is known of this node's ranks, as they were before torchrun restarted them.

        Call :meth:`look` before, while the ranks live.

        Args:
            exits: ranks that failed.
            agent: whose log and exit code count.
            where: innermost line by rank, from :func:`.stacks.take`.
            more: further fields.
        """
        exits = tuple(exits)
        self._read()
        starts = self._starts.at(each.pid for each in exits)
        ranks = {start.local_rank: start.rank for start in starts}
        for each in exits:
            if start := self._starts.with_pid(each.pid):
                ranks[each.local_rank] = start.rank
        records = {start.rank: self._record(start) for start in starts}
        logs = self.folder.path / "logs" / f"attempt-{self.attempt}"
        lines = {start.rank: start.log_lines(logs / f"rank-{start.rank}.log") for start in starts}
        more = {"node_of": {start.rank: self.name for start in starts}, **more}
        if agent is not None:
            more = {"agent_exit_code": agent.poll(), "node_lines": agent.lines, **more}
        return Evidence(
            exit_codes={ranks[each.local_rank]: each.exit_code for each in exits if each.local_rank in ranks},
            errors={rank: error for rank, record in records.items() if (error := _error(record))},
            left={rank: record["left"] for rank, record in records.items() if "left" in record},
            log_lines={rank: found for rank, found in lines.items() if found},
            beats={
                start.rank: self._beat(start, where.get(start.rank))
                for start in starts
                if start.beat is not None
            },
            oom_kills=self._oom_increase(),
            disk_free=dict(self._disk_free()),
            **more,
        )

    def _read(self) -> None:
        self._starts.find()
        beats = self._beats.read()
        for start in self._starts.newest():
            beat = beats.get(start.local_rank)
            if beat is not None and beat.time_s >= start.time_s:  # else it is of an earlier process
                self._measure(start.beat, beat)
                start.beat = beat

    def _measure(self, before: Beat | None, beat: Beat) -> None:
        """Take the mean of the steps between two looks, if nothing else was seen between them."""
        if before is None or before.pid != beat.pid or {before.phase, beat.phase} != {"training"}:
            return
        if before.step is not None and beat.step is not None and beat.step > before.step:
            self._steps.append((beat.time_s - before.time_s) / (beat.step - before.step))

    def _median(self) -> float | None:
        return statistics.median(self._steps) if self._steps else None

    def _late(self, start: Start) -> bool:
        if start.beat is None:
            return False
        limit = hang_limit(start.beat.phase, self._median(), self._min_hang_s)
        return start.alive_s - start.beat.time_s > limit.value

    def _record(self, start: Start) -> Mapping[str, Any]:
        """What the rank said last, if this process of it did; empty if not."""
        record: Mapping[str, Any] = {}
        with suppress(JobFolderError):
            record = self.folder.record(self.attempt, start.rank) or {}
        return record if record.get("pid") in (start.pid, start.beating_pid) else {}

    def _beat(self, start: Start, where: str | None) -> BeatEvidence:
        assert start.beat is not None
        return BeatEvidence(
            phase=start.beat.phase,
            step=start.beat.step,
            since_s=max(0.0, start.alive_s - start.beat.time_s),
            median_step_s=self._median(),
            min_hang_s=self._min_hang_s,
            process_state=start.state,
            where=where,
        )

    def _oom_increase(self) -> dict[str, int]:
        now = oom_kills()
        if now is None or self._oom_before is None:
            return {}
        return {self.name: now - self._oom_before}

    def _disk_free(self) -> Iterator[tuple[str, int]]:
        folders = [os.fsencode(self.folder.path)]
        with suppress(JobFolderError):
            folders.append(as_bytes(self.folder.job()["cwd"]))
        for folder in folders:
            with suppress(OSError):
                yield os.fsdecode(folder), shutil.disk_usage(folder).free


def _error(record: Mapping[str, Any]) -> RankError | None:
    if "error" not in record:
        return None
    return RankError(
        text=record["error"],
        type=record.get("type"),
        traceback=record.get("traceback"),
        step=record.get("step"),
    )
