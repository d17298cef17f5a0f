"""What a model holds: parameters, buffers, their bytes, and what is tied. Imports torch."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.parameter import is_lazy


@dataclass(frozen=True, kw_only=True)
class Held:
    """Counts are of elements; what shares memory counts once."""

    parameters: int
    trainable: int
    """Elements of parameters that require gradients."""
    buffers: int
    bytes_by_dtype: dict[str, int]
    """Of parameters and buffers, by dtype as torch writes it, without "torch."."""
    tied: tuple[tuple[str, ...], ...]
    """Names of the parameters with one memory, each group in the model's order."""
    unknown: tuple[str, ...] = ()
    """Parameters and buffers of lazy modules that have no shape yet; not counted."""


def parameters(model: nn.Module) -> Held:
    """What a model holds, on whatever device, meta included."""
    named: list[tuple[str, torch.Tensor]] = list(model.named_parameters(remove_duplicate=False))
    buffers = list(model.named_buffers(remove_duplicate=False))
    shapeless = tuple(name for name, tensor in (*named, *buffers) if is_lazy(tensor))
    groups: dict[object, list[tuple[str, torch.Tensor]]] = {}
    for name, tensor in named:
        if name not in shapeless:
            groups.setdefault(_memory(tensor), []).append((name, tensor))
    own = [[tensor for _, tensor in group] for group in groups.values()]
    largest = [max(group, key=torch.Tensor.numel) for group in own]
    trainable = [
        each for each, group in zip(largest, own, strict=True) if any(t.requires_grad for t in group)
    ]
    held: dict[object, torch.Tensor] = {
        _memory(tensor): tensor
        for name, tensor in buffers
        if name not in shapeless and _memory(tensor) not in groups
    }
    sizes: Counter[str] = Counter()
    for tensor in (*largest, *held.values()):
        sizes[dtype_name(tensor.dtype)] += tensor.numel() * tensor.element_size()
    return Held(
        parameters=sum(tensor.numel() for tensor in largest),
        trainable=sum(tensor.numel() for tensor in trainable),
        buffers=sum(tensor.numel() for tensor in held.values()),
        bytes_by_dtype=dict(sizes.most_common()),
        tied=tuple(tuple(name for name, _ in group) for group in groups.values() if len(group) > 1),
        unknown=shapeless,
    )


def dtype_name(dtype: torch.dtype) -> str:
    """As torch writes it, without "torch."."""
    return str(dtype).removeprefix("torch.")


def _memory(tensor: torch.Tensor) -> object:
    """Equal for tensors with one memory: parts of one larger tensor are apart unless they start together."""
    if tensor.layout is not torch.strided or tensor.numel() == 0:
        return id(tensor)
    return (tensor.untyped_storage()._cdata, tensor.storage_offset())
