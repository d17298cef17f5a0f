"""Offers dilated attention in place of dense to ``kernel-pytorch advise``; it is another function.

An entry point of the group ``kernel_pytorch.strategies``.
"""

from __future__ import annotations

import dataclasses
import warnings
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from kernel_pytorch.advice.facts import Finding
from kernel_pytorch.advice.prove.copies import copy_of
from kernel_pytorch.advice.strategy.protocol import Base

from ..attention import DilatedAttention, dilated_attention
from ..core.pattern import DilatedPattern
from ..multihead_dilated_attention import MultiheadDilatedAttention
from ..replacement import replace_attention

if TYPE_CHECKING:
    from kernel_pytorch.advice.facts import ModelFacts
    from kernel_pytorch.advice.sample import Sample

LEAST_LENGTH = 64
RATES = (1, 2, 4, 8)
"""With segments of an eighth to the whole of the length: 0.23 of the dense FLOPs."""


@dataclasses.dataclass
class Replaced:
    """The calls of dense attention that were computed as dilated."""

    calls: int = 0
    dense_flops: int = 0
    dilated_flops: int = 0
    length: int = 0

    def count(self, batch: int, length: int, num_heads: int, head_dim: int, is_causal: bool) -> None:
        """Add a call."""
        whole = DilatedPattern((length,), (1,), num_heads)
        dilated = DilatedPattern(segments(length), RATES, num_heads)
        self.calls += 1
        self.dense_flops += whole.flops(batch, length, head_dim, is_causal)
        self.dilated_flops += dilated.flops(batch, length, head_dim, is_causal)
        self.length = max(self.length, length)


class DilatedOffer(Base):
    """Says what dilated attention would save and how far the outputs would move."""

    name = "dilated attention"
    lossless = False
    offers: ClassVar[bool] = True

    def applies(self, facts: ModelFacts) -> str:
        return "it is another function: it is offered, not tried"

    def apply(self, model: nn.Module, sample: Sample) -> nn.Module:
        """
        Raises:
            ValueError: always.
        """
        raise ValueError("dilated attention is another function than dense, and is not applied")

    def source(self) -> list[str]:
        return []

    def offer(self, model: nn.Module, sample: Sample, facts: ModelFacts) -> Finding | None:
        """Run copies of the model with dense and with dilated attention; None: there is nothing to replace.

        Replaced are ``nn.MultiheadAttention`` and calls of fused attention, by hand or not, of at least 64
        tokens with themselves, without a mask but the causal one.

        Raises:
            Exception: what copying or running the model raises.
        """
        if any(isinstance(m, (DilatedAttention, MultiheadDilatedAttention)) for m in model.modules()):
            return None
        replaced = Replaced()
        dense, dilated = copy_of(model), copy_of(model)
        _count_modules(dense, _replace_modules(dilated, _length(sample)), replaced)
        _compile_dilated(dilated, replaced)
        outputs = [_run(one, sample) for one in (dense, dilated)]
        if not replaced.calls:
            return None
        places = [site.place for site in facts.structure.attention]
        more = f" and {len(places) - 1} more" if len(places) > 1 else ""
        return Finding(
            kind="dense attention",
            place=f"{places[0]}{more}" if places else "",
            cost=(
                f"{replaced.dense_flops / 1e9:.3g} GFLOP in {replaced.calls} calls of a forward pass, "
                f"{replaced.dilated_flops / 1e9:.3g} if dilated; {_difference(*outputs)}"
            ),
            remedy=(
                "another function, to be trained with: dilated_attention_pytorch.dilated_attention(q, k, v, "
                f"{segments(replaced.length)}, {RATES}), or replace_attention(model, ...) for "
                "nn.MultiheadAttention"
            ),
        )


def segments(length: int) -> tuple[int, ...]:
    """Segment lengths that go with :data:`RATES`: the last is the whole length."""
    return tuple(-(-length * rate // RATES[-1]) for rate in RATES)


def _compile_dilated(model: nn.Module, replaced: Replaced) -> None:
    """Replace fused attention, also what is fused for it, when the model runs; without a compiler."""
    from kernel_pytorch.advice.strategy.attention_rewrite import rewrite_attention
    from kernel_pytorch.advice.strategy.graph_passes import add_pass, backend_of

    def calls_dilated(graph: fx.GraphModule) -> fx.GraphModule:
        for node in graph.graph.nodes:
            if node.target is F.scaled_dot_product_attention:
                node.target = dense_or_dilated
        graph.recompile()
        return graph

    def dense_or_dilated(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        *,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        if not _fits(query, key, value) or attn_mask is not None or dropout_p:
            return F.scaled_dot_product_attention(
                query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
            )
        batch, heads, length, width = query.shape
        replaced.count(batch, length, heads, width, is_causal)
        out = dilated_attention(
            query.transpose(1, 2),
            key.transpose(1, 2),
            value.transpose(1, 2),
            segments(length),
            RATES,
            is_causal=is_causal,
            softmax_scale=scale,
        )
        return out.transpose(1, 2)

    add_pass(model, rewrite_attention)
    add_pass(model, calls_dilated)
    model.compile(backend=backend_of(model, "eager"))


def _fits(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether it is attention of a sequence with itself, [b, h, n, d], long enough to be dilated."""
    return (
        query.dim() == key.dim() == 4
        and query.shape[2] == key.shape[2] >= LEAST_LENGTH
        and query.shape[3] == key.shape[3] == value.shape[3]
        and query.shape[1] % key.shape[1] == 0
        and key.shape == value.shape
    )


def _length(sample: Sample) -> int:
    first = next(iter(sample.tensors()), None)
    return first.shape[1] if first is not None and first.dim() in (2, 3) else 0


def _replace_modules(model: nn.Module, length: int) -> list[str]:
    if length < LEAST_LENGTH or not any(isinstance(m, nn.MultiheadAttention) for m in model.modules()):
        return []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of dropout, which stays away in both
            return replace_attention(model, segment_lengths=segments(length), dilation_rates=RATES)
    except ValueError:  # as of add_bias_kv: they stay dense
        return []


def _count_modules(model: nn.Module, names: list[str], replaced: Replaced) -> None:
    """Count the calls of these ``nn.MultiheadAttention`` of a model, by hooks."""

    def count(module: Any, args: Any, kwargs: Any) -> None:
        query = args[0] if args else kwargs["query"]
        batch, length = query.shape[:2] if module.batch_first else query.shape[1::-1]
        replaced.count(batch, length, module.num_heads, module.head_dim, bool(kwargs.get("is_causal")))

    for name in names:
        model.get_submodule(name).register_forward_pre_hook(count, with_kwargs=True)


def _run(model: nn.Module, sample: Sample) -> Any:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        return sample.clone().call(model.eval())


def _difference(dense: Any, dilated: Any) -> str:
    """The measured difference, in words."""
    losses: list[Any] = [getattr(outputs, "loss", None) for outputs in (dense, dilated)]
    if all(isinstance(loss, Tensor) for loss in losses):
        return f"the loss is {float(losses[0]):.4g}, and {float(losses[1]):.4g} if dilated"
    pairs = [
        (first.double(), second.double())
        for first, second in zip(pytree.tree_leaves(dense), pytree.tree_leaves(dilated), strict=True)
        if isinstance(first, Tensor) and first.is_floating_point()
    ]
    worst = max(
        (float((second - first).norm() / first.norm().clamp_min(1e-30)) for first, second in pairs),
        default=0.0,
    )
    return f"outputs differ by {worst:.2g} (relative RMS)"
