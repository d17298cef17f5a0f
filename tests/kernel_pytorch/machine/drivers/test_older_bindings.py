"""NVIDIA's driver through older releases of nvidia-ml-py, installed from the package index."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SUPPORT = Path(__file__).parents[3] / "support"
SCRIPT = """
import json, sys
import pynvml, pytest
from fake_nvml import FakeNvml, h100
from kernel_pytorch.machine.drivers.nvidia import NvidiaDriver
from kernel_pytorch.machine.files import Files

whole = {"GetAttributes_v2": pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED), "GetNumGpuCores": 16896}
gpus = [h100(0, GetNvLinkVersion=6), h100(1, GetNvLinkVersion=6), h100(2, **whole)]
gpus[0].nvlinks, gpus[1].nvlinks = ["00000000:1C:00.0"] * 18, ["00000000:1B:00.0"] * 18
with pytest.MonkeyPatch.context() as patch:
    nvml = FakeNvml(patch, gpus)
    nvml.levels = {(0, 2): 50, (1, 2): 10}
    driver = NvidiaDriver(Files("/nowhere"))
    nvml.events = [(gpus[1], 79)]
    devices, links = driver.devices(), driver.links()
    readings = [driver.read(index) for index in driver.indices]
    driver.close()
print(json.dumps({
    "file": pynvml.__file__,
    "names": [device.name for device in devices],
    "compute_units": [device.compute_units for device in devices],
    "memory": [device.memory_bytes for device in devices],
    "links": [(link.a, link.b, link.kind.name, link.lanes) for link in links],
    "temperatures": [reading.temperature_c for reading in readings],
    "memory_temperatures": [reading.memory_temperature_c for reading in readings],
    "throttle": readings[0].throttle_reasons,
    "pending": [reading.remap_pending for reading in readings],
    "xids": [reading.xids for reading in readings],
    "missing": [(note.what, note.why) for note in driver.missing],
}))
"""


@pytest.fixture(scope="session")
def releases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this user that outlives the session, for what is installed."""
    folder = tmp_path_factory.getbasetemp().parent / "nvidia-ml-py"
    folder.mkdir(exist_ok=True)
    return folder


def install(release: str, releases: Path, scratch: Path) -> Path:
    """The folder with that release; skips the test where it cannot be installed."""
    folder = releases / release
    if not folder.exists():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--disable-pip-version-check"]
        pip += [
            "--retries",
            "0",
            "--timeout",
            "10",
            "--target",
            str(scratch / release),
            f"nvidia-ml-py=={release}",
        ]
        done = subprocess.run(pip, capture_output=True, text=True, timeout=120)
        if done.returncode != 0:
            why = (done.stderr.strip().splitlines() or ["no message"])[-1]
            pytest.skip(f"nvidia-ml-py {release} cannot be installed: {why}")
        try:
            (scratch / release).rename(folder)
        except OSError:  # another worker was faster
            assert folder.exists()
    return folder


OLD = "nvidia-ml-py does not have it"
# What a release lacks of what is asked for.
RELEASES = {
    "11.450.51": [
        "nvmlDeviceGetNumGpuCores",
        "nvmlDeviceGetNvLinkRemoteDeviceType",
    ],
    "11.525.150": [],
    "12.535.161": [],
    "12.575.51": [],
}


@pytest.mark.parametrize("release", RELEASES)
def test_an_older_release_of_nvidia_ml_py(release: str, releases: Path, tmp_path: Path):
    folder = install(release, releases, tmp_path)
    path = os.pathsep.join([str(folder), str(SUPPORT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert Path(found.pop("file")).parent == folder
    cores = "nvmlDeviceGetNumGpuCores" in RELEASES[release]
    assert found == {
        "names": ["NVIDIA H100 80GB HBM3"] * 3,
        "compute_units": [132, 132, None if cores else 132],
        "memory": [85520809984] * 3,
        "links": [[0, 1, "NVLINK", 18], [0, 2, "SOCKET", None], [1, 2, "PCIE_SWITCH", None]],
        "temperatures": [41] * 3,
        "memory_temperatures": [55] * 3,
        "throttle": ["power_cap", "hw_thermal"],
        "pending": [False] * 3,
        "xids": [[], [79], []],
        "missing": [[f"NVIDIA GPU: {name}", OLD] for name in RELEASES[release]],
    }
