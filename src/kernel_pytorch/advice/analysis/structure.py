"""What strategies look at in a model and its call. Imports torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from ..facts import Structure
from ..sample import Sample
from .building import bfloat16_ratio, compiler_missing
from .patterns import conv_batch_norms, repeated_blocks, shared_input_linears
from .unusual import copied, same, seeded, unusual
from .watching import Watched, watch

OptimizerFactory = Callable[[Iterable[torch.Tensor]], torch.optim.Optimizer]


def structure(
    model: nn.Module,
    sample: Sample,
    *,
    training: bool = False,
    optimizer: OptimizerFactory | None = None,
    device: torch.device | None = None,
) -> Structure:
    """Look at a model, and at two calls of copies of it without gradients; neither is changed.

    Attention sites are found by ``strategy.attention``, not here. Of a model that fails on the sample, or
    that cannot be copied, what its modules say.

    Args:
        training: whether a call is a training step, which alone has an optimizer.
        optimizer: makes one for parameters.
        device: None: that of the parameters.
    """
    device = device if device is not None else _device(model)
    kinds = unusual(model)
    watched = None if {"scripted", "meta", "uncopyable"} & set(kinds) else watch_copy(model, sample)
    if watched is not None and _differs_from_itself(model, sample, watched):
        kinds = (*kinds, "random")
    seen = watched or Watched()
    return Structure(
        unusual=kinds,
        compiler_missing=compiler_missing(device),
        gpu=device.type in ("cuda", "xpu"),
        bfloat16_ratio=bfloat16_ratio(device),
        attention_switch=_has_attention_switch(model),
        repeated_blocks=repeated_blocks(model, seen),
        shared_input_linears=shared_input_linears(model, seen),
        linears=sum(isinstance(module, nn.Linear) for module in model.modules()),
        convolutions=sum(isinstance(module, nn.modules.conv._ConvNd) for module in model.modules()),
        conv_batch_norms=conv_batch_norms(model, seen),
        channels_last=_is_channels_last(model, sample),
        optimizer=_variant(optimizer(list(model.parameters()))) if training and optimizer is not None else "",
        liger=tuple(sorted({type(m).__name__ for m in model.modules() if has_liger_kernel(m)})),
    )


def watch_copy(model: nn.Module, sample: Sample) -> Watched | None:
    """What a call of a copy shows; None: the model cannot be copied, or fails on the sample."""
    twin = copied(model)
    if twin is None:
        return None
    try:
        with seeded(_device(model)):
            return watch(twin, sample.clone())
    except (Exception, SystemExit):  # the analysis reports what it raises
        return None


def _differs_from_itself(model: nn.Module, sample: Sample, watched: Watched) -> bool:
    twin = copied(model)
    if twin is None:
        return False
    try:
        with seeded(_device(model)), torch.no_grad():
            return not same(watched.outputs, sample.clone().call(twin))
    except (Exception, SystemExit):  # the first call did not raise
        return True


def has_liger_kernel(module: nn.Module) -> bool:
    """Whether Liger has a kernel for a norm: over one dimension, with a weight, not yet Liger's."""
    if type(module) is nn.LayerNorm:
        return len(module.normalized_shape) == 1 and module.weight is not None and module.bias is not None
    if type(module) is nn.RMSNorm:
        return len(module.normalized_shape) == 1 and module.weight is not None
    named = type(module).__name__.endswith("RMSNorm") and "Liger" not in type(module).__name__
    return named and hasattr(module, "weight") and hasattr(module, "variance_epsilon")


def _device(model: nn.Module) -> torch.device:
    tensor: Any = next(model.parameters(), next(model.buffers(), None))
    return torch.device("cpu") if tensor is None or tensor.is_meta else tensor.device


def _has_attention_switch(model: nn.Module) -> bool:
    eager = getattr(getattr(model, "config", None), "_attn_implementation", None) == "eager"
    return eager and callable(getattr(model, "set_attn_implementation", None))


def _is_channels_last(model: nn.Module, sample: Sample) -> bool:
    images = [tensor for tensor in sample.tensors() if tensor.dim() == 4 and tensor.is_floating_point()]
    weights = [module.weight for module in model.modules() if isinstance(module, nn.Conv2d)]
    return bool(weights) and all(
        tensor.is_contiguous(memory_format=torch.channels_last) for tensor in [*weights, *images]
    )


def _variant(optimizer: torch.optim.Optimizer) -> str:
    options = optimizer.param_groups[0]
    variants = [name for name in ("fused", "foreach") if options.get(name)]
    return " ".join([type(optimizer).__name__, *variants])
