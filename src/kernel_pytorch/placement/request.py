"""Requests for devices, and which devices cannot serve them."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from ..machine.facts import ClusterTopology, DeviceInfo, HardwareVendor
from ..watch.health import HealthState
from .walk import Sizes

Health = Mapping[int, HealthState | None]
"""State by device id; None, like no entry, is unknown."""
NO_HEALTH: Health = {}


@dataclass(frozen=True, kw_only=True)
class PlacementRequest:
    """Devices for a mesh [dp, pp, cp, tp].

    Raises:
        TypeError: a number of devices is not an integer.
        ValueError: a number of devices is not positive, the sizes do not multiply to num_devices, or
            memory_gb or tflops is negative or not finite.
    """

    num_devices: int | None = None
    """Of the whole mesh; default: the product of the sizes."""
    data_parallel_size: int | None = None
    """Default: num_devices divided by the other sizes, or 1."""
    pipeline_parallel_size: int = 1
    context_parallel_size: int = 1
    tensor_parallel_size: int = 1
    memory_gb: float | Sequence[float] = 0.0
    """Memory that each device must have: one number, or one for each position in row-major order."""
    tflops: float = 0.0
    """Peak float32 rate that each device must have, in 1e12 FLOP/s."""
    prefer_vendor: HardwareVendor | None = None
    """Its GPUs are taken if there are enough of them."""
    devices: Collection[int] | None = None
    """Ids of the only devices that may be chosen; default: all."""

    def __post_init__(self) -> None:
        inner = 1
        for name in ("pipeline_parallel_size", "context_parallel_size", "tensor_parallel_size"):
            inner *= positive_int(name, getattr(self, name))
        if self.data_parallel_size is not None:
            inner *= positive_int("data_parallel_size", self.data_parallel_size)
        if self.num_devices is not None:
            total = positive_int("num_devices", self.num_devices)
            sizes = (
                f"pipeline_parallel_size={self.pipeline_parallel_size}, "
                f"context_parallel_size={self.context_parallel_size}, "
                f"tensor_parallel_size={self.tensor_parallel_size}"
            )
            if self.data_parallel_size is not None and inner != total:
                raise ValueError(
                    f"data_parallel_size={self.data_parallel_size}, {sizes} multiply to {inner}, "
                    f"not to num_devices={total}"
                )
            if total % inner:
                raise ValueError(f"num_devices={total} must be a multiple of {inner}: {sizes}")
        needs = list(self.memory_gb) if isinstance(self.memory_gb, Sequence) else [self.memory_gb]
        if isinstance(self.memory_gb, Sequence) and len(needs) != self.size:
            raise ValueError(f"memory_gb must have one number, or {self.size}, got {len(needs)}")
        for name, need in [*(("memory_gb", need) for need in needs), ("tflops", self.tflops)]:
            if not 0 <= need < math.inf:
                raise ValueError(f"{name} must be finite and not negative, got {need}")

    @property
    def shape(self) -> Sizes:
        inner = self.pipeline_parallel_size, self.context_parallel_size, self.tensor_parallel_size
        if self.data_parallel_size is not None:
            return (self.data_parallel_size, *inner)
        return (1 if self.num_devices is None else self.num_devices // math.prod(inner), *inner)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def needs_gb(self) -> tuple[float, ...]:
        """Memory for each position, in row-major order."""
        if isinstance(self.memory_gb, Sequence):
            return tuple(self.memory_gb)
        return (self.memory_gb,) * self.size


def usable_memory_bytes(device: DeviceInfo, free_bytes: Mapping[int, int]) -> int | None:
    """Memory available to one process: the free memory or, if unknown, all.

    In MIG mode that of the largest usable instance, and at most what is free on the GPU: the free memory of
    each instance is unknown.
    """
    free = free_bytes.get(device.device_id)
    if not device.mig_enabled:
        return device.memory_bytes if free is None else free
    largest = None if device.best_instance is None else device.best_instance.memory_bytes
    return largest if free is None or largest is None else min(largest, free)


def unfit_devices(
    topology: ClusterTopology, request: PlacementRequest, health: Health, free_bytes: Mapping[int, int]
) -> dict[int, str]:
    """Why devices cannot serve the request, by device id. Devices outside ``request.devices`` are omitted.

    Raises:
        ValueError: the request names unknown devices.
    """
    devices = {device.device_id: device for device in topology.devices}
    unknown = sorted(set(request.devices or ()) - set(devices))
    if unknown:
        raise ValueError(f"devices must be among {sorted(devices)}, got {unknown}")
    allowed = devices if request.devices is None else set(request.devices)
    found = {}
    for device_id in sorted(allowed):
        why = _unfit(devices[device_id], request, health.get(device_id), free_bytes)
        if why:
            found[device_id] = why
    return found


def _unfit(
    device: DeviceInfo, request: PlacementRequest, health: HealthState | None, free_bytes: Mapping[int, int]
) -> str | None:
    if device.hidden:
        return device.hidden
    if health is HealthState.FAILED or device.reading.lost:
        return "failed"
    if device.mig_enabled and not device.mig_instances:
        return "is in MIG mode without an instance"
    if device.mig_enabled and request.size > 1:
        return "is in MIG mode, where it cannot work with others"
    least, memory = min(request.needs_gb), usable_memory_bytes(device, free_bytes)
    if least > 0 and memory is None:
        return "has memory of unknown size"
    if memory is not None and memory / 1e9 < least:
        free = " free" if memory == free_bytes.get(device.device_id) else ""
        return f"has {memory / 1e9:.1f} GB{free}, less than {least:g} GB"
    flops = device.peak_flops_fp32
    if request.tflops > 0 and flops is None:
        return "has an unknown peak rate"
    if flops is not None and flops < request.tflops * 1e12:
        return f"has {flops / 1e12:.1f} TFLOP/s, less than {request.tflops:g}"
    return None


def positive_int(name: str, value: object) -> int:
    """Check a number of devices.

    Raises:
        TypeError: it is not an integer.
        ValueError: it is not positive.
    """
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name} must be positive, got {value}")
    return value
