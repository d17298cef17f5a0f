"""AMD's and Intel's drivers, read through modules that answer as theirs do (AMD SMI 7.0, torch.xpu)."""

from __future__ import annotations

import sys
from enum import IntEnum
from types import SimpleNamespace

import pytest
import torch
from fake_nvml import FakeNvml, h100
from sysfs_trees import write, write_host

from kernel_pytorch.machine.drivers.amd import AmdDriver
from kernel_pytorch.machine.drivers.driver import DriverUnavailableError
from kernel_pytorch.machine.drivers.intel import IntelDriver
from kernel_pytorch.machine.facts import (
    DeviceCapability,
    DeviceInfo,
    DeviceLink,
    HardwareVendor,
    LinkKind,
    PciLink,
)
from kernel_pytorch.machine.files import Files
from kernel_pytorch.machine.live import Machine
from kernel_pytorch.machine.readings import DeviceReading


class AmdSmiError(Exception):
    pass


class Temperature(IntEnum):
    EDGE, HOTSPOT, VRAM = 0, 1, 3


class Clock(IntEnum):
    GFX, MEM = 1, 5


def answers(index: int) -> dict[str, object]:
    """What AMD SMI tells of an MI300X; "N/A" is its word for unknown, power caps are in microwatts."""
    return {
        "get_gpu_asic_info": {
            "market_name": "AMD Instinct MI300X",
            "target_graphics_version": "gfx942",
            "num_compute_units": 304,
        },
        "get_gpu_device_bdf": f"0000:{index + 1:02X}:00.0",
        "get_gpu_device_uuid": f"uuid-{index}",
        "get_gpu_memory_total": 206141652992,
        "get_gpu_memory_usage": 297795584,
        "get_clock_info": {
            Clock.GFX: {"clk": 132, "max_clk": 2100},
            Clock.MEM: {"clk": 900, "max_clk": "N/A"},
        },
        "get_power_cap_info": {"power_cap": 750_000_000, "min_power_cap": 0, "max_power_cap": 750_000_000},
        "get_power_info": {"current_socket_power": "N/A", "average_socket_power": 143},
        "get_pcie_info": {
            "pcie_static": {"max_pcie_width": 16, "max_pcie_speed": 32000},
            "pcie_metric": {"pcie_width": 16, "pcie_speed": 16000, "pcie_replay_count": 2},
        },
        "get_gpu_activity": {"gfx_activity": 87},
        "get_energy_count": {"energy_accumulator": 1000, "counter_resolution": 15.3},
        "get_gpu_total_ecc_count": {"correctable_count": 5, "uncorrectable_count": 1},
        "get_gpu_bad_page_info": [{}, {}],
        "get_temp_metric": {Temperature.HOTSPOT: 51, Temperature.VRAM: 44},
    }


@pytest.fixture
def amd(monkeypatch, tmp_path):
    gpus = [answers(index) for index in range(3)]
    module = SimpleNamespace(
        AmdSmiException=AmdSmiError,
        AmdSmiTemperatureType=Temperature,
        AmdSmiTemperatureMetric=SimpleNamespace(CURRENT=0),
        AmdSmiMemoryType=SimpleNamespace(VRAM=0),
        AmdSmiClkType=Clock,
        AmdSmiLinkType=SimpleNamespace(AMDSMI_LINK_TYPE_XGMI=2),
        amdsmi_init=lambda: None,
        amdsmi_shut_down=lambda: module.closed.append("amdsmi"),
        closed=[],
        amdsmi_get_processor_handles=lambda: list(range(3)),
        amdsmi_topo_get_link_type=lambda a, b: {"type": 2 if (a, b) == (0, 1) else 1, "hops": 1},
    )

    def installed(name):
        def function(handle, *arguments):
            answer = gpus[handle].get(name)
            if answer is None:
                raise AmdSmiError(name)
            if name in ("get_clock_info", "get_temp_metric"):
                return answer[arguments[0]]
            return answer

        return function

    for name in gpus[0]:
        setattr(module, f"amdsmi_{name}", installed(name))
    monkeypatch.setitem(sys.modules, "amdsmi", module)
    for bus, numa in (("01", 0), ("02", 0), ("03", 1)):
        write(tmp_path, f"sys/bus/pci/devices/0000:{bus}:00.0/numa_node", numa)
    return SimpleNamespace(gpus=gpus, driver=AmdDriver(Files(tmp_path)), module=module, root=tmp_path)


