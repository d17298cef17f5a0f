"""The Triton backend as an operator: what autograd, torch.compile and the FLOP counter see."""

from __future__ import annotations

import logging

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dilated_attention_pytorch import DilatedPattern, dilated_attention
from dilated_attention_pytorch.kernels.backends import can_run_triton, choose_backend

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SEGMENTS, RATES = (8, 16), (1, 2)


def draw(seq: int = 19) -> list[torch.Tensor]:
    return [torch.randn(1, seq, heads, 16, device=DEVICE, requires_grad=True) for heads in (2, 1, 1)]


def attend(*qkv: torch.Tensor) -> torch.Tensor:
    return dilated_attention(*qkv, SEGMENTS, RATES, is_causal=True, backend="triton")


def test_opcheck():
    padding = torch.rand(1, 19, device=DEVICE) < 0.3
    operator = torch.ops.dilated_attention_pytorch.triton.default
    torch.library.opcheck(operator, (*draw(), SEGMENTS, RATES, True, 0.5, padding, None))


def test_compiles_whole_with_the_same_gradients():
    qkv = draw()
    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    out = compiled(*qkv)
    assert torch.equal(out, attend(*qkv))
    grads = [torch.autograd.grad(x.square().sum(), qkv) for x in (out, attend(*qkv))]
    assert all(torch.equal(x, y) for x, y in zip(*grads, strict=True))


def test_flop_counter_equals_the_pattern():
    with FlopCounterMode(display=False) as counter:
        attend(*draw()).sum().backward()
    forward = DilatedPattern(SEGMENTS, RATES, 2, num_kv_heads=1).flops(1, 19, 16, is_causal=True)
    assert counter.get_total_flops() == 3.5 * forward


def test_differentiating_twice_raises():
    qkv = draw()
    (grad,) = torch.autograd.grad(attend(*qkv).sum(), qkv[0], create_graph=True)
    with pytest.raises(RuntimeError, match=r"cannot be differentiated twice with backend='triton'"):
        grad.sum().backward()


def test_autocast_casts():
    query, key, value = draw()
    with torch.autocast(DEVICE.type, torch.float16):
        out = attend(query, key, value)
    assert torch.equal(out, attend(query.half(), key.half(), value.half()))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dtype": torch.float64}, "do not take torch.float64"),
        ({"head_dim": 257}, "a head_dim up to 256, got 257"),
        (
            {"branches": ((64, 61), (64, 71))},
            "the dilation rates [61, 71] have no common multiple up to 4096",
        ),
        ({"seq": 2**30 + 1}, "up to 1073741824 tokens, got 1073741825"),
    ],
)
def test_a_call_that_cannot_run_says_why(change, reason: str):
    arguments = {"device": DEVICE, "dtype": torch.float32} | change
    assert reason in (can_run_triton(**arguments) or "")
    with pytest.raises(
        ValueError, match=r"^backend='triton' cannot run: .*; backend='auto' takes one that can"
    ):
        choose_backend("triton", **arguments)


def test_devices_without_the_kernels_say_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    reason = can_run_triton(torch.device("cpu"), torch.float32)
    assert reason is not None
    assert "run on CUDA and ROCm devices, not on 'cpu' (TRITON_INTERPRET=1 interprets them" in reason


def test_without_triton_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch):
    from dilated_attention_pytorch.kernels import backends

    monkeypatch.setattr(backends, "_HAS_TRITON", False)
    assert can_run_triton(DEVICE, torch.float32) == "Triton is not installed (pip install triton)"


CUDA = torch.device("cuda")
LONG_NET = ((2048, 1), (4096, 2), (8192, 4), (16384, 6), (32768, 12))


@pytest.fixture
def modern_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))


@pytest.mark.usefixtures("modern_gpu")
@pytest.mark.parametrize("seq", [100, 20_000, 2**20])
@pytest.mark.parametrize("branches", [LONG_NET, ((64, 1), (128, 2)), ((10**9, 1),)])
def test_auto_takes_the_kernels_on_a_gpu(branches, seq: int):
    assert choose_backend("auto", CUDA, torch.bfloat16, branches=branches, seq=seq) == "triton"


@pytest.mark.usefixtures("modern_gpu")
def test_auto_leaves_a_pattern_that_would_fill_no_tiles(caplog: pytest.LogCaptureFixture):
    branches = ((1000, 1), (1002, 2))
    with caplog.at_level(logging.INFO, logger="dilated_attention_pytorch"):
        assert choose_backend("auto", CUDA, torch.bfloat16, branches=branches, seq=5000) == "sdpa"
    assert "leave 2 positions between them, 1 for each of 2 dilated classes" in caplog.text
    assert choose_backend("triton", CUDA, torch.bfloat16, branches=branches, seq=5000) == "triton"
    assert choose_backend("auto", CUDA, torch.bfloat16, branches=branches, seq=1000) == "triton"


@pytest.mark.usefixtures("modern_gpu")
@pytest.mark.parametrize(
    ("branches", "seq", "chosen"),
    [
        pytest.param(((32, 1), (64, 2)), 5000, "triton", id="16-rows-a-class"),
        pytest.param(((30, 1), (60, 2)), 5000, "sdpa", id="15-rows"),
        pytest.param(((1000, 1), (1002, 2)), 1002, "triton", id="the-last-end-cuts-nothing"),
    ],
)
def test_auto_wants_16_rows(branches, seq: int, chosen: str):
    assert choose_backend("auto", CUDA, torch.bfloat16, branches=branches, seq=seq) == chosen


def test_what_is_just_allowed_runs(monkeypatch: pytest.MonkeyPatch):
    assert can_run_triton(DEVICE, torch.float32, seq=2**30, head_dim=256) is None
    assert can_run_triton(DEVICE, torch.float32, branches=((4096, 64), (4096, 4096))) is None
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert can_run_triton(CUDA, torch.float32) is None
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert "needs compute capability 8.0, this device has 7.5" in (can_run_triton(CUDA, torch.float32) or "")
