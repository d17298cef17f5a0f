"""Collectives that the ranks of a group submit in any order, by priority."""

from __future__ import annotations

import math
import operator
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, cast

from torch import Tensor
from torch.distributed import distributed_c10d

from ...groups import GroupError, in_process_group
from ..collectives.groups import Group, alone, make_group, timeout_of
from ..collectives.handle import Handle
from ..cost import expected_time
from ..facts import MeasuredLinks
from ..measure import home_of_this_rank
from ..methods import CommunicationPattern, Operation
from .channel import Answers, Desk, Said, Store
from .follow import Follower, coordinate
from .negotiate import Coordinator, Message, Submission
from .pieces import Piecewise, among
from .worker import Worker

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class CollectiveQueue:
    """What the ranks submit is carried out when all of its ranks have submitted it: the most urgent first, in
    chunks, so that something urgent waits for a chunk and not for all.

    All ranks make it together. Each then submits whenever and in whatever order it likes, from any thread. An
    operation that fails before anything of it was sent, because ranks disagree about it or do not submit it,
    fails alone. If messages were under way, nobody knows which of them still come, and the queue is broken:
    all that is left fails.
    """

    def __init__(
        self,
        process_group: ProcessGroup | None = None,
        *,
        links: MeasuredLinks | None = None,
        chunk_bytes: int = 1 << 20,
    ) -> None:
        """Make a group of its own. All ranks call this.

        Args:
            process_group: default: all ranks; without one, a rank is alone.
            links: of its ranks; those of rank 0 count. Default: hosts are found.
            chunk_bytes: of the largest chunk.

        Raises:
            GroupError: the ranks disagree, or one did not answer within the timeout.
            ValueError: ``chunk_bytes`` is not positive, or links of another number of ranks.
        """
        if chunk_bytes < 1:
            raise ValueError(f"chunk_bytes must be positive, got {chunk_bytes}")
        if process_group is not None or in_process_group():
            same = {"chunk_bytes": chunk_bytes}
            self._group = make_group(process_group, lambda: links, home_of_this_rank, same)
        else:
            self._group = alone(links)
        self.chunk_bytes = chunk_bytes
        self._closed = False
        self._follower: Follower | None = None
        if self._group.group is not None:
            self._start(self._group.group)

    def _start(self, group: ProcessGroup) -> None:
        self._patience_s = timeout_of(group).total_seconds()
        store = cast("Store", distributed_c10d._get_process_group_store(group))
        # A thread that waits for a store locks out others on the same connection: each has its own.
        said, answers = Said(store), Answers(store.clone(), self._group.place)
        # Longer than that of rank 0, which names who is missing.
        self._follower = Follower(self._group.place, said, answers, 2 * self._patience_s)
        actions = {"": self._follower.follow, ", watch": self._follower.watch}
        if self._group.place == 0:
            patience_s = 0.8 * self._patience_s
            coordinator = Coordinator(
                self._group.host_of, self.chunk_bytes, patience_s, _pattern_of(self._group, self.chunk_bytes)
            )
            desk = Desk(store.clone(), self._group.size, patience_s)
            actions[", rank 0"] = partial(coordinate, coordinator, desk)
        workers = {name: Worker(f"collective queue{name}") for name in actions}
        self._threads = {name: workers[name].submit(action) for name, action in actions.items()}
        # A thread that is in torch when Python ends would abort the process.
        self._stop = weakref.finalize(
            self, _stop, self._follower, self._group.place, self._threads, list(workers.values())
        )

    @property
    def group(self) -> Group:
        """Its ranks, hosts and links."""
        return self._group

    def submit(
        self,
        operation: Operation | str,
        tensor: Tensor,
        *,
        name: str,
        op: str = "sum",
        participants: Sequence[int] | None = None,
        priority: float = 1.0,
    ) -> Handle[Tensor]:
        """Have a collective carried out; return at once.

        Args:
            operation: by torch's name.
            tensor: of the same shape and dtype on all participants; [N, ...] but for an all-reduce. Must not
                be used before the operation is done.
            name: says which submissions belong together. Of several of the same name the first of one rank
                belongs to the first of the others, and so on.
            op: of an all-reduce or a reduce-scatter: sum, mean (of floats), max, min or product.
            participants: ranks in the group; default: all.
            priority: the higher, the more urgent. The highest that a rank says counts.

        Returns:
            A handle. Its result is ``tensor`` of an all-reduce, [P * N, ...] of an all-gather, this rank's
            rows of a reduce-scatter, and of an all-to-all the rows for this rank, by rank. It raises
            GroupError if the ranks disagree, or some of them do not submit the operation within the group's
            timeout, or fail.

        Raises:
            GroupError: the queue is broken or shut down.
            TypeError: a tensor that cannot be sent, or reduced; ``name`` is no string.
            ValueError: no such operation, this rank is no participant of it, or ``priority`` is not finite.
        """
        operation, ranks = Operation(operation), self._ranks(participants)
        # Rank 0 must be able to read what it is told.
        if not isinstance(name, str):
            raise TypeError(f"name must be a string, got {name!r}")
        if not math.isfinite(priority):
            raise ValueError(f"priority must be finite, got {priority}")
        piecewise = Piecewise(operation, tensor, op, among(self._group, ranks))
        if self._closed:
            raise GroupError(f"{operation.value} {name!r} cannot be submitted: the queue was shut down")
        if self._follower is None:
            done: Future[Tensor] = Future()
            done.set_result(piecewise.result())
            return Handle(done)

        def describe(serial: int) -> Submission:
            return Submission(
                serial=serial,
                name=name,
                operation=operation,
                op=op,
                dtype=str(tensor.dtype).removeprefix("torch."),
                shape=tuple(tensor.shape),
                nbytes=piecewise.nbytes,
                ranks=ranks,
                priority=float(priority),
            )

        return Handle(self._follower.submit(describe, piecewise))

    def busy(self, used: Mapping[int, float]) -> None:
        """Tell what share of hosts' links others use, from 0 to 1; until this rank says something else.

        Raises:
            GroupError: the queue is broken or shut down.
            ValueError: no such host, or a share that is not from 0 to 1.
        """
        told = [(operator.index(host), float(share)) for host, share in used.items()]
        count = len(self._group.links.hosts)
        if not all(0 <= host < count and 0 <= share <= 1 for host, share in told):
            raise ValueError(f"used must have shares from 0 to 1 of hosts from 0 to {count - 1}, got {used}")
        if self._follower is not None:
            self._follower.say(Message(rank=self._group.place, used=told))

    def shutdown(self) -> None:
        """Take nothing more, and wait until all that this rank submitted is done or has failed.

        Operations of other ranks that still wait for this one fail. Rank 0 also waits until the others have
        shut it down, but no longer than the group's timeout: then it ends for them.
        """
        self._closed = True
        if self._follower is None:
            return
        self._follower.leave()
        if (answering := self._threads.get(", rank 0")) is not None:
            wait([answering], self._patience_s)
        self._stop()

    def _ranks(self, participants: Sequence[int] | None) -> tuple[int, ...]:
        size, place = self._group.size, self._group.place
        ranks = tuple(range(size) if participants is None else sorted(set(map(operator.index, participants))))
        if not ranks or not all(0 <= rank < size for rank in ranks):
            raise ValueError(f"participants must be some of the ranks 0 to {size - 1}, got {participants}")
        if place not in ranks:
            raise ValueError(f"participants must include this rank, {place}, got {participants}")
        return ranks


def _pattern_of(group: Group, chunk_bytes: int) -> Callable[[Submission], CommunicationPattern]:
    """By expected time, once for all sizes between two powers of two."""
    found: dict[tuple[Operation, tuple[int, ...], int], CommunicationPattern] = {}

    def pattern_of(what: Submission) -> CommunicationPattern:
        nbytes = min(what.nbytes, chunk_bytes)
        key = what.operation, what.ranks, nbytes.bit_length()
        if key not in found:
            best = expected_time(
                "adaptive", what.operation, nbytes, group.links, participants=what.ranks, chunks=1
            )
            found[key] = best.pattern or CommunicationPattern.RING
        return found[key]

    return pattern_of


def _stop(
    follower: Follower, rank: int, threads: Mapping[str, Future[None]], workers: Sequence[Worker]
) -> None:
    """End the threads, whatever is pending, and tell the other ranks."""
    if not all(thread.done() for thread in threads.values()):
        with suppress(GroupError):
            follower.say(Message(rank=rank, leaving=True, ends=rank == 0))
    follower.wake(threads[""])
    for worker in workers:
        worker.close()
