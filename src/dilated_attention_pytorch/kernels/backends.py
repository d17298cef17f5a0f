"""Which backend runs a call, and why another one cannot."""

from __future__ import annotations

import logging
from functools import cache
from typing import Literal

import torch

Backend = Literal["auto", "reference", "sdpa"]

_log = logging.getLogger("dilated_attention_pytorch")


def can_run_sdpa(device: torch.device, dtype: torch.dtype) -> str | None:
    """None if the fused kernels take tensors like these, else the reason why not."""
    dtypes = {
        "cpu": (torch.float64, torch.float32, torch.bfloat16, torch.float16),
        "cuda": (torch.float32, torch.bfloat16, torch.float16),
    }.get(device.type)
    if dtypes is None:
        return f"PyTorch has no fused attention for device {device.type!r}"
    if dtype not in dtypes:
        return f"PyTorch's fused attention on {device.type!r} does not take {dtype}"
    if device.type == "cuda" and dtype == torch.bfloat16:
        capability = torch.cuda.get_device_capability(device)
        if capability < (8, 0):
            return f"bfloat16 needs compute capability 8.0, this device has {capability[0]}.{capability[1]}"
    return None


def choose_backend(backend: str, device: torch.device, dtype: torch.dtype) -> Literal["reference", "sdpa"]:
    """Resolve ``backend``: ``"auto"`` takes the fastest that can run and logs why not a faster one.

    Raises:
        ValueError: for an unknown name, or a backend that was asked for and cannot run.
    """
    if backend == "reference":
        return "reference"
    if backend not in ("auto", "sdpa"):
        raise ValueError(f"backend must be 'auto', 'reference' or 'sdpa', got {backend!r}")
    reason = can_run_sdpa(device, dtype)
    if reason is None:
        return "sdpa"
    if backend == "sdpa":
        raise ValueError(f"backend='sdpa' cannot run: {reason}; backend='reference' can")
    _log_once(f"dilated_attention uses backend 'reference', dense in the sequence: {reason}")
    return "reference"


@cache
def _log_once(message: str) -> None:
    _log.warning(message)
