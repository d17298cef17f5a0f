"""Whether code can be built here, and how bfloat16 products fare. Imports torch."""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import statistics
import sys
import sysconfig
import time
from pathlib import Path

import torch

from ..facts import Fact

WIDTH = 256
SLOW = 10.0
"""From this ratio on, one product in bfloat16 says enough."""


def compiler_missing(device: torch.device) -> str:
    """Why torch.compile cannot build code for a device; "": nothing is known to be missing."""
    name = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(name) is None:
        return f"no C++ compiler: {name} is not there (the environment variable CXX names another)"
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.is_file():
        return f"no headers of Python to compile with: {header} is not there"
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        return "triton, which compiles for GPUs, is not installed"
    return ""


def bfloat16_ratio(device: torch.device) -> Fact:
    """Time of a product of two ``[256, 256]`` in bfloat16 over that in float32, on the present threads."""
    return _ratio(str(device), torch.get_num_threads())


@functools.cache
def _ratio(device: str, threads: int) -> Fact:
    try:
        plain = _product_s(device, torch.float32, 1e9)
        half = _product_s(device, torch.bfloat16, SLOW * plain)
    except RuntimeError as error:
        return Fact(why=f"the product failed: {str(error).splitlines()[0]}")
    return Fact(value=half / plain, basis="measured", why=f"a {WIDTH} x {WIDTH} product on {threads} threads")


def _product_s(device: str, dtype: torch.dtype, enough_s: float) -> float:
    """Median seconds of up to seven products; one that takes longer than ``enough_s`` is the last."""
    matrix = torch.full((WIDTH, WIDTH), 0.5, dtype=dtype, device=device)
    seconds: list[float] = []
    for _ in range(8):
        began = time.perf_counter()
        torch.mm(matrix, matrix)
        if matrix.is_cuda:
            torch.cuda.synchronize(matrix.device)
        seconds.append(time.perf_counter() - began)
        if seconds[-1] > enough_s and len(seconds) > 1:
            return seconds[-1]
    return statistics.median(seconds[1:])
