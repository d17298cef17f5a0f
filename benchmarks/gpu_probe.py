"""What we read of NVIDIA GPUs against what nvidia-smi prints: ``python -m benchmarks.gpu_probe``."""

from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Callable, Iterator

from kernel_pytorch.machine.facts import DeviceInfo, HardwareVendor
from kernel_pytorch.machine.live import Machine


def _switch(value: bool | None) -> str | None:
    return None if value is None else "Enabled" if value else "Disabled"


def _watts(value: float | None) -> str | None:
    return None if value is None else f"{value:.2f}"


# nvidia-smi's name of a field -> what it prints for our fact with --format=csv,noheader,nounits.
FIELDS: dict[str, Callable[[DeviceInfo], object]] = {
    "name": lambda device: device.name,
    "uuid": lambda device: device.uuid,
    "memory.total": lambda device: None if device.memory_bytes is None else device.memory_bytes >> 20,
    "compute_cap": lambda device: device.architecture,
    "pci.bus_id": lambda device: None if device.pci is None else f"0000{device.pci.address.upper()}",
    "pcie.link.gen.max": lambda device: device.pci and device.pci.generation_max,
    "pcie.link.width.max": lambda device: device.pci and device.pci.width_max,
    "clocks.max.sm": lambda device: device.boost_clock_mhz,
    "clocks.max.mem": lambda device: device.memory_clock_mhz,
    "power.limit": lambda device: _watts(device.power_limit_w),
    "power.min_limit": lambda device: _watts(device.power_limit_min_w),
    "power.max_limit": lambda device: _watts(device.power_limit_max_w),
    "ecc.mode.current": lambda device: _switch(device.ecc_enabled),
    "mig.mode.current": lambda device: _switch(device.mig_enabled),
    "persistence_mode": lambda device: _switch(device.persistence_mode),
}
UNKNOWN = ("[N/A]", "[Not Supported]", "N/A")


def nvidia_smi() -> str:
    """Its table, one line a GPU.

    Raises:
        OSError: there is no nvidia-smi.
        subprocess.CalledProcessError: it fails.
    """
    query = ["nvidia-smi", f"--query-gpu={','.join(FIELDS)}", "--format=csv,noheader,nounits"]
    return subprocess.run(query, capture_output=True, text=True, check=True).stdout


def compare(devices: list[DeviceInfo], table: str) -> Iterator[tuple[str, str, str, bool]]:
    """(device and field, ours, theirs, whether they agree); unknown agrees with unknown only."""
    rows = list(csv.reader(table.splitlines(), skipinitialspace=True))
    yield "number of GPUs", str(len(devices)), str(len(rows)), len(devices) == len(rows)
    for device, row in zip(devices, rows, strict=False):
        for (name, fact), theirs in zip(FIELDS.items(), row, strict=True):
            ours = fact(device)
            same = theirs in UNKNOWN if ours is None else str(ours) == theirs
            yield f"{device.label} {name}", "unknown" if ours is None else str(ours), theirs, same


def main() -> int:
    machine = Machine(load_torch=False)
    try:
        devices = [device for device in machine.node.devices if device.vendor is HardwareVendor.NVIDIA]
    finally:
        machine.close()
    try:
        table = nvidia_smi()
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"benchmarks.gpu_probe: error: nvidia-smi: {error}", file=sys.stderr)
        return 2
    wrong = 0
    for what, ours, theirs, same in compare(devices, table):
        wrong += not same
        print(f"{'ok   ' if same else 'WRONG'}  {what}: {ours}" + ("" if same else f", nvidia-smi {theirs}"))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
