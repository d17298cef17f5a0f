"""The GPU benchmark, interpreted on tiny problems: its tables, and that a wrong number ends it."""

from __future__ import annotations

import importlib.util
import subprocess

import pytest
import torch
from benchmarks.registry import NumericsError, Options
from benchmarks.verify import REPOSITORY

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton (Linux)")


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch):
    from benchmarks import triton_gpu

    sizes = {
        "HEADS": 4,
        "HEAD_DIMS": (16,),
        "LENGTHS": (1, 2),
        "LONGEST_DENSE": 1,
        "PATTERNS": {"tiny": ((8, 1), (16, 2))},
        "PROOF_SEQ": 11,
        "PROOF_BRANCHES": ((4, 1), (8, 2)),
        "LIMITS": {torch.bfloat16: 2e-2},
        "ROUNDS": 1,
    }
    for name, value in sizes.items():
        monkeypatch.setattr(triton_gpu, name, value)
    monkeypatch.setattr(triton_gpu, "TARGETS", {False: (0.0, 1e9), True: (0.0, 1e9)})
    return triton_gpu


OPTIONS = Options(device=torch.device("cpu"), seq=16, cases=("d16-causal",))


@pytest.mark.skipif(torch.cuda.is_available(), reason="interpreted; on a GPU the benchmark itself runs")
def test_tables(tiny):
    errors, times, memory = tiny.triton(OPTIONS)
    assert len(errors.rows) == 6
    assert [row[0] for row in times.rows] == [
        "tiny-16-d16-causal-forward",
        "tiny-16-d16-causal-forward+backward",
        "tiny-32-d16-causal-forward",
        "tiny-32-d16-causal-forward+backward",
    ]
    short, _, long, _ = (dict(zip(times.columns, row, strict=True)) for row in times.rows)
    assert (short["at least"], short["goal"]) == ("0.00 met", "1000000000.00 missed")
    assert long["dense ms"] == long["saving reached"] == ""
    assert all(float(short[f"{name} ms"]) > 0 for name in ("triton", "sdpa", "gather", "dense"))
    assert [row[0] for row in memory.rows] == ["16", "32"]
    assert memory.rows[0][-1] == "1.00"


@pytest.mark.skipif(torch.cuda.is_available(), reason="interpreted; on a GPU the benchmark itself runs")
def test_a_wrong_number_ends_it(tiny, monkeypatch: pytest.MonkeyPatch):
    genuine = tiny.dilated_attention

    def nearly(*args, **kwargs):
        return genuine(*args, **kwargs) * 1.05

    monkeypatch.setattr(tiny, "dilated_attention", nearly)
    with pytest.raises(NumericsError, match=r"bfloat16 d16 full plain, seed \d+: errors .* at most 0\.02"):
        tiny.triton(OPTIONS)


@pytest.mark.skipif(torch.cuda.is_available(), reason="what it says where there is no GPU")
def test_without_a_gpu_the_script_says_so():
    done = subprocess.run([REPOSITORY / "benchmarks" / "gpu.sh"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.endswith("--device cuda: PyTorch finds no CUDA device here\n")
