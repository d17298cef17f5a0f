"""torch.compile: the whole model, block by block, or for any length. Imports torch."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..analysis.patterns import repeated_blocks
from ..analysis.structure import watch_copy
from ..facts import Expectation, Level, ModelFacts
from ..sample import Sample
from .compiling import compile_with
from .estimates import block_compile_seconds, compile_seconds
from .protocol import Base

MANY_BLOCKS = 6
"""From here on, compiling one block for all comes first."""


class Compiled(Base):
    """What all strategies that compile have in common."""

    level: Level = "balanced"
    needs: tuple[str, ...] = ("compiler",)

    def __init__(self) -> None:
        self._lines: list[str] = []

    def changes(self, model: nn.Module, sample: Sample) -> dict[str, Any]:
        """What this strategy adds to the settings: fields of :class:`~.compiling.Compilation`."""
        return {}

    def hope(self, facts: ModelFacts) -> Expectation | str:
        """What ``applies`` says where there is a compiler."""
        raise NotImplementedError

    def applies(self, facts: ModelFacts) -> Expectation | str:
        return facts.structure.compiler_missing or self.hope(facts)

    def apply(self, model: nn.Module, sample: Sample) -> nn.Module:
        self._lines = compile_with(model, **self.changes(model, sample))
        return model

    def source(self) -> list[str]:
        return self._lines


class Compile(Compiled):
    """The whole model: operators are fused, and Python is left out."""

    name = "torch.compile"

    def hope(self, facts: ModelFacts) -> Expectation | str:
        return Expectation(
            gain=1.3,
            reason="1.2 to 2.0 with transformer blocks, by the length",
            seconds=compile_seconds(facts),
        )

    def changes(self, model: nn.Module, sample: Sample) -> dict[str, Any]:
        return {"blocks": ()}


class CompileBlocks(Compiled):
    """Each of the repeated blocks: they share one compilation."""

    name = "torch.compile by block"

    def hope(self, facts: ModelFacts) -> Expectation | str:
        blocks = facts.structure.repeated_blocks
        if not blocks:
            return "no equal blocks that run one after the other"
        return Expectation(
            gain=1.25 if len(blocks) >= MANY_BLOCKS else 1.1,
            reason=f"{len(blocks)} blocks share one compilation; what is between them runs as before",
            seconds=block_compile_seconds(facts),
        )

    def changes(self, model: nn.Module, sample: Sample) -> dict[str, Any]:
        """
        Raises:
            ValueError: a call of a copy of the model shows no such blocks.
        """
        watched = watch_copy(model, sample)
        blocks = () if watched is None else repeated_blocks(model, watched)
        if not blocks:
            raise ValueError("no equal blocks that run one after the other")
        return {"blocks": blocks}


class CompileDynamic(Compiled):
    """One compilation for all lengths, in place of one for each."""

    name = "torch.compile for any length"

    def hope(self, facts: ModelFacts) -> Expectation | str:
        if not facts.lengths:
            return "no other lengths were named"
        return Expectation(
            gain=1.05,
            reason=f"{len(facts.lengths)} other lengths share one compilation",
            seconds=1.5 * compile_seconds(facts),
        )

    def changes(self, model: nn.Module, sample: Sample) -> dict[str, Any]:
        return {"dynamic": True}
