"""Error feedback: what a format lost of a gradient is added to the next one.

Seide et al. (Interspeech 2014), Karimireddy et al. (arXiv:1901.09847).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .wire import sum_dtype


class Feedback:
    """What was not delivered yet, by the number of the parameter."""

    def __init__(self, enabled: bool = True) -> None:
        """``enabled``: whether to keep anything."""
        self.enabled = enabled
        self.left: dict[int, Tensor] = {}
        """Flat, in float32 at least; of this rank: its mean over the ranks is missing from the averages."""
        self._waiting: set[int] = set()

    def offer(self, number: int, gradient: Tensor) -> Tensor:
        """What to send for a gradient: it and what is left, flat, in float32 at least; may share its memory.

        Nothing for a gradient of zeros: DDP drops the average of a parameter that no rank used, and what is
        left would be dropped with it.
        """
        flat = gradient.reshape(-1).to(sum_dtype(gradient.dtype))
        if number not in self.left:
            return flat
        if not flat.any():
            self._waiting.add(number)
            return flat
        return flat + self.left[number]

    def keep(self, number: int, lost: Tensor) -> None:
        """Remember what was not delivered of what was offered.

        What is not finite is not kept, but what was left before: the step of such gradients is skipped.
        """
        if not self.enabled:
            return
        before = self.left.get(number)
        if number in self._waiting:
            self._waiting.remove(number)
            lost = lost + self.left[number]
        self.left[number] = lost.where(lost.isfinite(), torch.zeros_like(lost) if before is None else before)
