"""The health of a cluster as dictionaries of plain values."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

from ..machine.facts import ClusterTopology
from .cluster_view import ClusterView
from .health import ComponentHealth, HealthState
from .health.performance import performance_of


def health_of_device(view: ClusterView, device_id: int) -> dict[str, Any]:
    """Health of a device, from a current reading.

    Returns:
        ``device_id``, ``status`` ("healthy", "degraded", "failed", None: unknown), ``last_check`` (seconds
        since 1970), ``evidence``, ``unchecked`` and ``reason``.

    Raises:
        ValueError: no such device.
    """
    view.check(device_id)
    view.states()
    latest = view.watch.latest
    health = _as_dict(view.device_health()[device_id])
    return {"device_id": device_id, "last_check": latest and latest.time_s, **health}


def health_report(view: ClusterView) -> dict[str, Any]:
    """Health of all devices and of this host, from a current reading.

    Returns:
        ``timestamp`` (of the reading, seconds since 1970), ``total_devices``, ``healthy_devices``,
        ``degraded_devices``, ``failed_devices``, ``unknown_devices``, ``device_details`` (status by id) and
        ``components`` (``gpu:0``, ``memory``, ``disk:/``, ``nic:eth0`` and so on, each with status, evidence,
        unchecked and reason); ``error``: why the thread's last sample failed.
    """
    view.states()
    latest, error = view.watch.latest, view.watch.telemetry.error
    details = {number: _name(health.state) for number, health in view.device_health().items()}
    statuses = list(details.values())
    return {
        "timestamp": latest and latest.time_s,
        "total_devices": len(details),
        **{f"{state.value}_devices": statuses.count(state.value) for state in HealthState},
        "unknown_devices": statuses.count(None),
        "device_details": details,
        "components": {name: _as_dict(health) for name, health in view.health().items()},
        "error": None if error is None else repr(error),
    }


def performance_report(view: ClusterView, device_id: int | None, hours: float) -> dict[str, Any]:
    """Temperature, utilization and power over the last ``hours`` in the history.

    Returns:
        Of a device: :func:`.performance_of` and ``health_status``. Without one: ``timestamp``, ``hours`` and
        ``devices``, such a report by id.

    Raises:
        ValueError: no such device, or ``hours`` is not positive.
    """
    if device_id is not None:
        view.check(device_id)
    if hours <= 0:
        raise ValueError(f"hours must be positive, got {hours}")
    view.states()
    reports = {
        number: {
            "device_id": number,
            **performance_of(view.watch.telemetry.history, number - view.first_id, hours),
            "health_status": _name(health.state),
        }
        for number, health in view.device_health().items()
        if device_id in (None, number)
    }
    if device_id is not None:
        return reports[device_id]
    return {"timestamp": time.time(), "hours": hours, "devices": reports}


def counts_of(topology: ClusterTopology) -> dict[str, Any]:
    """Sums over all nodes.

    Returns:
        ``total_nodes``, ``total_devices``, ``total_memory_gb`` (None if one's is unknown);
        ``vendor_distribution``, ``capability_distribution``, ``memory_distribution``: devices by vendor,
        architecture and GB.
    """
    return {
        "total_nodes": len(topology.nodes),
        "total_devices": topology.total_devices,
        "total_memory_gb": topology.total_memory_gb,
        "vendor_distribution": {v.value: n for v, n in topology.vendor_distribution.items()},
        "capability_distribution": {
            None if c is None else c.value: n for c, n in topology.capability_distribution.items()
        },
        "memory_distribution": topology.memory_distribution,
    }


def _name(state: HealthState | None) -> str | None:
    return None if state is None else state.value


def _as_dict(health: ComponentHealth) -> dict[str, Any]:
    return {
        "status": _name(health.state),
        "evidence": [asdict(item) | {"state": item.state.value} for item in health.evidence],
        "unchecked": list(health.unchecked),
        "reason": health.reason,
    }
