"""torch's numbers of devices: it counts the GPUs that it may see, drivers count all. Imports torch."""

from __future__ import annotations

import os

import torch

from .facts import DeviceInfo, HardwareVendor, same_gpu_uuid


def torch_device(device: DeviceInfo) -> torch.device:
    """The device under torch's number.

    Raises:
        ValueError: torch does not see it.
    """
    if device.kind == "cpu":
        return torch.device("cpu")
    if device.vendor is HardwareVendor.INTEL and torch.xpu.is_available():
        return torch.device("xpu", device.index)
    for index in range(torch.cuda.device_count()):
        if same_gpu_uuid(device.uuid, cuda_uuid(index)):
            return torch.device("cuda", index)
    raise ValueError(
        f"torch does not see {device.label} ({device.name}, {device.pci_slot}): "
        "CUDA_VISIBLE_DEVICES hides it, or torch was built for other devices"
    )


def own_gpu_uuid() -> str | None:
    """UUID of the GPU that this process computes on: torch's current one, or the LOCAL_RANK-th it sees."""
    if not torch.cuda.is_available():
        return None
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return cuda_uuid(torch.cuda.current_device())
    return cuda_uuid(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


def cuda_uuid(index: int) -> str:
    """UUID of the GPU that torch numbers ``index``."""
    return str(torch.cuda.get_device_properties(index).uuid)
