"""Health monitoring of the devices and the host."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..watch.health import HealthState, Thresholds
from ..watch.reports import health_of_device, health_report, performance_report
from .hardware_discovery import HardwareTopologyManager

__all__ = ["HardwareHealthMonitor", "HealthState", "Thresholds"]


class HardwareHealthMonitor:
    """The health of a manager's node: its :class:`.NodeWatch`, shared by all monitors of the manager.

    With ``enable_monitoring`` its sampling thread runs; without, each query takes a reading first.
    """

    def __init__(self, topology_manager: HardwareTopologyManager, enable_monitoring: bool = True) -> None:
        self.view = topology_manager.view
        if enable_monitoring:
            self.start_monitoring()

    def start_monitoring(self) -> None:
        """Run the sampling thread, at least until this monitor stops it."""
        self.view.watch.start(self)

    def stop_monitoring(self) -> None:
        """End the sampling thread, within 100 ms, unless the manager or another monitor uses it."""
        self.view.watch.stop(self)

    @property
    def states(self) -> Mapping[int, HealthState | None]:
        """Health state of all devices of the cluster by id; None: unknown."""
        return self.view.states()

    def get_device_health_status(self, device_id: int | None = None) -> dict[str, Any]:
        """See :func:`.health_of_device` and, without a device, :func:`.health_report`."""
        return health_report(self.view) if device_id is None else health_of_device(self.view, device_id)

    def get_performance_report(self, device_id: int | None = None, hours: float = 1) -> dict[str, Any]:
        """See :func:`.performance_report`."""
        return performance_report(self.view, device_id, hours)

    def reset_device_health(self, device_id: int) -> None:
        """Forget what was seen of a device that was repaired or reset: unknown until its next reading."""
        self.view.watch.reset_device(self.view.node_id_of(device_id))

    @property
    def thresholds(self) -> Thresholds:
        return self.view.watch.thresholds

    def set_error_thresholds(self, **thresholds: float) -> None:
        """Change fields of :class:`.Thresholds`; ``temperature`` is an older name of ``temperature_c``.

        Raises:
            ValueError: an unknown name or an invalid value.
        """
        if "temperature" in thresholds:
            if "temperature_c" in thresholds:
                raise ValueError("temperature is an older name of temperature_c: give one of them")
            thresholds["temperature_c"] = thresholds.pop("temperature")
        unknown = [name for name in thresholds if name not in Thresholds.names()]
        if unknown:
            raise ValueError(f"no threshold {', '.join(unknown)}; there are {', '.join(Thresholds.names())}")
        self.view.watch.change_thresholds(**thresholds)
