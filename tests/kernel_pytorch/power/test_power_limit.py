"""Power limits against a stand-in for NVML: all set or none, read back, put back in every case."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import fake_power_nvml
import pytest
from fake_power_nvml import FakePowerNvml

from kernel_pytorch.machine.facts import DeviceInfo, HardwareVendor, PciLink
from kernel_pytorch.power.limits import PowerLimitError, PowerLimits

UUIDS = ["GPU-a", "GPU-b", "GPU-c"]


def gpu(number: int, **facts: object) -> DeviceInfo:
    known = {"uuid": UUIDS[number], "vendor": HardwareVendor.NVIDIA, **facts}
    return DeviceInfo(device_id=number, kind="gpu", index=number, name="NVIDIA A100", **known)


GPUS = [gpu(0), gpu(1), gpu(2)]


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> FakePowerNvml:
    return fake_power_nvml.install(monkeypatch, UUIDS)


def test_limits_hold_within_the_context_and_are_put_back(nvml: FakePowerNvml) -> None:
    with PowerLimits(GPUS, {0: 250, 2: 199.5}) as limits:
        assert nvml.limits_mw == {"GPU-a": 250_000, "GPU-b": 300_000, "GPU-c": 199_500}
        assert limits.set_w == {0: 250.0, 2: 199.5}
        assert limits.former_w == {0: 300.0, 2: 300.0}
    assert set(nvml.limits_mw.values()) == {300_000}
    assert limits.set_w == {}
    assert nvml.sessions == 0


def test_put_back_after_an_exception(nvml: FakePowerNvml) -> None:
    with pytest.raises(KeyboardInterrupt), PowerLimits(GPUS, {0: 250}):
        raise KeyboardInterrupt
    assert nvml.limits_mw["GPU-a"] == 300_000
    assert nvml.sessions == 0


def test_put_back_at_exit() -> None:
    script = """
