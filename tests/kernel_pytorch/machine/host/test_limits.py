"""What a process may use: cgroups of both kinds as folders, and real ones where they can be made."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sysfs_trees import write

from kernel_pytorch.machine.files import Files
from kernel_pytorch.machine.host.limits import read_limits

V1, V2 = "cgroup cgroup rw,", "cgroup2 cgroup2 rw"


def mount(line_root: str, point: str, kind: str) -> str:
    return f"31 23 0:28 {line_root} {point} rw,relatime shared:9 - {kind}"


@pytest.fixture
def host(tmp_path: Path) -> Path:
    write(tmp_path, "sys/devices/system/cpu/online", "0-63")
    write(tmp_path, "proc/self/status", "Name:\tx\nCpus_allowed_list:\t0-63\nMems_allowed_list:\t0")
    return tmp_path


def test_no_limit(host):
    limits = read_limits(Files(host))
    assert (limits.cpus, limits.cpu_quota, limits.memory_bytes) == (tuple(range(64)), None, None)
    assert limits.usable_cpus == 64


def test_affinity_and_offline_cpus(host):
    write(host, "proc/self/status", "Cpus_allowed:\tff\nCpus_allowed_list:\t2-5\n")
    write(host, "sys/devices/system/cpu/online", "0-3")
    assert read_limits(Files(host)).cpus == (2, 3)


def test_v2_the_narrowest_on_the_way_up(host):
    write(host, "proc/self/cgroup", "0::/job/step")
    write(host, "proc/self/mountinfo", mount("/", "/sys/fs/cgroup", V2))
    write(host, "sys/fs/cgroup/job/step/cpu.max", "max 100000")
    write(host, "sys/fs/cgroup/job/step/memory.max", "max")
    write(host, "sys/fs/cgroup/job/cpu.max", "200000 100000")
    write(host, "sys/fs/cgroup/job/memory.max", 4 << 30)
    limits = read_limits(Files(host))
    assert (limits.cpu_quota, limits.memory_bytes, limits.usable_cpus) == (2.0, 4 << 30, 2.0)
    write(host, "sys/fs/cgroup/job/step/cpu.max", "50000 100000")
    write(host, "sys/fs/cgroup/job/step/memory.max", 8 << 30)
    limits = read_limits(Files(host))
    assert (limits.cpu_quota, limits.memory_bytes) == (0.5, 4 << 30)
    for name in ("cpu.max", "memory.max"):
        write(host, f"sys/fs/cgroup/job/{name}", "max")
    write(host, "sys/fs/cgroup/job/step/memory.max", "max")
    write(host, "sys/fs/cgroup/job/step/cpu.max", "6500000 100000")
    limits = read_limits(Files(host))
    assert (limits.cpu_quota, limits.memory_bytes, limits.usable_cpus) == (65.0, None, 64)


def test_v1_and_its_word_for_no_limit(host):
    write(host, "proc/self/cgroup", "5:cpu,cpuacct:/job\n4:memory:/job\n0::/")
    write(
        host,
        "proc/self/mountinfo",
        "\n".join(
            [
                mount("/", "/sys/fs/cgroup/cpu", V1 + "cpu,cpuacct"),
                mount("/", "/sys/fs/cgroup/memory", V1 + "memory"),
                mount("/", "/sys/fs/cgroup/unified", V2),
            ]
        ),
    )
    for folder in ("cpu/job", "cpu"):
        write(host, f"sys/fs/cgroup/{folder}/cpu.cfs_period_us", 100000)
        write(host, f"sys/fs/cgroup/{folder}/cpu.cfs_quota_us", -1)
    for folder in ("memory/job", "memory"):
        write(host, f"sys/fs/cgroup/{folder}/memory.limit_in_bytes", 9223372036854771712)
    limits = read_limits(Files(host))
    assert (limits.cpu_quota, limits.memory_bytes) == (None, None)
    write(host, "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us", 150000)
    write(host, "sys/fs/cgroup/memory/memory.limit_in_bytes", 1 << 30)
    limits = read_limits(Files(host))
    assert (limits.cpu_quota, limits.memory_bytes) == (1.5, 1 << 30)


def test_v1_controllers_are_not_taken_for_others(host):
    """ "cpuset" and "cpuacct" have the name of "cpu" in theirs."""
    write(host, "proc/self/cgroup", "5:cpuset:/job\n4:cpuacct:/job\n3:cpu:/")
    mounts = [mount("/", f"/sys/fs/cgroup/{name}", V1 + name) for name in ("cpuset", "cpuacct")]
    write(host, "proc/self/mountinfo", "\n".join(mounts))
    for name in ("cpuset", "cpuacct"):
        write(host, f"sys/fs/cgroup/{name}/cpu.cfs_quota_us", 100000)
        write(host, f"sys/fs/cgroup/{name}/cpu.cfs_period_us", 100000)
    assert read_limits(Files(host)).cpu_quota is None


@pytest.mark.parametrize(
    "text", ["200000 0", "200000", "0 100000", "-1 100000", "x 100000", "200000 100000 1"]
)
def test_a_quota_that_is_none(host, text):
    write(host, "proc/self/cgroup", "0::/")
    write(host, "proc/self/mountinfo", mount("/", "/sys/fs/cgroup", V2))
    write(host, "sys/fs/cgroup/cpu.max", text)
    assert read_limits(Files(host)).cpu_quota is None


def test_lines_that_are_no_group_and_no_mount_are_skipped(host):
    write(host, "proc/self/cgroup", "\ngarbage\n0:\n7:x\n0::/job\n")
    write(host, "proc/self/mountinfo", "\n31 23\n - cgroup2\n" + mount("/", r"/sys/fs/c\040g", V2))
    write(host, "sys/fs/c g/job/memory.max", 4096)
    assert read_limits(Files(host)).memory_bytes == 4096


@pytest.mark.parametrize(
    "text", ["Cpus_allowed_list:", "Cpus_allowed_list:\nMems: 0", "Cpus_allowed_list:\t0-x", "x"]
)
def test_an_affinity_that_cannot_be_read_is_that_of_all_cpus(host, text):
    write(host, "proc/self/status", text)
    assert read_limits(Files(host)).cpus == tuple(range(64))


@pytest.mark.parametrize(
    ("path", "mount_root"),
    [("/docker/abc", "/docker/abc"), ("/", "/"), ("/../../docker/abc", "/"), ("/elsewhere", "/docker/abc")],
)
def test_a_container_sees_its_own_group_at_the_mount(host, path, mount_root):
    """With and without a cgroup namespace: the mount is the container's group."""
    write(host, "proc/self/cgroup", f"0::{path}")
    write(host, "proc/self/mountinfo", mount(mount_root, "/sys/fs/cgroup", V2))
    write(host, "sys/fs/cgroup/cpu.max", "200000 100000")
    assert read_limits(Files(host)).usable_cpus == 2.0


