from __future__ import annotations

from collections.abc import Callable
from itertools import product
from types import SimpleNamespace
from typing import Any

import oracle
import pytest
import torch

from dilated_attention_pytorch import dilated_attention


def kernels() -> list[Any]:
    from dilated_attention_pytorch.kernels.triton.backward import key_gradient_kernel, query_gradient_kernel
    from dilated_attention_pytorch.kernels.triton.forward import forward_kernel

    return [forward_kernel, query_gradient_kernel, key_gradient_kernel]


class Clock:
    """Says that one of the configurations it is asked about is the fastest."""

    def __init__(self, fastest: int) -> None:
        self.fastest, self.calls = fastest, 0

    def __call__(self, call: Callable[[], None], quantiles: object) -> list[float]:
        call()
        self.calls += 1
        return [0.5 if self.calls == self.fastest + 1 else 1.0] * 3


def test_there_is_a_default_for_everything_that_can_run():
    from dilated_attention_pytorch.kernels.triton.tuning import FAMILIES, default_blocks
    from dilated_attention_pytorch.kernels.triton.visits import visits_of

    visits = visits_of(((2048, 1), (4096, 2)))
    for kernel, family in product(kernels(), FAMILIES):
        for item_bytes, head_dim in product((2, 4), range(1, 257)):
            blocks = default_blocks(kernel, visits, item_bytes, head_dim, family)
            assert blocks["BLOCK_ROWS"] >= 16
            assert blocks["BLOCK_COLUMNS"] >= 16


@pytest.mark.parametrize(
    ("branches", "once"),
    [
        pytest.param(((2048, 1), (4096, 2)), True, id="long-segments"),
        pytest.param(((256, 1), (512, 2)), True, id="two-blocks-a-phase"),
        pytest.param(((254, 1), (508, 2)), False, id="one-key-less"),
        pytest.param(((64, 1), (128, 2), (4096, 4)), False, id="one-short-segment"),
        pytest.param(((2048, 1),), False, id="nothing-shared"),
    ],
)
def test_keys_are_scored_once_where_their_phases_fill_blocks(branches, once: bool):
    from dilated_attention_pytorch.kernels.triton.tuning import scores_once
    from dilated_attention_pytorch.kernels.triton.visits import visits_of

    assert scores_once(visits_of(branches), columns=64) is once


@pytest.mark.skipif(torch.cuda.is_available(), reason="the clock is replaced; on a GPU it is real")
@pytest.mark.parametrize(
    ("segments", "configurations"), [((16, 32), 7), ((16, 40), 4)], ids=["nested", "apart"]
)
def test_tuning_runs_what_was_fastest(
    monkeypatch: pytest.MonkeyPatch, segments: tuple[int, int], configurations: int
):
    """Interpreted, with a clock that likes one size: it is chosen, reaches the grid, the result is right."""
    from dilated_attention_pytorch.kernels.triton import launch, tuning

    monkeypatch.setattr(launch, "is_worth_tuning", lambda programs, device: True)
    monkeypatch.setattr(tuning, "_CANDIDATES", ((32, 32, 1, 1), (16, 32, 1, 1), (64, 16, 1, 1)))
    tuning.tuned.cache_clear()
    try:
        clocks = [Clock(fastest=1 + configurations // 3) for _ in kernels()]
        for kernel, clock in zip(kernels(), clocks, strict=True):
            monkeypatch.setattr(tuning.tuned(kernel), "_do_bench", clock)
        qkv = [torch.randn(1, 48, 2, 16, requires_grad=True) for _ in range(3)]
        out = dilated_attention(*qkv, segments, (1, 2), backend="triton")
        grads = torch.autograd.grad(out.sum(), qkv)
        expected, _ = oracle.attention(*qkv, tuple(zip(segments, (1, 2), strict=True)))
        torch.testing.assert_close(out.double(), expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(grads, torch.autograd.grad(expected.sum(), qkv), rtol=0, atol=1e-5)
        for kernel, clock in zip(kernels(), clocks, strict=True):
            assert clock.calls == configurations
            assert tuning.tuned(kernel).best_config.kwargs["BLOCK_ROWS"] == 16
    finally:
        tuning.tuned.cache_clear()


def test_some_calls_are_never_tuned(monkeypatch: pytest.MonkeyPatch):
    """What adds to a result must not be repeated; an index is made for one size; wide rows leave one size."""
    from dilated_attention_pytorch.kernels.problem import Problem
    from dilated_attention_pytorch.kernels.triton import launch
    from dilated_attention_pytorch.kernels.triton.attention import partial_backward, partial_forward

    class TunedError(Exception):
        pass

    def refuse(kernel):
        raise TunedError

    monkeypatch.setattr(launch, "is_worth_tuning", lambda programs, device: True)
    monkeypatch.setattr(launch, "tuned", refuse)
    q = torch.randn(1, 8, 1, 16)
    problem = Problem(((8, 1),), False, 0.25)
    with pytest.raises(TunedError):
        partial_forward(q, q, q, problem)
    out, lse = torch.zeros_like(q), torch.zeros(1, 1, 8)
    partial_forward(q, q, q, problem, into=(out, lse))
    with pytest.raises(TunedError):  # at the kernel for keys, not before
        partial_backward(q, q, q, q, out, lse, problem, into=torch.full_like(q, torch.nan))
    partial_forward(q, q, q, Problem(((8, 1),), False, 0.25, positions=torch.arange(8)[None]))
    wide = torch.randn(1, 8, 1, 72)
    partial_forward(wide, wide, wide, problem)


@pytest.mark.parametrize(("major", "family"), [(8, "sm_80"), (9, "sm_90"), (10, "sm_100"), (12, "sm_80")])
def test_a_device_gets_the_blocks_of_its_family(monkeypatch: pytest.MonkeyPatch, major: int, family: str):
    from dilated_attention_pytorch.kernels.triton.tuning import family_of

    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (major, 0))
    assert family_of.__wrapped__(torch.device("cuda")) == family


def test_tuning_wants_a_full_device_and_freedom_to_choose(monkeypatch: pytest.MonkeyPatch):
    import triton

    from dilated_attention_pytorch.kernels.triton.tuning import is_worth_tuning

    device = torch.device("cuda")
    properties = SimpleNamespace(multi_processor_count=10)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    assert not is_worth_tuning(40, device)  # the tests run with deterministic algorithms
    torch.use_deterministic_algorithms(False)
    assert is_worth_tuning(40, device)
    assert not is_worth_tuning(39, device)
