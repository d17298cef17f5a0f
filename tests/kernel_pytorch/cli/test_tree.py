"""The tree, line by line."""

from __future__ import annotations

from dataclasses import replace

import topologies

from kernel_pytorch.cli.probe.report import ProbeReport
from kernel_pytorch.cli.probe.tree import Branch, report_tree, tree_lines
from kernel_pytorch.machine.facts import (
    BlockDevice,
    Cache,
    DeviceLink,
    HugePages,
    LinkKind,
    MigInstance,
    NetworkInterface,
    NodeTopology,
    PciLink,
)
from kernel_pytorch.machine.measured import MeasuredPeaks


def lines(node: NodeTopology, **more: object) -> list[str]:
    """Without the branches."""
    return [line.lstrip("│├└─ ") for line in tree_lines(report_tree(ProbeReport(node=node, **more)))]


def test_branches():
    tree = Branch("a", [Branch("b", [Branch("c"), Branch("d")]), Branch("e", [Branch("f")])])
    assert list(tree_lines(tree)) == ["a", "├─ b", "│  ├─ c", "│  └─ d", "└─ e", "   └─ f"]
    assert list(tree_lines(tree, ascii_only=True)) == ["a", "|- b", "|  |- c", "|  `- d", "`- e", "   `- f"]


def test_a_node_of_eight_gpus():
    node = topologies.dgx_h100_node()
    found = lines(
        replace(
            node,
            storage=(BlockDevice(name="nvme0n1", kind="nvme", size_bytes=1920383410176, model="SAMSUNG"),),
        )
    )
    assert found[0] == "host-0  may use 8 GPUs, 224 CPUs, 2199.0 GB"
    assert "package 1  Xeon, 112 cores, CPUs 56-111,168-223" in found
    assert "NUMA node 1  1099.5 GB, CPUs 56-111,168-223, distances 21 10" in found
    assert "8 devices" in found
    assert (
        "gpu:7  NVIDIA H100 80GB HBM3, architecture 9.0, 85.5 GB, 132 SMs, power limit 700 W, NUMA node 1"
    ) in found
    assert "PCI 0000:df:00.0, link gen 5 x16 of gen 5 x16" in found
    assert [line for line in found if line.startswith("peaks of")] == [
        "peaks of NVIDIA H100 80GB HBM3  float32 67, tf32 494.7, bfloat16 989.4, float16 989.4 TFLOP/s, "
        "3350 GB/s (NVIDIA H100 Tensor Core GPU data sheet, SXM, without sparsity)"
    ]
    assert "NVLink 4, 18 lanes, 450 GB/s each way:  all pairs" in found
    assert "ib7  infiniband, up, 400 Gbit/s, MTU 4092, mlx5_core, RDMA device mlx5_7, NUMA node 1" in found
    assert "nvme0n1  nvme, 1920.4 GB, SAMSUNG" in found
    assert "measured" not in found
    assert "not seen" not in found


def test_a_gpu_that_uses_the_hosts_memory():
    node = topologies.dgx_h100_node()
    device = replace(node.devices[0], name="NVIDIA GB10", memory_shared=True)
    found = lines(replace(node, devices=(device,), links=()))
    assert any(
        "NVIDIA GB10, architecture 9.0, 85.5 GB shared with the host, 132 SMs" in line for line in found
    )


def test_a_node_about_which_little_is_known():
    cluster = topologies.cpu_only(1)
    (node,) = cluster.nodes.values()
    limits = replace(node.limits, cpus=(3,), cpu_quota=0.5)
    (package,), (numa,) = node.packages, node.numa_nodes
    found = lines(
        replace(
            node,
            memory_bytes=None,
            limits=limits,
            packages=(replace(package, model=None),),
            numa_nodes=(replace(numa, memory_bytes=None, cpus=(), distances=()),),
            network_interfaces=(NetworkInterface(name="lo", kind="loopback"),),
        )
    )
    assert found == [
        "host-0  may use 1 CPU for 0.5 CPU seconds a second, memory unknown",
        "CPUs",
        "package 0  model unknown, 4 cores, CPUs 0-3",
        "NUMA node 0  memory unknown, CPUs none, distances unknown",
        "1 device: no accelerator, the CPU packages",
        "cpu:0  Xeon, 68.7 GB, 4 cores, NUMA node 0",
        "now  nothing can be read",
        "network",
        "none but loopback",
        "storage",
        "no block device",
    ]


def test_caches_and_huge_pages():
    node = topologies.dgx_h100_node()
    caches = (
        Cache(level=1, type="data", size_bytes=48 << 10, cpus=(0,)),
        Cache(level=1, type="data", size_bytes=48 << 10, cpus=(1,)),
        Cache(level=1, type="instruction", size_bytes=512, cpus=(0,)),
        Cache(level=2, type="unified", size_bytes=3 << 19, cpus=(0, 1)),
        Cache(level=3, type="unified", size_bytes=1 << 30, cpus=(0, 1, 2)),
    )
    pages = (
        HugePages(size_bytes=2 << 20, total=8, free=0),
        HugePages(size_bytes=1 << 30, total=0, free=0),
    )
    node = replace(node, caches=caches, numa_nodes=(replace(node.numa_nodes[0], huge_pages=pages),))
    found = lines(node)
    assert (
        "caches  2 x L1d 48 KiB, 1 x L1i 512 B, 1 x L2 1.5 MiB for 2 CPUs, 1 x L3 1 GiB for 3 CPUs" in found
    )
    (numa,) = [line for line in found if line.startswith("NUMA node 0  ")]
    assert numa.endswith("distances 10 21, 0/8 huge pages of 2 MiB free")


