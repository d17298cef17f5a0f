"""What the drivers do not show, and why."""

from __future__ import annotations

import sys

import pynvml
import pytest
from fake_nvml import FakeNvml, error, h100
from sysfs_trees import write, write_link

from kernel_pytorch.machine.discover import Drivers, open_drivers, read_node
from kernel_pytorch.machine.facts import HardwareVendor, Missing
from kernel_pytorch.machine.files import Files
from kernel_pytorch.machine.host.pci import accelerators


def on_the_bus(root, address, vendor="0x10de", kind="0x030200", model="0x2330"):
    for name, value in (("vendor", vendor), ("class", kind), ("device", model)):
        write(root, f"sys/bus/pci/devices/{address}/{name}", value)


def notes(root):
    """Those on accelerators."""
    write(root, "sys/devices/system/cpu/online", "0")
    files = Files(root)
    drivers = open_drivers(files, load_torch=False)
    found = read_node(files, drivers).missing
    drivers.close()
    return [note for note in found if not note.what.startswith(("CPU", "Intel GPUs"))]


@pytest.fixture(autouse=True)
def no_torch(monkeypatch):
    """Else torch.xpu is asked."""
    monkeypatch.delitem(sys.modules, "torch")


def test_a_gpu_on_the_bus_that_nvml_does_not_show(monkeypatch, tmp_path):
    """The last of eight, and another that a virtual machine has."""
    FakeNvml(monkeypatch, [h100(index) for index in range(7)])
    for index in range(9):
        on_the_bus(tmp_path, f"0000:{0x1B + index:02x}:00.0")
    write_link(tmp_path, "sys/bus/pci/devices/0000:23:00.0/driver", "sys/bus/pci/drivers/vfio-pci")
    assert notes(tmp_path) == [
        Missing(
            what="NVIDIA display controllers or accelerators 0000:22:00.0 (model 0x2330), "
            "0000:23:00.0 (model 0x2330, vfio-pci)",
            why="on the PCI bus, but NVML shows 7 of 9",
            fix="give the container or the job all GPUs; unbind it from vfio-pci; if it fell off the bus "
            "(dmesg), reset it, or reboot",
        )
    ]


def test_all_on_the_bus_are_shown(monkeypatch, tmp_path):
    """A virtual function (SR-IOV) of a GPU is no GPU of this host's."""
    FakeNvml(monkeypatch, [h100()])
    on_the_bus(tmp_path, "0000:1b:00.0")
    on_the_bus(tmp_path, "0000:1b:00.4")
    write_link(tmp_path, "sys/bus/pci/devices/0000:1b:00.4/physfn", "sys/bus/pci/devices/0000:1b:00.0")
    on_the_bus(tmp_path, "0000:1b:01.0")
    write_link(tmp_path, "sys/bus/pci/devices/0000:1b:01.0/physfn", "sys/bus/pci/devices/0000:1b:00.0")
    assert notes(tmp_path) == []


def test_devices_of_unknown_address_may_be_those_on_the_bus(monkeypatch, tmp_path):
    FakeNvml(monkeypatch, [h100(GetPciInfo=error(pynvml.NVML_ERROR_NOT_SUPPORTED))])
    on_the_bus(tmp_path, "0000:1b:00.0")
    assert [note.what for note in notes(tmp_path)] == ["NVIDIA GPU: PCI address"]
    on_the_bus(tmp_path, "0000:1c:00.0")
    assert "NVML shows 1 of 2" in notes(tmp_path)[-1].why


def test_integrated_graphics_are_not_missed(monkeypatch, tmp_path):
    for module in ("pynvml", "amdsmi"):
        monkeypatch.setitem(sys.modules, module, None)
    on_the_bus(tmp_path, "0000:00:02.0", "0x8086", "0x030000")
    on_the_bus(tmp_path, "0000:00:01.0", "0x1002", "0x030000")  # before Zen
    on_the_bus(tmp_path, "0000:c1:00.0", "0x1002", "0x038000")
    on_the_bus(tmp_path, "0000:c1:00.2", "0x1022", "0x108000")  # the CPU's security processor
    assert [function.integrated for function in accelerators(Files(tmp_path))] == [True] * 3
    assert notes(tmp_path) == []
    on_the_bus(tmp_path, "0000:03:00.0", "0x1002", "0x030000", "0x744c")
    on_the_bus(tmp_path, "0000:29:00.0", "0x8086", "0x038000", "0x0bd5")
    assert [note.what for note in notes(tmp_path)] == [
        "AMD display controllers or accelerators 0000:03:00.0 (model 0x744c)",
        "INTEL display controllers or accelerators 0000:29:00.0 (model 0x0bd5)",
    ]


