"""What is asked of a placement, and which devices cannot serve it."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from ..machine.facts import ClusterTopology, DeviceInfo, HardwareVendor
from ..watch.health import HealthState
from .walk import Sizes

Health = Mapping[int, HealthState | None]
"""By device id; None, like no entry, is unknown."""


@dataclass(frozen=True, kw_only=True)
class PlacementRequest:
    """Devices for a mesh [dp, pp, cp, tp].

    Raises:
        TypeError: a number of devices is no integer.
        ValueError: it is not positive, or the sizes do not multiply to num_devices; a need is negative.
    """

    num_devices: int | None = None
    """All devices of the mesh; default: the product of the sizes."""
    data_parallel_size: int | None = None
    """Default: what the others leave of num_devices, 1 without it."""
    pipeline_parallel_size: int = 1
    context_parallel_size: int = 1
    tensor_parallel_size: int = 1
    memory_gb: float | Sequence[float] = 0.0
    """Memory that each device must have, or for each of the mesh, in row-major order, what it must have."""
    tflops: float = 0.0
    """Peak float32 rate that a device must have, in 1e12 FLOP/s."""
    prefer_vendor: HardwareVendor | None = None
    """Whose GPUs to take if there are enough of them."""
    devices: Collection[int] | None = None
    """Ids of the devices to choose from; default: all."""

    def __post_init__(self) -> None:
        inner = 1
        for name in ("pipeline_parallel_size", "context_parallel_size", "tensor_parallel_size"):
            inner *= _positive(name, getattr(self, name))
        if self.data_parallel_size is not None:
            inner *= _positive("data_parallel_size", self.data_parallel_size)
        if self.num_devices is not None:
            total = _positive("num_devices", self.num_devices)
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
        """Memory for each device of the mesh."""
        if isinstance(self.memory_gb, Sequence):
            return tuple(self.memory_gb)
        return (self.memory_gb,) * self.size


def usable_memory_gb(device: DeviceInfo) -> float | None:
    """What one process can have: in MIG mode the memory of the largest instance."""
    if device.mig_enabled:
        known = [m.memory_bytes for m in device.mig_instances if m.memory_bytes is not None]
        return max(known) / 1e9 if known else None
    return device.memory_gb


def unfit_devices(topology: ClusterTopology, request: PlacementRequest, health: Health) -> dict[int, str]:
    """Why devices cannot serve the request, by device id; devices that it does not name are not mentioned.

    Raises:
        ValueError: it names devices that are not there.
    """
    devices = {device.device_id: device for device in topology.devices}
    strangers = sorted(set(request.devices or ()) - set(devices))
    if strangers:
        raise ValueError(f"devices must be among {sorted(devices)}, got {strangers}")
    named = set(devices if request.devices is None else request.devices)
    found = {}
    for device_id in sorted(named):
        why = _unfit(devices[device_id], request, health.get(device_id))
        if why:
            found[device_id] = why
    return found


def _unfit(device: DeviceInfo, request: PlacementRequest, health: HealthState | None) -> str | None:
    if health is HealthState.FAILED or device.reading.lost:
        return "failed"
    if device.mig_enabled and not device.mig_instances:
        return "is in MIG mode without an instance"
    if device.mig_enabled and request.size > 1:
        return "is in MIG mode, where it cannot work with others"
    least, memory = min(request.needs_gb), usable_memory_gb(device)
    if least > 0 and memory is None:
        return "has memory of unknown size"
    if memory is not None and memory < least:
        return f"has {memory:.1f} GB, less than {least:g} GB"
    flops = device.peak_flops_fp32
    if request.tflops > 0 and flops is None:
        return "has an unknown peak rate"
    if flops is not None and flops < request.tflops * 1e12:
        return f"has {flops / 1e12:.1f} TFLOP/s, less than {request.tflops:g}"
    return None


def _positive(name: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name} must be positive, got {value}")
    return value
