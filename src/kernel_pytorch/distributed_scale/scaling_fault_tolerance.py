"""Detection of and recovery from failures of jobs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..jobs.faults import Executor, Faults, node_state
from ..jobs.spec import FailureType
from ..watch.health.evidence import HealthState

__all__ = ["FaultToleranceManager", "create_fault_tolerance_manager"]


class FaultToleranceManager:
    """:class:`.Faults`. ``manager``: a cluster's manager; without one, strategies are only returned."""

    def __init__(self, checkpoint_interval_minutes: float = 30, *, manager: Executor | None = None) -> None:
        self.faults = Faults(checkpoint_interval_minutes, manager)

    def detect_failure(self, job_id: str, info: Mapping[str, Any]) -> FailureType | None:
        """See :meth:`.Faults.detect`. The evidence is in :meth:`get_recovery_report`."""
        return self.faults.detect(job_id, info)

    def handle_failure(
        self, job_id: str, failure_type: FailureType | None, info: Mapping[str, Any]
    ) -> dict[str, Any]:
        """See :meth:`.Faults.handle`.

        Returns:
            ``strategy`` (restart, requeue, fail or done), ``reason``, ``attempt``, ``recovered``: None, as no
            later step can have been seen yet.
        """
        handled = self.faults.handle(job_id, failure_type, info).to_dict()
        return {key: handled[key] for key in ("strategy", "reason", "attempt", "recovered")}

    def update_node_health(self, node: str, health: object) -> None:
        """Note the health of a node: see :func:`.node_state`. Requeued jobs avoid those that have failed."""
        self.faults.nodes[node] = node_state(health)

    def get_healthy_nodes(self) -> list[str]:
        """Nodes that are known to be healthy, by name."""
        return sorted(node for node, state in self.faults.nodes.items() if state is HealthState.HEALTHY)

    def get_failure_statistics(self) -> dict[str, Any]:
        """See :meth:`.Faults.statistics`."""
        return self.faults.statistics()

    def get_recovery_report(self, job_id: str | None = None) -> dict[str, Any]:
        """See :meth:`.Faults.report`."""
        return self.faults.report(job_id)


def create_fault_tolerance_manager(checkpoint_interval_minutes: float = 30) -> FaultToleranceManager:
    """A manager that only returns strategies."""
    return FaultToleranceManager(checkpoint_interval_minutes)
