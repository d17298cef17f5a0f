"""Dilated attention by fused Triton kernels: what the host does. docs/kernels.md explains the kernels.

Letters: b batch, n rows (queries), m columns (keys), h query heads, g key/value heads, d head dimension.

Rows are read in place. Nothing is allocated but the results, in the backward one float32 number for each
query and head, and with ``positions`` the tables of index.py. No result depends on the order in which
programs run.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...core.validation import check_position_values
from ..problem import Problem, check_scores
from .backward import key_gradient_kernel, query_gradient_kernel
from .forward import forward_kernel
from .launch import Call, launch


def triton_forward(query: Tensor, key: Tensor, value: Tensor, problem: Problem) -> tuple[Tensor, Tensor]:
    """Map query ``[b, n, h, d]``, key, value ``[b, n, g, d]`` to out ``[b, n, h, d]``, lse ``[b, h, n]``.

    lse is float32; a (query, head) that no branch serves gives 0 and -inf.
    """
    if problem.positions is not None:
        check_position_values(problem.positions)
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    lse = _statistics(query)
    _forward(query, key, value, out, lse, Call(problem))
    return out, lse


def triton_backward(
    grad_out: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, problem: Problem
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value, given the ``out`` and ``lse`` of :func:`triton_forward`.

    Raises:
        ValueError: as :func:`check_scores` does.
    """
    check_scores(grad_out, lse)
    grad_query, grad_key, grad_value = (
        torch.empty_like(x, memory_format=torch.contiguous_format) for x in (query, key, value)
    )
    _backward(grad_out, query, key, value, out, lse, (grad_query, grad_key, grad_value), Call(problem))
    return grad_query, grad_key, grad_value


def partial_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    problem: Problem,
    *,
    key_origin: int | None = None,
    times: tuple[Tensor, Tensor] | None = None,
    into: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention over some of the keys, as a ring needs it: out ``[b, n, h, d]``, lse ``[b, h, n]``, float32.

    Args:
        query: ``[b, n, h, d]``, at ``problem.origin, problem.origin + 1, ...`` in the whole sequence.
        key, value: ``[b, m, g, d]``.
        problem: its padding is that of the keys, ``[b, m]``; ``positions`` need m = n, and are those of the
            keys too.
        key_origin: index of key 0 in the whole sequence; default that of query 0.
        times: int64 ``[n]`` and ``[m]``, what causality compares instead of these indices.
        into: a float32 out and lse over other keys, to which these are added in place; any strides, but the
            last dimension of out contiguous.
    """
    if into is None:
        out = query.new_empty(query.shape, dtype=torch.float32)
        lse = _statistics(query)
    else:
        out, lse = into
    _forward(query, key, value, out, lse, Call(problem, key_origin, times), continues=into is not None)
    return out, lse


def partial_backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    problem: Problem,
    *,
    key_origin: int | None = None,
    times: tuple[Tensor, Tensor] | None = None,
    into: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """These keys' part of the gradients, float32; ``out`` and ``lse`` are those over all keys.

    Arguments as for :func:`partial_forward`, but ``into`` is a float32 gradient of the query.
    """
    fresh, grad_key, grad_value = (x.new_empty(x.shape, dtype=torch.float32) for x in (query, key, value))
    grads = (fresh if into is None else into, grad_key, grad_value)
    call = Call(problem, key_origin, times)
    _backward(grad_out, query, key, value, out, lse, grads, call, continues=into is not None)
    return grads


def _statistics(query: Tensor) -> Tensor:
    batch, rows, heads, _ = query.shape
    return query.new_empty(batch, heads, rows, dtype=torch.float32)


def _forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    call: Call,
    *,
    continues: bool = False,
) -> None:
    if not query.numel() or not key.numel():
        if not continues:
            out.zero_()
            lse.fill_(-torch.inf)
        return
    query, key, value = _unit_stride(query, key, value)
    launch(
        forward_kernel,
        (query, key, value, out),
        (lse,),
        call,
        rows=query,
        columns=key,
        of_keys=False,
        CONTINUES=continues,
    )


def _backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    grads: tuple[Tensor, Tensor, Tensor],
    call: Call,
    *,
    continues: bool = False,
) -> None:
    if not query.numel() or not key.numel():
        for grad in grads[1 if continues else 0 :]:
            grad.zero_()
        return
    grad_out, query, key, value, out = _unit_stride(grad_out, query, key, value, out)
    delta = _statistics(query)
    launch(
        query_gradient_kernel,
        (query, key, value, out, grad_out, grads[0]),
        (lse, delta),
        call,
        rows=query,
        columns=key,
        of_keys=False,
        CONTINUES=continues,
    )
    launch(
        key_gradient_kernel,
        (query, key, value, grad_out, *grads[1:]),
        (lse, delta),
        call,
        rows=key,
        columns=query,
        of_keys=True,
    )


def _unit_stride(*tensors: Tensor) -> list[Tensor]:
    return [x if x.stride(-1) == 1 else x.contiguous() for x in tensors]
