import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dilated_attention_pytorch.train.device import check_dtype, dtype_notice
from dilated_attention_pytorch.train.errors import CommandError

CPU, GPU = torch.device("cpu"), torch.device("cuda")

NO_COMPILER = """
import torch
from dilated_attention_pytorch.train.device import check_compile
from dilated_attention_pytorch.train.errors import CommandError
try:
    check_compile(torch.device("cpu"))
except CommandError as error:
    print(error)
"""


def test_float16_is_for_cuda():
    with pytest.raises(CommandError, match=r"^--dtype float16 needs CUDA: "):
        check_dtype(CPU, "float16")
    check_dtype(GPU, "float16")
    for dtype in ("float32", "bfloat16"):
        check_dtype(CPU, dtype)


@pytest.mark.parametrize(
    ("capabilities", "slow"),
    [
        ({"architecture": "x86_64", "avx2": True, "avx512_f": False}, True),
        ({"architecture": "x86_64", "avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, True),
        ({"architecture": "x86_64", "avx512_bf16": True, "amx_bf16": False}, False),
        ({"architecture": "arm64", "neon": True, "bf16": False}, True),
        ({"architecture": "arm64", "neon": True, "bf16": True}, False),
    ],
    ids=["avx2", "avx512", "avx512-bf16", "arm", "arm-bf16"],
)
def test_bfloat16_without_instructions_for_it_is_slow(capabilities, slow):
    notice = dtype_notice(CPU, "bfloat16", capabilities)
    assert (notice is not None) == slow
    if notice is not None:
        assert notice.startswith("--dtype bfloat16 is several times slower than float32 here: ")
        assert "\n" not in notice
    assert dtype_notice(CPU, "float32", capabilities) is None
    assert dtype_notice(GPU, "bfloat16", capabilities) is None


@pytest.mark.skipif(platform.machine() != "x86_64", reason="reads the flags of an x86 CPU")
@pytest.mark.skipif(not hasattr(torch.cpu, "get_capabilities"), reason="an older PyTorch")
def test_instructions_of_this_cpu_are_those_that_linux_sees():
    flags = set(Path("/proc/cpuinfo").read_text().split())
    assert (dtype_notice(CPU, "bfloat16") is None) == bool(flags & {"avx512_bf16", "amx_bf16"})


def test_no_compiler_is_one_line():
    said = subprocess.run(
        [sys.executable, "-c", NO_COMPILER],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "CXX": "/no/compiler"},
    ).stdout
    assert said.startswith("--compile cannot be used here, InvalidCxxCompiler: No working C++ compiler found")
    assert said.endswith(": install g++, or name a compiler in the environment variable CXX\n")
    assert said.count("\n") == 1
