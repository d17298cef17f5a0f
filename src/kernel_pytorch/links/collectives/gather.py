"""All-gather, reduce-scatter and all-to-all of tensors whose first dimensions may differ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from ...groups import GroupError
from ..methods import CommunicationPattern, Operation
from .carry import Carrier
from .dense import check, check_writable, flat
from .groups import Group
from .handle import Handle
from .steps import split

_MOST_DIMENSIONS = 16
_DTYPES = [
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128),
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool),
]


class DisagreementError(GroupError):
    """The tensors of the ranks do not fit together."""


def check_outputs(tensor: Tensor, out: Sequence[Tensor] | None, group: Group) -> None:
    """Refuse outputs that cannot take what all ranks have.

    Raises:
        ValueError: another number, dtype or, for this rank, shape.
    """
    if tensor.dim() > _MOST_DIMENSIONS:
        raise ValueError(f"tensor must have at most {_MOST_DIMENSIONS} dimensions, got {tensor.dim()}")
    if out is None:
        return
    if len(out) != group.size:
        raise ValueError(f"gather_list must have a tensor for each rank, {group.size}, got {len(out)}")
    for each in out:
        check(each)
        check_writable(each)
        if each.dtype != tensor.dtype:
            raise ValueError(f"gather_list must have the dtype of tensor, {tensor.dtype}, got {each.dtype}")
    if out[group.place].shape != tensor.shape:
        raise ValueError(
            f"gather_list must have this rank's shape, {tuple(tensor.shape)}, "
            f"got {tuple(out[group.place].shape)}"
        )


def check_sizes(sizes: Sequence[int] | None, size: int, name: str, total: int | None = None) -> None:
    """Refuse sizes that are not one for each rank.

    Raises:
        ValueError: another number, a negative one, or another sum than ``total``.
    """
    if sizes is None:
        return
    if len(sizes) != size or min(sizes) < 0:
        raise ValueError(f"{name} must be a number of rows for each of {size} ranks, got {list(sizes)}")
    if total is not None and sum(sizes) != total:
        raise ValueError(f"{name} must sum to the rows of tensor, {total}, got {list(sizes)}")


def rows_of(tensor: Tensor, sizes: Sequence[int] | None, size: int) -> list[int]:
    """How many rows each rank gets: ``sizes``, or as equally many as possible.

    Raises:
        ValueError: as of :func:`check_sizes`, or ``tensor`` has no rows.
    """
    if tensor.dim() == 0:
        raise ValueError("tensor must have rows, got a scalar")
    check_sizes(sizes, size, "sizes", len(tensor))
    return list(sizes) if sizes is not None else [end - begin for begin, end in split(len(tensor), size)]


def shares_of(tensor: Tensor, sizes: Sequence[int] | None, size: int) -> list[int]:
    """How many rows of this rank each gets: ``sizes``, or equally many.

    Raises:
        ValueError: as of :func:`check_sizes`, or there are no equal shares.
    """
    if tensor.dim() == 0:
        raise ValueError("tensor must have rows, got a scalar")
    check_sizes(sizes, size, "input_sizes", len(tensor))
    if sizes is None and len(tensor) % size:
        raise ValueError(
            f"tensor has {len(tensor)} rows, which {size} ranks cannot share equally: give input_sizes"
        )
    return list(sizes) if sizes is not None else [len(tensor) // size] * size


def placed(found: list[Tensor], out: Sequence[Tensor] | None) -> list[Tensor]:
    """``found``, or ``out`` with its values."""
    if out is None:
        return found
    for target, source in zip(out, found, strict=True):
        target.detach().copy_(source)
    return list(out)


def with_rows(tensor: Tensor) -> Tensor:
    """The tensor, if it has a first dimension.

    Raises:
        ValueError: it is a scalar.
    """
    if isinstance(tensor, Tensor) and tensor.dim() == 0:
        raise ValueError("tensor must have rows, got a scalar")
    return tensor


async def joined(handle: Handle[list[Tensor]]) -> Tensor:
    """What an all-gather collects, one after the other along the first dimension."""
    return torch.cat(await handle.awaited())


def all_gather(
    carrier: Carrier, tensor: Tensor, out: Sequence[Tensor] | None, pattern: CommunicationPattern | None
) -> list[Tensor]:
    """On the worker. The result is in one piece of memory, if ``out`` is not given."""
    shapes = _shapes(carrier, tensor) if out is None else [tuple(each.shape) for each in out]
    edges = [0, *accumulate(math.prod(shape) for shape in shapes)]
    values = tensor.new_empty(edges[-1])
    place = carrier.group.place
    values[edges[place] : edges[place + 1]].copy_(flat(tensor))
    carrier.carry(Operation.ALL_GATHER, values, edges, pattern=pattern)
    found = [
        values[begin:end].view(shape) for begin, end, shape in zip(edges, edges[1:], shapes, strict=False)
    ]
    return placed(found, out)


def reduce_scatter(
    carrier: Carrier, tensor: Tensor, op: str, sizes: Sequence[int], pattern: CommunicationPattern | None
) -> Tensor:
    """On the worker."""
    row = math.prod(tensor.shape[1:])
    edges = [0, *accumulate(rows * row for rows in sizes)]
    values = flat(tensor)
    if values.data_ptr() == tensor.data_ptr():
        values = values.clone()
    carrier.carry(Operation.REDUCE_SCATTER, values, edges, "sum" if op == "mean" else op, pattern)
    place = carrier.group.place
    mine = values[edges[place] : edges[place + 1]].clone().view(sizes[place], *tensor.shape[1:])
    return mine.div_(carrier.group.size) if op == "mean" else mine


def all_to_all(
    carrier: Carrier, tensor: Tensor, input_sizes: Sequence[int], output_sizes: Sequence[int] | None
) -> Tensor:
    """On the worker."""
    place = carrier.group.place
    if output_sizes is None:
        output_sizes = [told[place] for told in _told(carrier, list(input_sizes), tensor.device)]
    values = flat(tensor).view(tensor.shape)
    out = tensor.new_empty(sum(output_sizes), *tensor.shape[1:])
    sends = [each.reshape(-1) for each in torch.split(values, list(input_sizes))]
    receives = [each.view(-1) for each in torch.split(out, list(output_sizes))]
    carrier.exchange(sends, receives)
    return out


def _shapes(carrier: Carrier, tensor: Tensor) -> list[tuple[int, ...]]:
    """Of all ranks."""
    dtype = _DTYPES.index(tensor.dtype) if tensor.dtype in _DTYPES else -1
    mine = [dtype, tensor.element_size(), tensor.dim(), *tensor.shape]
    told = _told(carrier, mine + [0] * (_MOST_DIMENSIONS + 3 - len(mine)), tensor.device)
    shapes = [tuple(each[3 : 3 + each[2]]) for each in told]
    for place, (each, shape) in enumerate(zip(told, shapes, strict=True)):
        if each[:3] != told[0][:3] or shape[1:] != shapes[0][1:]:
            raise DisagreementError(
                f"all_gather among global ranks {list(carrier.group.ranks)}: only the first dimension may "
                f"differ, got {_named(told[0])} on rank {carrier.group.ranks[0]} and {_named(each)} on rank "
                f"{carrier.group.ranks[place]}"
            )
    return shapes


def _named(told: Sequence[int]) -> str:
    dtype = f"{8 * told[1]} bits" if told[0] < 0 else str(_DTYPES[told[0]]).removeprefix("torch.")
    return f"{dtype} {list(told[3 : 3 + told[2]])}"


def _told(carrier: Carrier, mine: list[int], device: torch.device) -> list[list[int]]:
    """The equally long lists of all ranks."""
    size, place, count = carrier.group.size, carrier.group.place, len(mine)
    values = torch.zeros(size * count, dtype=torch.int64, device=device)
    values[place * count : (place + 1) * count] = torch.tensor(mine)
    edges = range(0, size * count + 1, count)
    carrier.carry(
        Operation.ALL_GATHER,
        values,
        edges,
        pattern=CommunicationPattern.HIERARCHICAL,
        why="the ranks tell each other their shapes",
    )
    return [list(map(int, row)) for row in values.view(size, count).tolist()]
