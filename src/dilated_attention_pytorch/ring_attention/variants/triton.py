"""What a rank computes with the fused Triton kernels: every block is merged in the kernel's epilogue."""

from __future__ import annotations

from torch import Tensor

from ...kernels.problem import Problem, Tile
from ...kernels.triton.attention import partial_backward, partial_forward
from ...kernels.triton.visits import WHOLE
from ..computation import KeyValue, Offer, Saved, tile_rows

# One segment that holds everything: an offer's queries see all of its keys, causality aside.
_EVERYTHING = ((WHOLE, 1),)


class TritonKernels:
    """See :class:`~dilated_attention_pytorch.ring_attention.computation.Kernels`."""

    def cast(self, x: Tensor) -> Tensor:
        return x

    forward = staticmethod(partial_forward)
    backward = staticmethod(partial_backward)

    def absorb(self, query: Tensor, out: Tensor, lse: Tensor, offer: Offer, scale: float) -> None:
        key, value = offer.key.transpose(1, 2), offer.value.transpose(1, 2)
        for tile, times in offer.queries:
            problem = Problem(_EVERYTHING, times is not None, scale, offer.ignored)
            into = _rows(tile, out), _lse_rows(tile, lse)
            partial_forward(_rows(tile, query), key, value, problem, times=times, into=into)

    def absorb_backward(self, saved: Saved, grad_query: Tensor, offer: Offer, scale: float) -> KeyValue:
        grad_out, query, out, lse = saved
        key, value = offer.key.transpose(1, 2), offer.value.transpose(1, 2)
        grad_key, grad_value = (x.new_zeros(x.shape, dtype=grad_query.dtype) for x in (key, value))
        for tile, times in offer.queries:
            _, *found = partial_backward(
                _rows(tile, grad_out),
                _rows(tile, query),
                key,
                value,
                _rows(tile, out),
                _lse_rows(tile, lse),
                Problem(_EVERYTHING, times is not None, scale, offer.ignored),
                times=times,
                into=_rows(tile, grad_query),
            )
            grad_key += found[0]
            grad_value += found[1]
        return grad_key.transpose(1, 2), grad_value.transpose(1, 2)


def _rows(tile: Tile, x: Tensor) -> Tensor:
    """``x [b, n, h, d]`` -> ``[b, rows, h', d]``, a view."""
    return tile.take(x, tile.heads.query)[:, 0]


def _lse_rows(tile: Tile, lse: Tensor) -> Tensor:
    """``lse [b, h, n]`` -> ``[b, h', rows]``, a view."""
    return tile_rows(tile, lse[:, tile.heads.query])
