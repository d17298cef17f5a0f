"""Activations computed again in the backward pass, in place of being kept. Imports torch."""

from __future__ import annotations

import math
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from ..analysis.patterns import repeated_blocks
from ..analysis.structure import watch_copy
from ..facts import Expectation, Level, ModelFacts
from ..sample import Sample
from .compile import Compiled
from .estimates import compile_seconds, excess
from .listing import assigned, text_of
from .protocol import Base

SHARES = (0.25, 0.5, 0.75, 1.0)
BUDGETS = (0.5, 0.2)
SAVED = 0.9
"""Share of a call's peak that its blocks' activations are: 1, 2, 4 of 4 blocks gave 0.77, 0.54, 0.32."""
DOUBT = 0.8
"""What is estimated at less than this over the limit is tried."""


def checkpoint_blocks(model: nn.Module, paths: list[str]) -> None:
    """Keep of each of these submodules its inputs alone, and run it again for the backward pass."""

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return checkpoint(self._forward_once, *args, use_reentrant=False, **kwargs)

    for path in paths:
        block = model.get_submodule(path)
        kind = type(block)
        names = {"forward": forward, "_forward_once": kind.forward, "__module__": kind.__module__}
        block.__class__ = type(kind.__name__, (kind,), names)


def is_checkpointed(block: nn.Module) -> bool:
    """Whether :func:`checkpoint_blocks` changed it."""
    return hasattr(block, "_forward_once")


def number_of_blocks(share: float, blocks: int) -> int:
    """How many of the blocks a share of them is, at least one."""
    return math.ceil(share * blocks)


class Checkpointing(Base):
    """Of a share of the repeated blocks, the first ones."""

    level: Level = "balanced"

    def __init__(self, share: float) -> None:
        self.share, self._paths = share, [""]
        self.name = f"checkpointing of {share:.0%} of the blocks"

    def applies(self, facts: ModelFacts) -> Expectation | str:
        blocks = len(facts.structure.repeated_blocks)
        reason = _why_not(facts)
        if reason:
            return reason
        if not blocks:
            return "no equal blocks that run one after the other"
        number = number_of_blocks(self.share, blocks)
        smaller = [share for share in SHARES if share < self.share]
        if smaller and number_of_blocks(smaller[-1], blocks) == number:
            return f"of {blocks} blocks it is as many as {smaller[-1]:.0%}"
        ratio = 1 - SAVED * number / blocks * (blocks / (blocks + 1) if number == blocks else 1)
        if ratio * DOUBT * (excess(facts) or 1.0) > 1 and self.share < SHARES[-1]:
            return f"about {ratio:.2f} of the peak are still more than the memory allowed (an estimate)"
        return Expectation(
            gain=1 - 0.25 * number / blocks,
            reason=f"{number} of {blocks} blocks: about {ratio:.2f} of the peak, for a second forward pass",
            seconds=3.0,
        )

    def apply(self, model: nn.Module, sample: Sample) -> nn.Module:
        """
        Raises:
            ValueError: a call of a copy of the model shows no such blocks.
        """
        watched = watch_copy(model, sample)
        blocks = () if watched is None else repeated_blocks(model, watched)
        if not blocks:
            raise ValueError("no equal blocks that run one after the other")
        first = blocks[: number_of_blocks(self.share, len(blocks))]
        self._paths = [path for path in first if not is_checkpointed(model.get_submodule(path))]
        checkpoint_blocks(model, self._paths)
        return model

    def source(self) -> list[str]:
        return [
            "from typing import Any",
            "from torch import nn",
            "from torch.utils.checkpoint import checkpoint",
            *text_of(checkpoint_blocks),
            *assigned("paths", self._paths),
            "checkpoint_blocks(model, paths)",
        ]


class MemoryBudget(Compiled):
    """torch.compile keeps a share of the activations, those that cost most to compute again."""

    def __init__(self, budget: float) -> None:
        super().__init__()
        self.budget = budget
        self.name = f"compile budget {budget}"

    def hope(self, facts: ModelFacts) -> Expectation | str:
        reason = _why_not(facts)
        if reason:
            return reason
        ratio = {0.5: 0.36, 0.2: 0.25}.get(self.budget, self.budget)
        if ratio * DOUBT * (excess(facts) or 1.0) > 1 and self.budget > BUDGETS[-1]:
            return f"about {ratio:.2f} of the peak are still more than the memory allowed (an estimate)"
        return Expectation(
            gain=0.9,
            reason=f"about {ratio:.2f} of the peak (it is not monotone)",
            seconds=compile_seconds(facts),
        )

    def changes(self, model: nn.Module, sample: Sample) -> dict[str, Any]:
        return {"memory_budget": self.budget}


def _why_not(facts: ModelFacts) -> str:
    if not facts.training:
        return "inference keeps no activations"
    over = excess(facts)
    if over is None:
        return "it is not known whether the call fits in the memory"
    return "" if over > 1 else "the call fits in the memory"
