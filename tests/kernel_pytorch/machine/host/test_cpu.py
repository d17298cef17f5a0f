"""CPUs, caches and NUMA nodes: what we read is what hwloc reads, from the same files."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
from hwloc import HwlocTopology, lstopo_xml, read_hwloc_xml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sysfs_trees import write, write_host

from kernel_pytorch.machine.discover import Drivers, read_node
from kernel_pytorch.machine.facts import HardwareVendor
from kernel_pytorch.machine.files import Files, format_cpu_list, parse_cpu_list
from kernel_pytorch.machine.host.cpu import read_caches, read_numa_nodes, read_packages

needs_hwloc = pytest.mark.skipif(
    shutil.which("lstopo-no-graphics") is None, reason="needs hwloc (apt-get install hwloc)"
)


def hwloc_of(root: Path) -> HwlocTopology:
    return read_hwloc_xml(
        lstopo_xml("--no-io", HWLOC_FSROOT=str(root), HWLOC_THISSYSTEM="0", HWLOC_COMPONENTS="linux,stop")
    )


@st.composite
def hosts(draw: st.DrawFn) -> dict[str, object]:
    """Sockets with 1 to 4 cores of 1 or 2 threads, numbered as firmware likes, each cut into NUMA nodes."""
    shape = draw(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 2)), min_size=1, max_size=3))
    count = sum(cores * threads for cores, threads in shape)
    numbers = iter(draw(st.permutations(range(count))))
    packages = [
        [sorted(next(numbers) for _ in range(threads)) for _ in range(cores)] for cores, threads in shape
    ]
    numa = []
    for cores in packages:
        cut = draw(st.integers(0, len(cores) - 1))
        parts = [cores[:cut], cores[cut:]] if cut else [cores]
        numa += [sorted(cpu for core in part for cpu in core) for part in parts]
    offline = draw(st.lists(st.integers(1, count - 1), unique=True, max_size=2)) if count > 1 else []
    # A socket or a NUMA node without any CPU online is a case of its own.
    alive = [[cpu for cpu in own if cpu not in offline] for own in numa]
    if not all(alive):
        offline = []
    return {
        "packages": packages,
        "numa": numa,
        "offline": offline,
        "memory_kb": draw(st.integers(1 << 14, 1 << 24)) // 4 * 4,
        "huge_pages": draw(st.integers(0, 3)),
    }


@needs_hwloc
@settings(max_examples=25)
@given(hosts())
@example({"packages": [[[0, 4], [1, 5]], [[2, 6], [3, 7]]], "numa": [[0, 1, 4, 5], [2, 3, 6, 7]]})
@example({"packages": [[[0], [1], [2], [3], [4], [5]], [[6], [7]]], "numa": [[0, 1, 2, 3, 4, 5], [6, 7]]})
@example({"packages": [[[0], [1], [2]]], "numa": [[0, 1], [2], []]})
def test_the_same_as_hwloc(host):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_host(root, **host)
        theirs, files = hwloc_of(root), Files(root)
        # hwloc takes the vendor from the CPU that it runs on, not from the tree.
        assert [(p.package_id, p.cores, p.model) for p in read_packages(files)] == [
            (p.package_id, p.cores, p.model) for p in theirs.packages
        ]
        assert read_caches(files) == theirs.caches
        ours = read_numa_nodes(files)
        assert [(n.numa_id, n.cpus, n.memory_bytes) for n in ours] == [
            (n.numa_id, n.cpus, n.memory_bytes) for n in theirs.numa_nodes
        ]
        if len(ours) > 1:  # hwloc leaves out a single node's distance to itself
            assert [n.distances for n in ours] == [n.distances for n in theirs.numa_nodes]


@needs_hwloc
def test_this_host():
    theirs, files = read_hwloc_xml(lstopo_xml()), Files()
    assert read_packages(files) == theirs.packages
    assert read_caches(files) == theirs.caches
    assert [node.cpus for node in read_numa_nodes(files)] == [node.cpus for node in theirs.numa_nodes]


@needs_hwloc
def test_synthetic_topology():
    topology = read_hwloc_xml(lstopo_xml("-i", "node:2 pack:2 core:4 pu:2"))
    assert [numa.cpus for numa in topology.numa_nodes] == [tuple(range(16)), tuple(range(16, 32))]
    assert len(topology.packages) == 4
    assert topology.packages[1].cores == ((8, 9), (10, 11), (12, 13), (14, 15))


def test_more_than_32_cpus_in_hwloc():
    text = (
        '<topology version="2.0"><object type="Machine"><object type="Package" os_index="0">'
        '<object type="Core" cpuset="0x00000001,,0x80000000"/></object></object></topology>'
    )
    assert read_hwloc_xml(text).packages[0].cores == ((31, 64),)


def test_distances_and_pages_in_hwloc():
    """Row by row: from the first node to the second it is 21, the other way 31. Base pages are not huge."""
    text = (
        '<topology version="2.0"><object type="Machine">'
        '<object type="NUMANode" os_index="1" cpuset="0x2" local_memory="0"/>'
        '<object type="NUMANode" os_index="0" cpuset="0x1" local_memory="4096">'
        '<page_type size="4096" count="7"/><page_type size="2097152" count="3"/></object></object>'
        '<distances2 type="NUMANode" nbobjs="2"><u64values length="11">10 21 31 10</u64values></distances2>'
        "</topology>"
    )
    first, second = read_hwloc_xml(text).numa_nodes
    assert (first.distances, second.distances) == ((10, 21), (31, 10))
    assert (first.memory_bytes, second.memory_bytes) == (4096, None)
    assert [(page.size_bytes, page.total) for page in first.huge_pages] == [(2 << 20, 3)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no XML", "not the XML of hwloc: "),
        ("<topology version='1.11'/>", "not the XML of hwloc 2: <topology version='1.11'>"),
        ("<topology version='2.0'/>", "has no machine"),
    ],
)
def test_what_is_not_hwloc(text, message):
    with pytest.raises(ValueError, match=message):
        read_hwloc_xml(text)


def test_vendor_and_model(tmp_path):
    write_host(tmp_path, packages=[[[0]]], numa=[[0]], vendor="AuthenticAMD", model="AMD EPYC 9654")
    (package,) = read_packages(Files(tmp_path))
    assert (package.vendor, package.model) == (HardwareVendor.AMD, "AMD EPYC 9654")


def test_an_arm_host_names_no_model(tmp_path):
    write_host(tmp_path, packages=[[[0], [1]]], numa=[[0, 1]])
    write(tmp_path, "proc/cpuinfo", "processor\t: 0\nBogoMIPS\t: 50.00\nCPU implementer\t: 0x41\n")
    (package,) = read_packages(Files(tmp_path))
    assert (package.vendor, package.model, package.cores) == (HardwareVendor.UNKNOWN, None, ((0,), (1,)))


def test_a_kernel_without_numa_is_one_node(tmp_path):
    write_host(tmp_path, packages=[[[0], [1]]], numa=[[0, 1]], memory_kb=4096)
    shutil.rmtree(tmp_path / "sys/devices/system/node")
    write(tmp_path, "sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", 3)
    write(tmp_path, "sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", 1)
    (numa,) = read_numa_nodes(Files(tmp_path))
    assert (numa.cpus, numa.memory_bytes, numa.distances) == ((0, 1), 4096 * 1024, (10,))
    assert [(page.size_bytes, page.total, page.free) for page in numa.huge_pages] == [(2 << 20, 3, 1)]


def test_what_old_kernels_and_virtual_machines_write(tmp_path):
    """No core_cpus_list before Linux 5.3, package -1 where the firmware names none, no topology at all."""
    for cpu in range(4):
        folder = f"sys/devices/system/cpu/cpu{cpu}"
        write(tmp_path, f"{folder}/topology/physical_package_id", -1)
        write(tmp_path, f"{folder}/topology/thread_siblings_list", "0,2" if cpu % 2 == 0 else "1,3")
    write(tmp_path, "sys/devices/system/cpu/online", "0-3")
    (package,) = read_packages(Files(tmp_path))
    assert (package.package_id, package.cores) == (0, ((0, 2), (1, 3)))
    shutil.rmtree(tmp_path / "sys/devices/system/cpu/cpu3/topology")
    (package,) = read_packages(Files(tmp_path))
    assert (package.package_id, package.cores) == (0, ((0, 2), (1, 3)))  # CPU 1 tells of CPU 3
    shutil.rmtree(tmp_path / "sys/devices/system/cpu/cpu1/topology")
    (package,) = read_packages(Files(tmp_path))
    assert (package.package_id, package.cores) == (0, ((0, 2), (1,), (3,)))


def test_the_model_is_that_of_a_cpu_that_is_online(tmp_path):
    write_host(tmp_path, packages=[[[0], [1]]], numa=[[0, 1]], offline=[0], model="AMD EPYC 9654")
    (package,) = read_packages(Files(tmp_path))
    assert (package.model, package.cores) == ("AMD EPYC 9654", ((1,),))


def test_sizes_in_all_units_and_huge_pages_by_size(tmp_path):
    write_host(tmp_path, packages=[[[0]]], numa=[[0]])
    for index, size in enumerate(("48K", "2M", "1G", "512")):
        write(tmp_path, f"sys/devices/system/cpu/cpu0/cache/index{index}/size", size)
    assert sorted(cache.size_bytes for cache in read_caches(Files(tmp_path))) == [
        512,
        48 * 1024,
        2 * 1024**2,
        1024**3,
    ]
    for size_kb, total, free in ((2048, 8, 5), (1048576, 4, 1)):
        pages = f"sys/devices/system/node/node0/hugepages/hugepages-{size_kb}kB"
        write(tmp_path, f"{pages}/nr_hugepages", total)
        write(tmp_path, f"{pages}/free_hugepages", free)
    (numa,) = read_numa_nodes(Files(tmp_path))
    assert [(page.size_bytes, page.total, page.free) for page in numa.huge_pages] == [
        (2 * 1024**2, 8, 5),
        (1024**3, 4, 1),
    ]


def test_nothing_to_read(tmp_path):
    files = Files(tmp_path)
    assert (read_packages(files), read_caches(files), read_numa_nodes(files)) == ((), (), ())


@given(st.sets(st.integers(0, 200)))
def test_cpu_lists(cpus):
    ordered = tuple(sorted(cpus))
    assert parse_cpu_list(format_cpu_list(ordered)) == ordered


@pytest.mark.parametrize(
    "text", ["", "a", "1,,x", "-3", "0:4", "2-x", "0-99999999", "1-8192", "\u0663", "0-3 7"]
)
def test_what_is_no_cpu_list_is_unknown(text):
    """Half of a list would be a lie; a range of 100 million CPUs would fill the memory."""
    assert parse_cpu_list(text) == ()


def test_no_core_is_in_two_packages_or_counted_twice(tmp_path):
    write_host(tmp_path, packages=[[[0], [1]], [[2], [3]]], numa=[[0, 1], [2, 3]])
    for cpu, text in ((0, "0,2"), (2, "2-3"), (3, "3")):
        for name in ("core_cpus_list", "thread_siblings_list"):
            write(tmp_path, f"sys/devices/system/cpu/cpu{cpu}/topology/{name}", text)
    assert [package.cores for package in read_packages(Files(tmp_path))] == [((0,), (1,)), ((2, 3),)]


def test_a_cpu_without_a_package_is_in_none_if_there_are_several(tmp_path):
    write_host(tmp_path, packages=[[[0], [1]], [[2], [3]]], numa=[[0, 1], [2, 3]])
    for text in ("?", -1):
        write(tmp_path, "sys/devices/system/cpu/cpu3/topology/physical_package_id", text)
        assert [package.cores for package in read_packages(Files(tmp_path))] == [((0,), (1,)), ((2,),)]


POWER9 = """\
processor\t: {cpu}
cpu\t\t: POWER9 (architected), altivec supported
clock\t\t: 3800.000000MHz
revision\t: 2.2 (pvr 004e 1202)
"""
LOONGARCH = """\
processor\t\t: {cpu}
package\t\t\t: 0
core\t\t\t: {cpu}
CPU Family\t\t: Loongson-64bit
Model Name\t\t: Loongson-3A6000
"""
RISCV = "processor\t: {cpu}\nhart\t\t: {cpu}\nisa\t\t: rv64imafdc\nmmu\t\t: sv39\nuarch\t\t: sifive,u74-mc\n"
NEOVERSE = "processor\t: {cpu}\nBogoMIPS\t: 50.00\nCPU implementer\t: 0x41\nCPU part\t: 0xd0c\n"
NEW_ARM = "processor\t: {cpu}\nCPU implementer\t: 0x41\nCPU part\t: 0xfff\n"


@pytest.mark.parametrize(
    ("block", "model"),
    [
        (POWER9, "POWER9 (architected)"),
        ("processor\t: {cpu}\ncpu\t\t: POWER9\n", "POWER9"),
        ("system type : x\n\n" + LOONGARCH, "Loongson-3A6000"),
        (RISCV, "sifive,u74-mc"),
        ("processor\t\t: {cpu}\ncpu model\t\t: Loongson-3 V0.4\n", "Loongson-3 V0.4"),
        (NEOVERSE, "Neoverse-N1"),
        (NEW_ARM, "ARM implementer 0x41, part 0xfff"),
        ("processor\t: {cpu}\n", None),
    ],
    ids=["POWER", "POWER short", "LoongArch", "RISC-V", "MIPS", "ARM", "new ARM", "nothing"],
)
def test_models_of_other_architectures(tmp_path, block, model):
    write_host(tmp_path, packages=[[[0], [1]]], numa=[[0, 1]])
    write(tmp_path, "proc/cpuinfo", "\n".join(block.format(cpu=cpu) for cpu in (0, 1)) + "\ntimebase : 512")
    (package,) = read_packages(Files(tmp_path))
    assert (package.model, package.vendor) == (model, HardwareVendor.UNKNOWN)


def test_a_package_of_two_kinds_of_cores(tmp_path):
    """big.LITTLE: its clock is the highest, its name has both."""
    write_host(tmp_path, packages=[[[0], [1]]], numa=[[0, 1]])
    parts = enumerate(("0xd05", "0xd0b"))
    blocks = [f"processor : {cpu}\nCPU implementer : 0x41\nCPU part : {part}\n" for cpu, part in parts]
    write(tmp_path, "proc/cpuinfo", "\n".join(blocks))
    for cpu, (base, boost) in enumerate(((1800000, 2808000), (2400000, 4004000))):
        write(tmp_path, f"sys/devices/system/cpu/cpu{cpu}/cpufreq/base_frequency", base)
        write(tmp_path, f"sys/devices/system/cpu/cpu{cpu}/cpufreq/cpuinfo_max_freq", boost)
    (device,) = read_node(Files(tmp_path), Drivers((), ())).devices
    assert device.name == "Cortex-A55 + Cortex-A76"
    assert (device.base_clock_mhz, device.boost_clock_mhz) == (2400, 4004)


def test_a_cache_that_does_not_tell_who_shares_it_is_left_to_the_others(tmp_path):
    write_host(tmp_path, packages=[[[0], [1]]], numa=[[0, 1]])
    whole = read_caches(Files(tmp_path))
    cache = "sys/devices/system/cpu/cpu1/cache/index3"
    write(tmp_path, f"{cache}/shared_cpu_list", "?")
    assert read_caches(Files(tmp_path)) == whole  # CPU 0 tells of it
    write(tmp_path, "sys/devices/system/cpu/cpu0/cache/index3/size", "16MB")
    assert [cache.level for cache in read_caches(Files(tmp_path))] == [1, 1, 1, 1, 2, 2]


@pytest.mark.parametrize("text", ["10", "10 20 30", "10 x", "10 x 20", "-1 10", "?"])
def test_distances_that_are_not_one_for_each_node_are_unknown(tmp_path, text):
    write_host(tmp_path, packages=[[[0], [1]]], numa=[[0], [1]])
    write(tmp_path, "sys/devices/system/node/node1/distance", text)
    assert [numa.distances for numa in read_numa_nodes(Files(tmp_path))] == [(10, 20), ()]
