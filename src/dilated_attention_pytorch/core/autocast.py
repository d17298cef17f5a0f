"""What ``torch.autocast`` does to the inputs of attention."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def autocast(*tensors: Tensor) -> list[Tensor]:
    """``tensors``, cast as ``scaled_dot_product_attention`` casts them under ``torch.autocast``."""
    # Here and not at the operator: torch.library's rule casts to one dtype fixed when it is registered.
    device = tensors[0].device.type if isinstance(tensors[0], Tensor) else "cpu"
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return list(tensors)
    dtype = torch.get_autocast_dtype(device)
    return [x.to(dtype) if x.is_floating_point() and x.dtype != torch.float64 else x for x in tensors]


def without_autocast(device_type: str) -> AbstractContextManager[object]:
    """``torch.autocast(device_type, enabled=False)``, for devices without autocast too."""
    available = torch.amp.is_autocast_available(device_type)
    return torch.autocast(device_type, enabled=False) if available else nullcontext()