def test_an_mi300x(amd):
    assert amd.driver.devices()[0] == DeviceInfo(
        device_id=0,
        kind="gpu",
        index=0,
        vendor=HardwareVendor.AMD,
        name="AMD Instinct MI300X",
        uuid="uuid-0",
        architecture="gfx942",
        memory_bytes=206141652992,
        compute_units=304,
        boost_clock_mhz=2100,
        power_limit_w=750,
        power_limit_min_w=0,
        power_limit_max_w=750,
        pci=PciLink(address="0000:01:00.0", generation=4, generation_max=5, width=16, width_max=16),
        numa_node=0,
    )
    assert amd.driver.devices()[0].capability is DeviceCapability.GFX942
    assert amd.driver.read(0) == DeviceReading(
        temperature_c=51,
        memory_temperature_c=44,
        power_w=143,
        power_limit_w=750,
        utilization=0.87,
        memory_used_bytes=297795584,
        sm_clock_mhz=132,
        memory_clock_mhz=900,
        energy_j=pytest.approx(0.0153),
        ecc_corrected=5,
        ecc_uncorrected=1,
        retired_pages=2,
        pcie_replays=2,
    )


def test_links_by_xgmi_and_by_numa_node(amd):
    assert amd.driver.links() == [
        DeviceLink(a=0, b=1, kind=LinkKind.NVLINK),
        DeviceLink(a=0, b=2, kind=LinkKind.SOCKET),
        DeviceLink(a=1, b=2, kind=LinkKind.SOCKET),
    ]


def test_what_amd_smi_refuses_is_unknown(amd):
    amd.gpus[1].clear()
    device = amd.driver.devices()[1]
    assert (device.name, device.memory_bytes, device.pci) == ("AMD GPU", None, None)
    assert amd.driver.read(1).silent
    assert [note.what for note in amd.driver.missing] == ["AMD GPU 1"]


def test_what_amd_smi_calls_not_available_is_unknown(amd):
    """N/A for numbers, zero for a power that is zero, and no NUMA node: a link of no known kind."""
    gpu = amd.gpus[2]
    gpu["get_power_info"] = {"current_socket_power": 0, "average_socket_power": "N/A"}
    gpu["get_temp_metric"] = {Temperature.HOTSPOT: "N/A", Temperature.VRAM: 0}
    gpu["get_gpu_activity"] = {"gfx_activity": "N/A"}
    gpu["get_gpu_bad_page_info"] = "No bad pages found."
    gpu["get_pcie_info"] = {
        "pcie_static": {"max_pcie_width": 16, "max_pcie_speed": "N/A"},
        "pcie_metric": {"pcie_width": "N/A", "pcie_speed": "N/A", "pcie_replay_count": "N/A"},
    }
    gpu["get_gpu_device_bdf"] = None
    reading = amd.driver.read(2)
    assert (reading.power_w, reading.temperature_c, reading.memory_temperature_c) == (0, None, 0)
    assert (reading.utilization, reading.retired_pages, reading.pcie_replays) == (None, None, None)
    assert amd.driver.devices()[2].pci is None
    gpu["get_gpu_device_bdf"] = "0000:04:00.0"
    assert amd.driver.devices()[2].pci == PciLink(address="0000:04:00.0", width_max=16)
    assert amd.driver.devices()[2].numa_node is None
    assert [(link.a, link.b) for link in amd.driver.links()] == [(0, 1)]


def test_links_before_rocm_7(amd):
    """AmdSmiLinkType is there too, and its numbers are those of the other kind."""
    amd.module.AmdSmiLinkType = SimpleNamespace(AMDSMI_LINK_TYPE_XGMI=1, AMDSMI_LINK_TYPE_PCIE=2)
    amd.module.AmdSmiIoLinkType = SimpleNamespace(UNDEFINED=0, PCIEXPRESS=1, XGMI=2)
    assert [(link.a, link.b, link.kind) for link in amd.driver.links()] == [
        (0, 1, LinkKind.NVLINK),
        (0, 2, LinkKind.SOCKET),
        (1, 2, LinkKind.SOCKET),
    ]


