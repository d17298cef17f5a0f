"""What watching costs: CPU time of the sampler's thread, with the rules of health, and the time of a stop."""

from __future__ import annotations

import random
import tempfile
import threading
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

from kernel_pytorch.machine.facts import ClusterTopology, DeviceInfo, HardwareVendor
from kernel_pytorch.machine.readings import DeviceReading, DiskReading, HostReading, NicReading, Snapshot
from kernel_pytorch.watch.health import MachineHealth
from kernel_pytorch.watch.telemetry import Telemetry
from kernel_pytorch.watch.trace import ReplaySource, TraceWriter

from .measure import progress
from .registry import NumericsError, Options, Table, benchmark

DEVICES = tuple(
    DeviceInfo(device_id=number, kind="gpu", index=number, vendor=HardwareVendor.NVIDIA, name="GPU")
    for number in range(64)
)
IDS = [device.device_id for device in DEVICES]
SECONDS = 30
BY_HAND = 2000
"""Samples one after the other, for the cost of each without the waking up."""
TARGET_SHARE, TARGET_STOP_MS = 0.005, 100.0


@benchmark(
    "telemetry",
    numerics=(
        "tests/kernel_pytorch/watch/test_telemetry.py",
        "tests/kernel_pytorch/watch/health",
    ),
)
def telemetry(options: Options) -> list[Table]:
    """Sampler of 64 replayed devices with the rules of health: CPU time / wall at 1 Hz, time of stop()."""
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.jsonl"
        _record(trace)
        seconds = min(SECONDS, options.max_seconds)
        progress(f"[1/3] 1 Hz for {seconds:g} s")
        share = _share_at_1_hz(trace, seconds)
        progress("[2/3] by hand")
        each_ms = _sample_ms(trace)
        progress(f"[3/3] stop, {options.pairs} times")
        stop_ms = max(_stop_ms(trace) for _ in range(options.pairs))
    rows = [
        [
            f"CPU time / wall, {seconds:g} s at 1 Hz",
            f"{share:.3%}",
            f"<= {TARGET_SHARE:.1%}",
            _met(share <= TARGET_SHARE),
        ],
        ["CPU time of a sample, one after the other", f"{each_ms:.2f} ms", "", ""],
        [
            f"stop(), longest of {options.pairs}",
            f"{stop_ms:.2f} ms",
            f"<= {TARGET_STOP_MS:g} ms",
            _met(stop_ms <= TARGET_STOP_MS),
        ],
    ]
    note = "A sample decodes a line of the trace with 64 devices, keeps it and applies all rules to it."
    return [
        Table(
            title="Telemetry of 64 devices", columns=("what", "measured", "target", ""), rows=rows, note=note
        )
    ]


def _met(met: bool) -> str:
    return "met" if met else "missed"


def _snapshots() -> Iterator[Snapshot]:
    """All that a GPU with NVLinks tells, anew each second."""
    draw = random.Random(0)
    for second in count():
        yield Snapshot(
            time_s=1.8e9 + second,
            devices={
                number: DeviceReading(
                    temperature_c=draw.uniform(60, 80),
                    memory_temperature_c=draw.uniform(70, 85),
                    power_w=draw.uniform(500, 700),
                    power_limit_w=700.0,
                    utilization=draw.uniform(0.8, 1),
                    memory_used_bytes=draw.randrange(80 << 30),
                    sm_clock_mhz=draw.uniform(1900, 1980),
                    memory_clock_mhz=2619.0,
                    throttle_reasons=("power_cap",),
                    energy_j=600.0 * second,
                    ecc_corrected=second // 100,
                    ecc_uncorrected=0,
                    retired_pages=0,
                    remap_failed=False,
                    nvlink_errors=second // 10,
                    pcie_replays=0,
                )
                for number in IDS
            },
            host=HostReading(
                memory_available_bytes=draw.randrange(1 << 40),
                memory_stall_s=0.01 * second,
                cpu_stall_s=0.1 * second,
                oom_kills=0,
                nics={f"ib{number}": NicReading(carrier=True, errors=0) for number in range(8)},
                disks={
                    name: DiskReading(total_bytes=10**12, free_bytes=5 * 10**11) for name in ("/", "/data")
                },
            ),
        )


def _record(path: Path) -> None:
    with TraceWriter(path, ClusterTopology(nodes={})) as writer:
        for _, snapshot in zip(range(BY_HAND), _snapshots(), strict=False):
            writer.write(snapshot)


def _watching(trace: Path) -> Telemetry:
    found = Telemetry(ReplaySource(trace), IDS)
    found.listeners.append(MachineHealth(DEVICES).update)
    return found


def _share_at_1_hz(trace: Path, seconds: float) -> float:
    sampler = _watching(trace)
    begin = time.monotonic()
    sampler.start()
    threading.Event().wait(seconds)
    sampler.stop()
    return sampler.cpu_seconds / (time.monotonic() - begin)


def _sample_ms(trace: Path) -> float:
    sampler = _watching(trace)
    begin = time.thread_time()
    for _ in range(BY_HAND):
        sampler.sample()
    return (time.thread_time() - begin) / BY_HAND * 1e3


def _stop_ms(trace: Path) -> float:
    """While it waits for its next second."""
    sampler, told = _watching(trace), threading.Event()
    sampler.listeners.append(lambda _: told.set())
    sampler.start()
    if not told.wait(10):
        raise NumericsError("the sampler took no sample within 10 s")
    begin = time.perf_counter()
    if not sampler.stop():
        return float("inf")
    return (time.perf_counter() - begin) * 1e3
