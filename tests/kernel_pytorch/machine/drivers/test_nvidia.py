"""NVIDIA's driver, read through nvidia-ml-py with the driver's answers in a table."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace

import pynvml
import pytest
from fake_nvml import FakeNvml, error, h100
from sysfs_trees import write

from kernel_pytorch.machine.discover import open_drivers, read_node
from kernel_pytorch.machine.drivers.driver import DriverUnavailableError
from kernel_pytorch.machine.drivers.nvidia import NvidiaDriver
from kernel_pytorch.machine.facts import (
    DeviceCapability,
    DeviceInfo,
    DeviceLink,
    HardwareVendor,
    LinkKind,
    MigInstance,
    PciLink,
)
from kernel_pytorch.machine.files import Files
from kernel_pytorch.machine.live import Machine
from kernel_pytorch.machine.readings import DeviceReading


def test_an_h100(monkeypatch, tmp_path):
    FakeNvml(monkeypatch, [h100()])
    write(tmp_path, "sys/bus/pci/devices/0000:1b:00.0/numa_node", 1)
    driver = NvidiaDriver(Files(tmp_path))
    (device,) = driver.devices()
    reading = DeviceReading(
        temperature_c=41,
        memory_temperature_c=55,
        power_w=123.456,
        power_limit_w=650,
        utilization=0.73,
        memory_used_bytes=1 << 30,
        sm_clock_mhz=1755,
        memory_clock_mhz=2619,
        throttle_reasons=("power_cap", "hw_thermal"),
        energy_j=5000.25,
        ecc_corrected=3,
        ecc_uncorrected=0,
        retired_pages=3,
        remap_failed=False,
        remap_pending=False,
        pcie_replays=4,
    )
    assert device == DeviceInfo(
        device_id=0,
        kind="gpu",
        index=0,
        vendor=HardwareVendor.NVIDIA,
        name="NVIDIA H100 80GB HBM3",
        uuid="GPU-00000000-0000-0000-0000-000000000000",
        architecture="9.0",
        memory_bytes=85520809984,
        compute_units=132,
        boost_clock_mhz=1980,
        memory_clock_mhz=2619,
        power_limit_w=700,
        power_limit_min_w=200,
        power_limit_max_w=700,
        slowdown_temperature_c=87,
        pci=PciLink(address="0000:1b:00.0", generation=1, generation_max=5, width=16, width_max=16),
        numa_node=1,
        mig_enabled=False,
        ecc_enabled=True,
        persistence_mode=True,
    )
    assert driver.read(0) == reading
    assert device.capability is DeviceCapability.COMPUTE_9_0
    assert driver.missing == []


def test_what_the_driver_refuses_is_unknown_and_said_so(monkeypatch, tmp_path):
    refused = error(pynvml.NVML_ERROR_NO_PERMISSION)
    poor = h100(
        GetMemoryInfo=refused,
        GetAttributes_v2=error(pynvml.NVML_ERROR_NOT_SUPPORTED),
        GetRemappedRows=error(pynvml.NVML_ERROR_NOT_SUPPORTED),
        GetTotalEnergyConsumption=error(pynvml.NVML_ERROR_NOT_SUPPORTED),
        GetNumGpuCores=16896,
    )
    FakeNvml(monkeypatch, [poor])
    driver = NvidiaDriver(Files(tmp_path))
    (device,) = driver.devices()
    reading = driver.read(0)
    assert (device.memory_bytes, reading.memory_used_bytes) == (None, None)
    assert (reading.energy_j, reading.retired_pages, reading.remap_failed) == (None, None, None)
    assert device.compute_units == 132  # from 128 cores each
    assert [(note.what, note.why, note.fix) for note in driver.missing] == [
        ("NVIDIA GPU: memory", "NVML: Insufficient Permissions", "run as root")
    ]


def test_a_gpu_that_fell_off_the_bus_is_silent(monkeypatch, tmp_path):
    gpu = h100()
    FakeNvml(monkeypatch, [gpu])
    driver = NvidiaDriver(Files(tmp_path))
    assert not driver.read(0).silent
    gpu.answers = {name: error(pynvml.NVML_ERROR_GPU_IS_LOST) for name in gpu.answers}
    gpu.fields = {}
    assert driver.read(0).silent


def test_error_reports_reach_their_gpu_once(monkeypatch, tmp_path):
    gpus = [h100(0), h100(1)]
    nvml = FakeNvml(monkeypatch, gpus)
    driver = NvidiaDriver(Files(tmp_path))
    nvml.events = [(gpus[1], 79), (gpus[0], 31), (gpus[1], 48)]
    assert [driver.read(index).xids for index in (0, 1, 0, 1)] == [(31,), (79, 48), (), ()]
    assert nvml.event_sets == 1
    driver.close()
    assert (nvml.event_sets, nvml.shut_down) == (0, 1)


def test_a_gpu_that_cannot_be_opened(monkeypatch, tmp_path):
    """The others keep their numbers in NVML, by which error reports come."""
    gpus = [h100(0), h100(1), h100(2)]
    nvml = FakeNvml(monkeypatch, gpus)

    def handle(index):
        if index == 0:
            raise error(pynvml.NVML_ERROR_GPU_IS_LOST)
        return nvml.handle(index)

    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", handle)
    driver = NvidiaDriver(Files(tmp_path))
    assert driver.indices == [0, 1, 2]
    assert [device.index for device in driver.devices()] == [0, 1, 2]
    assert [device.uuid for device in driver.devices()] == [
        None,
        *(gpu.answers["GetUUID"] for gpu in gpus[1:]),
    ]
    assert driver.read(0) == DeviceReading(lost=True)
    assert [(note.what, note.why) for note in driver.missing] == [("NVIDIA GPU 0", "NVML: GPU is lost")]
    nvml.events = [(gpus[1], 31), (gpus[2], 79)]
    gpus[2].answers = {name: error(pynvml.NVML_ERROR_GPU_IS_LOST) for name in gpus[2].answers}
    assert [driver.read(index).xids for index in (1, 2)] == [(31,), (79,)]


def test_a_gpu_that_may_not_be_opened_is_no_device(monkeypatch, tmp_path):
    """Another's: it has not failed, and CUDA does not count it."""
    nvml = FakeNvml(monkeypatch, [h100(0), h100(1)])
    refused = error(pynvml.NVML_ERROR_NO_PERMISSION)
    handles = iter([refused, nvml.handle(1)])

    def handle(index):
        answer = next(handles)
        if answer is refused:
            raise refused
        return answer

    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", handle)
    driver = NvidiaDriver(Files(tmp_path))
    assert [device.index for device in driver.devices()] == [1]
    assert [note.what for note in driver.missing] == ["NVIDIA GPU 0"]


