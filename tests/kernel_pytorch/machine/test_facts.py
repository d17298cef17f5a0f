"""What follows from the facts of a node or a cluster."""

from __future__ import annotations

from dataclasses import replace

import pytest
import topologies

from kernel_pytorch.machine.facts import (
    BlockDevice,
    DeviceCapability,
    GpuIdentity,
    HardwareVendor,
    Limits,
    PciLink,
)
from kernel_pytorch.machine.readings import DeviceReading


def test_a_dgx_in_numbers():
    cluster = topologies.dgx_h100(2)
    assert cluster.total_devices == 16
    assert cluster.total_memory_gb == pytest.approx(16 * 85.52, rel=1e-4)
    assert cluster.vendor_distribution == {HardwareVendor.NVIDIA: 16}
    assert cluster.capability_distribution == {DeviceCapability.COMPUTE_9_0: 16}
    assert cluster.memory_distribution == {(81559 << 20) / 1e9: 16}
    node = cluster.nodes[1]
    assert node.numa_topology == {0: [8, 9, 10, 11], 1: [12, 13, 14, 15]}
    assert node.pcie_topology[8] == PciLink(
        address="0000:1b:00.0", generation=5, generation_max=5, width=16, width_max=16
    )
    assert len(node.nvlink_topology) == 28
    assert set(node.nvlink_topology.values()) == {450.0}
    assert (node.cpu_count, node.memory_gb) == (224, pytest.approx(2199, rel=1e-3))


def test_what_is_unknown_of_one_device_is_unknown_of_all():
    cluster = topologies.cluster(
        topologies.node([topologies.gpu(0), topologies.gpu(1, numa_node=None, memory_bytes=None)])
    )
    assert cluster.total_memory_gb is None
    assert cluster.nodes[0].numa_topology == {0: [0]}


def test_memory_that_a_group_may_use():
    node = topologies.dgx_h100_node()
    limits = Limits(cpus=(0,), cpu_quota=None, memory_bytes=64 * 10**9)
    assert replace(node, limits=limits).memory_gb == 64
    assert replace(node, limits=limits, memory_bytes=None).memory_gb == 64
    assert replace(node, limits=replace(limits, memory_bytes=1 << 60)).memory_gb == node.memory_bytes / 1e9


@pytest.mark.parametrize(
    ("kinds", "fastest"),
    [
        (("hdd", "nvme", "ssd"), "nvme"),
        (("virtual", "hdd", "ssd"), "ssd"),
        (("virtual", "hdd"), "hdd"),
        ((), None),
    ],
)
def test_the_fastest_storage(kinds, fastest):
    storage = tuple(BlockDevice(name=kind, kind=kind, size_bytes=1) for kind in kinds)
    assert replace(topologies.dgx_h100_node(), storage=storage).storage_type == fastest


def test_readings_under_their_earlier_names():
    device = replace(
        topologies.gpu(0),
        reading=DeviceReading(utilization=0.25, memory_used_bytes=3 * 10**9, temperature_c=50, power_w=300),
    )
    assert (device.current_utilization, device.memory_used_gb) == (25, 3)
    assert (device.current_temp_c, device.current_power_w) == (50, 300)
    assert (device.peak_flops_fp32, device.peak_flops_fp16) == (67e12, 989.4e12)
    unread = replace(device, reading=DeviceReading(), peaks=None)
    assert (unread.current_utilization, unread.memory_used_gb, unread.thermal_state) == (None, None, None)
    assert (unread.peak_flops_fp16, unread.memory_bandwidth_gb_s) == (None, None)


def test_a_gpu_by_its_uuid_and_by_its_address():
    """torch writes the UUID without NVML's prefix; where both tell a PCI address, that decides."""
    here = topologies.gpu(0, uuid="GPU-ABCD", pci=PciLink(address="0000:1b:00.0"))
    bare = topologies.gpu(0, uuid="GPU-ABCD")
    assert GpuIdentity(uuid="abcd", pci_address=None).is_of(here)
    assert GpuIdentity(uuid="GPU-ABCD", pci_address=None).is_of(replace(here, uuid="gpu-abcd"))
    assert GpuIdentity(uuid="abcd", pci_address="0000:1c:00.0").is_of(bare)
    assert GpuIdentity(uuid=None, pci_address="0000:1b:00.0").is_of(here)
    assert not GpuIdentity(uuid="abcd", pci_address="0000:1c:00.0").is_of(here)
    assert not GpuIdentity(uuid="abce", pci_address=None).is_of(here)
    assert not GpuIdentity(uuid=None, pci_address=None).is_of(replace(bare, uuid=None))
