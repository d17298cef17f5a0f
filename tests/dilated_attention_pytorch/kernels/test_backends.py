from __future__ import annotations

import logging

import pytest
import torch

from dilated_attention_pytorch.kernels.backends import can_run_sdpa, choose_backend

CPU, CUDA, MPS, META = (torch.device(name) for name in ("cpu", "cuda", "mps", "meta"))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_auto_takes_the_fused_kernels_on_a_cpu(dtype: torch.dtype):
    assert can_run_sdpa(CPU, dtype) is None
    assert choose_backend("auto", CPU, dtype) == "sdpa"


def test_auto_says_why_it_falls_back(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING, logger="dilated_attention_pytorch"):
        assert choose_backend("auto", MPS, torch.float32) == "reference"
    assert "no fused attention for device 'mps'" in caplog.text


def test_meta_tensors_take_the_operator_that_knows_the_shapes():
    assert choose_backend("auto", META, torch.bfloat16) == "sdpa"


def test_a_backend_that_cannot_run_raises_its_reason():
    with pytest.raises(ValueError, match=r"'cuda' does not take torch\.float64; backend='reference' can"):
        choose_backend("sdpa", CUDA, torch.float64)
    with pytest.raises(ValueError, match="must be 'auto', 'reference', 'sdpa' or 'triton', got 'fast'"):
        choose_backend("fast", CPU, torch.float32)
    assert choose_backend("reference", CUDA, torch.float64) == "reference"
