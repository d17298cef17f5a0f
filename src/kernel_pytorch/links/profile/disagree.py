"""What differs between calls that are carried out as one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from .join import Collective, named, short_site
from .record import CallRecord

_SAME_SHAPE = frozenset({"all_reduce", "reduce", "broadcast"})
_SAME_BYTES = frozenset({"all_gather", "reduce_scatter"})
"""Uneven parts are right in these, as long as the whole is the same for all."""
_ROOTED = frozenset({"broadcast", "reduce", "gather", "scatter"})
_REDUCES = frozenset({"all_reduce", "reduce", "reduce_scatter"})


@dataclass(frozen=True)
class Difference:
    """Between the calls of one collective."""

    field: str
    """operation, root, reduce operation, dtype, shape or number of bytes."""
    ranks: tuple[int, ...]
    """Those that differ from most of the others; all, if none is with most."""
    text: str
    """For people."""


def differences(each: Collective) -> Iterator[Difference]:
    """What differs, as far as the ranks must agree on it."""
    calls = each.calls
    operations = {rank: call.operation for rank, call in calls.items()}
    if len(set(operations.values())) > 1:
        yield from _minority("operation", each, operations)
        return
    operation = each.first.operation
    if operation in _ROOTED:
        yield from _minority("root", each, {rank: call.peer for rank, call in calls.items()})
    if operation in _REDUCES:
        yield from _minority("reduce operation", each, {rank: call.reduce for rank, call in calls.items()})
    yield from _minority("dtype", each, {rank: call.dtype for rank, call in calls.items() if call.dtype})
    if operation in _SAME_SHAPE:
        yield from _minority("shape", each, {rank: tuple(call.shape) for rank, call in calls.items()})
    elif operation in _SAME_BYTES:
        yield from _minority("number of bytes", each, {rank: call.nbytes for rank, call in calls.items()})


def _minority(field: str, each: Collective, values: Mapping[int, object]) -> Iterator[Difference]:
    counts = Counter(values.values()).most_common()
    if len(counts) < 2:
        return
    usual, most = counts[0]
    tie = counts[1][1] == most
    ranks = tuple(rank for rank, value in values.items() if tie or value != usual)
    told = [f"rank {rank} {_value(values[rank])}" for rank in ranks]
    told += [] if tie else [f"the others {_value(usual)}"]
    text = f"another {field} in {described(each.calls[ranks[0]])}: {', '.join(told)}"
    yield Difference(field, ranks, text)


def described(call: CallRecord) -> str:
    """For people: ``all_reduce 25 MB (train.py:88) of step 7``."""
    where = f" ({short_site(call.site)})" if call.site else ""
    step = f" of step {call.step}" if call.step else ""
    return f"{named(call.operation, call.nbytes)}{where}{step}"


def _value(value: object) -> str:
    return str(list(value)) if isinstance(value, tuple) else str(value)
