"""Machines as folders: the files of /proc and /sys that describe them, written below any root."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path


def write(root: Path, name: str, text: object) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")


def cpu_list(cpus: Sequence[int]) -> str:
    return ",".join(map(str, sorted(cpus)))


def cpu_mask(cpus: Sequence[int]) -> str:
    """As sysfs writes masks: words of 32 bits, the highest first."""
    mask = sum(1 << cpu for cpu in cpus)
    words = [f"{mask >> shift & 0xFFFFFFFF:08x}" for shift in range(0, max(cpus, default=0) + 1, 32)]
    return ",".join(reversed(words))


def write_host(
    root: Path,
    *,
    packages: Sequence[Sequence[Sequence[int]]],
    numa: Sequence[Sequence[int]],
    distances: Sequence[Sequence[int]] | None = None,
    offline: Sequence[int] = (),
    memory_kb: int = 1 << 20,
    huge_pages: int = 0,
    vendor: str = "GenuineIntel",
    model: str = "A CPU @ 2.00GHz",
) -> None:
    """A Linux host.

    Args:
        packages: for each socket, for each core, its CPUs.
        numa: the CPUs of each NUMA node, of memory_kb kB each.
        offline: CPUs that are switched off.
    """
    every = sorted(cpu for cores in packages for core in cores for cpu in core)
    online = [cpu for cpu in every if cpu not in offline]
    cpus = "sys/devices/system/cpu"
    for name, which in (("online", online), ("possible", every), ("present", every)):
        write(root, f"{cpus}/{name}", cpu_list(which))
    write(root, f"{cpus}/offline", cpu_list(offline))
    blocks = []
    for package, cores in enumerate(packages):
        whole = [cpu for core in cores for cpu in core if cpu in online]
        for number, core in enumerate(cores):
            threads = [cpu for cpu in core if cpu in online]
            for cpu in core:
                folder = f"{cpus}/cpu{cpu}"
                (root / folder).mkdir(parents=True, exist_ok=True)
                if cpu != 0:
                    write(root, f"{folder}/online", int(cpu in online))
                if cpu not in online:
                    continue
                write(root, f"{folder}/topology/physical_package_id", package)
                write(root, f"{folder}/topology/core_id", number)
                for kind, shared in (("core_cpus", threads), ("thread_siblings", threads)):
                    write(root, f"{folder}/topology/{kind}", cpu_mask(shared))
                    write(root, f"{folder}/topology/{kind}_list", cpu_list(shared))
                for kind in ("package_cpus", "core_siblings"):
                    write(root, f"{folder}/topology/{kind}", cpu_mask(whole))
                    write(root, f"{folder}/topology/{kind}_list", cpu_list(whole))
                for index, (level, type_, size, shared) in enumerate(
                    (
                        (1, "Data", "32K", threads),
                        (1, "Instruction", "32K", threads),
                        (2, "Unified", "1024K", threads),
                        (3, "Unified", "16384K", whole),
                    )
                ):
                    cache = f"{folder}/cache/index{index}"
                    write(root, f"{cache}/level", level)
                    write(root, f"{cache}/type", type_)
                    write(root, f"{cache}/size", size)
                    write(root, f"{cache}/shared_cpu_map", cpu_mask(shared))
                    write(root, f"{cache}/shared_cpu_list", cpu_list(shared))
                    write(root, f"{cache}/coherency_line_size", 64)
                    write(root, f"{cache}/number_of_sets", 64)
                    write(root, f"{cache}/physical_line_partition", 1)
                blocks.append(
                    f"processor\t: {cpu}\nvendor_id\t: {vendor}\ncpu family\t: 6\nmodel\t\t: 85\n"
                    f"model name\t: {model}\nstepping\t: 7\nphysical id\t: {package}\ncore id\t\t: {number}\n"
                )
    write(root, "proc/cpuinfo", "\n".join(sorted(blocks, key=lambda block: int(block.split()[2]))))
    nodes = "sys/devices/system/node"
    write(root, f"{nodes}/online", cpu_list(range(len(numa))))
    write(root, f"{nodes}/possible", cpu_list(range(len(numa))))
    for number, own in enumerate(numa):
        folder = f"{nodes}/node{number}"
        write(
            root, f"{folder}/cpumap", cpu_mask([cpu for cpu in own if cpu in online] or [0]) if own else "0"
        )
        write(root, f"{folder}/cpulist", cpu_list([cpu for cpu in own if cpu in online]))
        write(
            root, f"{folder}/meminfo", f"Node {number} MemTotal:  {memory_kb} kB\nNode {number} MemFree: 1 kB"
        )
        row = (
            distances[number] if distances else [10 if other == number else 20 for other in range(len(numa))]
        )
        write(root, f"{folder}/distance", " ".join(map(str, row)))
        pages = f"{folder}/hugepages/hugepages-2048kB"
        write(root, f"{pages}/nr_hugepages", huge_pages)
        write(root, f"{pages}/free_hugepages", huge_pages)
    write(
        root,
        "proc/meminfo",
        f"MemTotal:  {memory_kb * len(numa)} kB\nHugePages_Total: 0\nHugepagesize: 2048 kB",
    )
    write(
        root, "proc/self/status", f"Name:\tx\nCpus_allowed_list:\t{cpu_list(online)}\nMems_allowed_list:\t0"
    )
    write(root, "proc/self/cgroup", "0::/")
    write(root, "proc/self/mountinfo", "")


def write_whole_host(root: Path) -> None:
    """A host with a file of each kind that is read: sockets, control group, sensors, adapters, disks."""
    write_host(root, packages=[[[0, 3], [1]], [[2]]], numa=[[0, 1, 3], [2]])
    files: dict[str, object] = {
        "proc/self/cgroup": "0::/job",
        "proc/self/mountinfo": "30 1 0:40 / / rw - zfs tank rw\n"
        "31 30 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw",
        "sys/fs/cgroup/job/cpu.max": "200000 100000",
        "sys/fs/cgroup/job/memory.max": 1 << 31,
        "sys/fs/cgroup/job/memory.events": "oom 2\noom_kill 2",
        "sys/fs/cgroup/job/memory.pressure": "some avg10=0.00 avg60=0.00 avg300=0.00 total=500000",
        "proc/pressure/cpu": "some avg10=0.00 avg60=0.00 avg300=0.00 total=700000",
        "proc/pressure/memory": "some avg10=0.00 avg60=0.00 avg300=0.00 total=900000",
        "proc/vmstat": "pgfault 7\noom_kill 30",
        "proc/meminfo": "MemTotal:  2097152 kB\nMemFree:  5 kB\nMemAvailable:  1000000 kB",
        "proc/stat": "\n".join(
            ["cpu  8 0 8 8 0 0 0 0 0 0", *(f"cpu{n} 1 0 1 1 0 0 0 0 0 0" for n in range(4))]
        ),
        "proc/sys/kernel/random/boot_id": "5f2b1c6e-0000-4000-8000-000000000001",
    }
    for cpu in range(4):
        folder = f"sys/devices/system/cpu/cpu{cpu}"
        clocks = {"base_frequency": 2000000, "cpuinfo_max_freq": 3000000, "scaling_cur_freq": 2500000}
        files |= {f"{folder}/cpufreq/{name}": khz for name, khz in clocks.items()}
        files[f"{folder}/thermal_throttle/package_throttle_count"] = 3
    for number in (0, 1):
        hwmon, rapl = f"sys/class/hwmon/hwmon{number}", f"sys/class/powercap/intel-rapl:{number}"
        files |= {f"{hwmon}/name": "coretemp", f"{hwmon}/temp1_label": f"Package id {number}"}
        files |= {f"{hwmon}/temp1_input": 40000 + number, f"{rapl}/name": f"package-{number}"}
        files |= {f"{rapl}/energy_uj": 50000000 + number, f"{rapl}/max_energy_range_uj": 262143328850}
        files[f"{rapl}/constraint_0_power_limit_uw"] = 205000000
    for name, kind, speed in (("lo", 772, ""), ("eth0", 1, 100000), ("ib0", 32, "")):
        folder = f"sys/class/net/{name}"
        files |= {f"{folder}/type": kind, f"{folder}/speed": speed, f"{folder}/mtu": 1500}
        files |= {f"{folder}/carrier": 1, f"{folder}/operstate": "up", f"{folder}/dev_port": int(kind == 32)}
        files |= {f"{folder}/dev_id": "0x0", f"{folder}/statistics/rx_errors": 3}
        files[f"{folder}/statistics/tx_errors"] = 4
        if name != "lo":
            files[f"{folder}/device/numa_node"] = 1
    (root / "sys/class/net/ib0/device/infiniband/mlx4_0").mkdir(parents=True)
    for adapter, number, state, rate in (("mlx4_0", 1, 4, 40), ("mlx4_0", 2, 1, 56), ("mlx5_0", 1, 4, 400)):
        port = f"sys/class/infiniband/{adapter}/ports/{number}"
        files |= {f"{port}/state": f"{state}: X", f"{port}/rate": f"{rate} Gb/sec (4X)"}
        files |= {f"{port}/link_layer": "InfiniBand", f"{port}/counters/symbol_error": 0}
        files |= {f"{port}/counters/port_rcv_errors": 1, f"{port}/counters/port_xmit_discards": 2}
    for name, rotational in (("nvme0n1", 0), ("sda", 1), ("nvme0c0n1", 0)):
        folder = f"sys/block/{name}"
        files |= {f"{folder}/size": 2000, f"{folder}/queue/rotational": rotational}
        files |= {f"{folder}/hidden": int(name == "nvme0c0n1"), f"{folder}/device/model": "A disk"}
        files[f"{folder}/device/numa_node"] = -1 if name == "sda" else 0
    gpu = "sys/bus/pci/devices/0000:1b:00.0"
    files |= {f"{gpu}/vendor": "0x10de", f"{gpu}/class": "0x030200", f"{gpu}/device": "0x2330"}
    files[f"{gpu}/numa_node"] = 1
    for name, text in files.items():
        write(root, name, text)


def write_link(root: Path, name: str, target: str) -> None:
    """A symbolic link below ``root`` to ``target``, also below it."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    (root / target).mkdir(parents=True, exist_ok=True)
    path.symlink_to(os.path.relpath(root / target, path.parent))