def test_modes_instances_and_a_slow_link():
    instances = (
        MigInstance(uuid="MIG-1", name=None, memory_bytes=None, compute_units=None),
        MigInstance(uuid="MIG-2", name="1g.10gb", memory_bytes=9984 << 20, compute_units=16),
    )
    gpu = topologies.gpu(
        0,
        mig_enabled=True,
        mig_instances=instances,
        ecc_enabled=False,
        boost_clock_mhz=1980,
        power_limit_w=None,
        numa_node=None,
        peaks=None,
        pci=PciLink(address="0000:1b:00.0", generation=1, generation_max=5, width_max=16),
    )
    found = lines(topologies.node([gpu]))
    start = found.index("1 device")
    assert found[start + 1 : start + 7] == [
        "gpu:0  NVIDIA H100 80GB HBM3, architecture 9.0, 85.5 GB, 132 SMs, up to 1980 MHz",
        "PCI 0000:1b:00.0, link gen 1 x? of gen 5 x16",
        "MIG on, ECC off",
        "MIG instance MIG-1  memory unknown",
        "MIG instance 1g.10gb  10.5 GB",
        "now  nothing can be read",
    ]


def test_gpus_that_this_process_may_not_use():
    why = "is hidden by CUDA_VISIBLE_DEVICES=4,5"
    node = topologies.dgx_h100_node()
    devices = tuple(replace(gpu, hidden=None if gpu.index in (4, 5) else why) for gpu in node.devices)
    found = lines(replace(node, devices=devices))
    assert found[0] == "host-0  may use 2 of 8 GPUs, 224 CPUs, 2199.0 GB"
    marked = [line for line in found if line.startswith("gpu:") and line.endswith(f"NUMA node 0: {why}")]
    assert [line[:5] for line in marked] == ["gpu:0", "gpu:1", "gpu:2", "gpu:3"]
    assert any(line.startswith("gpu:4") and line.endswith("NUMA node 1") for line in found)

    cut = topologies.mig().nodes[0].devices[0]
    instances = (replace(cut.mig_instances[0], hidden="is hidden by CUDA_VISIBLE_DEVICES=MIG-1"),)
    found = lines(topologies.node([replace(cut, mig_instances=instances + cut.mig_instances[1:2])]))
    assert found[0].startswith("host-0  may use 1 GPU, ")
    assert [line for line in found if line.startswith("MIG instance")] == [
        "MIG instance 1g.10gb  10.5 GB: is hidden by CUDA_VISIBLE_DEVICES=MIG-1",
        "MIG instance 1g.10gb  10.5 GB",
    ]
    found = lines(topologies.node([replace(cut, hidden=why, mig_instances=instances)]))
    assert "MIG instance 1g.10gb  10.5 GB" in found  # said once, of the GPU


def test_links_the_nearest_first_and_by_pairs_unless_all_are_joined():
    devices = [topologies.gpu(i) for i in range(4)]
    bridges = [topologies.nvlink(0, 1, 4, 100.0), topologies.nvlink(2, 3, 4, 100.0)]
    assert "NVLink 4, 4 lanes, 100 GB/s each way:  0-1 2-3" in lines(topologies.node(devices, links=bridges))
    slow = [DeviceLink(a=a, b=b, kind=LinkKind.SOCKET) for a in (0, 1) for b in (2, 3)]
    found = lines(topologies.node(devices, links=[*slow, *bridges]))
    start = found.index("links between devices")
    assert found[start + 1 : start + 3] == [
        "NVLink 4, 4 lanes, 100 GB/s each way:  0-1 2-3",
        "between sockets:  0-2 0-3 1-2 1-3",
    ]
    one = DeviceLink(a=0, b=1, kind=LinkKind.NVLINK, lanes=1)
    assert "NVLink, 1 lane:  0-1" in lines(topologies.node(devices[:2], links=[one]))


def test_interfaces():
    def text(**facts: object) -> str:
        nic = NetworkInterface(name="eth0", kind="ethernet", **facts)
        return next(
            line
            for line in lines(replace(topologies.dgx_h100_node(), network_interfaces=(nic,)))
            if line.startswith("eth0")
        )

    assert text() == "eth0  ethernet, carrier unknown, speed unknown"
    assert text(carrier=False, speed_gbit_s=2.5) == "eth0  ethernet, no carrier, 2.5 Gbit/s"
    assert (
        text(carrier=True, mtu=1500, numa_node=0)
        == "eth0  ethernet, up, speed unknown, MTU 1500, NUMA node 0"
    )


def test_measured_figures():
    measured = MeasuredPeaks(
        device_id=3,
        flops={"float32": 1.5e12, "bfloat16": 0.5e12},
        memory_gb_s=12.34,
        matrix_sizes={"float32": 2048, "bfloat16": 256},
        copy_bytes=1 << 29,
        threads=2,
        flops_share={"float32": 0.25},
        memory_share=None,
        unmeasured={"tf32": "too slow"},
    )
    node = topologies.dgx_h100_node()
    assert lines(node, measured=(measured,))[-2:] == [
        "measured",
        "device 3  matrix products, 2 threads: float32 1.5 TFLOP/s (25% of peak), n = 2048; "
        "bfloat16 500 GFLOP/s, n = 256; copy 12.3 GB/s; tf32 not measured: too slow",
    ]
    assert lines(node, measured=())[-1] == "measured"  # asked for, though no device could be
