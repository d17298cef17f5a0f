"""Which pattern a collective should have, as a dictionary for people and older callers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .cost import Expected, expected_times
from .facts import MeasuredLinks
from .methods import CompressionMethod, Operation


def operation_of(name: str) -> Operation:
    """An operation by torch's name, or by that without underscores.

    Raises:
        ValueError: there is none of that name.
    """
    for operation in Operation:
        if operation.value.replace("_", "") == str(getattr(name, "value", name)).lower().replace("_", ""):
            return operation
    raise ValueError(f"operation must be one of {', '.join(each.value for each in Operation)}, got {name}")


def whole_vector(operation: Operation, tensor_size: int, size: int) -> int:
    """Bytes of the vector that an operation is about, of those of the tensor that each of its ranks gives."""
    return tensor_size * size if operation is Operation.ALL_GATHER else tensor_size


def advice(
    operation: Operation,
    tensor_size: int,
    links: MeasuredLinks,
    participants: Sequence[int] | None = None,
    *,
    compression: CompressionMethod = CompressionMethod.NONE,
) -> dict[str, Any]:
    """What is expected to be the fastest.

    Args:
        operation: which one.
        tensor_size: bytes of the tensor that each participant gives.
        links: of the ranks.
        participants: ranks; default: all.
        compression: NONE, or ADAPTIVE: numbers of 32 bits may be sent as BF16, if that is expected to be
            faster.

    Returns:
        ``optimal_pattern`` (None for an all-to-all, which has none), ``chunk_size`` in bytes,
        ``compression_method``, ``expected_time_ms`` (None: a link that it needs was not measured), ``basis``
        (of the links) and ``alternatives``: the same of the other patterns, the fastest first.

    Raises:
        ValueError: a number is out of its range, or another compression.
    """
    if compression not in (CompressionMethod.NONE, CompressionMethod.ADAPTIVE):
        raise ValueError(f"compression must be none or adaptive, got {compression}")
    if tensor_size < 0:
        raise ValueError(f"tensor_size must not be negative, got {tensor_size}")
    size = links.size if participants is None else len(participants)
    nbytes = whole_vector(operation, tensor_size, size)
    method, found = (
        CompressionMethod.NONE,
        expected_times(operation, nbytes, links, participants=participants),
    )
    if compression == CompressionMethod.ADAPTIVE:
        half = expected_times(operation, -(-nbytes // 2), links, participants=participants, element_bytes=2.0)
        if half[0].seconds is not None and half[0].seconds < (found[0].seconds or 0.0):
            method, found, nbytes = CompressionMethod.BF16, half, -(-nbytes // 2)
    best, *others = [_as_dict(each, nbytes) for each in found]
    return {
        **best,
        "compression_method": method,
        "basis": links.basis,
        "alternatives": others,
    }


def _as_dict(found: Expected, nbytes: int) -> dict[str, Any]:
    return {
        "optimal_pattern": found.pattern,
        "chunk_size": -(-nbytes // found.chunks),
        "expected_time_ms": None if found.seconds is None else found.seconds * 1e3,
    }
