"""What is known of a program's operations and of its ranks' collectives, as dicts."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from ..facts import Figure
from .baseline import compare
from .join import Run
from .operations import OperationLog, figure_of
from .report import ProfileReport, write_pictures, write_whole
from .statistics import label

_STATUS = {
    "regression": "degraded",
    "improvement": "improved",
    "none": "stable",
    "new": "new_operation",
    "gone": "removed_operation",
}

Stats = Mapping[str, Mapping[str, Any]]
"""By operation and, if it is known, size."""


def performance_stats(log: OperationLog, profile: ProfileReport | None) -> dict[str, dict[str, Any]]:
    """Times in milliseconds: of the log by type, of collectives by operation and size."""
    stats = log.statistics()
    for each in profile.operations if profile else ():
        times: dict[str, float | None] = {"avg_duration_ms": None, "median_ms": None}
        if each.ms is not None:
            times = {"median_ms": each.ms.value, "low_ms": each.ms.low, "high_ms": each.ms.high}
        stats[label(each)] = {**times, "count": each.calls - each.failed, "failed": each.failed}
    return stats


def performance_report(log: OperationLog, profile: ProfileReport | None) -> dict[str, Any]:
    """All but the history, with ``profile`` as its schema has it."""
    stats = performance_stats(log, profile)
    breakdown = {name: each["count"] + each["failed"] for name, each in stats.items()}
    return {
        "total_operations": sum(breakdown.values()),
        "operation_breakdown": breakdown,
        "performance_stats": stats,
        "bottlenecks": [msgspec.to_builtins(each) for each in profile.findings] if profile else [],
        "recommendations": [each.text for each in profile.recommendations] if profile else [],
        "report_timestamp": time.time(),
        "profile": msgspec.to_builtins(profile),
    }


def patterns(log: OperationLog, profile: ProfileReport | None) -> dict[str, Any]:
    """When which operations of the log were done, and by whom; steps and collectives by size."""
    if profile is None:
        return log.patterns()
    return {
        **(log.patterns() if log.entries else {}),
        "steps": msgspec.to_builtins(profile.steps),
        "collectives": [msgspec.to_builtins(each) for each in profile.operations],
    }


def export(
    path: Path, log: OperationLog, run: Run | None, profile: ProfileReport | None, include_history: bool
) -> None:
    """Write all of it as JSON and, of a run, a Chrome trace and an HTML page next to it.

    Raises:
        OSError: a file cannot be written.
    """
    ends = [each["timestamp"] for each in log.entries]
    content = {
        "metadata": {
            "export_timestamp": time.time(),
            "total_operations": len(ends),
            "profiling_duration_seconds": max(ends) - min(ends) if ends else 0,
        },
        "performance_report": performance_report(log, profile),
        "pattern_analysis": patterns(log, profile),
        "memory_profile": log.memory(),
        **({"operation_history": log.entries} if include_history else {}),
    }
    write_whole(path, msgspec.json.format(msgspec.json.encode(content), indent=1))
    if run is not None and profile is not None:
        write_pictures(run, profile, path.with_suffix(".trace.json"), path.with_suffix(".html"))


def compared(now: Stats, before: Stats) -> dict[str, Any]:
    """Two ``performance_stats``; an operation is degraded if its ratio's interval lies beyond 10 %."""
    found = compare(_figures(now), _figures(before))
    operations = []
    for each in found:
        ratio = each.ratio
        operations.append(
            {
                "operation_type": each.operation,
                "current_ms": each.now and each.now.value,
                "baseline_ms": each.before and each.before.value,
                "change_percent": ratio and 100 * (ratio.value - 1),
                "interval_percent": ratio and [100 * (ratio.low - 1), 100 * (ratio.high - 1)],
                "status": _STATUS[each.change],
            }
        )
    changes = {each.change for each in found if each.ratio is not None}
    known = [change for change in ("regression", "improvement", "none") if change in changes]
    return {
        "timestamp": time.time(),
        "operations_compared": operations,
        "overall_performance_change": _STATUS[known[0]] if known else "unknown",
    }


def _figures(stats: Stats) -> dict[str, Figure]:
    return {name: figure for name, each in stats.items() if (figure := figure_of(each)) is not None}