def test_errors_on_nvlinks_and_reasons_for_low_clocks(monkeypatch, tmp_path):
    totals = {
        pynvml.NVML_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_TOTAL: 1,
        pynvml.NVML_FI_DEV_NVLINK_RECOVERY_ERROR_COUNT_TOTAL: 20,
        pynvml.NVML_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL: 300,
        pynvml.NVML_FI_DEV_NVLINK_CRC_DATA_ERROR_COUNT_TOTAL: 5 << 32,
    }
    gpu = h100()
    gpu.fields |= totals
    FakeNvml(monkeypatch, [gpu])
    driver = NvidiaDriver(Files(tmp_path))
    assert driver.read(0).nvlink_errors == (5 << 32) + 321
    for name, bit in {
        "clocks_setting": pynvml.nvmlClocksThrottleReasonApplicationsClocksSetting,
        "power_cap": pynvml.nvmlClocksThrottleReasonSwPowerCap,
        "hw_slowdown": pynvml.nvmlClocksThrottleReasonHwSlowdown,
        "sync_boost": pynvml.nvmlClocksThrottleReasonSyncBoost,
        "sw_thermal": pynvml.nvmlClocksThrottleReasonSwThermalSlowdown,
        "hw_thermal": pynvml.nvmlClocksThrottleReasonHwThermalSlowdown,
        "hw_power_brake": pynvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown,
    }.items():
        gpu.answers["GetCurrentClocksThrottleReasons"] = bit | pynvml.nvmlClocksThrottleReasonGpuIdle
        assert driver.read(0).throttle_reasons == (name,)


