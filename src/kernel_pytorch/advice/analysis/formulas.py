"""FLOPs of operators that torch's FlopCounterMode leaves out. Imports torch.

B: batch, T: time steps, H: heads, N, M: queries and keys, D: width. A multiplication and an addition are two.
Each formula gets the operator's arguments with shapes in the place of tensors, and ``out_shape``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

aten = torch.ops.aten
Shape = Sequence[int]
FUSED_ATTENTION = ("scaled_dot_product", "flash_attention", "efficient_attention", "flex_attention")
"""Parts of the names of operators that are attention by themselves."""


def is_fused_attention(name: str) -> bool:
    """Whether the operator of this name is attention, forward or backward."""
    return any(part in name for part in FUSED_ATTENTION)


def attention(query: Shape, key: Shape, value: Shape, *rest: Any, out_shape: Any = None, **more: Any) -> int:
    """Both products: [B, H, N, D] with [B, H, M, D], and [B, H, N, M] with [B, H, M, D]. Causal as dense."""
    batch_heads, n, width = prod(query[:-2]), query[-2], query[-1]
    return 2 * batch_heads * n * key[-2] * (width + value[-1])


def attention_backward(
    grad: Shape, query: Shape, key: Shape, value: Shape, *rest: Any, out_shape: Any = None, **more: Any
) -> int:
    """Five products: the scores again, and one for each gradient of scores, value, query and key."""
    batch_heads, n, width = prod(query[:-2]), query[-2], query[-1]
    return 2 * batch_heads * n * key[-2] * (3 * width + 2 * value[-1])


def recurrent(sequence: Shape, input_weight: Shape, hidden_weight: Shape, *rest: Any, **more: Any) -> int:
    """One direction of one layer of an LSTM, [T, B, D]: gates from the input and from the hidden state."""
    return 2 * prod(sequence[:-1]) * (prod(input_weight) + prod(hidden_weight))


def recurrent_backward(
    sequence: Shape, input_weight: Shape, hidden_weight: Shape, *rest: Any, **more: Any
) -> int:
    """The gradients of both operands of both products."""
    return 2 * recurrent(sequence, input_weight, hidden_weight)


def recurrent_stack(sequence: Shape, weights: Sequence[Shape], *rest: Any, **more: Any) -> int:
    """All layers and directions of an LSTM or GRU, as cuDNN runs them."""
    return 2 * prod(sequence[:-1]) * sum(prod(weight) for weight in weights if len(weight) == 2)


def recurrent_stack_backward(sequence: Shape, weights: Sequence[Shape], *rest: Any, **more: Any) -> int:
    """The gradients of both operands of each product."""
    return 2 * recurrent_stack(sequence, weights)


def convolution(image: Shape, weight: Shape, *rest: Any, out_shape: Shape, **more: Any) -> int:
    """One product of the filter [out, in, ...] with a window for each place of the output."""
    return 2 * image[0] * prod(weight) * prod(out_shape[2:])


def product(a: Shape, b: Shape, *rest: Any, **more: Any) -> int:
    """[..., N, K] with [K] or [K, M]."""
    return 2 * prod(a) * (b[1] if len(b) == 2 else 1)


def added_product(_: Shape, a: Shape, b: Shape, *rest: Any, **more: Any) -> int:
    """A product that is added to a third tensor."""
    return product(a, b)


def transposed_product(a: Shape, b: Shape, *rest: Any, **more: Any) -> int:
    """[N, K] with [M, K]."""
    return 2 * prod(a) * b[0]


def added_batch(_: Shape, a: Shape, b: Shape, *rest: Any, **more: Any) -> int:
    """[B, N, K] with [B, K, M]."""
    return 2 * prod(a) * b[2]


_MISSING: dict[str, Callable[..., int]] = {
    "_scaled_dot_product_flash_attention_for_cpu": attention,
    "_scaled_dot_product_flash_attention_for_cpu_backward": attention_backward,
    "_scaled_dot_product_fused_attention_overrideable": attention,
    "_scaled_dot_product_fused_attention_overrideable_backward": attention_backward,
    "mkldnn_rnn_layer": recurrent,
    "mkldnn_rnn_layer_backward": recurrent_backward,
    "_cudnn_rnn": recurrent_stack,
    "_cudnn_rnn_backward": recurrent_stack_backward,
    "mkldnn_convolution": convolution,
    "mv": product,
    "dot": product,
    "vdot": product,
    "addmv": added_product,
    "addbmm": added_batch,
    "_int_mm": product,
    "_weight_int8pack_mm": transposed_product,
}


def formulas() -> dict[Any, Callable[..., int]]:
    """Formulas by operator: torch's, those that users registered there, and the missing ones.

    Called with the operator's arguments and its result as ``out_val``.
    """
    mapping = {getattr(aten, name): formula for name, formula in _MISSING.items() if hasattr(aten, name)}
    return FlopCounterMode(display=False, custom_mapping=mapping).flop_registry
