"""The time below which no right candidate can be: what is faster was not measured right. Pure."""

from __future__ import annotations

from ..facts import ModelFacts

CONVOLUTION_SAVING = 4.0
"""Multiplications of a convolution over the fewest of Winograd's algorithm with tiles of 4 x 4 outputs."""
CAUSAL_SAVING = 2.0
"""Attention by hand is counted without its mask; a causal one leaves out half."""
LOSSY_SAVING = 4.0
"""float32 over int8, in bytes and in the rate of products where a processor has units for them."""
MARGIN = 0.8
"""A peak measured on a busy machine may be too low by a fifth."""


def least_seconds(facts: ModelFacts, *, lossless: bool = True, threads: int | None = None) -> float | None:
    """Seconds below which a call cannot be, with whatever change; None: unknown.

    The roofline's bound, less what a change may save of it.

    Args:
        lossless: whether the candidate computes in the precision of the original.
        threads: of the candidate, if it runs with another number.
    """
    if facts.bound.value is None:
        return None
    needed = 1.0 - (facts.attention_share.value or 0.0) * (1 - 1 / CAUSAL_SAVING)
    if facts.flops.value:
        convolutions = sum(cost.flops or 0 for cost in facts.operators if "conv" in cost.name)
        needed -= convolutions / facts.flops.value * (1 - 1 / CONVOLUTION_SAVING)
    rates = [*facts.roofline.flops.values(), 0.0]
    faster = max(1.0, (threads or facts.threads) / max(facts.threads, 1))
    if not lossless:
        faster *= max(LOSSY_SAVING, max(rates) / (facts.roofline.flops.get("float32") or max(rates) or 1.0))
    return MARGIN * facts.bound.value * max(needed, 0.0) / faster
