"""Tokens of a grid in the order of a Hilbert curve."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo

from ...kernels.hilbert import check_grid_shape, hilbert_order


class HilbertMixin(nn.Module):
    """For modules whose tokens stand on a grid, to be inherited from before other modules.

    The order is built at first use. It is a buffer that moves with the module and is not saved with it.
    """

    grid_shape: Sequence[int] | None = None
    """1 to 3 sides of the grid, whose cells are the tokens in row-major order; None: keep their order."""

    _hilbert_grid: tuple[int, ...] | None = None

    def apply_hilbert_ordering(self, tensor: Tensor, inverse: bool = False, dim: int = 1) -> Tensor:
        """The tokens of a whole sequence, from row-major order to that of the curve. Differentiable.

        Args:
            tensor: n along ``dim``, one for each cell of ``grid_shape``; any dtype.
            inverse: from the order of the curve back to row-major order.
            dim: where the sequence runs.

        Returns:
            A tensor like ``tensor``; without a grid, ``tensor`` itself.

        Raises:
            ValueError: n is not the number of cells, or there is no ``dim``.
        """
        if not -tensor.dim() <= dim < tensor.dim():
            raise ValueError(f"dim must be a dimension of the tensor, got {dim=}, shape {list(tensor.shape)}")
        order = self._hilbert_order_on(tensor.device)
        if order is None:
            return tensor
        if tensor.shape[dim] != len(order):
            raise ValueError(
                f"grid_shape must have one cell for each token, got {list(self.grid_shape or ())} = "
                f"{len(order)} cells, {tensor.shape[dim]} tokens along {dim=}"
            )
        if inverse:
            return torch.empty_like(tensor).index_copy(dim, order, tensor)
        return tensor.index_select(dim, order)

    def _hilbert_order_on(self, device: torch.device) -> Tensor | None:
        """``hilbert_order(grid_shape)`` on a device; None without a grid."""
        if self.grid_shape is None:
            return None
        grid = check_grid_shape(self.grid_shape)
        order = self._buffers.get("_hilbert_order")
        if order is None or order.device != device or self._hilbert_grid != grid:
            order = _order_on(grid, device)
            self.register_buffer("_hilbert_order", order, persistent=False)
            self._hilbert_grid = grid
        return order


@_disable_dynamo
def _order_on(grid_shape: tuple[int, ...], device: torch.device) -> Tensor:
    # What is kept outlives a caller's inference mode or transform.
    with torch.inference_mode(False), torch._C._DisableFuncTorch():
        return _shared_order(grid_shape).to(device)


@lru_cache(maxsize=8)
def _shared_order(grid_shape: tuple[int, ...]) -> Tensor:
    """One order for all layers of a model."""
    return hilbert_order(grid_shape)
