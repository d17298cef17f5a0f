"""Padded tokens that hold garbage, and what must come out all the same."""

from __future__ import annotations

import oracle
import torch
from problems import Problem
from torch import Tensor

from dilated_attention_pytorch import dilated_attention

KINDS = ("nan", "inf", "largest", "all of them")


def spoil(x: Tensor, rows: Tensor, kind: str) -> Tensor:
    """A leaf that equals ``x [b, n, ...]`` but for the ``rows`` (bool ``[b, n]``), which hold garbage."""
    largest = torch.finfo(x.dtype).max
    values = {"nan": [torch.nan], "inf": [torch.inf], "largest": [largest]}.get(
        kind, [torch.nan, torch.inf, -torch.inf, largest, -largest]
    )
    spoilt = x.detach().clone()
    count = spoilt[rows].numel()
    cycle = torch.tensor(values, dtype=x.dtype, device=x.device).repeat(count // len(values) + 1)[:count]
    spoilt[rows] = cycle.view_as(spoilt[rows])
    return spoilt.requires_grad_()


def check_padding_is_not_read(
    problem: Problem, dtype: torch.dtype, backend: str, kind: str, *, queries_too: bool, device: str = "cpu"
) -> None:
    """out and gradients equal the oracle's of clean inputs; ignored keys and values have gradients of 0.

    With garbage in padded queries too, no loss depends on their outputs.
    """
    query, key, value, grad = problem.tensors(dtype)
    padding = problem.padding
    assert padding is not None
    ignored = padding[..., None, None]
    if queries_too:
        grad = grad.masked_fill(ignored, 0.0)
    exact = [x.detach().double().requires_grad_() for x in (query, key, value)]
    expected, _ = oracle.attention(
        *exact,
        problem.branches,
        is_causal=problem.is_causal,
        padding=padding,
        positions=problem.positions,
    )
    expected_grads = torch.autograd.grad(expected, exact, grad.double())

    inputs = [spoil(query, padding, kind) if queries_too else query]
    inputs += [spoil(x, padding, kind) for x in (key, value)]
    inputs = [x.detach().to(device).requires_grad_() for x in inputs]
    arguments = {name: x.to(device) if isinstance(x, Tensor) else x for name, x in problem.arguments.items()}
    out = dilated_attention(*inputs, **arguments, backend=backend)
    grads = [x.cpu() for x in torch.autograd.grad(out, inputs, grad.to(device))]
    out = out.cpu()
    if queries_too:
        out, expected = (x.masked_fill(ignored, 0.0) for x in (out, expected))
    tolerance = 1e-10 if dtype == torch.float64 else 1e-4
    for got, want in zip((out, *grads), (expected, *expected_grads), strict=True):
        torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=tolerance)
    for got in grads[1:]:
        assert (got[padding] == 0).all()
