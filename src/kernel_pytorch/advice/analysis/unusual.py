"""Kinds of models that cannot be changed as others, or not at all. Imports torch."""

from __future__ import annotations

import dataclasses
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from ..prove.copies import UncopyableError, copy_of


def unusual(model: nn.Module) -> tuple[str, ...]:
    """Which of the kinds of :class:`Structure` a model is, but for "random", which needs two calls."""
    modules, tensors = list(model.modules()), [*model.parameters(), *model.buffers()]
    kinds = {
        "scripted": any(isinstance(module, torch.jit.ScriptModule) for module in modules),
        "compiled": any(_is_compiled(module) for module in modules),
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
    pairs = list(_leaves(first)), list(_leaves(second))
    return len(pairs[0]) == len(pairs[1]) and all(map(_same_leaf, *pairs))


def _same_leaf(first: Any, second: Any) -> bool:
    if not isinstance(first, torch.Tensor) or not isinstance(second, torch.Tensor):
        return type(first) is type(second)  # objects may be new ones
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    if first.is_quantized or not (first.is_floating_point() or first.is_complex()):
        return torch.equal(first, second)
    half = first.dtype.itemsize < 4
    return torch.allclose(
        first, second, rtol=1e-2 if half else 1e-4, atol=1e-3 if half else 1e-5, equal_nan=True
    )


def _leaves(tree: Any) -> Iterator[Any]:
    for leaf in pytree.tree_leaves(tree):
        if dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
            yield from _leaves([getattr(leaf, field.name) for field in dataclasses.fields(leaf)])
        else:
            yield leaf


def _is_compiled(module: nn.Module) -> bool:
    return getattr(module, "_compiled_call_impl", None) is not None or "_orig_mod" in module._modules


def _is_quantised(module: nn.Module) -> bool:
    return type(module).__module__.startswith(("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized"))


def _is_packed(tensor: torch.Tensor) -> bool:
    return tensor.is_quantized or type(tensor).__module__.startswith("torchao.")
