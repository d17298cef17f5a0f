"""The planner on a node that is not the first of its cluster: its devices' ids are the cluster's."""

from __future__ import annotations

from functools import partial

import fake_power_nvml
import pytest
import topologies
from fake_power_nvml import FakePowerNvml

from kernel_pytorch.machine.readings import DeviceReading, Snapshot
from kernel_pytorch.power import planner as planner_module
from kernel_pytorch.power.energy import EnergyMeter
from kernel_pytorch.power.limits import PowerLimitError
from kernel_pytorch.power.planner import PowerPlanner
from kernel_pytorch.watch.cluster_view import ClusterView


class Counting:
    """GPU 0 draws 200 W by its energy counter, a reading each second; nothing is known of GPU 1."""

    def __init__(self) -> None:
        self._seconds = 0

    def read(self) -> Snapshot:
        self._seconds += 1
        reading = DeviceReading(power_w=200.0, energy_j=200.0 * self._seconds)
        return Snapshot(time_s=float(self._seconds), devices={0: reading})


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> FakePowerNvml:
    return fake_power_nvml.install(monkeypatch, ["own 0", "own 1"])


def planner(power_budget_w: float | None = None) -> PowerPlanner:
    """Of the second node: its GPUs 0 and 1 are GPUs 3 and 4 of the cluster."""

    def gpus(name: str, first: int, count: int, **facts: object) -> list[topologies.DeviceInfo]:
        return [topologies.gpu(first + n, uuid=f"{name} {n}", index=n, **facts) for n in range(count)]

    alone = topologies.cluster(topologies.node(gpus("own", 0, 2, power_limit_w=None)))
    view = ClusterView(alone, Counting())
    own = topologies.node(gpus("own", 3, 2, power_limit_w=None), node_id=1)
    view.topology, view.first_id = topologies.cluster(topologies.node(gpus("other", 0, 3)), own), 3
    return PowerPlanner(view, power_budget_w)


def test_limits_are_set_on_the_gpus_of_this_node(nvml: FakePowerNvml) -> None:
    found = planner()
    found.record("train", 300, 10.0, 290.0, devices=[4])
    found.record("train", 200, 9.0, 195.0)
    plan = found.plan({"train": 1}, apply=True)
    assert (plan.success, plan.device_adjustments) == (True, {4: 200})
    assert nvml.limits_mw == {"own 0": 300_000, "own 1": 200_000}
    assert found.restore()
    assert nvml.limits_mw == {"own 0": 300_000, "own 1": 300_000}


def test_a_measurement_is_of_the_gpus_of_this_node(
    nvml: FakePowerNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 1.0]).__next__
    monkeypatch.setattr(planner_module, "EnergyMeter", partial(EnergyMeter, clock=clock))
    at: list[tuple[int, int]] = []

    def run() -> float:
        at.append((nvml.limits_mw["own 0"], nvml.limits_mw["own 1"]))
        return 1.0

    (measured,) = planner().measure("train", run, [200], devices=[3])
    assert at == [(200_000, 300_000)]
    assert (measured.power_limit_w, measured.power_w) == (200, 200)
    with pytest.raises(ValueError, match=r"devices must be among \[3, 4\], got 0"):
        planner().measure("train", run, [200], devices=[0])


def test_what_goes_wrong_is_told_with_the_ids_of_the_cluster(nvml: FakePowerNvml) -> None:
    with pytest.raises((ValueError, PowerLimitError), match="gpu:4 must be within 100 to 400 W, got 900"):
        planner().measure("train", lambda: 1.0, [900], devices=[4])
    found = planner(power_budget_w=1000)
    found.record("train", 300, 10.0, 290.0, devices=[3])
    plan = found.plan({"train": 1})
    assert plan.success is False
    assert plan.reason.startswith("draw and limit of devices [4] without a workload are unknown")
    with pytest.raises(ValueError, match=r"devices of workload 'train' are \[3\], got \[4\]"):
        found.record("train", 200, 9.0, devices=[4])
    found.record("serve", 300, 10.0, devices=[3])
    assert found.plan({"train": 1, "serve": 1}).reason.startswith("device 3 runs both 'train' and 'serve'")


def test_a_workload_tells_its_devices_once_and_late(nvml: FakePowerNvml) -> None:
    found = planner()
    found.record("train", 300, 10.0)
    assert "devices of ['train'] are not known" in found.plan({"train": 1}, apply=True).reason
    found.record("train", 300, 10.0, devices=[3])
    assert found.plan({"train": 1}, apply=True).applied
    assert nvml.limits_mw["own 0"] == 300_000
