from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.utils.flop_counter import FlopCounterMode

from dilated_attention_pytorch import DilatedPattern, dilated_attention
from kernel_pytorch.advice.analysis.memory import peak_memory

SEGMENTS, RATES = (4, 8), (1, 3)


def draw(batch: int = 2, dtype: torch.dtype = torch.float64, seq: int = 19) -> list[torch.Tensor]:
    return [torch.randn(batch, seq, heads, 4, dtype=dtype, requires_grad=True) for heads in (4, 2, 2)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("masked", [False, True])
def test_opcheck(dtype: torch.dtype, masked: bool):
    padding = torch.rand(2, 19) < 0.3 if masked else None
    positions = torch.stack([torch.randperm(19) for _ in range(2)]) if masked else None
    operator = torch.ops.dilated_attention_pytorch.sdpa.default
    torch.library.opcheck(operator, (*draw(dtype=dtype), SEGMENTS, RATES, True, 0.5, padding, positions))


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("ranked", [False, True])
def test_gradcheck(is_causal: bool, ranked: bool):
    padding, positions = torch.rand(1, 9) < 0.3, torch.randperm(9) if ranked else None
    inputs = [torch.randn(1, 9, heads, 3, dtype=torch.float64, requires_grad=True) for heads in (4, 2, 2)]
    assert torch.autograd.gradcheck(
        lambda *qkv: dilated_attention(
            *qkv, SEGMENTS, RATES, is_causal=is_causal, key_padding_mask=padding, positions=positions
        ),
        inputs,
    )


def test_compiles_whole_and_at_most_twice_over_batch_sizes():
    counter = CompileCounter()
    compiled = torch.compile(
        lambda *qkv: dilated_attention(*qkv, SEGMENTS, RATES, is_causal=True), fullgraph=True, backend=counter
    )
    for batch in range(1, 6):
        inputs = draw(batch)
        out = compiled(*inputs)
        assert torch.equal(out, dilated_attention(*inputs, SEGMENTS, RATES, is_causal=True))
    assert counter.frame_count <= 2


def test_compiles_with_masks_positions_and_autocast():
    padding, positions = torch.rand(2, 19) < 0.3, torch.randperm(19)

    def run(*qkv: torch.Tensor) -> torch.Tensor:
        return dilated_attention(*qkv, SEGMENTS, RATES, key_padding_mask=padding, positions=positions)

    inputs = draw(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = torch.compile(run, fullgraph=True, backend="eager")(*inputs)
        assert out.dtype == torch.bfloat16
        assert torch.equal(out, run(*inputs))


def test_compiled_gradients_are_the_same():
    def loss(*qkv: torch.Tensor) -> torch.Tensor:
        return dilated_attention(*qkv, SEGMENTS, RATES, is_causal=True).square().sum()

    inputs = draw()
    # The ahead-of-time tracer that inductor uses, without its C++ compiler.
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    grads = torch.autograd.grad(compiled(*inputs), inputs)
    torch.testing.assert_close(grads, torch.autograd.grad(loss(*inputs), inputs), rtol=0, atol=1e-12)


@pytest.mark.parametrize("is_causal", [False, True])
def test_flop_counter_equals_the_pattern(is_causal: bool):
    expected = DilatedPattern(SEGMENTS, RATES, 4, num_kv_heads=2).flops(2, 19, 4, is_causal)
    with FlopCounterMode(display=False) as forward:
        out = dilated_attention(*draw(), SEGMENTS, RATES, is_causal=is_causal)
    assert forward.get_total_flops() == expected
    with FlopCounterMode(display=False) as backward:
        out.sum().backward()
    assert backward.get_total_flops() == 2.5 * expected


def test_differentiating_twice_raises():
    inputs = draw()
    (grad,) = torch.autograd.grad(
        dilated_attention(*inputs, SEGMENTS, RATES).sum(), inputs[0], create_graph=True
    )
    with pytest.raises(RuntimeError, match=r"cannot be differentiated twice.*backend='reference' can"):
        grad.sum().backward()


@pytest.mark.parametrize("backend", ["sdpa", "reference"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_casts_mixed_inputs(dtype: torch.dtype, backend: str):
    query, key, value = draw(dtype=torch.float32)
    with torch.autocast("cpu", dtype):
        out = dilated_attention(query, key.to(dtype), value, SEGMENTS, RATES, backend=backend)
    cast = [x.to(dtype) for x in (query, key, value)]
    assert torch.equal(out, dilated_attention(*cast, SEGMENTS, RATES, backend=backend))
    out.float().sum().backward()
    assert query.grad is not None
    assert query.grad.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("head_dim", [4, 64, 288])
@pytest.mark.parametrize("is_causal", [False, True])
def test_cuda_kernels_agree_with_the_reference(
    dtype: torch.dtype, padded: bool, head_dim: int, is_causal: bool
):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    inputs = [
        torch.randn(2, 96, heads, head_dim, device="cuda", dtype=dtype, requires_grad=True)
        for heads in (4, 2, 2)
    ]
    arguments = {
        "is_causal": is_causal,
        "key_padding_mask": (torch.rand(2, 96, device="cuda") < 0.3) if padded else None,
        "return_lse": True,
    }
    results = []
    for backend in ("sdpa", "reference"):
        out, lse = dilated_attention(*inputs, [16, 40], [1, 3], **arguments, backend=backend)
        results.append((out, lse, *torch.autograd.grad(out.float().square().sum(), inputs)))
    tolerance = 2e-4 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(*results, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("dtype", "kv_heads", "ranked"),
    [(torch.float32, 4, False), (torch.bfloat16, 4, False), (torch.bfloat16, 1, True)],
)
def test_memory_stays_far_below_a_dense_matrix(dtype: torch.dtype, kv_heads: int, ranked: bool):
    seq = 4096
    heads = (4, kv_heads, kv_heads)
    inputs = [torch.randn(1, seq, h, 16, dtype=dtype, requires_grad=True) for h in heads]
    positions = torch.randperm(seq) if ranked else None

    def run() -> None:
        out = dilated_attention(*inputs, [512, 1024], [1, 2], is_causal=True, positions=positions)
        torch.autograd.grad(out.sum(), inputs)

    one_float32 = 4 * seq * 4 * 16
    assert peak_memory(run, torch.device("cpu")) < 16 * one_float32 < 4 * seq * seq / 3
