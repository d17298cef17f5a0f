"""Matrices as the product of two thin ones: PowerSGD (Vogels et al., arXiv:1905.13727).

Letters: a matrix M ``[n, m]`` is approximated by P Q^T: P ``[n, r]`` with orthonormal columns, Q ``[m, r]``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor

from .blockwise import generator
from .feedback import Feedback
from .rounds import Rounds, Turn, whole


def send_low_rank(
    gradients: Mapping[int, Tensor], rank: int, factors: dict[int, Tensor], feedback: Feedback, turn: Turn
) -> Rounds[None]:
    """Replace gradients by approximations of their averages.

    One step of subspace iteration, from the Q of the last time: P = M Q, averaged and made orthonormal, then
    Q = M^T P, averaged.

    Args:
        gradients: by the number of the parameter; matrices, of which n is the first dimension.
        rank: r.
        factors: Q by the number of the parameter, the same on all ranks; changed.
        feedback: of this rank.
        turn: of this rank.
    """
    matrices = {i: feedback.offer(i, g).view(g.shape[0], -1) for i, g in gradients.items()}
    for i, matrix in matrices.items():
        if i not in factors:
            factors[i] = start(matrix, rank, (turn.seed, i))
    sums = yield from _means([m @ orthonormal(factors[i]) for i, m in matrices.items()], turn)
    left = [orthonormal(p) for p in sums]
    right = yield from _means([m.T @ p for m, p in zip(matrices.values(), left, strict=True)], turn)
    for (i, matrix), p, q in zip(matrices.items(), left, right, strict=True):
        approximation = p @ q.T
        lost = (matrix - approximation).view(-1)
        gradients[i].copy_(approximation.view_as(gradients[i]))
        feedback.keep(i, lost)
        if q.isfinite().all():
            factors[i] = q


def start(matrix: Tensor, rank: int, key: tuple[int, ...]) -> Tensor:
    """A random Q for a matrix; the same for the same key."""
    cpu = torch.device("cpu")
    drawn = torch.randn(matrix.shape[1], rank, generator=generator(key, cpu), dtype=matrix.dtype)
    return drawn.to(matrix.device)


def orthonormal(matrix: Tensor) -> Tensor:
    """Orthonormal columns that span those of a tall matrix; of finite numbers only, whatever it holds."""
    q, _ = torch.linalg.qr(matrix.nan_to_num(0.0, 0.0, 0.0))
    return cast("Tensor", q)


def saves(shape: torch.Size, rank: int) -> bool:
    """Whether two thin matrices take half as much as the whole one, or less."""
    n, m = shape[0], shape[1:].numel()
    return 2 * rank * (n + m) <= n * m


def _means(matrices: list[Tensor], turn: Turn) -> Rounds[list[Tensor]]:
    mean = yield from whole(torch.cat([matrix.reshape(-1) for matrix in matrices]), turn)
    parts = torch.split(mean, [matrix.numel() for matrix in matrices])
    return [part.view_as(matrix) for part, matrix in zip(parts, matrices, strict=True)]
