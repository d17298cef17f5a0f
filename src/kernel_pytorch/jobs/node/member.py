"""The ranks of one node: starts and watches them, and does what the first node orders."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any

from ..folder import JobFolder
from ..rank.beats import Beats
from ..rank.gate import allow_restart
from . import health, stacks
from .agent import Agent, Launch, RankExit
from .devices import Devices
from .place import Place
from .watch import Watch

_LOOK_EVERY_S = 0.5
STALL_S = 2.0
"""How long after a restart was allowed a node whose ranks had all left may have started none."""

Report = dict[str, Any]


class Member:
    """A node's part in an attempt.

    Args:
        folder: the job's.
        job: content of its ``job.json``.
        place: which node this is.
        order: the first node's order ``begin``.
        address: by which the other nodes reach this one; None: it is alone.
        devices: for its ranks; None: they use no GPU.

    Raises:
        OSError: the ranks cannot be started.
    """

    def __init__(
        self,
        folder: JobFolder,
        job: Mapping[str, Any],
        place: Place,
        order: Mapping[str, Any],
        address: str | None,
        devices: Devices | None = None,
    ) -> None:
        self.folder, self.attempt, self.name = folder, order["attempt"], place.names[place.index]
        self._ranks_per_node: int = order["ranks_per_node"]
        self._most_ranks = order["nodes"][1] * self._ranks_per_node
        self.beats = _beats_folder(f"kernel-pytorch-{folder.id}-node-{place.index}-")
        self.agent = Agent(
            Launch(
                folder=folder.path,
                attempt=self.attempt,
                python=job["python"],
                nodes=(order["nodes"][0], order["nodes"][1]),
                ranks_per_node=order["ranks_per_node"],
                endpoint=order["endpoint"],
                local_address=address,
                is_host=place.index == 0,
                max_restarts=order["max_restarts"],
                beats=self.beats,
                checkpoint_every_s=order["checkpoint_every_s"],
                timeouts=order["timeouts"],
                environment=devices.environment if devices is not None else {},
                numa_binding=devices.numa_binding if devices is not None else None,
            )
        )
        self.watch = Watch(folder, self.attempt, self.beats, self.name)
        self.agent.start()
        self._exits: list[RankExit] = []
        self._restarting = False
        """Whether ranks of this node have failed, and torchrun has not started others yet."""
        self._excused: set[int] = set()
        """Processes of ranks that end, sooner or later, by the loss of another node."""
        self._late: frozenset[int] = frozenset()
        self._pids: dict[int, int] = {}
        self._restarts_allowed, self._failed_here = 0, False
        self._closing: frozenset[int] = frozenset()
        self._restart_awaited, self._stalls_at = False, 0.0
        self._stopping = False
        self._health: Thread | None = None
        self._to_tell: deque[Report] = deque()
        """Reports that are not about the ranks; the thread that reads the condition adds to them."""
        if devices is not None:
            self._to_tell.append({"kind": "note", "text": devices.note})
        self._ended = False
        self._look_at = 0.0
        self._seen: Report | None = None

    def reports(self, now: float) -> list[Report]:
        """What is new since the last call; ``now`` is monotonic."""
        found: list[Report] = []
        code = None if self._ended else self.agent.poll()
        while self._to_tell:
            found.append(self._to_tell.popleft())
        exits = self.agent.new_exits()
        if exits:
            self._restarting, self._late = True, frozenset()
        if exits := [each for each in exits if each.pid not in self._excused]:
            self._exits += exits
            self._failed_here = True
            self._ask_for_health()
            found.append({"kind": "failed", **self._evidence()})
        elif self.agent.closing - self._closing:
            found.append({"kind": "closing"})
        self._closing = self.agent.closing
        if code is not None:
            self._ended = True
            found.append({"kind": "ended", "code": code, **self._evidence()})
        if not self._ended and now >= self._look_at:
            self._look_at = now + _LOOK_EVERY_S
            found += self._look(now)
        return found

    def _look(self, now: float) -> list[Report]:
        seen = self.watch.look(self.agent.closing)
        found: list[Report] = []
        report = {
            "kind": "seen",
            "step": seen.step,
            "save_s": seen.save_s,
            "median_step_s": seen.median_step_s,
        }
        if report != self._seen:
            self._seen = report
            found.append(report)
        if seen.pids != self._pids:
            self._pids, self._restarting = dict(seen.pids), False
            found.append({"kind": "began"})
            if seen.world > self._most_ranks:
                self._start_again()  # torchrun had counted on ranks of the node that has left
            if self._stopping:
                self.stop()
        if self._restart_awaited:
            self._restart_awaited = self._all_left()
            if self._restart_awaited and now >= self._stalls_at:
                # torchrun waits for the others' to end as well, and starts none again.
                self._restart_awaited = False
                found.append({"kind": "stalled"})
        late = frozenset(seen.late)
        if late - self._late:
            found.append({"kind": "late", **self._evidence()})
        self._late = late
        return found

    def _all_left(self) -> bool:
        return self.watch.all_left(self.agent.closing | self.agent.failed)

    def _evidence(self, where: Mapping[int, str] | None = None) -> Report:
        evidence = self.watch.evidence(self._exits, self.agent, where=where or {})
        self._exits = []
        return {"evidence": evidence.to_dict()}

    def _ask_for_health(self) -> None:
        """Read the condition of this node meanwhile: drivers of broken devices take long to answer."""

        def ask() -> None:
            self._to_tell.append({"kind": "health", "text": health.evidence()})

        if self._health is None or not self._health.is_alive():
            self._health = Thread(target=ask, daemon=True)
            self._health.start()

    def stop(self) -> None:
        """Ask the ranks to stop; those that never called the interface get SIGTERM, as from a cluster."""
        self._stopping = True  # also those that start later
        beats = Beats(self.beats)
        beats.ask_to_stop()
        asked = {beat.pid for beat in beats.read().values()}
        for pid in self._ranks().values():
            if pid not in asked:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)

    def restart(self, nodes: int) -> None:
        """Have torchrun start the ranks again, without another node's, for which they might wait for long.

        Args:
            nodes: number that go on.
        """
        self._most_ranks = nodes * self._ranks_per_node
        self._start_again()

    def _start_again(self) -> None:
        ranks = self._ranks()
        self._excused.update(ranks.values())
        if not self._restarting or ranks != self._pids:
            self._count_restarts()  # those of before: the ranks that are killed now are one more
            for pid in ranks.values():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self._failed_here = True
        self.allow_restart()

    def allow_restart(self) -> None:
        """Let the ranks begin that torchrun has started again, and that wait for this.

        torchrun counts a restart where ranks failed, not on nodes that only start theirs again with them.
        """
        self._count_restarts()
        if self._restarts_allowed:
            allow_restart(self.beats, self._restarts_allowed)
        self._restart_awaited, self._stalls_at = True, time.monotonic() + STALL_S

    def _count_restarts(self) -> None:
        self._restarts_allowed = max(self._restarts_allowed + self._failed_here, self.watch.restart())
        self._failed_here = False

    def _ranks(self) -> Mapping[int, int]:
        return self.watch.look(self.agent.closing).pids

    def take_stacks(self) -> Report:
        """Write the stacks of all ranks of this node, which ends them; torchrun starts them again."""
        pids = self._ranks()
        where = stacks.take(pids, self.folder, self.attempt)
        return {"kind": "stacks", **self._evidence(where)}

    def end(self) -> None:
        """Leave no process of this node's ranks.

        Raises:
            OSError: one stays.
        """
        self.agent.kill()
        shutil.rmtree(self.beats, ignore_errors=True)


def _beats_folder(prefix: str) -> Path:
    """A new folder, in memory if there is such; those that killed programs of the node left are removed."""
    parent = Path("/dev/shm")
    if not os.access(parent, os.W_OK | os.X_OK):
        parent = Path(tempfile.gettempdir())
    for left in parent.glob(f"{prefix}*"):
        shutil.rmtree(left, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
