"""Profiling of collectives, by a recording group, and of operations that the program times itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..links.facts import MeasuredLinks
from ..links.profile import dicts
from ..links.profile.exchange import collect
from ..links.profile.finding import Finding
from ..links.profile.join import Run, join
from ..links.profile.operations import OperationLog
from ..links.profile.recorder import Recorder
from ..links.profile.report import ProfileReport, report

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["CommunicationProfiler", "create_communication_profiler"]


class CommunicationProfiler:
    """What collectives cost, why, and because of whom.

    With a process group: :meth:`wrap` it, use what it returns, call :meth:`step` where a step begins, and
    :meth:`collect` on all ranks in the end. Without one :meth:`profile_operation` times what it is told to.
    """

    def __init__(self) -> None:
        self.links: MeasuredLinks | None = None
        """Between all ranks, as :func:`.measure_links` returns them: they name a slow link, and what another
        pattern is expected to gain. None: both are left out."""
        self._log, self._recorder = OperationLog(), Recorder()
        self._run: Run | None = None

    def wrap(self, process_group: ProcessGroup | None = None, check: bool = False) -> ProcessGroup:
        """A group that notes its calls: see :meth:`.Recorder.wrap`.

        Args:
            process_group: default: all ranks.
            check: have the ranks agree on each collective before it is carried out. Slow.
        """
        return self._recorder.wrap(process_group, check=check)

    def step(self) -> None:
        """Note that a step begins."""
        self._recorder.step()

    def collect(self, process_group: ProcessGroup | None = None) -> Run:
        """Join the records of all ranks, which all call this. The methods below then know them.

        Args:
            process_group: of the ranks to join, default: all.

        Raises:
            RuntimeError: no process group was wrapped.
            GroupError: a rank wrapped none, or failed, or did not answer within the group's timeout.
        """
        self._run = join(collect(self._recorder, process_group))
        return self._run

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
        return dicts.patterns(self._log, self._profile())

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
        return dicts.performance_report(self._log, self._profile())

    def export_detailed_profile(self, path: str | Path, include_history: bool = False) -> bool:
        """Write the report as JSON and, of collected ranks, a Chrome trace and an HTML page next to it.

        Args:
            path: of the JSON file; the trace and the page have its name, with other endings.
            include_history: whether the JSON file has :attr:`operation_history`.

        Returns:
            True.

        Raises:
            OSError: a file cannot be written.
        """
        dicts.export(Path(path), self._log, self._run, self._profile(), include_history)
        return True

    def compare_with_baseline(self, stats: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """Compare the medians by operation and size with ``performance_stats`` of an earlier report.

        Degraded is an operation if the interval of the ratio of medians lies beyond 10 %, improved likewise.
        """
        return dicts.compared(dicts.performance_stats(self._log, self._profile()), stats)

    def _profile(self) -> ProfileReport | None:
        return None if self._run is None else report(self._run, self.links)


def create_communication_profiler() -> CommunicationProfiler:
    """A :class:`CommunicationProfiler`."""
    return CommunicationProfiler()
