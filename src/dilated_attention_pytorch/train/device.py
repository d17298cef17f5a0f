"""Where to compute, what it can do, and how its memory is kept."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from typing import Any

import torch

from .errors import CommandError


def resolve_device(name: str) -> torch.device:
    """The device that ``--device`` names; ``auto``: CUDA where there is one, else the CPU.

    Raises:
        CommandError: there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError("train on cpu or cuda")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).split("\n")[0]
        raise CommandError(f"--device {name} cannot be used: {reason}") from error
    return device


def set_threads(threads: int) -> None:
    """Compute with so many threads on the CPU, for the rest of the process.

    Raises:
        ValueError: more than a process can start. OpenMP would end the process when it tries.
    """
    cpus = os.cpu_count() or 1
    most = max(256, 16 * cpus)
    if threads > most:
        raise ValueError(f"threads must be at most {most} on this machine of {cpus} CPUs, got {threads}")
    torch.set_num_threads(threads)


def check_dtype(device: torch.device, dtype: str) -> None:
    """Raise CommandError if ``device`` cannot train in ``dtype``."""
    if dtype == "float16" and device.type == "cpu":
        raise CommandError(
            "--dtype float16 needs CUDA: on a CPU it is slower than float32; "
            "leave --dtype out, or take bfloat16, which saves as much memory"
        )


def dtype_notice(
    device: torch.device, dtype: str, capabilities: Mapping[str, Any] | None = None
) -> str | None:
    """A line that warns of a ``dtype`` for which ``device`` has no instructions; None if it has them.

    Args:
        device: where it is computed.
        dtype: as ``--dtype`` has it.
        capabilities: of the CPU, as ``torch.cpu.get_capabilities`` names them; default: those of this one.
    """
    if dtype != "bfloat16" or device.type != "cpu":
        return None
    if capabilities is None:
        if not hasattr(torch.cpu, "get_capabilities"):  # an older PyTorch
            return None
        capabilities = torch.cpu.get_capabilities()
    if any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16")):
        return None
    return (
        "--dtype bfloat16 is several times slower than float32 here: this CPU has no instructions for it "
        "(AVX512-BF16, AMX-BF16 or Arm's BF16)"
    )


def check_compile(device: torch.device) -> None:
    """Compile something small, which shows what is missing before a run is made.

    Raises:
        CommandError: PyTorch cannot compile for ``device``: no compiler, no headers of Python, no Triton.
    """
    try:
        torch.compile(torch.neg)(torch.zeros(1, device=device))
    except RuntimeError as error:
        reason = str(error).split("\n")[0]
        hint = ""
        if "InvalidCxxCompiler" in reason:
            hint = ": install g++, or name a compiler in the environment variable CXX"
        raise CommandError(f"--compile cannot be used here, {reason}{hint}") from error


def keep_freed_memory() -> None:
    """Let glibc keep freed memory for the next step, for the rest of the process; elsewhere do nothing.

    By default it returns large buffers to the kernel, which zeroes them again for each step.
    """
    _set_malloc_thresholds(1 << 30)


def return_freed_memory() -> None:
    """Let glibc return what is freed, a MiB or more, for the rest of the process; elsewhere do nothing.

    The peak is then what is in use: a heap that keeps what is freed has holes, which can take as much again.
    """
    _set_malloc_thresholds(1 << 20)


def _set_malloc_thresholds(size: int) -> None:
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return
    trim_threshold, mmap_threshold = -1, -3
    for threshold in (trim_threshold, mmap_threshold):
        mallopt(threshold, size)
