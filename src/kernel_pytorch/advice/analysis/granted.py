"""CPUs and memory that this process may use. Imports torch."""

from __future__ import annotations

import os

import torch

from ...machine.files import Files
from ...machine.host.cpu import meminfo_bytes, read_caches
from ...machine.host.limits import read_limits


def granted_cpus() -> float | None:
    """CPU seconds per second; None: unknown."""
    usable = read_limits(Files()).usable_cpus
    return usable or (os.cpu_count() or None)  # nothing is listed: not on Linux


def granted_memory(device: torch.device) -> int | None:
    """Bytes: of the device or, on a CPU, what the control groups grant, else what the machine has."""
    if device.type == "cpu":
        files = Files()
        machine = meminfo_bytes(files.text("proc/meminfo"), "MemTotal")
        known = [size for size in (read_limits(files).memory_bytes, machine) if size is not None]
        return min(known, default=None)
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return None


def cache_bytes(device: torch.device) -> int:
    """Of the last level of caches, all together; 0: unknown."""
    if device.type == "cpu":
        caches = [cache for cache in read_caches(Files()) if cache.type != "instruction"]
        last = max((cache.level for cache in caches), default=0)
        return sum(cache.size_bytes for cache in caches if cache.level == last)
    if device.type == "cuda":
        return int(getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0))
    return 0
