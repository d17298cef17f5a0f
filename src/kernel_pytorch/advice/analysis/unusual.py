"""Kinds of models that cannot be changed as others, or not at all. Imports torch."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..prove.copies import UncopyableError, copy_of
from ..prove.leaf import as_tensor, same_object
from ..prove.leaves import leaves


def unusual(model: nn.Module) -> tuple[str, ...]:
    """Which of the kinds of :class:`Structure` a model is, but for "random", which needs two calls."""
    modules, tensors = list(model.modules()), [*model.parameters(), *model.buffers()]
    kinds = {
        "scripted": any(isinstance(module, torch.jit.ScriptModule) for module in modules),
        "compiled": is_compiled(model),
        "quantised": any(_is_quantised(module) for module in modules) or any(map(_is_packed, tensors)),
        "meta": any(tensor.is_meta for tensor in tensors),
        "no parameters": next(model.parameters(), None) is None,
        "uncopyable": copied(model) is None,
    }
    return tuple(kind for kind, applies in kinds.items() if applies)


def copied(model: nn.Module) -> nn.Module | None:
    """A copy that shares nothing with the model; None: it cannot be copied."""
    try:
        return copy_of(model)
    except UncopyableError:  # that it fails is the fact
        return None


@contextmanager
def seeded(device: torch.device | None = None) -> Iterator[None]:
    """Seed torch, ``random`` and NumPy if it is loaded; at the end they have their states back."""
    numpy = sys.modules.get("numpy")
    before = random.getstate(), numpy.random.get_state() if numpy else None
    devices = [device] if device is not None and device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(0)
        random.seed(0)
        if numpy:
            numpy.random.seed(0)
        try:
            yield
        finally:
            random.setstate(before[0])
            if numpy:
                numpy.random.set_state(before[1])


def same(first: Any, second: Any) -> bool:
    """Whether two outputs are equal up to the order of additions."""
    one, other = ([as_tensor(leaf) for _, leaf in leaves(tree)] for tree in (first, second))
    return len(one) == len(other) and all(map(_same_leaf, one, other))


def _same_leaf(first: Any, second: Any) -> bool:
    if not isinstance(first, torch.Tensor) or not isinstance(second, torch.Tensor):
        return same_object(first, second)
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    if first.is_quantized or not (first.is_floating_point() or first.is_complex()):
        return torch.equal(first, second)
    half = first.dtype.itemsize < 4
    return torch.allclose(
        first, second, rtol=1e-2 if half else 1e-4, atol=1e-3 if half else 1e-5, equal_nan=True
    )


def is_compiled(model: nn.Module) -> bool:
    """Whether ``torch.compile`` wrapped the model or a part of it, or ``.compile()`` marked it."""
    return any(
        getattr(module, "_compiled_call_impl", None) is not None or "_orig_mod" in module._modules
        for module in model.modules()
    )


def _is_quantised(module: nn.Module) -> bool:
    return type(module).__module__.startswith(("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized"))


def _is_packed(tensor: torch.Tensor) -> bool:
    return tensor.is_quantized or type(tensor).__module__.startswith("torchao.")