def test_an_accelerator_of_amds_beside_a_security_processor_is_one(tmp_path):
    """MI300A: CPU and accelerator in one, of class 0x1200."""
    on_the_bus(tmp_path, "0000:01:00.0", "0x1002", "0x120000")
    on_the_bus(tmp_path, "0000:01:00.2", "0x1022", "0x108000")
    (function,) = accelerators(Files(tmp_path))
    assert (function.vendor, function.integrated) == (HardwareVendor.AMD, False)


@pytest.mark.parametrize(
    ("code", "why", "fix"),
    [
        (pynvml.NVML_ERROR_OPERATING_SYSTEM, "operating system", "wsl --shutdown"),
        (pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, "version mismatch", "reboot, or unload its modules"),
        (pynvml.NVML_ERROR_DRIVER_NOT_LOADED, "Driver Not Loaded", "modprobe nvidia"),
        (pynvml.NVML_ERROR_NO_PERMISSION, "Insufficient Permissions", "run as root"),
        (pynvml.NVML_ERROR_UNKNOWN, "Unknown Error", "install NVIDIA's driver"),
    ],
)
def test_a_driver_that_fails_is_told_with_nothing_on_the_bus(monkeypatch, tmp_path, code, why, fix):
    """As under WSL 2."""
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: raise_(error(code)))
    (note,) = notes(tmp_path)
    assert note.what == "NVIDIA display controllers or accelerators"
    assert why in note.why
    assert fix in note.fix


def test_a_driver_that_is_not_there_is_not_told_with_nothing_on_the_bus(monkeypatch, tmp_path):
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: raise_(error(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)))
    assert notes(tmp_path) == []
    on_the_bus(tmp_path, "0000:1b:00.0")
    assert [note.why for note in notes(tmp_path)] == ["NVML: NVML Shared Library Not Found"]


def raise_(error):
    raise error


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        (OSError("libamd_smi.so: cannot open shared object file"), []),
        (AttributeError("undefined symbol: amdsmi_get_gpu_x"), ["AMD display controllers or accelerators"]),
    ],
)
def test_amdsmi_without_its_library_or_with_another(monkeypatch, tmp_path, raised, told):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.delitem(sys.modules, "amdsmi", raising=False)
    (tmp_path / "site").mkdir()
    (tmp_path / "site/amdsmi.py").write_text(f"print('not found')\nraise {raised!r}\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert [note.what for note in notes(tmp_path)] == told


def test_what_a_binding_prints_is_not_printed(monkeypatch, tmp_path, capsys):
    monkeypatch.delitem(sys.modules, "amdsmi", raising=False)
    (tmp_path / "amdsmi.py").write_text("print('not found')\nraise OSError('no libamd_smi.so')\n")
    monkeypatch.syspath_prepend(tmp_path)
    open_drivers(Files(tmp_path), load_torch=False).close()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("nvml", [False, True])
def test_the_gpu_of_a_jetson(monkeypatch, tmp_path, nvml):
    write(tmp_path, "proc/device-tree/compatible", "nvidia,p3737-0000+p3701-0005\0nvidia,tegra234\0")
    if nvml:  # from JetPack 6 on
        FakeNvml(monkeypatch, [h100()])
        assert notes(tmp_path) == []
    else:
        monkeypatch.setitem(sys.modules, "pynvml", None)
        assert notes(tmp_path) == [
            Missing(
                what="GPU of NVIDIA's Tegra 234 (Jetson)",
                why="it is not on the PCI bus, and NVML does not show it",
                fix="tegrastats tells its load and temperature",
            )
        ]


def test_another_board_has_no_such_note(tmp_path):
    write(tmp_path, "proc/device-tree/compatible", "raspberrypi,5-model-b\0brcm,bcm2712\0")
    assert read_node(Files(tmp_path), Drivers((), ())).missing[1:] == ()
