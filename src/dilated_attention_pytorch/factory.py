"""Attention modules by name."""

from __future__ import annotations

from typing import Any, Literal

from .attention import DilatedAttention
from .multihead_dilated_attention import MultiheadDilatedAttention

AttentionType = Literal["auto", "standard"]


def create_dilated_attention(type: AttentionType = "auto", **arguments: Any) -> DilatedAttention:
    """Return a :class:`DilatedAttention` made from ``arguments``.

    Args:
        type: ``"standard"`` one device; ``"auto"`` the same, until there are others to choose from.

    Raises:
        ValueError: for an unknown type.
    """
    _check_type(type)
    return DilatedAttention(**arguments)


def create_multihead_dilated_attention(
    type: AttentionType = "auto", **arguments: Any
) -> MultiheadDilatedAttention:
    """Return a :class:`MultiheadDilatedAttention` made from ``arguments``; ``type`` as above."""
    _check_type(type)
    return MultiheadDilatedAttention(**arguments)


def _check_type(type: str) -> None:
    if type not in ("auto", "standard"):
        raise ValueError(f"type must be 'auto' or 'standard', got {type!r}")
