"""A probe's report as data: what ``--json`` prints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ...machine.facts import NodeTopology
from ...machine.measured import MeasuredPeaks


@dataclass(frozen=True, kw_only=True)
class SecondOpinion:
    """What hwloc says of the same CPUs, caches and NUMA nodes."""

    differences: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ProbeReport:
    """What ``--json`` prints; ``docs/probe.schema.json`` describes it."""

    format: Literal["kernel-pytorch probe"] = "kernel-pytorch probe"
    version: Literal[1] = 1
    """Grows when a field changes its meaning or goes; new ones may come without."""
    node: NodeTopology
    hwloc: SecondOpinion | None = None
    """None: hwloc is not installed."""
    measured: tuple[MeasuredPeaks, ...] | None = None
    """None without ``--measure``."""