def test_rows_that_could_not_be_remapped(monkeypatch, tmp_path):
    """Corrected, uncorrected, pending, failed."""
    FakeNvml(monkeypatch, [h100(GetRemappedRows=(0, 2, 1, 0)), h100(1, GetRemappedRows=(0, 2, 0, 1))])
    driver = NvidiaDriver(Files(tmp_path))
    assert [driver.read(index).remap_failed for index in range(2)] == [False, True]


@pytest.mark.parametrize(
    ("capability", "cores", "multiprocessors"),
    [((6, 1), 3584, None), ((7, 0), 5120, 80), ((7, 5), 2560, 40), ((8, 6), 10496, 82)],
    ids=["P40", "V100", "T4", "RTX 3090"],
)
def test_a_gpu_without_instances(monkeypatch, tmp_path, capability, cores, multiprocessors):
    unsupported = error(pynvml.NVML_ERROR_NOT_SUPPORTED)
    gpu = h100(
        GetCudaComputeCapability=list(capability), GetAttributes_v2=unsupported, GetNumGpuCores=cores,
        GetMigMode=unsupported, GetEccMode=unsupported, GetPersistenceMode=0, GetName=unsupported,
        GetPowerManagementLimitConstraints=unsupported, GetRemappedRows=unsupported,
        GetRetiredPages=unsupported,
    )  # fmt: skip
    FakeNvml(monkeypatch, [gpu])
    driver = NvidiaDriver(Files(tmp_path))
    (device,) = driver.devices()
    assert (device.compute_units, device.name) == (multiprocessors, "NVIDIA GPU")
    assert (device.mig_enabled, device.ecc_enabled, device.persistence_mode) == (None, None, False)
    assert (device.power_limit_w, device.power_limit_min_w, device.power_limit_max_w) == (700, None, None)
    assert driver.read(0).retired_pages is None
    driver.devices()
    assert [note.what for note in driver.missing] == ["NVIDIA GPU: name"]  # once, however often it is asked


@pytest.mark.parametrize(
    "raised",
    [
        UnicodeDecodeError("utf-8", b"\xf8", 0, 1, "invalid start byte"),
        AttributeError("a"), KeyError("k"), TypeError("t"), ValueError("v"), OSError("o"),
        ctypes.ArgumentError("argument 1"), IndexError("i"), RecursionError("r"),
    ],
    ids=lambda raised: type(raised).__name__,
)  # fmt: skip
def test_no_exception_of_the_binding_gets_through(monkeypatch, tmp_path, raised):
    """Neither from facts nor from readings; each function is noted once, with what it raised."""
    gpu = h100()
    FakeNvml(monkeypatch, [gpu])
    driver = NvidiaDriver(Files(tmp_path))
    gpu.answers = dict.fromkeys(gpu.answers, raised)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetFieldValues", raising(raised))
    monkeypatch.setattr(pynvml, "nvmlEventSetWait_v2", raising(raised))
    for _ in range(2):
        (device,) = driver.devices()
        assert driver.links() == []
        assert driver.read(0).silent
    assert (device.name, device.uuid, device.memory_bytes, device.pci) == ("NVIDIA GPU", None, None, None)
    notes = {note.what: note.why for note in driver.missing}
    assert len(notes) == len(driver.missing)
    assert notes["NVIDIA GPU: name"] == f"nvidia-ml-py raised {type(raised).__name__}: {raised}"
    assert {"NVIDIA GPU: memory", "NVIDIA GPU: nvmlDeviceGetPowerUsage"} <= notes.keys()


def raising(error):
    def function(*arguments):
        raise error

    return function


