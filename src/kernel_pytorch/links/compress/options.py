"""What a compression hook can be told."""

from __future__ import annotations

from dataclasses import dataclass

from ..methods import CompressionMethod

METHODS = tuple(method for method in CompressionMethod if method is not CompressionMethod.ADAPTIVE)
"""Of hooks: which numbers are lost is never decided behind the user's back."""


@dataclass(frozen=True, kw_only=True)
class HookOptions:
    """The method of a hook, and how; the same on all ranks.

    Raises:
        ValueError: naming the field and its value.
    """

    method: CompressionMethod
    ratio: float = 0.01
    """TOPK: of the numbers of a parameter that are sent."""
    rank: int = 4
    """POWERSGD: of the approximation."""
    error_feedback: bool = True
    """Whether what is lost is added to the next gradient."""
    min_elements: int = 1024
    """Parameters with fewer, and those of one dimension, are sent whole."""
    start_step: int = 0
    """Steps before this are sent whole."""
    seed: int = 0
    """Of what is random."""

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            names = ", ".join(method.value for method in METHODS)
            raise ValueError(f"method must be one of {names}, got {self.method.value}")
        if not 0 < self.ratio <= 1:
            raise ValueError(f"ratio must be above 0 and at most 1, got {self.ratio}")
        for name, least in (("rank", 1), ("min_elements", 0), ("start_step", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
