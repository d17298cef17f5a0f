"""An optimizer's step as one kernel. Imports torch."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer

from ..facts import Expectation, ModelFacts
from ..sample import Sample
from .listing import text_of
from .protocol import Base

KINDS = (AdamW, Adam, SGD, Adagrad)


def with_fused_step(optimizer: Optimizer) -> Optimizer:
    """The same optimizer, its parameters, options and state, with ``fused=True``."""
    variant: dict[str, Any] = {"fused": True, "foreach": None}
    groups = [{**group, **variant} for group in optimizer.param_groups]
    options = {name: value for name, value in optimizer.defaults.items() if name not in variant}
    if "decoupled_weight_decay" in options and type(optimizer).__name__ == "AdamW":
        del options["decoupled_weight_decay"]  # AdamW's own
    fused = type(optimizer)(groups, **options, **variant)
    state = optimizer.state_dict()
    state["param_groups"] = [{**group, **variant} for group in state["param_groups"]]
    fused.load_state_dict(state)
    return fused


class FusedOptimizer(Base):
    """``fused=True``: the optimizer reads and writes each parameter once."""

    name = "fused optimizer"

    def applies(self, facts: ModelFacts) -> Expectation | str:
        if not facts.training:
            return "inference has no optimizer"
        kind, _, variant = facts.structure.optimizer.partition(" ")
        if not kind:
            return "no optimizer was given"
        if kind not in {known.__name__ for known in KINDS}:
            return f"{kind} has no fused variant"
        if variant == "fused":
            return "the optimizer is fused already"
        return Expectation(
            gain=1.1,
            reason=f"the step of AdamW alone took a third; {variant or 'one tensor at a time'} now",
            seconds=3.0,
        )

    def apply(self, model: nn.Module, sample: Sample) -> nn.Module:
        return model

    def change_optimizer(self, optimizer: Optimizer) -> Optimizer:
        """
        Raises:
            ValueError: it is of a class of which no fused variant is known.
        """
        if type(optimizer) not in KINDS:
            raise ValueError(f"{type(optimizer).__name__} has no fused variant")
        return with_fused_step(optimizer)

    def source(self) -> list[str]:
        return [
            "from typing import Any",
            "from torch.optim import Optimizer",
            *text_of(with_fused_step),
            "# optimizer = with_fused_step(optimizer)",
        ]
