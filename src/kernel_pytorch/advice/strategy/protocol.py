"""What a strategy is."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Protocol, runtime_checkable

from ..facts import Expectation, Level, ModelFacts

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

    from ..sample import Sample


@runtime_checkable
class Strategy(Protocol):
    """A change of a model that may make it faster or smaller.

    One object lives for one run: ``apply`` may note what ``source`` needs. Others are registered as entry
    points of the group ``kernel_pytorch.strategies``, each a class without arguments. Derive from
    :class:`Base` for the defaults.
    """

    name: str
    level: Level
    """The lowest at which it is tried."""
    lossless: bool
    """Whether results must be equal up to rounding."""
    needs: tuple[str, ...]
    """Any of: "compiler", "gpu", "package:NAME"."""

    def applies(self, facts: ModelFacts) -> Expectation | str:
        """What is hoped for, or the reason not to try it."""
        ...

    def apply(self, model: nn.Module, sample: Sample) -> nn.Module:
        """Change a model, which is the strategy's to change, and return it, or another in its place.

        What was kept before is in it already. Whoever times it warms it up.
        """
        ...

    def source(self) -> list[str]:
        """Lines of Python, imports among them, that do what ``apply`` did without this package."""
        ...


class Base:
    """The defaults of a strategy."""

    name: str
    level: Level = "conservative"
    lossless: bool = True
    needs: tuple[str, ...] = ()
    threads: int | None = None
    """Number of threads with which the candidate runs; None: unchanged."""
    overwrites_outputs: ClassVar[bool] = False
    """Whether a call overwrites the outputs of the one before, as CUDA graphs do."""
    offers: ClassVar[bool] = False
    """Whether it is another function: never applied by a search, only offered (see :meth:`offer`)."""

    def change_optimizer(self, optimizer: Optimizer) -> Optimizer:
        """The optimizer with which the candidate trains; it has the candidate's parameters."""
        return optimizer
