"""torch's numbers of devices: it counts the GPUs that it may see, drivers count all. Imports torch."""

from __future__ import annotations

import os

import torch

from .facts import DeviceInfo, GpuIdentity, HardwareVendor


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
        if cuda_gpu(index).is_of(device):
            return torch.device("cuda", index)
    raise ValueError(
        f"torch does not see {device.label} ({device.name}, {device.pci_slot}): "
        "CUDA_VISIBLE_DEVICES hides it, or torch was built for other devices"
    )


def own_gpu() -> GpuIdentity | None:
    """The GPU that this process computes on: torch's current one, or the LOCAL_RANK-th it sees."""
    if not torch.cuda.is_available():
        return None
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return cuda_gpu(torch.cuda.current_device())
    return cuda_gpu(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


def cuda_gpu(index: int) -> GpuIdentity:
    """The GPU that torch numbers ``index``."""
    properties = torch.cuda.get_device_properties(index)
    # Older versions of PyTorch do not tell these.
    parts = [getattr(properties, f"pci_{name}_id", None) for name in ("domain", "bus", "device")]
    known = [part for part in parts if part is not None]
    uuid = getattr(properties, "uuid", None)
    return GpuIdentity(
        uuid=None if uuid is None else str(uuid),
        pci_address="{:04x}:{:02x}:{:02x}.0".format(*known) if len(known) == 3 else None,
    )
