"""Readings and health as metrics for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..machine.readings import HostReading, Snapshot
from .health import HealthState
from .node_watch import NodeWatch
from .quantities import QUANTITIES

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

_PREFIX = "kernel_pytorch"
_HOST_METRICS = {
    "memory_available_bytes": ("memory_available_bytes", "Memory available"),
    "memory_stall_s": ("memory_stall_seconds_total", "Time in which some task waited for memory"),
    "cpu_stall_s": ("cpu_stall_seconds_total", "Time in which some task waited for a CPU"),
    "oom_kills": ("oom_kills_total", "Processes killed for want of memory"),
}


class MachineCollector:
    """Collector for Prometheus: the last readings and the health. Unknown values are omitted.

    Args:
        watch: its sampling thread must run.
    """

    def __init__(self, watch: NodeWatch) -> None:
        self._watch = watch

    def collect(self) -> Iterator[Any]:
        """The metrics; none while readings fail or are overdue, since old values would look current."""
        telemetry = self._watch.telemetry
        snapshot = telemetry.latest
        if snapshot is None or telemetry.error is not None or telemetry.stale:
            return
        taken = _family("last_reading_timestamp_seconds", "When it was read, since 1970", ())
        taken.add_metric((), snapshot.time_s)
        yield taken
        yield from self._device_families(snapshot)
        if snapshot.host is not None:
            yield from _host_families(snapshot.host)
        states = _family("component_health", "1 for the state of a component", ("component", "state"))
        for name, health in self._watch.health().items():
            for state in HealthState if health.state is not None else ():
                states.add_metric((name, state.value), float(state is health.state))
        yield states

    def _device_families(self, snapshot: Snapshot) -> Iterator[Any]:
        for field, quantity in QUANTITIES.items():
            family = _family(f"device_{quantity.metric}", quantity.description, ("device", "name", "uuid"))
            for device in self._watch.devices:
                reading = snapshot.devices.get(device.device_id)
                value = None if reading is None else getattr(reading, field)
                if value is not None:
                    family.add_metric((device.label, device.name, device.uuid or ""), value * quantity.base)
            if family.samples:
                yield family


def _host_families(host: HostReading) -> Iterator[Any]:
    for field, (metric, description) in _HOST_METRICS.items():
        value = getattr(host, field)
        if value is not None:
            family = _family(metric, description, ())
            family.add_metric((), float(value))
            yield family
    free = _family("disk_free_bytes", "Space that users may fill", ("mount",))
    total = _family("disk_size_bytes", "Size", ("mount",))
    for mount, disk in host.disks.items():
        free.add_metric((mount,), disk.free_bytes)
        total.add_metric((mount,), disk.total_bytes)
    carrier = _family("interface_carrier", "1 with a carrier", ("interface",))
    errors = _family("interface_errors_total", "Receive and transmit errors", ("interface",))
    for name, nic in host.nics.items():
        if nic.carrier is not None:
            carrier.add_metric((name,), float(nic.carrier))
        if nic.errors is not None:
            errors.add_metric((name,), nic.errors)
    yield from (family for family in (free, total, carrier, errors) if family.samples)


def _family(metric: str, description: str, labels: tuple[str, ...]) -> Any:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    kind = CounterMetricFamily if metric.endswith("_total") else GaugeMetricFamily
    return kind(f"{_PREFIX}_{metric}", description, labels=labels)


def registry_of(collector: MachineCollector) -> CollectorRegistry:
    """A registry with this machine alone, without the metrics of the Python process."""
    from prometheus_client import CollectorRegistry

    registry = CollectorRegistry()
    registry.register(collector)
    return registry
