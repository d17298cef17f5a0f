"""One topology of many processes: real ranks that each see a host of their own making."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sysfs_trees import write, write_host, write_link
from worlds import World

from kernel_pytorch.machine.discover import Drivers, read_node
from kernel_pytorch.machine.facts import (
    ClusterTopology,
    DeviceInfo,
    DeviceLink,
    GpuIdentity,
    HardwareVendor,
    LinkKind,
)
from kernel_pytorch.machine.files import Files
from kernel_pytorch.machine.gather import RankReport, gather_topology, merge_reports
from kernel_pytorch.placement import PlacementRequest
from kernel_pytorch.placement.mesh import place_ranks


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with World(4) as world:
        yield world


def host(root: Path, *, boot: str, namespace: str, packages: int = 1, allowed: str = "0") -> None:
    write_host(root, packages=[[[2 * p], [2 * p + 1]] for p in range(packages)], numa=[range(2 * packages)])
    write(root, "proc/sys/kernel/random/boot_id", boot)
    write_link(root, "proc/self/ns/net", f"proc/{namespace}")
    write(root, "proc/self/status", f"Cpus_allowed_list: {allowed}")


def gathered(group, folder) -> ClusterTopology:
    files = Files(Path(folder, str(group.rank())))
    return gather_topology(lambda: read_node(files, Drivers((), ())), group)


@pytest.mark.xdist_group("worlds")
def test_ranks_of_two_hosts(world, tmp_path):
    """Ranks 0 and 2 are on one host; 1 has its boot but another network (a container); 3 another boot."""
    host(tmp_path / "0", boot="a", namespace="net:1", allowed="0", packages=2)
    host(tmp_path / "1", boot="a", namespace="net:2")
    host(tmp_path / "2", boot="a", namespace="net:1", allowed="2-3", packages=2)
    host(tmp_path / "3", boot="b", namespace="net:1")
    topologies = world.results(gathered, str(tmp_path))
    assert all(topology == topologies[0] for topology in topologies)
    topology = topologies[0]
    assert [(p.rank, p.node_id, p.local_rank, p.device_id) for p in topology.ranks] == [
        (0, 0, 0, 0),
        (1, 1, 0, 2),
        (2, 0, 1, 1),
        (3, 2, 0, 3),
    ]
    assert topology.nodes[0].limits.cpus == (0, 2, 3)  # what its ranks may use between them
    assert [device.device_id for device in topology.devices] == [0, 1, 2, 3]
    assert topology.node_of(3).boot_id == "b"


@pytest.mark.xdist_group("worlds")
def test_the_ranks_of_this_host(world):
    """Four real processes here share one node; with one CPU package none of them has it to itself."""
    topology = world.results(gathered_here)[0]
    assert list(topology.nodes) == [0]
    assert [place.local_rank for place in topology.ranks] == [0, 1, 2, 3]
    if len(topology.nodes[0].packages) < 4:
        assert {place.device_id for place in topology.ranks} == {None}


def failing_on_rank_1(group) -> str:
    def read():
        if group.rank() == 1:
            raise OSError("/proc is gone")
        return read_node(Files(), Drivers((), ()))

    try:
        gather_topology(read, group)
    except (OSError, RuntimeError) as error:
        return repr(error)
    return "no error"


@pytest.mark.xdist_group("worlds")
def test_a_rank_that_cannot_read_its_machine(world):
    """Nobody waits for it."""
    said = world.results(failing_on_rank_1)
    assert said[1] == "OSError('/proc is gone')"
    assert {said[rank] for rank in (0, 2, 3)} == {
        "RankFailed('rank 1 of 4 cannot read its machine: OSError: /proc is gone')"
    }


def gathered_here(group) -> ClusterTopology:
    return gather_topology(lambda: read_node(Files(), Drivers((), ())), group)


def gpu_node(boot: str | None):
    files = Files("/nowhere")
    node = read_node(files, Drivers((), ()))
    devices = tuple(
        DeviceInfo(
            device_id=i,
            kind="gpu",
            index=i,
            vendor=HardwareVendor.NVIDIA,
            name="GPU",
            uuid=f"GPU-AB{boot}{i}",
        )
        for i in range(2)
    )
    links = (DeviceLink(a=0, b=1, kind=LinkKind.NVLINK),)
    return replace(node, boot_id=boot, network_namespace="net:1", devices=devices, links=links)


def _report(node, uuid: str) -> RankReport:
    return RankReport(node=node, gpu=GpuIdentity(uuid=uuid, pci_address=None))


def test_gpus_are_known_by_their_uuid():
    """torch may number them otherwise, and writes the UUID otherwise."""
    reports = [_report(gpu_node(boot), f"ab{boot}{i}") for boot in ("x", "y") for i in (1, 0)]
    topology = merge_reports(reports)
    assert [place.device_id for place in topology.ranks] == [1, 0, 3, 2]
    assert topology.nodes[1].nvlink_topology == {(2, 3): None}


def test_each_rank_may_use_a_gpu_of_its_own():
    """A batch system that gives each rank one GPU: between them they may use both, under the names given."""
    node = gpu_node("x")
    reports = [
        replace(
            _report(node, f"abx{own}"),
            node=replace(
                node,
                devices=tuple(
                    replace(gpu, visible_as=str(own))
                    if gpu.index == own
                    else replace(gpu, hidden=f"is hidden by CUDA_VISIBLE_DEVICES={own}")
                    for gpu in node.devices
                ),
            ),
        )
        for own in (1, 0)
    ]
    topology = merge_reports(reports)
    assert [place.device_id for place in topology.ranks] == [1, 0]
    assert [(gpu.hidden, gpu.visible_as) for gpu in topology.devices] == [(None, "0"), (None, "1")]
    assert place_ranks(topology, PlacementRequest(num_devices=2)).left_out == {}
    without_torch = merge_reports([replace(report, gpu=None) for report in reports])
    assert [(gpu.hidden, gpu.visible_as) for gpu in without_torch.devices] == [(None, "0"), (None, "1")]
    (gpu, other) = merge_reports(reports[:1]).devices
    assert (gpu.hidden, other.hidden) == ("is hidden by CUDA_VISIBLE_DEVICES=1", None)


def test_a_rank_that_computes_on_a_gpu_may_use_it():
    """Whatever the environment says by now: CUDA reads it once."""
    node = gpu_node("x")
    hidden = tuple(replace(gpu, hidden="is hidden by CUDA_VISIBLE_DEVICES=") for gpu in node.devices)
    topology = merge_reports([_report(replace(node, devices=hidden), "abx1")])
    assert [gpu.hidden is None for gpu in topology.devices] == [False, True]


def test_hosts_that_cannot_be_told_apart_are_not_taken_for_one():
    topology = merge_reports([RankReport(node=gpu_node(None))] * 2)
    assert [place.node_id for place in topology.ranks] == [0, 1]
    assert topology.total_devices == 4
    with pytest.raises(ValueError, match=r"device_id must be one of \[0, 1, 2, 3\], got 9"):
        topology.node_of(9)


def test_ranks_of_one_host_that_see_different_gpus_keep_their_own_numbers():
    """A device cgroup for each rank: each sees one GPU, and calls it 0."""
    whole = gpu_node("x")
    reports = [
        _report(replace(whole, devices=(replace(whole.devices[own], device_id=0),), links=()), f"abx{own}")
        for own in (1, 0)
    ]
    topology = merge_reports(reports)
    assert [rank.device_id for rank in topology.ranks] == [0, 1]
    assert [device.uuid for device in topology.devices] == ["GPU-ABx1", "GPU-ABx0"]
    assert [node.devices[0].device_id for node in topology.nodes.values()] == [0, 1]
