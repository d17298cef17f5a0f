"""Network interfaces, block devices and PCI functions, from folders and from a real pair of veths."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import msgspec
import pytest
from sysfs_trees import write, write_link

from kernel_pytorch.machine.facts import BlockDevice, HardwareVendor, NetworkInterface
from kernel_pytorch.machine.files import Files
from kernel_pytorch.machine.host.host_readings import HostReader
from kernel_pytorch.machine.host.network import read_network_interfaces
from kernel_pytorch.machine.host.pci import accelerators
from kernel_pytorch.machine.host.storage import read_storage


def interface(root, name, *, type_, device=None, driver=None, rdma=None, numa=None, **files):
    write(root, f"sys/class/net/{name}/type", type_)
    for key, value in files.items():
        write(root, f"sys/class/net/{name}/{key}", value)
    if device:
        write_link(root, f"sys/class/net/{name}/device", f"sys/devices/{device}")
        if driver:
            write_link(root, f"sys/devices/{device}/driver", f"sys/bus/pci/drivers/{driver}")
        if numa is not None:
            write(root, f"sys/devices/{device}/numa_node", numa)
        if rdma:
            (root / f"sys/devices/{device}/infiniband/{rdma}").mkdir(parents=True)


def adapter(root, name, *, device, rate, state="4: ACTIVE", layer="InfiniBand", numa=0):
    for file, text in (("rate", rate), ("state", state), ("link_layer", layer)):
        write(root, f"sys/class/infiniband/{name}/ports/1/{file}", text)
    write_link(root, f"sys/class/infiniband/{name}/device", f"sys/devices/{device}")
    write(root, f"sys/devices/{device}/numa_node", numa)


def test_interfaces(tmp_path):
    interface(tmp_path, "lo", type_=772, mtu=65536, carrier=1)
    interface(tmp_path, "docker0", type_=1, mtu=1500, carrier=0, speed=-1)
    interface(
        tmp_path, "eth0", type_=1, mtu=9000, carrier=1, speed=100000, device="a", driver="mlx5_core", numa=1
    )
    interface(tmp_path, "eth1", type_=1, mtu=9000, carrier=1, speed=-1, device="b", rdma="mlx5_1", numa=-1)
    adapter(tmp_path, "mlx5_1", device="b2", rate="200 Gb/sec (4X HDR)", layer="Ethernet")
    interface(tmp_path, "ib0", type_=32, mtu=2044, device="c", rdma="mlx5_2")
    adapter(tmp_path, "mlx5_2", device="c2", rate="400 Gb/sec (4X NDR)")
    adapter(tmp_path, "mlx5_3", device="d", rate="400 Gb/sec (4X NDR)", state="1: DOWN", numa=1)
    write(tmp_path, "sys/class/net/bonding_masters", "")  # a file among the folders
    assert {found.name: found for found in read_network_interfaces(Files(tmp_path))} == {
        "lo": NetworkInterface(name="lo", kind="loopback", mtu=65536, carrier=True),
        "docker0": NetworkInterface(name="docker0", kind="virtual", mtu=1500, carrier=False),
        "eth0": NetworkInterface(
            name="eth0",
            kind="ethernet",
            speed_gbit_s=100,
            mtu=9000,
            driver="mlx5_core",
            carrier=True,
            numa_node=1,
        ),
        "eth1": NetworkInterface(
            name="eth1", kind="roce", speed_gbit_s=200, mtu=9000, carrier=True, rdma_device="mlx5_1"
        ),
        "ib0": NetworkInterface(
            name="ib0", kind="infiniband", speed_gbit_s=400, mtu=2044, rdma_device="mlx5_2"
        ),
        "mlx5_3": NetworkInterface(
            name="mlx5_3",
            kind="infiniband",
            speed_gbit_s=400,
            carrier=False,
            numa_node=1,
            rdma_device="mlx5_3",
        ),
    }


def test_adapters_by_themselves(tmp_path):
    """One of two ports at different rates, one whose only port is the second, one that tells little."""
    adapter(tmp_path, "mlx5_0", device="a", rate="100 Gb/sec (2X HDR)", layer="Ethernet")
    write(tmp_path, "sys/class/infiniband/mlx5_0/ports/2/rate", "25 Gb/sec (1X EDR)")
    write(tmp_path, "sys/class/infiniband/mlx5_0/ports/10/rate", "2.5 Gb/sec (1X SDR)")
    write_link(tmp_path, "sys/devices/a/driver", "sys/bus/pci/drivers/mlx5_core")
    for file, text in (("rate", "56 Gb/sec (4X FDR)"), ("state", "4: ACTIVE"), ("link_layer", "InfiniBand")):
        write(tmp_path, f"sys/class/infiniband/mlx4_0/ports/2/{file}", text)
    write(tmp_path, "sys/class/infiniband/mlx5_1/ports/1/rate", "unknown")
    assert read_network_interfaces(Files(tmp_path)) == (
        NetworkInterface(
            name="mlx4_0", kind="infiniband", speed_gbit_s=56, carrier=True, rdma_device="mlx4_0"
        ),
        NetworkInterface(
            name="mlx5_0",
            kind="roce",
            speed_gbit_s=100,
            driver="mlx5_core",
            carrier=True,
            numa_node=0,
            rdma_device="mlx5_0",
        ),
        NetworkInterface(name="mlx5_1", kind=None, rdma_device="mlx5_1"),
    )


def ports(root, adapter, *states):
    """``"4: ACTIVE"`` or ``"4: ACTIVE 100 Gb/sec"`` of each port, the first being 1; None: no such port."""
    for number, text in enumerate(states, 1):
        if text is not None:
            state, _, rate = text.partition("|")
            write(root, f"sys/class/infiniband/{adapter}/ports/{number}/state", state)
            write(root, f"sys/class/infiniband/{adapter}/ports/{number}/rate", f"{rate or 1} Gb/sec (4X)")
            write(root, f"sys/class/infiniband/{adapter}/ports/{number}/link_layer", "InfiniBand")


@pytest.mark.parametrize(
    ("states", "carrier"),
    [
        (("1: DOWN", "4: ACTIVE"), True),
        (("4: ACTIVE", "?"), True),
        (("1: DOWN", "2: INIT"), False),
        (("1: DOWN", "?"), None),
        (("",), None),
        (("44: ACTIVE",), None),
        ((), None),
    ],
)
def test_any_active_port_gives_an_adapter_its_carrier(tmp_path, states, carrier):
    """For facts and readings alike."""
    (tmp_path / "sys/class/infiniband/mlx4_0").mkdir(parents=True)
    ports(tmp_path, "mlx4_0", *states)
    (adapter,) = read_network_interfaces(Files(tmp_path))
    assert adapter.carrier is carrier
    assert HostReader(str(tmp_path)).read().nics["mlx4_0"].carrier is carrier


@pytest.mark.parametrize(
    ("files", "speed"),
    [
        ({"dev_port": 0, "dev_id": "0x0"}, 40),
        ({"dev_port": 1, "dev_id": "0x0"}, 56),
        ({"dev_port": 0, "dev_id": "0x1"}, 56),
        ({"dev_port": 0, "dev_id": "?"}, 40),
        ({"dev_port": "?", "dev_id": "0x0"}, None),
        ({}, None),
        ({"dev_port": 3}, None),
    ],
)
def test_an_interface_belongs_to_a_port(tmp_path, files, speed):
    interface(tmp_path, "ib0", type_=32, device="a", rdma="mlx4_0", **files)
    ports(tmp_path, "mlx4_0", "4: ACTIVE|40", "4: ACTIVE|56")
    (found,) = read_network_interfaces(Files(tmp_path))
    assert (found.rdma_device, found.speed_gbit_s) == ("mlx4_0", speed)
    assert HostReader(str(tmp_path)).read().nics == {}  # no adapter without an interface either


def test_an_interface_that_counts_the_ports_of_other_devices(tmp_path):
    interface(tmp_path, "eth1", type_=1, device="a", rdma="bnxt_re1", dev_port=1)
    ports(tmp_path, "bnxt_re1", "4: ACTIVE|100")
    assert [found.speed_gbit_s for found in read_network_interfaces(Files(tmp_path))] == [100]


@pytest.mark.parametrize("speed", [65535, 4294967295, 2147483647, 0, -1, "", "fast", "1_000"])
def test_speeds_that_mean_unknown(tmp_path, speed):
    interface(tmp_path, "eth0", type_=1, device="a", speed=speed)
    interface(tmp_path, "eth1", type_=1, device="b", speed=1600000)
    speeds = [found.speed_gbit_s for found in read_network_interfaces(Files(tmp_path))]
    assert speeds == [None, 1600]


def test_a_can_bus_is_no_ethernet(tmp_path):
    """Jetson boards have one. What is no Ethernet and no InfiniBand is of no kind that is known."""
    interface(tmp_path, "can0", type_=280, device="a")
    assert [found.kind for found in read_network_interfaces(Files(tmp_path))] == [None]


def test_facts_and_readings_agree_on_an_interface_that_is_set_down(tmp_path):
    interface(tmp_path, "eth0", type_=1, device="a", operstate="down", carrier="")
    (found,) = read_network_interfaces(Files(tmp_path))
    assert (found.carrier, HostReader(str(tmp_path)).read().nics["eth0"].carrier) == (False, False)


def test_names_that_are_not_utf8(tmp_path):
    for name in (b"sys/class/net/\xff", b"sys/block/\xfe"):
        os.makedirs(os.fsencode(tmp_path) + b"/" + name + b"/device")
    for name, text in (("net/\udcff/type", 1), ("net/\udcff/operstate", "up"), ("../block/\udcfe/size", 8)):
        write(tmp_path, f"sys/class/{name}", text)
    files = Files(tmp_path)
    found = (read_network_interfaces(files), read_storage(files), HostReader(str(tmp_path)).read())
    assert [found[0][0].name, found[1][0].name, *found[2].nics] == ["\ufffd", "\ufffd", "\ufffd"]
    msgspec.json.encode(found)


IN_A_NAMESPACE = """
import subprocess
from kernel_pytorch.machine.files import Files
from kernel_pytorch.machine.host.network import read_network_interfaces
for command in ("link add left mtu 1234 type veth peer name right", "link set left up", "link set right up"):
    subprocess.run(["ip", *command.split()], check=True)
