"""What a rank computes with the fused Triton kernels: every block is merged in the kernel's epilogue."""

from __future__ import annotations

from torch import Tensor

from ...kernels.problem import Problem, Tile
from ...kernels.triton.attention import partial_backward, partial_forward
from ...kernels.triton.visits import WHOLE
from ..computation import KeyValue, Part, Saved, tile_rows
from ..schedule import Block

# One segment that holds everything: a block's queries see all of its keys, causality aside.
_EVERYTHING = ((WHOLE, 1),)


class TritonKernels:
    """See :class:`~dilated_attention_pytorch.ring_attention.computation.Kernels`."""

    def cast(self, x: Tensor) -> Tensor:
        return x

    forward = staticmethod(partial_forward)
    backward = staticmethod(partial_backward)

    def absorb(
        self,
        query: Tensor,
        out: Tensor,
        lse: Tensor,
        block: Block,
        rows_kv: KeyValue,
        padding: Tensor | None,
        part: Part,
        owner: int,
    ) -> None:
        key, value = (x.transpose(1, 2) for x in rows_kv)
        for tile in block.queries:
            partial_forward(
                _rows(tile, query),
                key,
                value,
                _problem(part, padding),
                times=_times(tile, block, part, owner),
                into=(_rows(tile, out), _rows(tile, lse).transpose(1, 2)),
            )

    def absorb_backward(
        self,
        saved: Saved,
        grad_query: Tensor,
        block: Block,
        rows_kv: KeyValue,
        padding: Tensor | None,
        part: Part,
        owner: int,
    ) -> KeyValue:
        grad_out, query, out, lse = saved
        key, value = (x.transpose(1, 2) for x in rows_kv)
        grad_key, grad_value = (x.new_zeros(x.shape, dtype=grad_query.dtype) for x in (key, value))
        for tile in block.queries:
            _, *found = partial_backward(
                _rows(tile, grad_out),
                _rows(tile, query),
                key,
                value,
                _rows(tile, out),
                _rows(tile, lse.transpose(1, 2)).transpose(1, 2),
                _problem(part, padding),
                times=_times(tile, block, part, owner),
                into=_rows(tile, grad_query),
            )
            grad_key += found[0]
            grad_value += found[1]
        return grad_key.transpose(1, 2), grad_value.transpose(1, 2)


def _rows(tile: Tile, x: Tensor) -> Tensor:
    """``x [b, n, h, ...]`` -> ``[b, rows, h', ...]``, a view."""
    return tile.take(x, tile.heads.query)[:, 0]


def _problem(part: Part, padding: Tensor | None) -> Problem:
    return Problem(_EVERYTHING, part.order is not None, part.problem.scale, padding)


def _times(tile: Tile, block: Block, part: Part, owner: int) -> tuple[Tensor, Tensor] | None:
    if part.order is None:
        return None
    return tile_rows(tile, part.times(part.rank)), tile_rows(block.keys, part.times(owner))