@pytest.fixture
def quota_group() -> Iterator[Path]:
    """A group of cgroup v1 with a quota of half a CPU and 256 MiB, as two folders."""
    folders = [Path("/sys/fs/cgroup", kind, f"kernel-pytorch-{os.getpid()}") for kind in ("cpu", "memory")]
    try:
        for folder in folders:
            if not folder.parent.joinpath("cgroup.procs").exists():
                pytest.skip(f"needs a cgroup v1 hierarchy at {folder.parent}")
            folder.mkdir()
        folders[0].joinpath("cpu.cfs_quota_us").write_text("50000")
        folders[1].joinpath("memory.limit_in_bytes").write_text(str(256 << 20))
    except OSError as error:
        pytest.skip(f"needs the right to make a cgroup: {error}")
    yield folders[0]
    for folder in folders:
        folder.rmdir()


def test_in_a_real_group(quota_group):
    script = f"""
import os
for kind in ("cpu", "memory"):
    with open(f"/sys/fs/cgroup/{{kind}}/{quota_group.name}/cgroup.procs", "w") as procs:
        procs.write(str(os.getpid()))
os.sched_setaffinity(0, [0])
from kernel_pytorch.machine.files import Files
from kernel_pytorch.machine.host.limits import read_limits
limits = read_limits(Files())
print(limits.cpus, limits.cpu_quota, limits.memory_bytes, limits.usable_cpus)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (f"(0,) 0.5 {256 << 20} 0.5\n", "")
