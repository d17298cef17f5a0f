"""Attention modules by name."""

from __future__ import annotations

from typing import Any, Literal, overload

from .attention import DilatedAttention
from .multihead_dilated_attention import MultiheadDilatedAttention
from .ring_attention import RingAttentionConfig, RingDilatedAttention


@overload
def create_dilated_attention(
    type: Literal["auto", "standard"] = "auto", **arguments: Any
) -> DilatedAttention: ...
@overload
def create_dilated_attention(type: Literal["ring"], **arguments: Any) -> RingDilatedAttention: ...
def create_dilated_attention(
    type: Literal["auto", "standard", "ring"] = "auto", **arguments: Any
) -> DilatedAttention | RingDilatedAttention:
    """Return an attention module made from ``arguments``.

    Args:
        type: ``"standard"`` is :class:`DilatedAttention`, on one device; ``"auto"`` is the same. ``"ring"``
            is :class:`RingDilatedAttention`, which takes the fields of :class:`RingAttentionConfig` and
            ``process_group``.

    Raises:
        ValueError: for an unknown type.
    """
    if type == "ring":
        process_group = arguments.pop("process_group", None)
        return RingDilatedAttention(RingAttentionConfig(**arguments), process_group)
    if type not in ("auto", "standard"):
        raise ValueError(f"type must be 'auto', 'standard' or 'ring', got {type!r}")
    return DilatedAttention(**arguments)


def create_multihead_dilated_attention(
    type: Literal["auto", "standard"] = "auto", **arguments: Any
) -> MultiheadDilatedAttention:
    """Return a :class:`MultiheadDilatedAttention` made from ``arguments``.

    Args:
        type: ``"auto"`` or ``"standard"``, which are the same. A ring is passed to the module's calls.

    Raises:
        ValueError: for another type.
    """
    if type not in ("auto", "standard"):
        raise ValueError(
            f"type must be 'auto' or 'standard', got {type!r}; a ring is passed to the module's calls, "
            "attend=create_dilated_attention('ring', segment_lengths=..., dilation_rates=..., "
            "process_group=...)"
        )
    return MultiheadDilatedAttention(**arguments)
