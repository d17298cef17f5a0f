"""Profiling of collectives, by a recording group, and of operations that the program times itself."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from ..links.facts import MeasuredLinks
from ..links.profile.baseline import compare
from ..links.profile.finding import Finding
from ..links.profile.join import Run, join
from ..links.profile.operations import OperationLog, figure_of
from ..links.profile.report import ProfileReport, report, write_pictures, write_whole
from ..links.profile.statistics import label

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from ..links.profile.recorder import Recorder

__all__ = ["CommunicationProfiler", "create_communication_profiler"]

_STATUS = {
    "regression": "degraded",
    "improvement": "improved",
    "none": "stable",
    "new": "new_operation",
    "gone": "removed_operation",
}


class CommunicationProfiler:
    """What collectives cost, why, and because of whom.

    With a process group: :meth:`wrap` it, use what it returns, call :meth:`step` where a step begins, and
    :meth:`collect` on all ranks in the end. Without one :meth:`profile_operation` times what it is told to.
    """

    def __init__(self) -> None:
        self.links: MeasuredLinks | None = None
        """Between all ranks, as :func:`.measure_links` returns them: they name a slow link, and what another
        pattern is expected to gain. None: both are left out."""
        self._log = OperationLog()
        self._recorder: Recorder | None = None
        self._run: Run | None = None
        self._told: tuple[Run, MeasuredLinks | None, ProfileReport] | None = None

    def wrap(self, process_group: ProcessGroup | None = None, check: bool = False) -> ProcessGroup:
        """A group that notes its calls: see :meth:`.Recorder.wrap`.

        Args:
            process_group: default: all ranks.
            check: have the ranks agree on each collective before it is carried out. Slow.
        """
        if self._recorder is None:
            from ..links.profile.recorder import Recorder

            self._recorder = Recorder()
        return self._recorder.wrap(process_group, check=check)

    def step(self) -> None:
        """Note that a step begins.

        Raises:
            RuntimeError: no process group was wrapped.
        """
        self._recording().step()

    def collect(self, process_group: ProcessGroup | None = None) -> Run:
        """Join the records of all ranks, which all call this. The methods below then know them.

        Args:
            process_group: of the ranks to join, default: all.

        Raises:
            RuntimeError: no process group was wrapped.
            GroupError: a rank failed, or did not answer within the group's timeout.
        """
        recorder = self._recording()
        from ..links.profile.exchange import collect

        self._run = join(collect(recorder, process_group))
        return self._run

    def _recording(self) -> Recorder:
        if self._recorder is None:
            raise RuntimeError("no process group is recorded: call wrap(process_group) first")
        return self._recorder

    @property
    def operation_history(self) -> list[dict[str, Any]]:
        """The operations of :meth:`profile_operation`: see :class:`.OperationLog`."""
        return self._log.entries

    def profile_operation(
        self, operation_type: str, participants: Sequence[int], nbytes: int | None = None
    ) -> AbstractContextManager[None]:
        """Time what is done inside. An operation that raises is recorded as failed, and its error raised.

        Args:
            participants: the ranks.
            nbytes: what is sent; None: not known.
        """
        return self._log.timed(operation_type, participants, nbytes)

    def identify_bottlenecks(self) -> list[Finding]:
        """What makes the collected ranks slow, wrong or hang, dearest first. None, if none were collected."""
        profile = self._profile()
        return [] if profile is None else list(profile.findings)

    def get_optimization_recommendations(self) -> list[str]:
        """What the cost model expects to be faster, with the milliseconds that each step would take less.

        Empty without :attr:`links`, or if nothing was collected: no gain can be expected then.
        """
        profile = self._profile()
        return [] if profile is None else [each.text for each in profile.recommendations]

    def analyze_communication_patterns(self) -> dict[str, Any]:
        """When which operations of :attr:`operation_history` were done and by whom; collectives by size."""
        profile = self._profile()
        if profile is None:
            return self._log.patterns()
        return {
            **(self._log.patterns() if self.operation_history else {}),
            "steps": msgspec.to_builtins(profile.steps),
            "collectives": msgspec.to_builtins(profile.operations),
        }

    def get_memory_profile(self) -> dict[str, Any]:
        """By how much memory grew in the operations of :attr:`operation_history`."""
        return self._log.memory()

    def clear_history(self, keep_recent_hours: float = 1.0) -> None:
        """Forget :attr:`operation_history`, but for the last hours; with 0, what was collected as well."""
        self._log.forget(keep_recent_hours)
        if keep_recent_hours <= 0:
            self._run = None

    def generate_performance_report(self) -> dict[str, Any]:
        """All of it, as JSON has it.

        ``performance_stats`` can be kept for :meth:`compare_with_baseline`; ``profile`` is
        described by ``profile.schema.json`` of :mod:`kernel_pytorch.links.profile`, and None if nothing was
        collected.
        """
        profile = self._profile()
        collectives = profile.operations if profile else ()
        stats = self._log.statistics()
        for each in collectives:
            times: dict[str, float | None] = {"avg_duration_ms": None, "median_ms": None}
            if each.ms is not None:
                times = {"median_ms": each.ms.value, "low_ms": each.ms.low, "high_ms": each.ms.high}
            stats[label(each)] = {**times, "count": each.calls - each.failed, "failed": each.failed}
        breakdown = {name: each["count"] + each["failed"] for name, each in stats.items()}
        return {
            "total_operations": sum(breakdown.values()),
            "operation_breakdown": breakdown,
            "performance_stats": stats,
            "bottlenecks": [msgspec.to_builtins(finding) for finding in self.identify_bottlenecks()],
            "recommendations": self.get_optimization_recommendations(),
            "report_timestamp": time.time(),
            "profile": msgspec.to_builtins(profile),
        }

    def export_detailed_profile(self, path: str | Path, include_history: bool = False) -> bool:
        """Write the report as JSON and, of collected ranks, a Chrome trace and an HTML page next to it.

        Args:
            path: of the JSON file; ``p.json`` goes with ``p.trace.json`` and ``p.html``.
            include_history: whether the JSON file has :attr:`operation_history`.

        Returns:
            True.

        Raises:
            OSError: a file cannot be written.
        """
        path = Path(path)
        ends = [each["timestamp"] for each in self.operation_history]
        content: dict[str, Any] = {
            "metadata": {
                "export_timestamp": time.time(),
                "total_operations": len(ends),
                "profiling_duration_seconds": max(ends) - min(ends) if ends else 0,
            },
            "performance_report": self.generate_performance_report(),
            "pattern_analysis": self.analyze_communication_patterns(),
            "memory_profile": self.get_memory_profile(),
        }
        if include_history:
            content["operation_history"] = self.operation_history
        write_whole(path, msgspec.json.format(msgspec.json.encode(content), indent=1))
        profile = self._profile()
        if profile is not None and self._run is not None:
            write_pictures(self._run, profile, path.with_suffix(".trace.json"), path.with_suffix(".html"))
        return True

    def compare_with_baseline(self, stats: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """Compare the medians by operation and size with ``performance_stats`` of an earlier report.

        Degraded is an operation if the interval of the ratio of medians lies beyond 10 %, improved likewise.
        """

        def figures(found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
            return {name: figure for name, each in found.items() if (figure := figure_of(each)) is not None}

        now = self.generate_performance_report()["performance_stats"]
        found = compare(figures(now), figures(stats))
        compared = [
            {
                "operation_type": each.operation,
                "current_ms": each.now and each.now.value,
                "baseline_ms": each.before and each.before.value,
                "change_percent": None if each.ratio is None else 100 * (each.ratio.value - 1),
                "interval_percent": None
                if each.ratio is None
                else [100 * (each.ratio.low - 1), 100 * (each.ratio.high - 1)],
                "status": _STATUS[each.change],
            }
            for each in found
        ]
        changes = {each.change for each in found if each.ratio is not None}
        overall = next((_STATUS[c] for c in ("regression", "improvement", "none") if c in changes), "unknown")
        return {
            "timestamp": time.time(),
            "operations_compared": compared,
            "overall_performance_change": overall,
        }

    def _profile(self) -> ProfileReport | None:
        if self._run is None:
            return None
        if self._told is None or self._told[0] is not self._run or self._told[1] is not self.links:
            self._told = self._run, self.links, report(self._run, self.links)
        return self._told[2]


def create_communication_profiler() -> CommunicationProfiler:
    """A :class:`CommunicationProfiler`."""
    return CommunicationProfiler()
