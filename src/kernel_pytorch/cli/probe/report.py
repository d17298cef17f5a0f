"""A probe's report as data: what ``--json`` prints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ...machine.facts import NodeTopology
from ...machine.measured import MeasuredPeaks


@dataclass(frozen=True, kw_only=True)
class ProbeReport:
    """What ``--json`` prints; ``--schema`` describes it."""

    format: Literal["kernel-pytorch probe"] = "kernel-pytorch probe"
    version: Literal[2] = 2
    """Grows when a field changes its meaning or goes; new ones may come without."""
    node: NodeTopology
    measured: tuple[MeasuredPeaks, ...] | None = None
    """None without ``--measure``."""
