"""What the ranks of a node do: their beats, and the evidence when something went wrong."""

from __future__ import annotations

import json
import os
import re
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
from .processes import DEAD, oom_kills, state

_STEPS_KEPT = 101
_LOG_KEPT = 1 << 16
_LOG_LINES_KEPT = 100


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


@dataclass
class _Start:
    """One process of a rank: a restart makes another."""

    local_rank: int
    rank: int
    pid: int
    restart: int
    time_s: float
    log_from: int
    log_to: int | None = None
    beat: Beat | None = None
    alive_s: float = 0.0
    """When it was last seen alive."""
    state: str | None = None
    """Then."""

    @property
    def beating_pid(self) -> int:
        return self.pid if self.beat is None else self.beat.pid


class Watch:
    """Looks at the ranks of this node in one attempt.

    Args:
        folder: of the job.
        attempt: its number.
        beats: the ranks' ``$KERNEL_PYTORCH_BEATS``.
        name: of this node.
        min_hang_s: the shortest limit for a hang; None: ``$KERNEL_PYTORCH_HANG_S``, else the usual one.

    Raises:
        ValueError: it is not a positive number.
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
        self._min_hang_s = _shortest_limit() if min_hang_s is None else min_hang_s
        hang_limit("training", min_s=self._min_hang_s)
        self._beats = Beats(beats)
        self._starts: dict[int, list[_Start]] = {}
        """By local rank, the newest last."""
        self._steps: deque[float] = deque(maxlen=_STEPS_KEPT)
        self._oom_before = oom_kills()

    def look(self, closing: Collection[int] = ()) -> Seen:
        """Read the beats. To be called a few times a second: so are steps measured, and ends noticed.

        Args:
            closing: processes that are told to end. They are not late: they wait for others, which failed.
        """
        self._find_starts()
        now, beats = monotonic(), self._beats.read()
        for local_rank, starts in self._starts.items():
            start, beat = starts[-1], beats.get(local_rank)
            if beat is not None and beat.time_s >= start.time_s:
                self._measure(start.beat, beat)
                start.beat = beat
            letter = state(start.beating_pid)
            if letter not in (None, *DEAD) and start.pid not in closing:
                start.alive_s, start.state = now, letter
        newest = [starts[-1] for starts in self._starts.values()]
        known = [start.beat for start in newest if start.beat is not None]
        steps = [None if start.beat is None else start.beat.step for start in newest]
        saves = [beat.save_s for beat in known if beat.save_s is not None]
        return Seen(
            step=None if None in steps else min((step for step in steps if step is not None), default=None),
            save_s=max(saves, default=None),
            median_step_s=self._median(),
            late=tuple(sorted(start.rank for start in newest if start.alive_s == now and self._late(start))),
            pids={start.rank: start.beating_pid for start in newest},
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
        self._find_starts()
        starts = self._failed(exits)
        ranks = {start.local_rank: start.rank for start in starts}
        for old in (start for found in self._starts.values() for start in found):
            ranks.update({each.local_rank: old.rank for each in exits if each.pid == old.pid})
        records = {start.rank: self._record(start) for start in starts}
        more = {"node_of": {start.rank: self.name for start in starts}, **more}
        if agent is not None:
            more = {"agent_exit_code": agent.poll(), "node_lines": agent.lines, **more}
        return Evidence(
            exit_codes={ranks[each.local_rank]: each.exit_code for each in exits if each.local_rank in ranks},
            errors={rank: error for rank, record in records.items() if (error := _error(record))},
            left={rank: record["left"] for rank, record in records.items() if "left" in record},
            log_lines={start.rank: lines for start in starts if (lines := self._log_lines(start))},
            beats={
                start.rank: self._beat(start, where.get(start.rank))
                for start in starts
                if start.beat is not None
            },
            oom_kills=self._oom_increase(),
            disk_free=dict(self._disk_free()),
            **more,
        )

    def _find_starts(self) -> None:
        with suppress(FileNotFoundError):
            for name in os.listdir(self._beats.folder):
                if found := re.fullmatch(r"started-([0-9]+)\.json", name):
                    started = json.loads((self._beats.folder / name).read_bytes())
                    starts = self._starts.setdefault(int(found[1]), [])
                    if not starts or starts[-1].time_s != started["time_s"]:
                        if starts:
                            starts[-1].log_to = started["log_from"]
                        starts.append(_Start(local_rank=int(found[1]), **started))
        self._starts = dict(sorted(self._starts.items()))

    def _measure(self, before: Beat | None, beat: Beat) -> None:
        """Take the mean of the steps between two looks, if nothing else was seen between them."""
        if before is None or before.pid != beat.pid or {before.phase, beat.phase} != {"training"}:
            return
        if before.step is not None and beat.step is not None and beat.step > before.step:
            self._steps.append((beat.time_s - before.time_s) / (beat.step - before.step))

    def _median(self) -> float | None:
        return statistics.median(self._steps) if self._steps else None

    def _late(self, start: _Start) -> bool:
        if start.beat is None:
            return False
        limit = hang_limit(start.beat.phase, self._median(), self._min_hang_s)
        return start.alive_s - start.beat.time_s > limit.value

    def _failed(self, exits: tuple[RankExit, ...]) -> list[_Start]:
        """Of each local rank, the process that ran when one of ``exits`` did; the newest without exits."""
        pids = {each.pid for each in exits}
        every = [start for starts in self._starts.values() for start in starts]
        restart = max((start.restart for start in every if start.pid in pids), default=None)
        chosen = []
        for starts in self._starts.values():
            then = [start for start in starts if restart is None or start.restart <= restart]
            chosen += then[-1:]
        return chosen

    def _record(self, start: _Start) -> Mapping[str, Any]:
        """What the rank said last, if this process of it did; empty if not."""
        record = self.folder.record(self.attempt, start.rank) or {}
        return record if record.get("pid") in (start.pid, start.beating_pid) else {}

    def _log_lines(self, start: _Start) -> tuple[str, ...]:
        path = self.folder.path / "logs" / f"attempt-{self.attempt}" / f"rank-{start.rank}.log"
        with suppress(OSError), path.open("rb") as file:
            end = os.fstat(file.fileno()).st_size if start.log_to is None else start.log_to
            file.seek(max(start.log_from, end - _LOG_KEPT))
            text = file.read(max(0, end - file.tell())).decode(errors="replace")
            return tuple(text.splitlines()[-_LOG_LINES_KEPT:])
        return ()

    def _beat(self, start: _Start, where: str | None) -> BeatEvidence:
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


def _shortest_limit() -> float | None:
    value = os.environ.get("KERNEL_PYTORCH_HANG_S")
    try:
        return float(value) if value else None
    except ValueError:
        raise ValueError(f"KERNEL_PYTORCH_HANG_S must be a number of seconds, got {value!r}") from None
