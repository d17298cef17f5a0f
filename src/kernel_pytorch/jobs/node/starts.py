"""The processes of a node's ranks, as each announced itself when it started."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..rank.beats import Beat

_LOG_KEPT = 1 << 16
_LOG_LINES_KEPT = 100


@dataclass
class Start:
    """One process of a rank: a restart makes another."""

    local_rank: int
    rank: int
    pid: int
    restart: int
    time_s: float
    log_from: int
    world: int = 1
    """Number of ranks with which it started."""
    log_to: int | None = None
    beat: Beat | None = None
    alive_s: float = 0.0
    """When it was last seen alive."""
    state: str | None = None
    """Then."""

    @property
    def beating_pid(self) -> int:
        return self.pid if self.beat is None else self.beat.pid

    def log_lines(self, log: Path) -> tuple[str, ...]:
        """The last lines that this process, and no earlier one of the rank, wrote to its log."""
        with suppress(OSError), log.open("rb") as file:
            end = os.fstat(file.fileno()).st_size if self.log_to is None else self.log_to
            file.seek(max(self.log_from, end - _LOG_KEPT))
            text = file.read(max(0, end - file.tell())).decode(errors="replace")
            return tuple(text.splitlines()[-_LOG_LINES_KEPT:])
        return ()


class Starts:
    """All starts of a node's ranks in one attempt.

    Args:
        folder: the ranks' ``$KERNEL_PYTORCH_BEATS``.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._by_local_rank: dict[int, list[Start]] = {}
        """The newest last."""

    def find(self) -> None:
        """Read those that are new. A restart must not be followed by another before the next call."""
        for name in os.listdir(self._folder):
            if found := re.fullmatch(r"started-([0-9]+)\.json", name):
                started = json.loads((self._folder / name).read_bytes())
                starts = self._by_local_rank.setdefault(int(found[1]), [])
                if not starts or starts[-1].time_s != started["time_s"]:
                    if starts and starts[-1].rank == started["rank"]:
                        starts[-1].log_to = started["log_from"]
                    starts.append(Start(local_rank=int(found[1]), **started))

    def newest(self) -> list[Start]:
        """The process of each rank that started last, in the order of local ranks."""
        return [starts[-1] for _, starts in sorted(self._by_local_rank.items())]

    def at(self, pids: Iterable[int]) -> list[Start]:
        """The process of each rank that ran when any of ``pids`` did; the newest if none is known."""
        wanted = set(pids)
        restarts = [start.restart for start in self._all() if start.pid in wanted]
        if not restarts:
            return self.newest()
        chosen = []
        for _, starts in sorted(self._by_local_rank.items()):
            chosen += [start for start in starts if start.restart <= max(restarts)][-1:]
        return chosen

    def with_pid(self, pid: int) -> Start | None:
        """The start of a process; None: it has not announced itself."""
        return next((start for start in self._all() if start.pid == pid), None)

    def _all(self) -> list[Start]:
        return [start for starts in self._by_local_rank.values() for start in starts]
