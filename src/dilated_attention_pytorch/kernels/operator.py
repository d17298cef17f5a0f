"""The fused backends as PyTorch operators, known to autograd, torch.func, torch.compile and the FLOP counter.

Letters: b batch, n sequence, h query heads, g key/value heads, d head dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch._library.autograd import Info, make_autograd_impl
from torch.autograd import forward_ad
from torch.utils.flop_counter import register_flop_formula

from ..core.pattern import DilatedPattern
from .problem import Problem
from .sdpa import sdpa_backward, sdpa_forward

_LIBRARY = torch.library.Library("dilated_attention_pytorch", "FRAGMENT")  # type: ignore[no-untyped-call]
_ARGUMENTS = (
    "SymInt[] segment_lengths, SymInt[] dilation_rates, bool is_causal, float softmax_scale, "
    "Tensor? key_padding_mask, Tensor? positions"
)


def _problem(
    segment_lengths: Sequence[int],
    dilation_rates: Sequence[int],
    is_causal: bool,
    softmax_scale: float,
    key_padding_mask: Tensor | None,
    positions: Tensor | None,
) -> Problem:
    branches = tuple(zip(segment_lengths, dilation_rates, strict=True))
    return Problem(branches, is_causal, softmax_scale, key_padding_mask, positions)


Attend = Callable[..., tuple[Tensor, Tensor]]
_Function = type[torch.autograd.Function]


def _register(name: str, forward: Callable[..., Any], backward: Callable[..., Any]) -> Attend:
    """A backend's forward and backward as a differentiable function, built on an operator for each.

    It maps query ``[b, n, h, d]``, key, value ``[b, n, g, d]`` and the arguments of ``dilated_attention`` to
    out ``[b, n, h, d]`` and lse ``[b, h, n]``.
    """

    @torch.library.custom_op(
        f"dilated_attention_pytorch::{name}",
        mutates_args=(),
        schema=f"(Tensor query, Tensor key, Tensor value, {_ARGUMENTS}) -> (Tensor out, Tensor lse)",
    )
    def attend(query: Tensor, key: Tensor, value: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
        result: tuple[Tensor, Tensor] = forward(query, key, value, _problem(*arguments))
        return result

    @attend.register_fake
    def _(query: Tensor, key: Tensor, value: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
        batch, seq, heads, _ = query.shape
        lse_dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
        return query.new_empty(query.shape), query.new_empty((batch, heads, seq), dtype=lse_dtype)

    @torch.library.custom_op(
        f"dilated_attention_pytorch::{name}_backward",
        mutates_args=(),
        schema="(Tensor grad_out, Tensor query, Tensor key, Tensor value, Tensor out, Tensor lse, "
        f"{_ARGUMENTS}) -> (Tensor grad_query, Tensor grad_key, Tensor grad_value)",
    )
    def attend_backward(
        grad_out: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        out: Tensor,
        lse: Tensor,
        *arguments: Any,
    ) -> tuple[Tensor, Tensor, Tensor]:
        grads: tuple[Tensor, Tensor, Tensor] = backward(
            grad_out, query, key, value, out, lse, _problem(*arguments)
        )
        return grads

    @attend_backward.register_fake
    def _(
        grad_out: Tensor, query: Tensor, key: Tensor, value: Tensor, *arguments: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)

    def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        query, key, value, *ctx.numbers, key_padding_mask, positions = inputs
        ctx.save_for_backward(query, key, value, *output, key_padding_mask, positions)

    def differentiate(ctx: Any, grad_out: Tensor, grad_lse: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, lse, key_padding_mask, positions = ctx.saved_tensors
        grads = call_backward(
            grad_out, query, key, value, out, lse, *ctx.numbers, key_padding_mask, positions
        )
        return (*grads, *[None] * 6)

    def refuse(ctx: Any, *grads: Tensor) -> NoReturn:
        raise RuntimeError(
            f"dilated_attention cannot be differentiated twice with backend={name!r}; backend='reference' can"
        )

    def refuse_forward_mode(ctx: Any, *tangents: Tensor | None) -> NoReturn:
        raise NotImplementedError(
            "dilated_attention has no forward-mode derivative (jvp, jacfwd, hessian) with "
            f"backend={name!r}; backend='reference' has"
        )

    class Attend(torch.autograd.Function):
        @staticmethod
        def forward(*arguments: Any) -> tuple[Tensor, Tensor]:
            return attend(*arguments)  # type: ignore[no-any-return]

        setup_context = staticmethod(save)
        vmap = staticmethod(lambda *arguments: _fold(Attend, *arguments))
        backward = staticmethod(differentiate)
        jvp = staticmethod(refuse_forward_mode)

    class AttendBackward(torch.autograd.Function):
        @staticmethod
        def forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
            return attend_backward(*arguments)  # type: ignore[no-any-return]

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None: ...

        vmap = staticmethod(lambda *arguments: _fold(AttendBackward, *arguments))
        backward = staticmethod(refuse)
        jvp = staticmethod(refuse_forward_mode)

    call_backward = _choice(attend_backward, AttendBackward)
    attend.register_autograd(differentiate, setup_context=save)
    attend_backward.register_autograd(refuse)
    operators = torch.ops.dilated_attention_pytorch
    operator, operator_backward = getattr(operators, name), getattr(operators, f"{name}_backward")
    _refuse_transforms_of(operator.default, Info(differentiate, save), refuse_forward_mode)
    _refuse_transforms_of(operator_backward.default, Info(refuse, None), refuse_forward_mode)
    register_flop_formula(operator)(_flops_of_forward)
    register_flop_formula(operator_backward)(_flops_of_backward)
    return _choice(attend, Attend)


def _refuse_transforms_of(
    operator: torch._ops.OpOverload, derivative: Info, refuse_forward_mode: Callable[..., NoReturn]
) -> None:
    """Refuse what would be wrong, or fail without a name, when a graph calls ``operator`` under a transform.

    The registration for a device goes before that for all of them, which ``register_autograd`` makes, and
    which takes a tensor with a tangent for a constant.
    """
    differentiable = make_autograd_impl(operator, derivative)

    def call(keys: Any, *arguments: Any) -> Any:
        tensors = [x for x in arguments if isinstance(x, Tensor)]
        if any(_has_tangent(x) for x in tensors):
            refuse_forward_mode(None)
        differentiated = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
        if differentiated and torch._C._functorch.peek_interpreter_stack() is not None:
            raise NotImplementedError(
                "torch.func.grad, vjp and jacrev do not go through dilated_attention in an exported program "
                "or beside functionalize: use torch.autograd.grad, or backend='reference'"
            )
        return differentiable(keys, *arguments)

    for device in ("CPU", "CUDA", "MPS", "XPU"):
        _LIBRARY.impl(operator, call, f"Autograd{device}", with_keyset=True)  # type: ignore[no-untyped-call]


def _has_tangent(x: Tensor) -> bool:
    return forward_ad._current_level >= 0 and forward_ad.unpack_dual(x).tangent is not None  # type: ignore[no-untyped-call]


def _choice(operator: Attend, function: _Function) -> Attend:
    """``operator``, or under torch.func and forward-mode AD ``function``, which calls it.

    torch.func cannot differentiate an operator with ``register_autograd``, nor functionalize a function.
    torch.compile would not see the rules of ``function``: its graphs break here.
    """

    def call_transformed(*arguments: Any) -> tuple[Tensor, Tensor]:
        transforms = torch._C._functorch.get_interpreter_stack() or []
        functionalized = any(t.key() == torch._C._functorch.TransformType.Functionalize for t in transforms)
        return (operator if functionalized else function.apply)(*arguments)

    # As torch.compiler.disable, which imports Dynamo at once: a second more for each import of this package.
    disabled: Any = _disable_dynamo(call_transformed)
    disabled._torchdynamo_disable = True
    disabled._torchdynamo_disable_msg = "torch.func's transforms are traced with backend='reference' only"

    def call(*arguments: Any) -> tuple[Tensor, Tensor]:
        transformed = torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
        chosen = disabled if transformed else operator
        return chosen(*arguments)

    return call


def _fold(
    function: _Function, info: Any, in_dims: tuple[Any, ...], *arguments: Any
) -> tuple[tuple[Tensor, ...], int]:
    """The rule for vmap: the first dimension of every tensor is the batch, and the mapped one joins it."""
    folded = []
    for x, dim in zip(arguments, in_dims, strict=True):
        if isinstance(x, Tensor):
            x = x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)
            mapped, x = x.shape[:2], x.flatten(0, 1)
        folded.append(x)
    results = function.apply(*folded)  # type: ignore[no-untyped-call]
    return tuple(x.unflatten(0, mapped) for x in results), 0


def refuse_transforms(name: str, *tensors: Tensor) -> None:
    """Raise NotImplementedError under a transform of torch.func, or for batched tensors and tangents.

    For what neither can differentiate nor map: ``name`` says what, and how else to compute it.
    """
    # autograd.grad(is_grads_batched=True) and autograd.functional.jacobian(vectorize=True) map the older way.
    if torch._C._are_functorch_transforms_active() or any(
        torch._C._functorch.is_legacy_batchedtensor(x) or _has_tangent(x) for x in tensors
    ):
        raise NotImplementedError(
            f"torch.func, batched gradients and forward-mode AD do not go through {name}"
        )


def _forward_flops(
    query: Sequence[int],
    key: Sequence[int],
    segment_lengths: Sequence[int],
    dilation_rates: Sequence[int],
    is_causal: bool,
) -> int:
    batch, seq, heads, head_dim = query
    pattern = DilatedPattern(tuple(segment_lengths), tuple(dilation_rates), heads, num_kv_heads=key[2])
    return pattern.flops(batch, seq, head_dim, is_causal)


def _flops_of_forward(
    query: Sequence[int], key: Sequence[int], value: Sequence[int],
    segment_lengths: Sequence[int], dilation_rates: Sequence[int], is_causal: bool, *rest: Any, **kwargs: Any,
) -> int:  # fmt: skip
    return _forward_flops(query, key, segment_lengths, dilation_rates, is_causal)


def _flops_of_backward(
    grad_out: Sequence[int], query: Sequence[int], key: Sequence[int], value: Sequence[int],
    out: Sequence[int], lse: Sequence[int],
    segment_lengths: Sequence[int], dilation_rates: Sequence[int], is_causal: bool, *rest: Any, **kwargs: Any,
) -> int:  # fmt: skip
    return _forward_flops(query, key, segment_lengths, dilation_rates, is_causal) * 5 // 2


def _triton_forward(*arguments: Any) -> tuple[Tensor, Tensor]:
    from .triton.attention import triton_forward  # Triton is optional

    return triton_forward(*arguments)


def _triton_backward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    from .triton.attention import triton_backward

    return triton_backward(*arguments)


sdpa = _register("sdpa", sdpa_forward, sdpa_backward)
triton = _register("triton", _triton_forward, _triton_backward)