def test_links_of_a_kind_that_is_not_known(amd):
    del amd.module.AmdSmiLinkType
    assert amd.driver.links() == []
    assert [(note.what, note.why) for note in amd.driver.missing] == [
        ("AMD GPU: AmdSmiLinkType.AMDSMI_LINK_TYPE_XGMI", "amdsmi does not have it")
    ]


def test_keys_and_names_before_rocm_6_1(amd):
    """An accumulator called power, clocks called cur_clk, the hot spot called junction; no key at all."""
    gpu = amd.gpus[0]
    gpu["get_energy_count"] = {"power": 8152136, "counter_resolution": 15.3}
    gpu["get_clock_info"] = {Clock.GFX: {"cur_clk": 132, "max_clk": 2100}, Clock.MEM: {}}
    amd.module.AmdSmiTemperatureType = SimpleNamespace(JUNCTION=Temperature.HOTSPOT, VRAM=Temperature.VRAM)
    reading = amd.driver.read(0)
    assert reading.energy_j == pytest.approx(124.7, abs=0.05)
    assert (reading.sm_clock_mhz, reading.memory_clock_mhz, reading.temperature_c) == (132, None, 51)
    assert amd.driver.devices()[0].memory_clock_mhz is None
    gpu["get_energy_count"] = {"counter_resolution": 15.3}
    assert amd.driver.read(0).energy_j is None
    gpu["get_energy_count"] = {"energy_accumulator": 1}
    assert amd.driver.read(0).energy_j is None
    assert amd.driver.missing == []


@pytest.mark.parametrize(
    "raised",
    [
        UnicodeDecodeError("utf-8", b"\xf8", 0, 1, "x"),
        KeyError("k"),
        TypeError("t"),
        OSError("o"),
        ValueError("v"),
    ],
    ids=lambda raised: type(raised).__name__,
)
def test_no_exception_of_amdsmi_gets_through(amd, raised):
    def function(*arguments):
        raise raised

    for name in vars(amd.module):
        if name.startswith(("amdsmi_get", "amdsmi_topo")):
            setattr(amd.module, name, function)
    for _ in range(2):
        assert amd.driver.devices()[0].name == "AMD GPU"
        assert amd.driver.links() == []
        assert amd.driver.read(0).silent
    notes = {note.what: note.why for note in amd.driver.missing}
    assert len(notes) == len(amd.driver.missing)
    assert notes["AMD GPU: amdsmi_get_power_info"] == f"amdsmi raised {type(raised).__name__}: {raised}"


def test_ctrl_c_gets_through_amd_smi(amd):
    def function(*arguments):
        raise KeyboardInterrupt

    amd.module.amdsmi_get_power_info = function
    with pytest.raises(KeyboardInterrupt):
        amd.driver.read(0)


def test_functions_and_enumerations_that_amdsmi_does_not_have(amd):
    del amd.module.amdsmi_get_gpu_activity, amd.module.AmdSmiClkType
    for _ in range(2):
        reading = amd.driver.read(0)
    assert (reading.utilization, reading.sm_clock_mhz, reading.temperature_c) == (None, None, 51)
    assert {(note.what, note.why) for note in amd.driver.missing} == {
        ("AMD GPU: amdsmi_get_gpu_activity", "amdsmi does not have it"),
        ("AMD GPU: AmdSmiClkType.GFX", "amdsmi does not have it"),
        ("AMD GPU: AmdSmiClkType.MEM", "amdsmi does not have it"),
    }


