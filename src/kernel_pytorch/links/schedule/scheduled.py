"""Operations that a program has scheduled, and what became of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...groups import in_process_group
from ..advice import operation_of
from ..facts import MeasuredLinks
from ..place import check_place

if TYPE_CHECKING:
    from torch import Tensor

    from ..collectives.handle import Handle
    from .queue import CollectiveQueue


@dataclass
class Scheduled:
    """One operation."""

    operation_id: str
    operation_type: str
    participants: list[int]
    tensor_size: int
    priority: float
    optimization: dict[str, Any]
    handle: Handle[Tensor] | None
    since: float
    done_at: float | None = None
    """When it was first seen to be done."""

    def update(self, now: float) -> None:
        """See whether it is done."""
        if self.done_at is None and self.handle is not None and self.handle.is_completed():
            self.done_at = now

    @property
    def failed(self) -> bool:
        """Whether it is done, and did not succeed."""
        if self.done_at is None or self.handle is None:
            return False
        try:
            self.handle.wait(0)
        except Exception:  # who has the handle gets it
            return True
        return False


class Schedule:
    """The operations of one scheduler, on a queue if there is a process group."""

    def __init__(
        self,
        world_size: int,
        links: MeasuredLinks,
        advise: Callable[[str, int, Sequence[int]], dict[str, Any]],
    ) -> None:
        """All ranks make it together.

        Args:
            world_size: number of ranks.
            links: between them; with the basis default, the queue finds the hosts.
            advise: what is best for an operation, a size in bytes and participants.

        Raises:
            As :class:`.CollectiveQueue`; ValueError: the process group has another number of ranks.
        """
        self._advise, self._all = advise, list[Scheduled]()
        self._queue: CollectiveQueue | None = None
        if in_process_group() or world_size == 1:
            from .queue import CollectiveQueue

            check_place(world_size)
            self._queue = CollectiveQueue(links=None if links.basis == "default" else links)

    def submit(
        self,
        operation_id: str,
        operation_type: str,
        participants: Sequence[int],
        tensor_size: int,
        priority: float,
        tensor: Tensor | None,
    ) -> dict[str, Any]:
        """See :meth:`.BandwidthAwareScheduler.schedule_communication`."""
        operation = operation_of(operation_type)
        optimization = self._advise(operation_type, tensor_size, participants)
        before = [
            each.optimization["expected_time_ms"]
            for each in self._active()
            if each.priority >= priority and not set(each.participants).isdisjoint(participants)
        ]
        handle = None
        if tensor is not None:
            if self._queue is None:
                raise RuntimeError(
                    "a tensor needs a process group: call torch.distributed.init_process_group before the "
                    "scheduler is made"
                )
            from ..collectives.dense import check

            check(tensor)
            nbytes = tensor.numel() * tensor.element_size()
            if nbytes != tensor_size:
                raise ValueError(f"tensor_size is {tensor_size}, and tensor has {nbytes} bytes")
            handle = self._queue.submit(
                operation, tensor, name=operation_id, participants=participants, priority=priority
            )
        self._all.append(
            Scheduled(
                operation_id=operation_id,
                operation_type=operation_type,
                participants=list(participants),
                tensor_size=tensor_size,
                priority=priority,
                optimization=optimization,
                handle=handle,
                since=time.monotonic(),
            )
        )
        return {
            "schedule_time_ms": None if None in before else float(sum(before)),
            "optimization": optimization,
            "handle": handle,
        }

    def busy(self, levels: Mapping[tuple[int, int], float]) -> None:
        """Tell the queue how much of the links between the hosts of pairs of ranks others use."""
        if self._queue is None:
            return
        used: dict[int, float] = {}
        for pair, share in levels.items():
            for rank in pair:
                host = self._queue.group.host_of[rank]
                used[host] = max(used.get(host, 0.0), share)
        self._queue.busy(used)

    def active(self) -> list[dict[str, Any]]:
        """What was submitted with a tensor, and is not done."""
        return [
            {
                "operation_id": each.operation_id,
                "operation_type": each.operation_type,
                "participants": each.participants,
                "tensor_size": each.tensor_size,
                "priority": each.priority,
                "expected_time_ms": each.optimization["expected_time_ms"],
                "age_ms": (time.monotonic() - each.since) * 1e3,
            }
            for each in self._active()
        ]

    def counts(self) -> dict[str, int]:
        """Numbers of operations that are not forgotten; pending are those without a tensor."""
        active = len(self._active())
        done = [each for each in self._all if each.done_at is not None]
        failed = sum(each.failed for each in done)
        return {
            "total_scheduled": len(self._all),
            "pending": len(self._all) - active - len(done),
            "active": active,
            "completed": len(done) - failed,
            "failed": failed,
        }

    def advised_anew(self) -> dict[str, dict[str, Any]]:
        """By id, what is best now for operations that are not done, where it has changed."""
        self._active()
        changed = {}
        for each in self._all:
            if each.done_at is None:
                found = self._advise(each.operation_type, each.tensor_size, each.participants)
                if found != each.optimization:
                    changed[each.operation_id] = each.optimization = found
        return changed

    def forget(self, retention_hours: float) -> int:
        """See :meth:`.BandwidthAwareScheduler.clear_completed_operations`."""
        self._active()
        now, seconds = time.monotonic(), retention_hours * 3600
        left = [each for each in self._all if each.handle is not None or now - each.since < seconds]
        self._all = [each for each in left if each.done_at is None or now - each.done_at < seconds]
        return len(left) - len(self._all)

    def shutdown(self) -> None:
        """See :meth:`.CollectiveQueue.shutdown`."""
        if self._queue is not None:
            self._queue.shutdown()

    def _active(self) -> list[Scheduled]:
        now = time.monotonic()
        for each in self._all:
            each.update(now)
        return [each for each in self._all if each.handle is not None and each.done_at is None]
