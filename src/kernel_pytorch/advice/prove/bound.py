"""The time below which no right candidate can be: what is faster was not measured right. Pure."""

from __future__ import annotations

from ..facts import ModelFacts

CONVOLUTION_SAVING = 4.0
"""Multiplications of a convolution over the fewest of Winograd's algorithm with tiles of 4 x 4 outputs."""
CAUSAL_SAVING = 2.0
"""Attention is counted without its mask; a causal one leaves out half."""
MARGIN = 0.5
"""Of the measured peak's time: a peak measured on a busy machine may be too low."""


def least_seconds(facts: ModelFacts, threads: int | None = None) -> float | None:
    """Seconds below which a call cannot be, with whatever change; None: unknown.

    The roofline's bound of the original is too high for this: a change may save bytes, skip what a causal
    mask hides, or convolve with fewer multiplications. What remains are the other FLOPs at the greatest rate
    measured, of any dtype.

    Args:
        threads: of the candidate, if it runs with another number.
    """
    total = facts.flops.value
    rates = list(facts.roofline.flops.values())
    if total is None or not rates:
        return None
    convolutions = sum(cost.flops or 0 for cost in facts.operators if "conv" in cost.name)
    attention = total * (facts.attention_share.value or 0.0)
    needed = total
    needed -= attention * (1 - 1 / CAUSAL_SAVING)
    needed -= convolutions * (1 - 1 / CONVOLUTION_SAVING)
    rate = max(rates) * max(1.0, (threads or facts.threads) / max(facts.threads, 1))
    return MARGIN * max(needed, 0.0) / rate