def test_answers_of_amd_smi_of_another_shape_are_unknown(amd, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    for odd in ("N/A", 7, [], [3], {"power_cap": [1]}, SimpleNamespace()):
        for gpu in amd.gpus:
            gpu.update(dict.fromkeys(gpu, odd))
            gpu |= {
                name: dict.fromkeys((*Temperature, *Clock), odd)
                for name in ("get_clock_info", "get_temp_metric")
            }
        amd.module.amdsmi_topo_get_link_type = lambda a, b, odd=odd: odd
        machine = Machine(str(amd.root), mounts=[], load_torch=False)
        reading, device = machine.read().devices[0], machine.node.devices[0]
        assert (device.architecture, device.pci, reading.power_w, reading.energy_j) == (
            None,
            None,
            None,
            None,
        )
        machine.close()


def test_garbage_of_amd_smi_is_unknown(amd, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    amd.gpus[0] |= {
        "get_power_info": {"current_socket_power": 65535},
        "get_gpu_activity": {"gfx_activity": 65535},
        "get_temp_metric": {Temperature.HOTSPOT: 255, Temperature.VRAM: 44},
    }
    machine = Machine(str(amd.root), mounts=[], load_torch=False)
    reading = machine.read().devices[0]
    assert (reading.power_w, reading.utilization, reading.temperature_c) == (None, None, None)
    assert reading.memory_temperature_c == 44
    assert {note.what for note in machine.node.missing} >= {
        "gpu:0: power_w", "gpu:0: utilization", "gpu:0: temperature_c"
    }  # fmt: skip


def test_pages_that_wait_or_cannot_be_retired(amd):
    amd.module.AmdSmiMemoryPageStatus = SimpleNamespace(RESERVED=0, PENDING=1, UNRESERVABLE=2)

    def flags(*states):
        amd.gpus[0]["get_gpu_bad_page_info"] = [{"status": state} for state in states]
        reading = amd.driver.read(0)
        return reading.retired_pages, reading.remap_pending, reading.remap_failed

    assert flags() == (0, False, False)
    assert flags(0, 1) == (2, True, False)
    assert flags(0, 0, 2) == (3, False, True)


def test_an_amd_gpu_without_memory_of_its_own(amd):
    write(amd.root, "proc/meminfo", "MemTotal: 1000 kB\nMemAvailable: 400 kB")
    amd.gpus[0] |= {"get_gpu_memory_total": 0, "get_gpu_memory_usage": 0}
    device = amd.driver.devices()[0]
    assert (device.memory_bytes, device.memory_shared) == (1000 << 10, True)
    assert amd.driver.read(0).memory_used_bytes == 600 << 10


def test_gpus_of_one_numa_node(amd):
    amd.module.amdsmi_topo_get_link_type = lambda a, b: {"type": 1, "hops": 2}
    assert [(link.a, link.b, link.kind) for link in amd.driver.links()] == [
        (0, 1, LinkKind.HOST_BRIDGE),
        (0, 2, LinkKind.SOCKET),
        (1, 2, LinkKind.SOCKET),
    ]


def test_gpus_of_two_vendors_in_one_node(amd, monkeypatch):
    """Those of the second driver are numbered after the first's, their links too; both are closed."""
    gpus = [h100(0), h100(1, GetTemperature=77)]
    gpus[0].nvlinks, gpus[1].nvlinks = ["00000000:1C:00.0"], ["00000000:1B:00.0"]
    nvml = FakeNvml(monkeypatch, gpus)
    machine = Machine(str(amd.root), mounts=[], load_torch=False)
    assert [(device.vendor.value, device.index) for device in machine.node.devices] == [
        ("nvidia", 0),
        ("nvidia", 1),
        ("amd", 0),
        ("amd", 1),
        ("amd", 2),
    ]
    assert [device.device_id for device in machine.node.devices] == list(range(5))
    assert machine.node.nvlink_topology.keys() == {(0, 1), (2, 3)}
    assert [reading.temperature_c for reading in machine.read().devices.values()] == [41, 77, 51, 51, 51]
    machine.close()
    assert (nvml.shut_down, amd.module.closed) == (1, ["amdsmi"])


def test_amd_smi_that_fails(amd, tmp_path):
    def refuse():
        raise AmdSmiError("driver not loaded")

    amd.module.amdsmi_init = refuse
    with pytest.raises(DriverUnavailableError, match="AMD SMI: driver not loaded: load the amdgpu driver"):
        AmdDriver(Files(tmp_path))


def test_intel_through_torch(monkeypatch):
    install_xpu(
        monkeypatch,
        name="Intel(R) Data Center GPU Max 1550",
        total_memory=1000,
        uuid="u",
        gpu_subslice_count=128,
    )
    driver = IntelDriver()
    (device,) = driver.devices()
    assert (device.vendor, device.memory_bytes, device.compute_units) == (HardwareVendor.INTEL, 1000, 128)
    assert device.uuid == "u"
    assert driver.read(0) == DeviceReading(memory_used_bytes=600)
    assert "temperature" in driver.missing[0].what

    def refuse(index):
        raise RuntimeError("The device does not support querying free memory")

    monkeypatch.setattr(torch.xpu, "mem_get_info", refuse)
    assert driver.read(0).silent


@pytest.mark.parametrize(
    "raised", [RuntimeError("r"), AttributeError("a"), UnicodeDecodeError("utf-8", b"\xf8", 0, 1, "x")]
)
def test_no_exception_of_torch_gets_through(monkeypatch, raised):
    install_xpu(monkeypatch, name="Intel(R) Arc(TM) A770", total_memory=1000)
    driver = IntelDriver()

    def refuse(index):
        raise raised

    monkeypatch.setattr(torch.xpu, "get_device_properties", refuse)
    monkeypatch.setattr(torch.xpu, "mem_get_info", refuse)
    for _ in range(2):
        (device,) = driver.devices()
        assert (device.name, device.memory_bytes) == ("Intel GPU", None)
        assert driver.read(0).silent
    assert [(note.what, note.why) for note in driver.missing[1:]] == [
        (f"Intel GPU: {function}", f"torch.xpu raised {type(raised).__name__}: {raised}")
        for function in ("get_device_properties", "mem_get_info")
    ]


def test_torch_before_it_knew_intels_gpus(monkeypatch):
    monkeypatch.delattr(torch, "xpu")
    with pytest.raises(DriverUnavailableError, match=r"torch\.xpu sees no GPU"):
        IntelDriver()


def test_a_torch_that_fails_when_it_looks_for_gpus_is_told_with_nothing_on_the_bus(monkeypatch, tmp_path):
    def refuse():
        raise RuntimeError("Level Zero: UR_RESULT_ERROR_UNINITIALIZED")

    monkeypatch.setattr(torch.xpu, "is_available", refuse)
    write_host(tmp_path, packages=[[[0]]], numa=[[0]])
    missing = Machine(str(tmp_path), mounts=[]).node.missing
    assert [(note.what, note.why) for note in missing if note.what.startswith("INTEL")] == [
        (
            "INTEL display controllers or accelerators",
            "torch.xpu raised RuntimeError: Level Zero: UR_RESULT_ERROR_UNINITIALIZED",
        )
    ]


def test_intel_gpus_are_asked_for_where_torch_is_loaded(monkeypatch, tmp_path):
    """Whether or not the PCI bus shows them: a container may hide it."""
    monkeypatch.setitem(sys.modules, "pynvml", None)
    write_host(tmp_path, packages=[[[0]], [[1]]], numa=[[0], [1]])
    install_xpu(monkeypatch, name="Intel(R) Arc(TM) A770", total_memory=1000)
    machine = Machine(str(tmp_path), mounts=[], load_torch=False)
    (device,) = machine.node.devices
    assert (device.kind, device.name, device.uuid, device.compute_units) == (
        "gpu",
        "Intel(R) Arc(TM) A770",
        None,
        None,
    )
    assert machine.read().devices[0].memory_used_bytes == 600


def test_intel_gpus_are_missing_where_torch_may_not_be_loaded(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    write_host(tmp_path, packages=[[[0]]], numa=[[0]])
    for name, value in (("vendor", "0x8086"), ("class", "0x038000"), ("device", "0x0bd5")):
        write(tmp_path, f"sys/bus/pci/devices/0000:29:00.0/{name}", value)
    monkeypatch.delitem(sys.modules, "torch")
    machine = Machine(str(tmp_path), mounts=[], load_torch=False)
    assert "torch" not in sys.modules
    note = next(note for note in machine.node.missing if "0000:29:00.0 (model 0x0bd5)" in note.what)
    assert (note.why, note.fix) == (
        "read through torch.xpu, and torch is not loaded",
        "kernel-pytorch probe --measure, which loads it",
    )


def install_xpu(monkeypatch, **properties):
    """One Intel GPU with 600 of its 1000 bytes in use."""
    monkeypatch.setattr(torch.xpu, "is_available", lambda: True)
    monkeypatch.setattr(torch.xpu, "device_count", lambda: 1)
    monkeypatch.setattr(torch.xpu, "get_device_properties", lambda index: SimpleNamespace(**properties))
    monkeypatch.setattr(torch.xpu, "mem_get_info", lambda index: (400, 1000))


def test_intel_without_a_gpu():
    if torch.xpu.is_available():
        pytest.skip("needs a machine without an Intel GPU")
    with pytest.raises(DriverUnavailableError, match=r"torch\.xpu sees no GPU"):
        IntelDriver()
