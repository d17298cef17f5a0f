"""Attention by hand as the fused call. Imports torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from ..facts import AttentionSite, Expectation, ModelFacts
from .attention_rewrite import rewrite_attention
from .attention_sites import find_attention
from .compiling import compile_with, is_marked
from .graph_passes import add_pass, backend_of
from .protocol import Base

if TYPE_CHECKING:
    from ..sample import Sample

__all__ = ["AttentionToSDPA", "find_attention"]

PASSES = {False: 8, True: 20}
"""How often the scores are read or written, by whether there is a backward pass: the product writes them,
scale, mask and softmax read and write them, the second product reads them; and their gradients likewise."""

SPARED = {"aten::_softmax", "aten::_softmax_backward_data", "aten::masked_fill", "aten::masked_fill_"}
"""Operators on scores whose time fused attention hardly needs."""
PRODUCTS = {"aten::bmm", "aten::baddbmm"}
"""Where attention is causal, fused attention computes half of them."""


class AttentionToSDPA(Base):
    """Replaces attention by hand: by the model's own switch, else in the graphs that Dynamo records."""

    name = "attention to SDPA"

    def __init__(self) -> None:
        self.switched = False
        self._lines = ['model.compile(backend=attention_backend("eager"))']

    def applies(self, facts: ModelFacts) -> Expectation | str:
        """Estimated from the scores' bytes, which the fused call neither writes nor reads."""
        by_hand = [site for site in facts.structure.attention if not site.fused and not site.why]
        unfused = [site for site in facts.structure.attention if site.fused and "dimensions" in site.why]
        if not by_hand and not unfused and not facts.structure.attention_switch:
            reasons = sorted({site.why for site in facts.structure.attention if site.why})
            if reasons:
                return "attention must stay as it is: " + "; ".join(reasons)
            return (
                "attention is fused already"
                if facts.structure.attention
                else "no attention by hand was found"
            )
        sites = by_hand + unfused
        return Expectation(gain=gain(facts, sites), reason=reason(sites), seconds=5.0)

    def apply(self, model: nn.Module, sample: Sample) -> nn.Module:
        """Switch a model of Hugging Face's, or compile the model with the pass and without a compiler."""
        self.switched = switch(model)
        if not self.switched:
            add_pass(model, rewrite_attention)
            if is_marked(model):  # for inductor, by a strategy before this one
                self._lines = compile_with(model)
            else:
                model.compile(backend=backend_of(model, "eager"))
        return model

    def source(self) -> list[str]:
        """What ``apply`` did; ``attention_backend`` is in the text of ``attention_rewrite.py``."""
        if self.switched:
            return ['model.set_attn_implementation("sdpa")']
        return self._lines


def switch(model: nn.Module) -> bool:
    """Set Hugging Face's own fused attention on a model that computes it by hand; whether it has that."""
    set_implementation = getattr(model, "set_attn_implementation", None)
    config = getattr(model, "config", None)
    if set_implementation is None or getattr(config, "_attn_implementation", None) != "eager":
        return False
    set_implementation("sdpa")
    return getattr(config, "_attn_implementation", None) == "sdpa"


def gain(facts: ModelFacts, sites: list[AttentionSite]) -> float:
    """Estimated: time of a call over that without what fused attention spares, which is at most 80 % of it.

    That is the traffic of the scores or, where the profile shows more, the time of the operators on them.
    """
    seconds, bandwidth = facts.call.value, facts.roofline.memory_gb_s
    moved = PASSES[facts.training] * sum(site.scores_bytes * len(site.paths) for site in sites)
    if not (seconds and bandwidth and moved):
        return 1 + (facts.attention_share.value or 0.1)  # a guess: the share of FLOPs again
    shown = time_of(facts, SPARED)
    if all("is_causal=True" in site.call for site in sites):
        shown += time_of(facts, PRODUCTS) / 2
    return seconds / (seconds - min(max(moved / (bandwidth * 1e9), shown), 0.8 * seconds))


def time_of(facts: ModelFacts, names: set[str]) -> float:
    """Seconds of a call in these operators; 0 without a profile."""
    return sum(operator.seconds or 0.0 for operator in facts.operators if operator.name in names)


def reason(sites: list[AttentionSite]) -> str:
    """What was found, in words."""
    if not sites:
        return "the model has a switch for fused attention"
    modules = sum(len(site.paths) for site in sites)
    largest = max(site.scores_bytes for site in sites) / 1e6
    return (
        f"attention by hand in {modules} module{'s' * (modules > 1)}, up to {largest:.3g} MB of scores each"
    )
