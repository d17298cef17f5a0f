"""Names of the patterns, the operations and the formats on the wire."""

from __future__ import annotations

from enum import Enum


class _Named(str, Enum):
    @classmethod
    def _missing_(cls, value: object) -> None:
        names = ", ".join(each.value for each in cls)
        raise ValueError(f"{cls.__name__} must be one of {names}, got {value!r}")


class CommunicationPattern(_Named):
    """Who sends to whom in a collective."""

    RING = "ring"
    TREE = "tree"
    BUTTERFLY = "butterfly"
    HIERARCHICAL = "hierarchical"
    ADAPTIVE = "adaptive"
    """Whichever of the others is the fastest, by expectation and then by the times of real calls."""


PATTERNS = tuple(each for each in CommunicationPattern if each is not CommunicationPattern.ADAPTIVE)
"""Those that are carried out."""


class CompressionMethod(_Named):
    """What a tensor is sent as."""

    NONE = "none"
    FP16 = "fp16"
    BF16 = "bf16"
    QUANTIZED_8BIT = "quantized_8bit"
    TOPK = "topk"
    POWERSGD = "powersgd"
    ADAPTIVE = "adaptive"
    """BF16 where it is expected to be faster, else nothing."""


class Operation(_Named):
    """A collective operation, by torch's name."""

    ALL_REDUCE = "all_reduce"
    ALL_GATHER = "all_gather"
    REDUCE_SCATTER = "reduce_scatter"
    ALL_TO_ALL = "all_to_all"
