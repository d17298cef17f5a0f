from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from sysfs_trees import write

from kernel_pytorch.machine.files import Files
from kernel_pytorch.machine.host.host_readings import HostReader
from kernel_pytorch.machine.host.mounts import mount_points, read_mounts
from kernel_pytorch.machine.readings import NicReading


def write_all(root: Path, files: dict[str, str | int]) -> None:
    for name, text in files.items():
        write(root, name, text)


def test_memory_and_pressure(tmp_path: Path):
    write_all(
        tmp_path,
        {
            "proc/pressure/memory": "some avg10=1.00 avg60=0.00 avg300=0.00 total=2500000\n"
            "full avg10=0.00 avg60=0.00 avg300=0.00 total=7",
            "proc/pressure/cpu": "some avg10=0.00 avg60=0.02 avg300=0.34 total=1939418878",
            "proc/vmstat": "pgfault 7\noom_kill 3\noom_kill_other 9",
            "proc/meminfo": "MemTotal: 1000 kB\nMemFree: 5 kB\nMemAvailable:  700 kB",
        },
    )
    reading = HostReader(str(tmp_path)).read()
    assert reading.memory_stall_s == 2.5
    assert reading.cpu_stall_s == 1939.418878
    assert reading.oom_kills == 3
    assert reading.memory_available_bytes == 700 * 1024
    assert (reading.nics, reading.disks) == ({}, {})


def test_a_machine_that_tells_nothing(tmp_path: Path):
    reading = HostReader(str(tmp_path)).read()
    assert reading == type(reading)()


def interface(
    name: str,
    state: str = "up",
    carrier: int | str = 1,
    errors: tuple[int, int] = (0, 0),
    *,
    device: bool = True,
) -> dict[str, str | int]:
    folder = f"sys/class/net/{name}"
    files: dict[str, str | int] = {
        f"{folder}/operstate": state,
        f"{folder}/carrier": carrier,
        f"{folder}/statistics/rx_errors": errors[0],
        f"{folder}/statistics/tx_errors": errors[1],
    }
    return files | ({f"{folder}/device/vendor": "0x15b3"} if device else {})


def test_interfaces(tmp_path: Path):
    write_all(tmp_path, interface("eth0", errors=(3, 4)))
    write_all(tmp_path, interface("eth1", "down", 0))
    write_all(tmp_path, interface("eth2", "down", ""))  # set down: the kernel refuses to tell the carrier
    write_all(tmp_path, interface("eth3", "unknown", ""))
    write_all(tmp_path, interface("lo", "unknown", 1, device=False))
    write_all(tmp_path, interface("docker0", device=False))
    write_all(tmp_path, {"sys/class/net/bonding_masters": "bond0"})
    (tmp_path / "sys/class/net/eth3/statistics/tx_errors").unlink()
    reader = HostReader(str(tmp_path))
    assert reader.read().nics == {
        "eth0": NicReading(carrier=True, errors=7),
        "eth1": NicReading(carrier=False, errors=0),
        "eth2": NicReading(carrier=False, errors=0),
        "eth3": NicReading(carrier=None, errors=None),
    }
    shutil.rmtree(tmp_path / "sys/class/net/eth0")
    assert "eth0" not in reader.read().nics


def test_interfaces_of_a_container(tmp_path: Path):
    """They have no device; all count but the loopback."""
    write_all(tmp_path, interface("eth0", device=False))
    write_all(tmp_path, interface("lo", device=False))
    assert HostReader(str(tmp_path)).read().nics.keys() == {"eth0"}


MOUNTS = r"""22 27 0:21 / /proc rw - proc proc rw
24 27 0:6 / /dev rw - devtmpfs devtmpfs rw
25 24 0:23 / /dev/shm rw - tmpfs tmpfs rw
27 1 254:0 / / rw,relatime shared:1 master:2 - ext4 /dev/vda rw
28 27 254:0 /etc/hosts /etc/hosts rw - ext4 /dev/vda rw
29 27 254:1 / /data\040sets rw - xfs /dev/nvme0n1 rw
30 27 7:1 / /snap/core ro - squashfs /dev/loop1 ro
31 27 254:2 / /cdrom ro - iso9660 /dev/sr0 ro
32 27 0:50 / /home rw - nfs4 server:/home rw
33 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw
34 27 254:3 / /file rw - ext4 /dev/vdb rw
35 27 254:4 / /gone rw - ext4 /dev/vdc rw
36 27 254:1 /a /bound rw - xfs /dev/nvme0n1 rw
37 27 7:2 / /image rw - ext4 /dev/loop2 rw"""