def test_ctrl_c_gets_through(monkeypatch, tmp_path):
    gpu = h100()
    FakeNvml(monkeypatch, [gpu])
    driver = NvidiaDriver(Files(tmp_path))
    for name in ("GetPowerUsage", "GetMemoryInfo"):
        monkeypatch.setitem(gpu.answers, name, raising(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            driver.read(0)
        del gpu.answers[name]


def test_answers_of_another_shape_are_unknown(monkeypatch, tmp_path):
    """Text for numbers, numbers for structures, tuples of another length: what is wrong, not an exception."""
    for odd in ("N/A", 7, (), (1, 2, 3), None, SimpleNamespace()):
        gpu = h100()
        gpu.answers = dict.fromkeys(gpu.answers, odd)
        with monkeypatch.context() as patch:
            FakeNvml(patch, [gpu])
            machine = Machine(str(tmp_path), mounts=[], load_torch=False)
            machine.read()
            (device,) = machine.node.devices
            assert device.memory_bytes is None
            assert device.architecture is None
            assert device.pci is None
            machine.close()


def test_names_as_bytes(monkeypatch, tmp_path):
    """As nvidia-ml-py before 11.5 gives them; Latin-1 is not understood."""
    FakeNvml(monkeypatch, [h100(GetName=b"Tesla V100", GetUUID=b"GPU-1"), h100(1, GetName=b"Tesla \xf8")])
    driver = NvidiaDriver(Files(tmp_path))
    assert [device.name for device in driver.devices()] == ["Tesla V100", "NVIDIA GPU"]
    assert driver.devices()[0].uuid == "GPU-1"
    assert [note.what for note in driver.missing] == ["NVIDIA GPU: name"]


def test_functions_and_constants_that_are_absent(monkeypatch, tmp_path):
    """From the binding, or from the driver's library: each is noted with what has to be updated."""
    gpu = h100(
        GetAttributes_v2=error(pynvml.NVML_ERROR_NOT_SUPPORTED),
        GetRemappedRows=error(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND),
    )
    FakeNvml(monkeypatch, [gpu])
    monkeypatch.delattr(pynvml, "nvmlDeviceGetNumGpuCores")
    monkeypatch.delattr(pynvml, "NVML_FI_DEV_MEMORY_TEMP")
    driver = NvidiaDriver(Files(tmp_path))
    for _ in range(2):
        (device,) = driver.devices()
        reading = driver.read(0)
    assert device.compute_units is None
    assert (reading.memory_temperature_c, reading.remap_failed, reading.temperature_c) == (None, None, 41)
    assert [(note.what, note.why, note.fix) for note in driver.missing] == [
        (
            "NVIDIA GPU: nvmlDeviceGetNumGpuCores",
            "nvidia-ml-py does not have it",
            "pip install -U nvidia-ml-py",
        ),
        ("NVIDIA GPU: nvmlDeviceGetRemappedRows", "the driver does not have it", "update NVIDIA's driver"),
        (
            "NVIDIA GPU: NVML_FI_DEV_MEMORY_TEMP",
            "nvidia-ml-py does not have it",
            "pip install -U nvidia-ml-py",
        ),
    ]


@pytest.mark.parametrize("gone", ["Event", "Throttle"])
@pytest.mark.parametrize("of", ["binding", "driver"])
def test_a_function_under_its_old_or_its_new_name(monkeypatch, tmp_path, gone, of):
    gone = f"nvmlDeviceGetCurrentClocks{gone}Reasons"
    FakeNvml(monkeypatch, [h100()])
    if of == "binding":
        monkeypatch.delattr(pynvml, gone)
    else:
        monkeypatch.setattr(pynvml, gone, raising(error(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)))
    driver = NvidiaDriver(Files(tmp_path))
    assert driver.read(0).throttle_reasons == ("power_cap", "hw_thermal")
    assert driver.missing == []


def memory_of(v1, v2):
    return lambda version=None: v1 if version is None else v2(version)


def test_memory_in_use_as_nvidia_smi_shows_it(monkeypatch, tmp_path):
    """Version 2 keeps apart what the driver reserves. A driver before 510 has version 1 alone."""
    v1 = SimpleNamespace(total=85520809984, used=450 << 20, free=85520809984 - (450 << 20))
    v2 = SimpleNamespace(total=85520809984, used=1 << 20, reserved=449 << 20)
    versions = []
    gpu = h100(GetMemoryInfo=memory_of(v1, lambda version: versions.append(version) or v2))
    FakeNvml(monkeypatch, [gpu])
    driver = NvidiaDriver(Files(tmp_path))
    assert driver.read(0).memory_used_bytes == 1 << 20
    assert set(versions) == {pynvml.nvmlMemory_v2}
    gpu.answers["GetMemoryInfo"] = memory_of(v1, raising(error(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)))
    assert driver.read(0).memory_used_bytes == 450 << 20
    assert driver.missing == []


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    "told", [error(3), SimpleNamespace(total=0, used=0, free=0)], ids=["unsupported", "0"]
)
def test_a_gpu_that_uses_the_hosts_memory(monkeypatch, tmp_path, told, version):
    """GB10, or GH200 without memory of its own."""
    write(tmp_path, "proc/meminfo", "MemTotal: 125000000 kB\nMemAvailable: 100000000 kB")
    if version == 1:
        monkeypatch.delattr(pynvml, "nvmlMemory_v2")
    FakeNvml(monkeypatch, [h100(GetMemoryInfo=told)])
    driver = NvidiaDriver(Files(tmp_path))
    (device,) = driver.devices()
    assert (device.memory_bytes, device.memory_shared) == (125000000 << 10, True)
    assert driver.read(0).memory_used_bytes == 25000000 << 10
    assert driver.missing == []


def test_memory_that_the_host_does_not_tell_either(monkeypatch, tmp_path):
    FakeNvml(monkeypatch, [h100(GetMemoryInfo=error(3)), h100(1)])
    driver = NvidiaDriver(Files(tmp_path))
    assert [device.memory_bytes for device in driver.devices()] == [None, 85520809984]
    assert [device.memory_shared for device in driver.devices()] == [True, False]
    assert driver.read(0).memory_used_bytes is None


def test_pages_and_rows_that_wait_for_a_reset(monkeypatch, tmp_path):
    """Rows of Ampere and later; pages of GPUs before."""
    unsupported = error(pynvml.NVML_ERROR_NOT_SUPPORTED)
    gpus = [
        h100(0, GetRemappedRows=(0, 4, 1, 0)),
        h100(1, GetRemappedRows=unsupported, GetRetiredPagesPendingStatus=pynvml.NVML_FEATURE_ENABLED),
        h100(2, GetRemappedRows=unsupported, GetRetiredPagesPendingStatus=pynvml.NVML_FEATURE_DISABLED),
        h100(3, GetRemappedRows=unsupported),
    ]
    FakeNvml(monkeypatch, gpus)
    driver = NvidiaDriver(Files(tmp_path))
    assert [driver.read(index).remap_pending for index in range(4)] == [True, True, False, None]
    assert [driver.read(index).remap_failed for index in range(4)] == [False, None, None, None]


def test_flags_and_counters_of_all_ones(monkeypatch, tmp_path):
    ones = (1 << 32) - 1
    gpu = h100(
        GetRemappedRows=(ones, 1, ones, ones),
        GetMigMode=[ones, 0],
        GetCurrentClocksThrottleReasons=(1 << 64) - 1,
    )
    gpu.fields |= {
        pynvml.NVML_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_TOTAL: 5,
        pynvml.NVML_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL: ones,
    }
    FakeNvml(monkeypatch, [gpu])
    machine = Machine(str(tmp_path), mounts=[], load_torch=False)
    reading, (device,) = machine.read().devices[0], machine.node.devices
    assert (reading.remap_pending, reading.remap_failed, reading.retired_pages) == (None, None, None)
    assert (reading.nvlink_errors, reading.throttle_reasons, device.mig_enabled) == (None, None, None)
    noted = {note.what for note in machine.node.missing}
    for quantity in (
        "remap_pending",
        "remap_failed",
        "retired_pages",
        "nvlink_errors",
        "throttle_reasons",
        "mig_enabled",
    ):
        assert f"gpu:0: {quantity}" in noted


def test_peers_of_nvlinks_that_an_older_binding_does_not_name(monkeypatch, tmp_path):
    """It has no types of remote devices, and fewer links than the GPU: the peers' addresses tell."""
    gpus = [h100(index, GetNvLinkVersion=6) for index in range(3)]
    gpus[0].nvlinks, gpus[1].nvlinks = ["00000000:1C:00.0"] * 18, ["00000000:1B:00.0"] * 18
    gpus[2].nvlinks = ["00000000:99:00.0"] * 18  # a switch
    FakeNvml(monkeypatch, gpus)
    monkeypatch.delattr(pynvml, "nvmlDeviceGetNvLinkRemoteDeviceType")
    monkeypatch.setattr(pynvml, "NVML_NVLINK_MAX_LINKS", 12)
    driver = NvidiaDriver(Files(tmp_path))
    assert [(link.a, link.b, link.lanes) for link in driver.links()] == [(0, 1, 18)]
    assert [note.what for note in driver.missing] == ["NVIDIA GPU: nvmlDeviceGetNvLinkRemoteDeviceType"]


def test_mig_that_waits_for_a_reset(monkeypatch, tmp_path):
    FakeNvml(monkeypatch, [h100(GetMigMode=[0, 1], GetEccMode=[0, 1])])
    (device,) = NvidiaDriver(Files(tmp_path)).devices()
    assert (device.mig_enabled, device.mig_instances, device.ecc_enabled) == (False, (), False)


def test_nvlinks_of_an_unknown_version(monkeypatch, tmp_path):
    gpus = [h100(index) for index in range(2)]
    gpus[0].nvlinks, gpus[1].nvlinks = ["00000000:1C:00.0"] * 4, ["00000000:1B:00.0"] * 4
    for gpu in gpus:
        gpu.fields.clear()
    FakeNvml(monkeypatch, gpus)
    assert NvidiaDriver(Files(tmp_path)).links() == [DeviceLink(a=0, b=1, kind=LinkKind.NVLINK, lanes=4)]


def test_a_switch_is_no_gpu_of_unknown_address(monkeypatch, tmp_path):
    gpus = [h100(0), h100(1, GetPciInfo=error(pynvml.NVML_ERROR_UNKNOWN))]
    gpus[0].nvlinks = [None] * 18
    FakeNvml(monkeypatch, gpus)
    assert NvidiaDriver(Files(tmp_path)).links() == []


def test_a_counter_of_nvlinks_that_is_silent_for_a_moment(monkeypatch, tmp_path):
    """A sum without it would fall, and look like a counter that began anew."""
    gpu = h100()
    replays, flits = (
        pynvml.NVML_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_TOTAL,
        pynvml.NVML_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL,
    )
    gpu.fields |= {replays: 500, flits: 1000}
    FakeNvml(monkeypatch, [gpu])
    driver = NvidiaDriver(Files(tmp_path))
    assert driver.read(0).nvlink_errors == 1500
    del gpu.fields[replays]
    assert driver.read(0).nvlink_errors is None
    gpu.fields[replays] = 501
    assert driver.read(0).nvlink_errors == 1501


def test_pages_of_older_gpus(monkeypatch, tmp_path):
    causes = {
        pynvml.NVML_PAGE_RETIREMENT_CAUSE_MULTIPLE_SINGLE_BIT_ECC_ERRORS: [1, 2],
        pynvml.NVML_PAGE_RETIREMENT_CAUSE_DOUBLE_BIT_ECC_ERROR: [3],
    }
    old = h100(
        GetRemappedRows=error(pynvml.NVML_ERROR_NOT_SUPPORTED), GetRetiredPages=lambda cause: causes[cause]
    )
    FakeNvml(monkeypatch, [old])
    assert NvidiaDriver(Files(tmp_path)).read(0).retired_pages == 3


def test_mig_instances(monkeypatch, tmp_path):
    instance = h100(
        GetUUID="MIG-1", GetName="NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        GetAttributes_v2=SimpleNamespace(multiprocessorCount=16, memorySizeMB=9984),
    )  # fmt: skip

    def by_slot(slot):
        if slot != 2:
            raise error(pynvml.NVML_ERROR_NOT_FOUND)
        return instance

    gpu = h100(GetMigMode=[1, 1], GetMaxMigDeviceCount=7, GetMigDeviceHandleByIndex=by_slot)
    FakeNvml(monkeypatch, [gpu])
    (device,) = NvidiaDriver(Files(tmp_path)).devices()
    assert device.mig_enabled is True
    assert device.mig_instances == (
        MigInstance(
            uuid="MIG-1",
            name="NVIDIA H100 80GB HBM3 MIG 1g.10gb",
            memory_bytes=9984 << 20,
            compute_units=16,
        ),
    )


def test_gpus_that_meet_in_switches(monkeypatch, tmp_path):
    gpus = [h100(index, GetNvLinkVersion=lambda link: pynvml.NVML_NVLINK_VERSION_4_0) for index in range(3)]
    for gpu, lanes in zip(gpus, (18, 18, 12), strict=True):
        gpu.nvlinks = [None] * lanes
    FakeNvml(monkeypatch, gpus)
    links = NvidiaDriver(Files(tmp_path)).links()
    assert [(link.a, link.b, link.lanes, link.version) for link in links] == [
        (0, 1, 18, 4),
        (0, 2, 12, 4),
        (1, 2, 12, 4),
    ]
    assert links[0].gb_s == pytest.approx(18 * 26.562)


def test_bridges_and_the_bus_between_the_others(monkeypatch, tmp_path):
    gpus = [h100(index, GetNvLinkVersion=lambda link: pynvml.NVML_NVLINK_VERSION_3_1) for index in range(4)]
    gpus[0].nvlinks, gpus[1].nvlinks = ["00000000:1C:00.0"] * 4, ["00000000:1B:00.0"] * 4
    gpus[0].fields.clear()  # the rate is then the version's
    nvml = FakeNvml(monkeypatch, gpus)
    nvml.levels = {
        (0, 1): pynvml.NVML_TOPOLOGY_NODE,
        (0, 2): pynvml.NVML_TOPOLOGY_SYSTEM,
        (1, 2): pynvml.NVML_TOPOLOGY_SYSTEM,
        (2, 3): pynvml.NVML_TOPOLOGY_MULTIPLE,
        (1, 3): pynvml.NVML_TOPOLOGY_HOSTBRIDGE,
    }
    assert NvidiaDriver(Files(tmp_path)).links() == [
        DeviceLink(a=0, b=1, kind=LinkKind.NVLINK, lanes=4, version=3, gb_s=100),
        DeviceLink(a=0, b=2, kind=LinkKind.SOCKET),
        DeviceLink(a=1, b=2, kind=LinkKind.SOCKET),
        DeviceLink(a=1, b=3, kind=LinkKind.HOST_BRIDGE),
        DeviceLink(a=2, b=3, kind=LinkKind.PCIE_SWITCH),
    ]


def test_no_driver(monkeypatch, tmp_path):
    def nvml_init():
        raise error(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", nvml_init)
    with pytest.raises(
        DriverUnavailableError, match="NVML: NVML Shared Library Not Found: install NVIDIA's driver"
    ):
        NvidiaDriver(Files(tmp_path))


def on_the_bus(root, vendor="0x10de"):
    for name, value in (("vendor", vendor), ("class", "0x030200"), ("device", "0x2330"), ("numa_node", 0)):
        write(root, f"sys/bus/pci/devices/0000:1b:00.0/{name}", value)


def test_a_node_with_its_gpu(monkeypatch, tmp_path):
    FakeNvml(monkeypatch, [h100()])
    on_the_bus(tmp_path)
    write(tmp_path, "sys/devices/system/cpu/online", "0-3")
    write(tmp_path, "sys/devices/system/node/node0/cpulist", "0-3")
    files = Files(tmp_path)
    node = read_node(files, open_drivers(files, load_torch=False))
    (device,) = node.devices
    assert (device.numa_node, device.cpus) == (0, (0, 1, 2, 3))
    assert device.memory_bandwidth_gb_s == 3350
    assert "H100" in device.peaks.source
    assert node.missing == ()


@pytest.mark.parametrize(
    ("vendor", "module", "why", "fix"),
    [
        ("0x10de", "pynvml", "nvidia-ml-py is not installed", "pip install nvidia-ml-py"),
        ("0x1002", "amdsmi", "amdsmi is not installed", "pip install amdsmi"),
    ],
)
def test_a_gpu_on_the_bus_without_a_reader(monkeypatch, tmp_path, vendor, module, why, fix):
    monkeypatch.setitem(__import__("sys").modules, module, None)
    on_the_bus(tmp_path, vendor)
    files = Files(tmp_path)
    node = read_node(files, open_drivers(files, load_torch=False))
    (note,) = [note for note in node.missing if "0000:1b:00.0" in note.what]
    assert note.why == why
    assert note.fix == fix
    assert node.devices[0].kind == "cpu"


def test_without_a_gpu_nothing_of_it_is_missing(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "pynvml", None)
    write(tmp_path, "sys/devices/system/cpu/online", "0")
    files = Files(tmp_path)
    assert read_node(files, open_drivers(files, load_torch=False)).missing == ()
