"""The time that collectives take, by operation, size and pattern, beside what was expected of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
import torch
import torch.distributed as dist

from ...groups import GroupError, tell_all
from ..choose import COMPARED_EVERY, Chooser
from ..cost import expected_time, expected_times
from ..methods import PATTERNS, CommunicationPattern, Operation
from ..profile.join import bus_factor
from .collectives import Collectives
from .counters import TimedCollective

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def timed_collectives(
    collectives: Collectives,
    process_group: ProcessGroup,
    operations: Sequence[Operation],
    sizes: Sequence[int],
    calls: int,
) -> Iterator[list[TimedCollective]]:
    """Time all patterns of each operation and size, in turns. All ranks call this, and get the same.

    Args:
        collectives: of the group.
        process_group: two ranks or more; nothing else may use it meanwhile.
        operations: which.
        sizes: in bytes; rounded up to an element of each rank.
        calls: of each pattern; one more goes first and is not counted.

    Raises:
        GroupError: a rank failed or did not answer.
    """
    size, links = dist.get_world_size(process_group), collectives.group.links
    for operation in operations:
        for wanted in sizes:
            rows = -(-wanted // (4 * size))
            nbytes = 4 * size * rows
            made = _calls(collectives, operation, size, rows)
            found: dict[CommunicationPattern | None, list[float]] = {pattern: [] for pattern in made}
            for turn in range(calls + 1):
                for pattern, call in made.items():
                    try:
                        dist.barrier(group=process_group)
                    except RuntimeError as error:
                        raise GroupError(f"a rank failed or did not answer: {error}") from error
                    begin = time.perf_counter()
                    call()
                    if turn:
                        found[pattern].append(time.perf_counter() - begin)
            times = _slowest(found, process_group)
            if operation is Operation.ALL_TO_ALL:
                one = expected_time(CommunicationPattern.ADAPTIVE, operation, nbytes, links)
                expected: dict[CommunicationPattern | None, float | None] = {None: one.seconds}
                chosen = None
            else:
                expected = {each.pattern: each.seconds for each in expected_times(operation, nbytes, links)}
                chosen = _chosen({pattern: expected[pattern] for pattern in PATTERNS}, times)
            factor = bus_factor(operation.value, size) or 1.0
            yield [
                TimedCollective(
                    operation=operation,
                    nbytes=nbytes,
                    pattern=pattern,
                    seconds=seconds,
                    algbw_gbyte_s=nbytes / seconds * 1e-9,
                    busbw_gbyte_s=nbytes / seconds * 1e-9 * factor,
                    expected_s=expected[pattern],
                    chosen=pattern is chosen,
                )
                for pattern, seconds in times.items()
            ]


def _calls(
    collectives: Collectives, operation: Operation, size: int, rows: int
) -> dict[CommunicationPattern | None, Callable[[], Any]]:
    """A synchronous call by pattern."""
    if operation is Operation.ALL_TO_ALL:
        whole, sizes = torch.zeros(size * rows), [rows] * size
        return {None: lambda: collectives.all_to_all(whole, sizes, sizes).result()}
    mine, vector = torch.zeros(rows), torch.zeros(size * rows)
    out = [torch.zeros(rows) for _ in range(size)]

    def call(pattern: CommunicationPattern) -> None:
        if operation is Operation.ALL_GATHER:
            collectives.all_gather(mine, out, pattern=pattern).wait()
        elif operation is Operation.REDUCE_SCATTER:
            collectives.reduce_scatter(vector, pattern=pattern).wait()
        else:
            collectives.all_reduce(vector, pattern=pattern).wait()

    return {pattern: partial(call, pattern) for pattern in PATTERNS}


def _slowest(
    found: Mapping[CommunicationPattern | None, list[float]], group: ProcessGroup
) -> dict[CommunicationPattern | None, float]:
    """The median over the calls of the slowest rank's time."""
    mine = list(found.values())
    told = tell_all(lambda: msgspec.json.encode(mine), group, what="tell its times")
    of_ranks = [msgspec.json.decode(answer, type=list[list[float]]) for answer in told]
    return {
        pattern: statistics.median(map(max, zip(*(times[number] for times in of_ranks), strict=True)))
        for number, pattern in enumerate(found)
    }


def _chosen(
    expected: Mapping[CommunicationPattern, float | None],
    times: Mapping[CommunicationPattern | None, float],
) -> CommunicationPattern:
    """What a chooser ends with if calls take these times."""
    chooser, agreed = Chooser(expected), None
    for _ in range(COMPARED_EVERY):
        if chooser.due and agreed is not None:
            chooser.agreed(agreed)
        agreed = chooser.took(times[chooser.next().pattern]) or agreed
    return chooser.next().pattern