def test_mount_points(tmp_path: Path):
    write_all(tmp_path, {"proc/self/mountinfo": MOUNTS, "file": ""})
    for folder in ("dev/shm", "data sets", "home", "snap/core", "cdrom", "sys/fs/cgroup", "bound", "image"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    assert list(mount_points(Files(tmp_path))) == ["/dev/shm", "/", "/data sets"]


LOCAL = r"""30 1 0:40 / / rw - zfs rpool/root rw,xattr
31 30 0:41 / /tank rw - zfs tank/data rw
32 30 0:42 /@home /home rw - btrfs /dev/sda2 rw,subvol=/@home
33 30 0:43 /@var /var rw - btrfs /dev/sda2 rw,subvol=/@var
34 30 0:44 / /pool rw - bcachefs /dev/sdb:/dev/sdc rw
35 30 0:45 / /shared rw - virtiofs myfs rw
36 30 0:46 / /flash rw - ubifs ubi0:data rw
37 30 259:3 / /nvme rw shared:1 - xfs /dev/nvme0n1p3
38 30 8:1 / /a\040b\134c rw - ext4 /dev/disk/by-label/a rw"""
ELSEWHERE = r"""40 1 0:50 / /nfs rw - nfs4 server:/x rw
41 1 0:51 / /cifs rw - cifs //server/x rw
42 1 0:52 / /lustre rw - lustre 10.0.0.1@o2ib:/fs rw
43 1 0:53 / /ceph rw - ceph 10.0.0.1:6789:/ rw
44 1 0:54 / /sshfs rw - fuse.sshfs me@server: rw
45 1 0:55 / /gpfs rw - gpfs /dev/gpfs0 rw
46 1 0:56 / /s3 rw - fuse /dev/fuse rw
47 1 0:57 / /9p rw - 9p server rw,trans=tcp
48 1 0:58 / /beegfs rw - beegfs beegfs_nodev rw
49 1 8:17 / /ocfs2 rw - ocfs2 /dev/sdb1 rw
50 1 0:59 / /merged rw - overlay overlay rw,lowerdir=/l
51 1 0:60 / /cgroup rw - cgroup2 cgroup2 rw"""


def test_local_file_systems_without_a_block_device_count(tmp_path: Path):
    write_all(tmp_path, {"proc/self/mountinfo": f"{LOCAL}\n{ELSEWHERE}"})
    local = [mount.point for mount in read_mounts(Files(tmp_path))]
    assert len(local) == 21
    for folder in local:
        (tmp_path / folder.lstrip("/")).mkdir(parents=True, exist_ok=True)
    assert list(mount_points(Files(tmp_path))) == [
        "/",
        "/tank",
        "/home",  # and not /var, which is the same space
        "/pool",
        "/shared",
        "/flash",
        "/nvme",
        "/a b\\c",
    ]


@pytest.mark.parametrize(
    "line",
    [
        "",
        "30 1 0:40",
        "30 1 0:40 / /tank rw",
        "30 1 0:40 / /tank rw - ",
        "30 1 tank / /tank rw - zfs tank",
        "30 1 8:1 / /\\000 rw - ext4 /dev/sda rw",
        " - - - ",
    ],
)
def test_a_line_that_is_no_mount_is_skipped(tmp_path: Path, line: str):
    (tmp_path / "tank").mkdir()
    write_all(tmp_path, {"proc/self/mountinfo": f"1 0 8:1 / / rw - ext4 /dev/sda rw\n{line}"})
    assert list(mount_points(Files(tmp_path))) == ["/"]
    assert HostReader(str(tmp_path)).read().disks.keys() == {"/"}


@pytest.mark.parametrize(
    "text", ["oom_kill", "oom_kill x", "oom_kill -1", "xoom_kill 3", "oom_kill 3 4", "3"]
)
def test_kills_that_are_no_number_are_unknown(tmp_path: Path, text: str):
    write_all(tmp_path, {"proc/vmstat": f"pgfault 7\n{text}"})
    assert HostReader(str(tmp_path)).read().oom_kills is None


@pytest.mark.parametrize(
    "text", ["some avg10=1.00", "some avg10=0 total=", "some avg10=0 total=x", "full avg10=0 total=9", "some"]
)
def test_pressure_that_is_no_number_is_unknown(tmp_path: Path, text: str):
    write_all(tmp_path, {"proc/pressure/memory": text, "proc/pressure/cpu": text})
    reading = HostReader(str(tmp_path)).read()
    assert (reading.memory_stall_s, reading.cpu_stall_s) == (None, None)


@pytest.mark.parametrize(
    "text", ["MemAvailable: x kB", "MemAvailable: 7", "MemAvailable kB", "XMemAvailable: 7 kB"]
)
def test_memory_that_is_no_number_of_kb_is_unknown(tmp_path: Path, text: str):
    write_all(tmp_path, {"proc/meminfo": f"MemTotal: 1000 kB\n{text}"})
    assert HostReader(str(tmp_path)).read().memory_available_bytes is None


def test_the_root_of_a_container(tmp_path: Path):
    write_all(tmp_path, {"proc/self/mountinfo": "1 0 0:50 / / rw - overlay overlay rw,lowerdir=/a"})
    assert list(mount_points(Files(tmp_path))) == ["/"]


def test_disks_as_df_shows_them(tmp_path: Path):
    reading = HostReader(mounts=["/", str(tmp_path), "/no/such/mount"]).read()
    assert reading.disks.keys() == {"/", str(tmp_path)}
    shown = subprocess.run(
        ["df", "--block-size=1", "--output=size", "/"], capture_output=True, text=True, check=True
    )
    assert reading.disks["/"].total_bytes == int(shown.stdout.split()[1])
    assert 0 < reading.disks["/"].free_bytes <= reading.disks["/"].total_bytes


def test_this_host_is_read():
    reading = HostReader().read()
    assert reading.memory_available_bytes is None or reading.memory_available_bytes > 0
    assert all(disk.total_bytes >= disk.free_bytes for disk in reading.disks.values())


MEMORY_MOUNTS = """\
31 23 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
32 23 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
"""


def test_memory_of_the_own_control_group(tmp_path: Path):
    """Other people's kills and waits on the host are not this process's."""
    host = {
        "proc/vmstat": "oom_kill 30",
        "proc/pressure/memory": "some avg10=1.00 avg60=0.00 avg300=0.00 total=9000000",
        "proc/self/mountinfo": MEMORY_MOUNTS,
    }
    write_all(tmp_path, {**host, "proc/self/cgroup": "4:memory:/\n0::/"})
    reading = HostReader(str(tmp_path)).read()
    assert (reading.oom_kills, reading.memory_stall_s) == (30, 9)
    write(tmp_path, "sys/fs/cgroup/unified/memory.events", "oom_kill 1")  # a container with a namespace
    assert HostReader(str(tmp_path)).read().oom_kills == 1
    (tmp_path / "sys/fs/cgroup/unified/memory.events").unlink()
    write(tmp_path, "sys/fs/cgroup/memory/memory.oom_control", "oom_kill 0")  # of the root alone
    assert HostReader(str(tmp_path)).read().oom_kills == 30
    own = {
        "proc/self/cgroup": "4:memory:/\n0::/job",
        "sys/fs/cgroup/unified/job/memory.events": "low 0\noom 1\noom_kill 2",
        "sys/fs/cgroup/unified/job/memory.pressure": "some avg10=0.00 avg60=0.00 avg300=0.00 total=500000",
    }
    write_all(tmp_path, own)
    reading = HostReader(str(tmp_path)).read()
    assert (reading.oom_kills, reading.memory_stall_s) == (2, 0.5)
    v1 = {
        "proc/self/cgroup": "4:memory:/job\n0::/",
        "sys/fs/cgroup/memory/job/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 5",
    }
    write_all(tmp_path, v1)
    reading = HostReader(str(tmp_path)).read()
    assert (reading.oom_kills, reading.memory_stall_s) == (5, 9)


def test_adapters_without_an_interface(tmp_path: Path):
    def adapter(name: str, *states: str, errors: int | None = 0, interface: bool = False) -> None:
        for port, state in enumerate(states, 1):
            folder = f"sys/class/infiniband/{name}/ports/{port}"
            write(tmp_path, f"{folder}/state", state)
            for counter in ("symbol_error", "port_rcv_errors", "port_xmit_discards"):
                if errors is not None:
                    write(tmp_path, f"{folder}/counters/{counter}", errors)
        if interface:
            (tmp_path / f"sys/class/net/ib0/device/infiniband/{name}").mkdir(parents=True)

    adapter("mlx5_0", "4: ACTIVE", errors=2)
    adapter("mlx5_1", "1: DOWN", errors=None)
    adapter("mlx5_2", "1: DOWN", "4: ACTIVE")
    adapter("mlx5_3", "4: ACTIVE", interface=True)
    assert HostReader(str(tmp_path)).read().nics == {
        "mlx5_0": NicReading(carrier=True, errors=6),
        "mlx5_1": NicReading(carrier=False),
        "mlx5_2": NicReading(carrier=True, errors=0),
    }


def test_a_bridge_is_not_watched(tmp_path: Path):
    write_all(tmp_path, interface("docker0", "down", 0, device=False))
    assert "docker0" in HostReader(str(tmp_path)).read().nics
    write(tmp_path, "sys/class/net/docker0/bridge/bridge_id", "8000.0")
    assert HostReader(str(tmp_path)).read().nics == {}
