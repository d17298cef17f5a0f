"""Estimates of what a change gains and how long its trial takes, from figures of other models.

Measured with torch 2.13 on two cores with AVX2: two to four transformer blocks of widths 256 and 512 at
1,024 tokens. Another model may differ by much; only the order of trials depends on them.
"""

from __future__ import annotations

from ..facts import ModelFacts

COMPILE_START_S = 6.0
COMPILE_LAYER_S = 1.3
"""By linear layer or convolution: cold, 14 to 30 s for two blocks with twelve."""


def compile_seconds(facts: ModelFacts, layers: int | None = None) -> float:
    """Of a trial with torch.compile, cold.

    Args:
        layers: linear layers and convolutions that are compiled; None: all.
    """
    structure = facts.structure
    layers = structure.linears + structure.convolutions if layers is None else layers
    seconds = COMPILE_START_S + COMPILE_LAYER_S * max(layers, 2)
    return seconds * (1.6 if facts.training else 1.0)


def block_compile_seconds(facts: ModelFacts) -> float:
    """Of a trial in which each repeated block is compiled, which costs as much as one."""
    structure = facts.structure
    layers = structure.linears + structure.convolutions
    return compile_seconds(facts, -(-layers // max(len(structure.repeated_blocks), 1)))


def excess(facts: ModelFacts) -> float | None:
    """The call's peak over the memory limit; None: one of them is unknown."""
    peak = facts.peak.value if facts.peak.value is not None else facts.predicted_peak.value
    return None if peak is None or not facts.memory_limit else peak / facts.memory_limit
