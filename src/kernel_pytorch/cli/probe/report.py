"""The report of a probe as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ...machine.facts import NodeTopology
from ...machine.measured import MeasuredPeaks


@dataclass(frozen=True, kw_only=True)
class ProbeReport:
    """The output of ``probe --json``; ``probe --schema`` prints its schema."""

    format: Literal["kernel-pytorch probe"] = "kernel-pytorch probe"
    version: Literal[2] = 2
    """Incremented when a field is removed or changes its meaning, but not when one is added."""
    node: NodeTopology
    measured: tuple[MeasuredPeaks, ...] | None = None
    """None without ``--measure``."""
