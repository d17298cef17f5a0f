"""The job ledger beside discoveries, releases and failures that come in the middle of a question."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
import topologies

from kernel_pytorch.machine.facts import HardwareVendor
from kernel_pytorch.machine.readings import DeviceReading, Snapshot
from kernel_pytorch.placement.jobs import JobDevices
from kernel_pytorch.watch.cluster_view import ClusterView
from kernel_pytorch.watch.health import HealthState

COOL = DeviceReading(temperature_c=40.0, power_w=100.0, power_limit_w=700.0)
WARM = msgspec.structs.replace(COOL, temperature_c=50.0)


class Source:
    """The same readings over and over; ``meanwhile`` happens in the next read."""

    def __init__(self, *readings: DeviceReading) -> None:
        self._readings = dict(enumerate(readings))
        self.meanwhile: Callable[[], None] = lambda: None

    def read(self) -> Snapshot:
        happens, self.meanwhile = self.meanwhile, lambda: None
        happens()
        return Snapshot(time_s=0.0, devices=self._readings)


def jobs_on(*vendors: HardwareVendor) -> tuple[JobDevices, ClusterView, Source]:
    source = Source(COOL, *[WARM] * (len(vendors) - 1))
    devices = [topologies.gpu(number, vendor=vendor) for number, vendor in enumerate(vendors)]
    view = ClusterView(topologies.cluster(topologies.node(devices)), source)
    return JobDevices(view), view, source


def test_a_discovery_in_the_middle_of_a_question_gives_no_device_twice():
    jobs, view, source = jobs_on(HardwareVendor.NVIDIA, HardwareVendor.NVIDIA)
    source.meanwhile = lambda: setattr(view, "first_id", 2)
    assert jobs.place("a", 1, 300.0).devices == (0,)  # as it was called when the question began
    assert jobs.heat().jobs == {"a": [2]}
    assert jobs.place("b", 1, 300.0).devices == (3,)
    source.meanwhile = lambda: setattr(view, "first_id", 4)
    heat = jobs.heat()
    assert heat.jobs == {"a": [2], "b": [3]}
    assert heat.temperatures_c.keys() == {2, 3}
    assert heat.committed_w == 600


def test_a_job_whose_devices_cannot_be_ordered_holds_none(monkeypatch: pytest.MonkeyPatch):
    jobs, view, _ = jobs_on(HardwareVendor.NVIDIA, HardwareVendor.NVIDIA)

    def fail() -> dict[int, HealthState | None]:
        raise OSError("no reading")

    with monkeypatch.context() as broken:
        broken.setattr(view, "states", fail)
        with pytest.raises(OSError, match="no reading"):
            jobs.place_in_order("a", 2, 300.0)
    assert jobs.heat().jobs == {}


def test_devices_that_cannot_work_together_count_for_nothing():
    jobs, _, _ = jobs_on(HardwareVendor.NVIDIA, HardwareVendor.AMD)
    decision, placement = jobs.place_in_order("a", 2, 300.0)
    assert (decision.devices, placement) == ((), None)
    assert decision.refusal is not None
    assert (decision.estimated_w, decision.committed_w) == (None, 200)
    assert jobs.heat().jobs == {}


def test_a_job_that_is_released_while_it_is_ordered():
    jobs, _, source = jobs_on(HardwareVendor.NVIDIA, HardwareVendor.NVIDIA)

    def later() -> None:  # the first read is of the devices' heat, the second of their health
        source.meanwhile = lambda: released.append(jobs.release("a"))

    released: list[bool] = []
    source.meanwhile = later
    decision, placement = jobs.place_in_order("a", 2, 300.0)
    assert placement is not None
    assert (decision.devices, released) == (placement.device_ids, [True])


def test_health_and_heat_are_of_one_node_in_a_cluster():
    jobs, view, _ = jobs_on(HardwareVendor.NVIDIA, HardwareVendor.NVIDIA)
    other = topologies.node([topologies.gpu(0)])
    own = topologies.node([topologies.gpu(1), topologies.gpu(2)], node_id=1)
    view.topology, view.first_id = topologies.cluster(other, own), 1
    decision, placement = jobs.place_in_order("a", 2, 300.0)
    assert placement is not None
    assert (decision.devices, set(decision.reasons)) == ((1, 2), {1, 2})
    refused = jobs.place("b", 1, 300.0)
    assert refused.refusal is not None
    assert "gpu:1-2 taken" in refused.refusal
