"""Where to compute, and how its memory is kept."""

from __future__ import annotations

import ctypes
import os

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


def keep_freed_memory() -> None:
    """Let glibc keep freed memory for the next step, for the rest of the process; elsewhere do nothing.

    By default it returns large buffers to the kernel, which zeroes them again for each step.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return
    trim_threshold, mmap_threshold = -1, -3
    for threshold in (trim_threshold, mmap_threshold):
        mallopt(threshold, 1 << 30)
