from __future__ import annotations

from dataclasses import replace

import pytest
import topologies
from torch.distributed.run import get_args_parser

from kernel_pytorch.machine.facts import ClusterTopology, HardwareVendor
from kernel_pytorch.placement import PlacementRequest, place
from kernel_pytorch.placement.launch_hints import launch_hints


def hints(topology: ClusterTopology, **request: object):
    return launch_hints(topology, place(topology, PlacementRequest(**request)))


def test_a_dgx_binds_each_rank_to_its_socket():
    found = hints(topologies.dgx_h100(), devices=[2, 3, 4], num_devices=3)
    assert found.in_order
    assert str(found) == (
        "host-0: CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA_VISIBLE_DEVICES=2,3,4 "
        "torchrun --nproc-per-node=3 --numa-binding=node ...\n"
        "  NUMA binding: node, each rank on the CPUs next to its GPU\n"
        "  local rank 0: gpu:2, NUMA node 0, CPUs 0-55,112-167\n"
        "  local rank 1: gpu:3, NUMA node 0, CPUs 0-55,112-167\n"
        "  local rank 2: gpu:4, NUMA node 1, CPUs 56-111,168-223"
    )


@pytest.mark.parametrize("name", topologies.EVERY)
def test_torchrun_takes_the_command_line(name: str):
    topology = topologies.EVERY[name]()
    found = hints(topology, num_devices=topology.total_devices)
    lines = [line for line in str(found).splitlines() if " torchrun --" in line]
    assert len(lines) == len(topology.nodes)
    for node_rank, (line, node) in enumerate(zip(lines, found.nodes, strict=True)):
        arguments = line.split(" torchrun ")[1].replace("...", "train.py").split()
        parsed = get_args_parser().parse_args(arguments)
        assert parsed.nproc_per_node == str(len(node.ranks))
        assert parsed.numa_binding == node.numa_binding
        assert parsed.node_rank == node_rank
        assert parsed.nnodes in ("1:1", str(len(topology.nodes)))


def test_devices_are_numbered_by_node_and_in_the_order_of_the_mesh():
    found = hints(topologies.uneven_nodes([4, 4], [None, None]), num_devices=6, tensor_parallel_size=3)
    assert [node.environment["CUDA_VISIBLE_DEVICES"] for node in found.nodes] == ["0,1,2", "0,1,2"]
    bridged = hints(topologies.uneven_sockets(), num_devices=4, tensor_parallel_size=2)
    assert bridged.nodes[0].environment["CUDA_VISIBLE_DEVICES"] == "0,3,1,6"
    assert bridged.in_order
    spread = hints(topologies.dgx_h100(2), num_devices=4, devices=[0, 1, 8, 9], context_parallel_size=4)
    assert spread.in_order
    across = topologies.uneven_nodes([2, 2], [None, None])
    to_and_fro = replace(place(across, PlacementRequest(num_devices=4)), device_ids=(0, 2, 1, 3))
    assert not launch_hints(across, to_and_fro).in_order
    assert str(launch_hints(across, to_and_fro)).endswith("The ranks are not in the order of the mesh.")


def test_where_torchrun_cannot_bind_it_is_not_asked_to():
    (cpu,) = hints(topologies.cpu_only(2), num_devices=2).nodes
    assert (cpu.numa_binding, cpu.environment) == (None, {})
    assert "torchrun binds by the GPUs that torch.cuda knows" in cpu.why
    assert [rank.cpus for rank in cpu.ranks] == [(0, 1, 2, 3), (4, 5, 6, 7)]

    one = topologies.cluster(topologies.node([topologies.gpu(0)], cpus=[(0, 1)]))
    assert hints(one).nodes[0].why == "none, there is one NUMA node"

    unknown = topologies.cluster(topologies.node([topologies.gpu(0, numa_node=None)]))
    (node,) = hints(unknown).nodes
    assert node.numa_binding is None
    assert node.why == "none, the NUMA node of gpu:0 is unknown and torchrun would take node 0"
    assert "gpu:0, NUMA node unknown, no CPUs known next to it" in str(hints(unknown))

    barred = topologies.cluster(
        topologies.node([topologies.gpu(0), topologies.gpu(1, numa_node=1)], allowed=(0,))
    )
    (node,) = hints(barred, num_devices=2).nodes
    assert [rank.cpus for rank in node.ranks] == [(0,), ()]
    assert node.why == "none, this process may run on no CPU next to gpu:1"


@pytest.mark.parametrize(
    ("vendor", "environment", "binding"),
    [
        (HardwareVendor.AMD, {"HIP_VISIBLE_DEVICES": "0,1"}, "node"),
        (HardwareVendor.INTEL, {"ZE_AFFINITY_MASK": "0,1"}, None),
    ],
)
def test_other_vendors(vendor: HardwareVendor, environment: dict[str, str], binding: str | None):
    topology = topologies.cluster(topologies.node([topologies.gpu(i, vendor=vendor) for i in range(2)]))
    (node,) = hints(topology, num_devices=2).nodes
    assert (node.environment, node.numa_binding) == (environment, binding)


def test_level_zero_orders_gpus_by_itself():
    devices = [topologies.gpu(i, vendor=HardwareVendor.INTEL, visible_as=str(2 * i)) for i in range(3)]
    topology = topologies.cluster(topologies.node(devices))
    placement = replace(place(topology, PlacementRequest(num_devices=2)), device_ids=(2, 1))
    found = launch_hints(topology, placement)
    assert found.nodes[0].environment == {"ZE_AFFINITY_MASK": "2,4"}
    assert [rank.device.device_id for rank in found.nodes[0].ranks] == [1, 2]
    assert not found.in_order


def test_an_instance_is_chosen_by_its_uuid():
    (node,) = hints(topologies.mig(), num_devices=1).nodes
    assert node.environment == {"CUDA_VISIBLE_DEVICES": "MIG-0"}
