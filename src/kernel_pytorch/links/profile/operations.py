"""Operations that a program times itself, on one rank and without a process group."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np

from ..facts import Figure
from .statistics import median

_WINDOW_S = 10
_LEAST_FOR_WINDOWS = 10
_LARGE_MB = 10.0
NO_HISTORY = {"error": "No operation history available"}


class OperationLog:
    """Operations, the newest last, each a dict.

    Its keys: ``type``, ``participants``, ``duration_ms``, ``memory_delta_mb`` (None: not known), ``bytes``
    (None: not known), ``timestamp`` (its end, in seconds since 1970), ``failed`` and ``error`` (None: none).
    """

    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []

    @contextmanager
    def timed(self, operation_type: str, participants: Sequence[int], nbytes: int | None) -> Iterator[None]:
        """Time what is done inside. What it raises is noted, and raised."""
        memory, begin = _memory_bytes(), time.perf_counter()
        error: BaseException | None = None
        try:
            yield
        except BaseException as raised:
            error = raised
            raise
        finally:
            duration, now = time.perf_counter() - begin, _memory_bytes()
            self.entries.append(
                {
                    "type": operation_type,
                    "participants": list(participants),
                    "duration_ms": 1e3 * duration,
                    "memory_delta_mb": None if memory is None or now is None else (now - memory) / 2**20,
                    "bytes": nbytes,
                    "timestamp": time.time(),
                    "failed": error is not None,
                    "error": None if error is None else f"{type(error).__name__}: {error}",
                }
            )

    def forget(self, keep_recent_hours: float) -> None:
        """Keep only the operations of the last hours; 0: none."""
        since = time.time() - 3600 * keep_recent_hours
        self.entries[:] = [
            each for each in self.entries if keep_recent_hours > 0 and each["timestamp"] > since
        ]

    def statistics(self) -> dict[str, dict[str, Any]]:
        """By type: number, and of the operations that did not fail the times in milliseconds."""
        times: dict[str, list[float]] = defaultdict(list)
        for each in self.entries:
            times[each["type"]] += [] if each["failed"] else [each["duration_ms"]]
        failed = Counter(each["type"] for each in self.entries if each["failed"])
        return {kind: {**_times(found), "failed": failed[kind]} for kind, found in times.items()}

    def patterns(self) -> dict[str, Any]:
        """When which operations were done, and by whom."""
        if not self.entries:
            return dict(NO_HISTORY)
        ends = [each["timestamp"] for each in self.entries]
        span = max(ends) - min(ends)
        durations = [each["duration_ms"] for each in self.entries if not each["failed"]]
        kinds = Counter(each["type"] for each in self.entries)
        active = Counter(rank for each in self.entries for rank in each["participants"])
        return {
            "time_analysis": {
                "time_span_seconds": span,
                "operations_per_second": len(ends) / span if span else None,
                "avg_duration_ms": float(np.mean(durations)) if durations else None,
                "duration_trend": _trend(durations),
            },
            "operation_patterns": {
                "most_common_type": kinds.most_common(1)[0][0],
                "type_distribution": dict(kinds),
            },
            "participant_analysis": {
                "most_active_participants": active.most_common(10),
                "total_unique_participants": len(active),
            },
            "temporal_patterns": self._windows(),
        }

    def _windows(self) -> dict[str, Any]:
        if len(self.entries) < _LEAST_FOR_WINDOWS:
            return {"insufficient_data": True}
        first = min(each["timestamp"] for each in self.entries)
        windows: dict[int, list[float]] = defaultdict(list)
        for each in self.entries:
            windows[int((each["timestamp"] - first) // _WINDOW_S)].append(each["duration_ms"])
        counts = [len(found) for found in windows.values()]
        peak = max(windows, key=lambda window: len(windows[window]))
        return {
            "window_size_seconds": _WINDOW_S,
            "total_windows": len(windows),
            "avg_operations_per_window": float(np.mean(counts)),
            "operation_count_variance": float(np.var(counts)),
            "peak_activity_window": {
                "window_start": first + peak * _WINDOW_S,
                "operation_count": len(windows[peak]),
                "avg_duration_ms": float(np.mean(windows[peak])),
            },
        }

    def memory(self) -> dict[str, Any]:
        """By how much memory grew: a GPU's allocated memory if torch uses one, else that of the process."""
        if not self.entries:
            return dict(NO_HISTORY)
        deltas = [each["memory_delta_mb"] for each in self.entries if each["memory_delta_mb"] is not None]
        if not deltas:
            return {"error": "The memory of this process cannot be read"}
        low, high = np.percentile(deltas, [25, 75])
        normal = [delta for delta in deltas if delta <= high + 1.5 * (high - low)]
        return {
            "total_operations": len(self.entries),
            "memory_statistics": {
                "avg_delta_mb": float(np.mean(deltas)),
                "max_delta_mb": max(deltas),
                "min_delta_mb": min(deltas),
                "std_delta_mb": float(np.std(deltas)),
            },
            "memory_efficiency": {
                "operations_with_negative_delta": sum(delta < 0 for delta in deltas),
                "operations_with_large_delta": sum(delta > _LARGE_MB for delta in deltas),
                "avg_normal_delta_mb": float(np.mean(normal)),
            },
            "memory_trend": _trend(deltas),
        }


def figure_of(stats: Mapping[str, Any]) -> Figure | None:
    """The time in statistics, also of older versions, which had a mean without an interval; None: none."""
    if stats.get("median_ms") is not None:
        return Figure(
            value=stats["median_ms"], low=stats["low_ms"], high=stats["high_ms"], samples=stats["count"]
        )
    mean = stats.get("avg_duration_ms")
    return None if mean is None else Figure(value=mean, low=mean, high=mean, samples=stats.get("count", 1))


def _times(found: Sequence[float]) -> dict[str, Any]:
    if not found:
        return {"count": 0, "avg_duration_ms": None, "median_ms": None}
    middle = median(found)
    return {
        "count": len(found),
        "avg_duration_ms": float(np.mean(found)),
        "min_duration_ms": min(found),
        "max_duration_ms": max(found),
        "p95_duration_ms": float(np.percentile(found, 95)),
        "std_duration_ms": float(np.std(found)),
        "median_ms": middle.value,
        "low_ms": middle.low,
        "high_ms": middle.high,
    }


def _trend(values: Sequence[float]) -> str:
    """Whether the intervals of the medians of the earlier and of the later half are apart."""
    half = len(values) // 2
    if half < 2:
        return "insufficient_data"
    before, after = median(values[:half]), median(values[half:])
    if after.low > before.high:
        return "increasing"
    return "decreasing" if after.high < before.low else "stable"


def _memory_bytes() -> int | None:
    """Allocated on the GPU, if torch uses one; else of this process; None: not known."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return int(torch.cuda.memory_allocated())
    with suppress(OSError, ValueError, IndexError), open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return None
