"""Which backend runs a call, and why another one cannot."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Sequence
from functools import cache
from math import gcd, lcm
from typing import Literal

import torch

Backend = Literal["auto", "reference", "sdpa", "triton"]
Chosen = Literal["reference", "sdpa", "triton"]

# The Triton kernels count tokens in 32 bits.
_MAX_TOKENS = 2**30
_MAX_CLASSES = 4096

_HAS_TRITON = importlib.util.find_spec("triton") is not None

_log = logging.getLogger("dilated_attention_pytorch")


def can_run_sdpa(device: torch.device, dtype: torch.dtype) -> str | None:
    """None if the fused kernels take tensors like these, else the reason why not."""
    any_dtype = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
    dtypes = {
        "cpu": any_dtype,
        "meta": any_dtype,  # its tensors have shapes only, and so have the results
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


def can_run_triton(
    device: torch.device,
    dtype: torch.dtype,
    *,
    head_dim: int = 64,
    branches: Sequence[tuple[int, int]] = (),
    seq: int = 0,
) -> str | None:
    """None if the Triton kernels take tensors like these, else the reason why not.

    Args:
        device, dtype: of query, key and value.
        head_dim: d.
        branches: (w, r) pairs.
        seq: the length of the whole sequence.
    """
    if not _HAS_TRITON:
        return "Triton is not installed (pip install triton)"
    if not is_interpreted():
        if device.type != "cuda":
            return (
                f"Triton kernels run on CUDA and ROCm devices, not on {device.type!r} "
                "(TRITON_INTERPRET=1 interprets them, slowly)"
            )
        if torch.version.hip is None and torch.cuda.get_device_capability(device) < (8, 0):
            return f"it needs compute capability 8.0, this device has {_capability(device)}"
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"Triton kernels do not take {dtype}"
    if head_dim > 256:
        return f"Triton kernels take a head_dim up to 256, got {head_dim}"
    if lcm(*(r for _, r in branches)) > _MAX_CLASSES:
        rates = [r for _, r in branches]
        return f"the dilation rates {rates} have no common multiple up to {_MAX_CLASSES}"
    if seq > _MAX_TOKENS:
        return f"Triton kernels take up to {_MAX_TOKENS} tokens, got {seq}"
    return None


def choose_backend(
    backend: str,
    device: torch.device,
    dtype: torch.dtype,
    *,
    head_dim: int = 64,
    branches: Sequence[tuple[int, int]] = (),
    seq: int = 0,
) -> Chosen:
    """Resolve ``backend``: ``"auto"`` takes the fastest that can run and logs why not a faster one.

    Arguments as for :func:`can_run_triton`.

    Raises:
        ValueError: for an unknown name, or a backend that was asked for and cannot run.
    """
    if backend == "reference":
        return "reference"
    if backend not in ("auto", "sdpa", "triton"):
        raise ValueError(f"backend must be 'auto', 'reference', 'sdpa' or 'triton', got {backend!r}")
    if backend == "triton" or (backend == "auto" and device.type == "cuda"):
        reason = can_run_triton(device, dtype, head_dim=head_dim, branches=branches, seq=seq)
        if backend == "auto":
            reason = reason or _why_slow(branches, seq)
        if reason is None:
            return "triton"
        if backend == "triton":
            raise ValueError(f"backend='triton' cannot run: {reason}; backend='auto' takes one that can")
        _tell(logging.INFO, f"dilated_attention does not use backend 'triton': {reason}")
    reason = can_run_sdpa(device, dtype)
    if reason is None:
        return "sdpa"
    if backend == "sdpa":
        raise ValueError(f"backend='sdpa' cannot run: {reason}; backend='reference' can")
    _tell(logging.WARNING, f"dilated_attention uses backend 'reference', dense in the sequence: {reason}")
    return "reference"


def _why_slow(branches: Sequence[tuple[int, int]], seq: int) -> str | None:
    """Why most rows of the Triton kernels' tiles would be empty, if they would."""
    cell = gcd(*(w for w, _ in branches if w < seq)) or seq
    classes = lcm(*(r for _, r in branches))
    if cell // classes >= 16 or seq <= cell:
        return None
    return (
        f"the segment ends of {list(branches)} leave {cell} positions between them, "
        f"{max(1, cell // classes)} for each of {classes} dilated classes, and its tiles want 16"
    )


def is_interpreted() -> bool:
    """Whether Triton interprets its kernels on the CPU; decided when it is imported."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


def _capability(device: torch.device) -> str:
    return ".".join(map(str, torch.cuda.get_device_capability(device)))


def _tell(level: int, message: str) -> None:
    if not torch.compiler.is_compiling():  # it cannot trace a logger
        _log_once(level, message)


@cache
def _log_once(level: int, message: str) -> None:
    _log.log(level, message)
