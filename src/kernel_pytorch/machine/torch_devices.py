"""Devices in torch, which numbers only the GPUs that it sees, while drivers number all. Imports torch."""

from __future__ import annotations

import os

import torch

from .facts import DeviceInfo, GpuIdentity, HardwareVendor


def torch_device(device: DeviceInfo) -> torch.device:
    """torch's device for ``device``.

    Raises:
        ValueError: torch does not see the device.
    """
    if device.kind == "cpu":
        return torch.device("cpu")
    kind = "xpu" if device.vendor is HardwareVendor.INTEL else "cuda"
    identify = xpu_gpu if kind == "xpu" else cuda_gpu
    count = torch.get_device_module(kind).device_count()
    for index in range(count):
        if identify(index).is_of(device):
            return torch.device(kind, index)
    if kind == "xpu" and device.uuid is None and device.index < count:  # older PyTorch has no UUIDs
        return torch.device(kind, device.index)
    why = "CUDA_VISIBLE_DEVICES or its like hides it, or torch was built for other devices"
    raise ValueError(
        f"torch does not see {device.label} ({device.name}, {device.pci_slot}): "
        + (f"it {device.hidden}" if device.hidden else why)
    )


def own_gpu() -> GpuIdentity | None:
    """The GPU that this process computes on; None without GPUs.

    That is torch's current device or, before torch is initialised, index LOCAL_RANK.
    """
    for module, identify in ((torch.cuda, cuda_gpu), (torch.xpu, xpu_gpu)):
        if module.is_available():
            if module.is_initialized():
                return identify(module.current_device())
            return identify(int(os.environ.get("LOCAL_RANK", "0")) % module.device_count())
    return None


def xpu_gpu(index: int) -> GpuIdentity:
    """The Intel GPU with torch's ``index``; torch has no PCI address of it."""
    uuid = getattr(torch.xpu.get_device_properties(index), "uuid", None)
    return GpuIdentity(uuid=None if uuid is None else str(uuid), pci_address=None)


def cuda_gpu(index: int) -> GpuIdentity:
    """The CUDA or ROCm GPU with torch's ``index``."""
    properties = torch.cuda.get_device_properties(index)
    # Older versions of PyTorch lack these properties.
    parts = [getattr(properties, f"pci_{name}_id", None) for name in ("domain", "bus", "device")]
    known = [part for part in parts if part is not None]
    uuid = getattr(properties, "uuid", None)
    return GpuIdentity(
        uuid=None if uuid is None else str(uuid),
        pci_address="{:04x}:{:02x}:{:02x}.0".format(*known) if len(known) == 3 else None,
    )