def show():
    print([(n.name, n.kind, n.mtu, n.carrier) for n in read_network_interfaces(Files()) if n.name != "lo"])
show()
subprocess.run(["ip", "link", "set", "right", "down"], check=True)
show()
"""


def test_a_real_pair_of_veths():
    """In a network namespace of its own, with a sysfs that shows it."""
    missing = [tool for tool in ("unshare", "ip") if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)} (apt-get install util-linux iproute2)")
    if subprocess.run(["unshare", "-n", "-m", "true"], capture_output=True).returncode:
        pytest.skip("needs the right to make a network namespace")
    inside = 'mount -t sysfs sysfs /sys && exec "$0" -c "$1"'
    command = ["unshare", "-n", "-m", "sh", "-c", inside, sys.executable, IN_A_NAMESPACE]
    done = subprocess.run(command, capture_output=True, text=True)
    up, down = done.stdout.splitlines()
    assert up == "[('left', 'virtual', 1234, True), ('right', 'virtual', 1500, True)]", done.stderr
    assert down == "[('left', 'virtual', 1234, False), ('right', 'virtual', 1500, False)]"


def test_block_devices(tmp_path):
    def disk(name, sectors, *, rotational=None, device=True, **files):
        write(tmp_path, f"sys/block/{name}/size", sectors)
        if rotational is not None:
            write(tmp_path, f"sys/block/{name}/queue/rotational", rotational)
        for key, value in files.items():
            write(tmp_path, f"sys/block/{name}/device/{key}", value)
        if device:
            (tmp_path / f"sys/block/{name}/device").mkdir(parents=True, exist_ok=True)

    disk("nvme0n1", 2000, rotational=0, model="SAMSUNG MZ")
    write(tmp_path, "sys/block/nvme0n1/device/device/numa_node", 1)
    disk("sda", 1000, rotational=1, numa_node=-1)
    disk("sdb", 1000, rotational=0)
    disk("sdd", 1000, rotational="?")
    disk("sde", -8)
    disk("sdf", "9" * 30)
    disk("vda", 10, rotational=1)
    disk("xvda", 10, rotational=0)
    disk("zram0", 10, rotational=0)
    disk("nvme1n1", 30, rotational=0, numa_node=0)
    disk("nvme1c0n1", 30, rotational=0)  # one of the paths to nvme1n1
    write(tmp_path, "sys/block/nvme1c0n1/hidden", 1)
    write(tmp_path, "sys/block/nvme1n1/hidden", 0)
    disk("dm-0", 10, rotational=0, device=False)
    disk("loop0", 10, device=False)
    disk("sr0", 10)
    disk("sdc", 0)
    assert read_storage(Files(tmp_path)) == (
        BlockDevice(name="dm-0", kind="virtual", size_bytes=5120),
        BlockDevice(name="nvme0n1", kind="nvme", size_bytes=1024000, model="SAMSUNG MZ", numa_node=1),
        BlockDevice(name="nvme1n1", kind="nvme", size_bytes=15360, numa_node=0),
        BlockDevice(name="sda", kind="hdd", size_bytes=512000),
        BlockDevice(name="sdb", kind="ssd", size_bytes=512000),
        BlockDevice(name="sdd", kind=None, size_bytes=512000),
        BlockDevice(name="vda", kind="virtual", size_bytes=5120),
        BlockDevice(name="xvda", kind="virtual", size_bytes=5120),
    )


def test_accelerators_on_the_pci_bus(tmp_path):
    def function(address, vendor, class_, device="0x2330", numa=-1):
        for name, value in (("vendor", vendor), ("class", class_), ("device", device), ("numa_node", numa)):
            write(tmp_path, f"sys/bus/pci/devices/{address}/{name}", value)

    function("0000:1b:00.0", "0x10de", "0x030200", numa=1)
    function("0000:1c:00.0", "0x10de", "0x040300")  # the GPU's audio function
    function("0000:43:00.0", "0x1002", "0x120000", device="0x74a1")
    function("0000:44:00.0", "0x1002", "0x038000", device="0x740c", numa=0)
    function("0000:00:02.0", "0x8086", "0x030000")
    function("0000:00:03.0", "0x1af4", "0x030000")  # a virtual machine's display
    assert [(f.address, f.vendor, f.device, f.numa_node) for f in accelerators(Files(tmp_path))] == [
        ("0000:00:02.0", HardwareVendor.INTEL, "0x2330", None),
        ("0000:1b:00.0", HardwareVendor.NVIDIA, "0x2330", 1),
        ("0000:43:00.0", HardwareVendor.AMD, "0x74a1", None),
        ("0000:44:00.0", HardwareVendor.AMD, "0x740c", 0),
    ]
