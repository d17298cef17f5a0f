"""The kernels compile for GPUs that are not here, fit into them, and do not spill."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[4]


def compiled(script: list[str], cache: Path) -> str:
    """What a process prints in which Triton compiles into an empty cache."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(cache)}
    done = subprocess.run(
        [sys.executable, *script], cwd=REPOSITORY, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("family", "instructions"),
    [
        ("sm_80", {"mma"}),
        ("sm_90", {"mma", "wgmma"}),
        ("sm_100", {"mma", "tcgen05"}),
        ("gfx942", {"mfma"}),
    ],
)
def test_default_blocks_fit_and_do_not_spill(family: str, instructions: set[str], tmp_path: Path):
    from benchmarks.ahead_of_time import SHARED_LIMITS, representative

    found = json.loads(compiled(["-m", "benchmarks.ahead_of_time", family], tmp_path))
    assert len(found) == len(list(representative(family))) == 15
    for usage in found:
        assert 0 < usage["shared_bytes"] <= SHARED_LIMITS[family], usage
        assert usage["registers"] > 0, usage
        if usage["dtype"] != "fp32":
            assert usage["spilled_bytes"] == 0, usage
            assert usage["matrix_instruction"] in instructions, usage
    if family == "sm_90":
        assert any(usage["matrix_instruction"] == "wgmma" for usage in found)


COUNT = """
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

class Compiles:  # a device that is not there: what would be launched is compiled only
    get_current_device = staticmethod(lambda: 0)
    get_current_stream = staticmethod(lambda device: 0)
    get_current_target = staticmethod(lambda: GPUTarget("cuda", 90, 32))

driver.set_active(Compiles())
launched = JITFunction.run
JITFunction.run = lambda self, *args, **options: launched(self, *args, **{**options, "warmup": True})

from dilated_attention_pytorch.kernels.problem import Problem
from dilated_attention_pytorch.kernels.triton import attention, backward, forward, launch

launch.family_of = lambda device: "sm_90"
launch.is_worth_tuning = lambda programs, device: False

def kernels(n, batch=1, branches=((2048, 1), (4096, 2)), dtype=torch.bfloat16, heads=8):
    query, key = torch.zeros(batch, n, heads, 64, dtype=dtype), torch.zeros(batch, n, 2, 64, dtype=dtype)
    problem = Problem(branches, True, 0.125)
    out, lse = attention.triton_forward(query, key, key, problem)
    attention.triton_backward(query, query, key, key, out, lse, problem)
    counts = [
        len(kernel.device_caches[0][0])
        for kernel in (forward.forward_kernel, backward.query_gradient_kernel, backward.key_gradient_kernel)
    ]
    assert len(set(counts)) == 1, counts
    return counts[0]
"""


def counts(calls: str, cache: Path) -> list[int]:
    """How many kernels of each kind there are after each call."""
    return json.loads(compiled(["-c", f"{COUNT}\nprint([{calls}])"], cache))


def test_a_new_length_compiles_nothing(tmp_path: Path):
    lengths = (4096, 5000, 1, 2, 17, 1024, 16384, 100_003)
    calls = ", ".join(f"kernels({n}, {batch})" for batch in (1, 2) for n in lengths)
    assert counts(calls, tmp_path) == [1] * (2 * len(lengths))


def test_a_new_pattern_or_dtype_compiles(tmp_path: Path):
    calls = "kernels(64), kernels(64, branches=((32, 1),)), kernels(64, dtype=torch.float16), kernels(64)"
    assert counts(calls, tmp_path) == [1, 2, 3, 3]
