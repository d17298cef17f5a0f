from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from sysfs_trees import write, write_link

from kernel_pytorch.machine.host.host_readings import HostReader
from kernel_pytorch.machine.readings import NicReading, Snapshot
from kernel_pytorch.watch.health import ComponentHealth, HealthState, MachineHealth

PF, VF, SF = "0000:08:00.0", "0000:08:00.2", "0000:08:00.0/mlx5_core.sf.4"
BUS = "sys/devices/pci0000:00/0000:00:03.0"
FELL_OFF = NicReading(carrier=False, fell_off=True)


def interface(root: Path, name: str, device: str | None) -> None:
    write(root, f"sys/class/net/{name}/operstate", "up")
    write(root, f"sys/class/net/{name}/carrier", 1)
    if device is not None:
        write_link(root, f"sys/class/net/{name}/device", f"{BUS}/{device}")


def leave(root: Path, name: str) -> None:
    shutil.rmtree(root / f"sys/class/net/{name}")


def off_the_bus(root: Path, name: str, device: str) -> None:
    leave(root, name)
    shutil.rmtree(root / f"{BUS}/{device}")


def after(root: Path, event: Callable[[], None]) -> tuple[HostReader, ComponentHealth]:
    """The health of ``eth0`` ten seconds after something happened to it."""
    reader, health = HostReader(str(root), mounts=()), MachineHealth([])
    for second in range(20):
        if second == 10:
            assert health.components()["nic:eth0"].state is HealthState.HEALTHY
            event()
        health.update(Snapshot(time_s=second, devices={}, host=reader.read()))
    return reader, health.components()["nic:eth0"]


@pytest.mark.parametrize("device", [PF, VF, SF, "0000:08:00.0/virtio0", None])
def test_an_interface_that_leaves_for_a_container_gets_no_verdict(tmp_path: Path, device: str | None):
    interface(tmp_path, "eth0", device)
    reader, health = after(tmp_path, lambda: leave(tmp_path, "eth0"))
    assert (health.state, health.evidence) == (None, ())
    assert reader.read().nics == {}
    interface(tmp_path, "eth0", None if device is None else device + "again")
    assert reader.read().nics == {"eth0": NicReading(carrier=True)}


@pytest.mark.parametrize("device", [VF, SF])
def test_a_virtual_function_that_is_removed_gets_no_verdict(tmp_path: Path, device: str):
    interface(tmp_path, "eth0", device)
    write_link(tmp_path, f"{BUS}/{VF}/physfn", f"{BUS}/{PF}")
    reader, health = after(tmp_path, lambda: off_the_bus(tmp_path, "eth0", device))
    assert (health.state, health.evidence) == (None, ())
    assert reader.read().nics == {}


@pytest.mark.parametrize("device", [PF, "0000:08:00.0/virtio0"])
def test_a_physical_interface_that_falls_off_the_bus_failed(tmp_path: Path, device: str):
    interface(tmp_path, "eth0", device)
    reader, health = after(tmp_path, lambda: off_the_bus(tmp_path, "eth0", PF))
    assert health.state is HealthState.FAILED
    assert "its device has left the bus" in health.evidence[0].text
    assert reader.read().nics == {"eth0": FELL_OFF}
    interface(tmp_path, "eth0", device)
    assert reader.read().nics == {"eth0": NicReading(carrier=True)}


def test_an_rdma_adapter_that_falls_off_the_bus(tmp_path: Path):
    write_link(tmp_path, "sys/class/infiniband/mlx5_0/device", f"{BUS}/{PF}")
    write(tmp_path, "sys/class/infiniband/mlx5_0/ports/1/state", "4: ACTIVE")
    reader = HostReader(str(tmp_path), mounts=())
    assert reader.read().nics == {"mlx5_0": NicReading(carrier=True)}
    shutil.rmtree(tmp_path / "sys/class/infiniband/mlx5_0")
    shutil.rmtree(tmp_path / f"{BUS}/{PF}")
    assert reader.read().nics == {"mlx5_0": FELL_OFF}


def test_an_interface_that_falls_off_the_bus_without_having_had_a_carrier_is_unknown(tmp_path: Path):
    interface(tmp_path, "eth0", PF)
    reader, health = HostReader(str(tmp_path), mounts=()), MachineHealth([])
    write(tmp_path, "sys/class/net/eth0/carrier", 0)
    for second in range(20):
        if second == 10:
            off_the_bus(tmp_path, "eth0", PF)
        health.update(Snapshot(time_s=second, devices={}, host=reader.read()))
    assert health.components()["nic:eth0"].state is None