import atexit, sys
sys.path.insert(0, sys.argv[1])
import fake_power_nvml
from kernel_pytorch.machine.facts import DeviceInfo, HardwareVendor
from kernel_pytorch.power.limits import PowerLimits
nvml = sys.modules["pynvml"] = fake_power_nvml.FakePowerNvml(["GPU-a"])
atexit.register(lambda: print(nvml.limits_mw, nvml.sessions))
device = DeviceInfo(
    device_id=0, kind="gpu", index=0, vendor=HardwareVendor.NVIDIA, name="GPU", uuid="GPU-a"
)
PowerLimits([device], {0: 250}).set()
print(nvml.limits_mw, nvml.sessions)
"""
    tests = Path(__file__).parents[2] / "support"
    done = subprocess.run(
        [sys.executable, "-c", script, str(tests)], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.splitlines() == ["{'GPU-a': 250000} 1", "{'GPU-a': 300000} 0"]


def test_found_by_pci_address(nvml: FakePowerNvml) -> None:
    device = gpu(1, uuid=None, pci=PciLink(address="0000:12:00.0"))
    with PowerLimits([device], {1: 250}):
        assert nvml.limits_mw["GPU-b"] == 250_000


@pytest.mark.parametrize("watts", [99.9, 400.1])
def test_out_of_range_sets_nothing(nvml: FakePowerNvml, watts: float) -> None:
    limits = PowerLimits(GPUS, {0: 250, 1: watts})
    with pytest.raises(ValueError, match=rf"gpu:1 must be within 100 to 400 W, got {watts}"):
        limits.set()
    assert nvml.sets == []
    assert nvml.sessions == 0


@pytest.mark.parametrize("watts", [100, 400])
def test_ends_of_the_range_are_allowed(nvml: FakePowerNvml, watts: float) -> None:
    with PowerLimits(GPUS, {0: watts}):
        assert nvml.limits_mw["GPU-a"] == watts * 1000


def test_without_permission_says_so(nvml: FakePowerNvml) -> None:
    def refuse(uuid: str, milliwatts: int) -> None:
        raise fake_power_nvml.NVMLError_NoPermission

    nvml.before_set = refuse
    with pytest.raises(PowerLimitError, match="gpu:0: not permitted: run as root"):
        PowerLimits(GPUS, {0: 250}).set()
    assert nvml.sessions == 0


def test_a_limit_that_is_so_already_needs_no_permission(nvml: FakePowerNvml) -> None:
    with PowerLimits(GPUS, {0: 300}) as limits:
        assert limits.set_w == {0: 300.0}
    assert nvml.sets == []


def test_if_one_fails_the_others_are_put_back(nvml: FakePowerNvml) -> None:
    def lost(uuid: str, milliwatts: int) -> None:
        if uuid == "GPU-c":
            raise fake_power_nvml.NVMLError_GpuIsLost

    nvml.before_set = lost
    limits = PowerLimits(GPUS, {0: 250, 1: 200, 2: 150})
    with pytest.raises(PowerLimitError, match="gpu:2: GPU is lost"):
        limits.set()
    assert nvml.sets == [("GPU-a", 250_000), ("GPU-b", 200_000), ("GPU-a", 300_000), ("GPU-b", 300_000)]
    assert set(nvml.limits_mw.values()) == {300_000}
    assert nvml.sessions == 0


def test_a_limit_that_does_not_take_is_not_reported_as_set(nvml: FakePowerNvml) -> None:
    nvml.clamp_mw = 300_000
    limits = PowerLimits(GPUS, {0: 250, 1: 350})
    with pytest.raises(PowerLimitError, match="gpu:1: 300 W after 350 W were set"):
        limits.set()
    assert set(nvml.limits_mw.values()) == {300_000}
    assert limits.set_w == {}


def test_what_the_driver_rounds_is_told_as_it_is(nvml: FakePowerNvml) -> None:
    nvml.clamp_mw = 299_500
    limits = PowerLimits(GPUS, {0: 299.9})
    limits.set()
    assert limits.set_w == {0: 299.5}
    nvml.clamp_mw = 400_000
    limits.restore()
    assert nvml.limits_mw["GPU-a"] == 300_000


def test_what_could_not_be_put_back_is_named_and_may_be_tried_again(nvml: FakePowerNvml) -> None:
    limits = PowerLimits(GPUS, {0: 250, 1: 200})
    limits.set()

    def refuse(uuid: str, milliwatts: int) -> None:
        if uuid == "GPU-a":
            raise fake_power_nvml.NVMLError_NoPermission

    nvml.before_set = refuse
    with pytest.raises(PowerLimitError, match=r"not put back: power limit of gpu:0: .* former limit 300 W"):
        limits.restore()
    assert nvml.limits_mw == {"GPU-a": 250_000, "GPU-b": 300_000, "GPU-c": 300_000}
    assert limits.set_w == {0: 250.0}
    nvml.before_set = lambda uuid, milliwatts: None
    limits.restore()
    assert set(nvml.limits_mw.values()) == {300_000}
    assert nvml.sessions == 0
    limits.restore()
    assert nvml.sessions == 0


def test_set_twice_is_refused(nvml: FakePowerNvml) -> None:
    with PowerLimits(GPUS, {0: 250}) as limits, pytest.raises(ValueError, match="set already"):
        limits.set()
    assert nvml.limits_mw["GPU-a"] == 300_000


@pytest.fixture
def gate():
    """Closed: what waits for it hangs until the test ends."""
    gate = threading.Event()
    yield gate
    gate.set()


def test_a_limit_that_nvml_never_sets_is_an_error_and_is_put_back_later(
    nvml: FakePowerNvml, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kernel_pytorch.power.limits._CALL_S", 1.0)
    nvml.before_set = lambda uuid, milliwatts: gate.wait() and None if uuid == "GPU-b" else None
    limits = PowerLimits(GPUS, {0: 250, 1: 200})
    with pytest.raises(PowerLimitError, match=r"not put back: .*gpu:1: NVML did not answer") as no:
        limits.set()
    assert "gpu:1: NVML did not answer" in str(no.value.__context__)  # what set() met first
    gate.set()  # the call that hung sets its limit now
    monkeypatch.setattr("kernel_pytorch.power.limits._CALL_S", 60.0)
    limits.restore()
    assert set(nvml.limits_mw.values()) == {300_000}
    assert nvml.sessions == 0


def test_an_nvml_that_does_not_open(nvml: FakePowerNvml, gate: threading.Event, monkeypatch) -> None:
    monkeypatch.setattr("kernel_pytorch.power.limits.OPEN_S", 0.01)
    monkeypatch.setattr(nvml, "nvmlInit", gate.wait)
    limits = PowerLimits(GPUS, {0: 250})
    with pytest.raises(PowerLimitError, match=r"NVML did not answer within 0\.01 s: look into"):
        limits.set()
    limits.restore()  # nothing was set


def test_no_driver(nvml: FakePowerNvml) -> None:
    nvml.loaded = False
    with pytest.raises(PowerLimitError, match="Driver Not Loaded: install NVIDIA's driver"):
        PowerLimits(GPUS, {0: 250}).set()


def test_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(PowerLimitError, match="nvidia-ml-py is not installed: pip install"):
        PowerLimits(GPUS, {0: 250}).set()


def test_a_gpu_without_power_limits(nvml: FakePowerNvml) -> None:
    nvml.unsupported = {"GPU-a"}
    with pytest.raises(PowerLimitError, match="NVIDIA A100 does not support it"):
        PowerLimits(GPUS, {0: 250}).set()


def test_a_gpu_of_another_machine(nvml: FakePowerNvml) -> None:
    with pytest.raises(PowerLimitError, match="not a GPU of this machine"):
        PowerLimits([gpu(0, uuid="GPU-elsewhere")], {0: 250}).set()


def test_only_gpus_of_nvidia_that_are_named() -> None:
    amd = gpu(0, vendor=HardwareVendor.AMD)
    with pytest.raises(PowerLimitError, match=r"gpu:0 \(NVIDIA A100\) is no GPU of NVIDIA's"):
        PowerLimits([amd], {0: 250})
    with pytest.raises(ValueError, match=r"among \[0, 1, 2\], got 3"):
        PowerLimits(GPUS, {3: 250})


def test_the_stand_in_has_the_names_of_pynvml() -> None:
    pynvml = pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    names = [name for name in dir(FakePowerNvml) if name.startswith(("nvml", "NVMLError"))]
    assert len(names) > 10
    for name in names:
        assert hasattr(pynvml, name), name
    for name in [name for name in names if name.startswith("NVMLError_")]:
        assert issubclass(getattr(pynvml, name), pynvml.NVMLError)
