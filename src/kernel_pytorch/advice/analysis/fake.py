"""A model without its numbers: operators run on shapes alone. Imports torch."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import _pytree as pytree

from ..prove.copies import made_anew
from ..prove.reach import reachable
from ..sample import Sample


@contextmanager
def fake(model: nn.Module, sample: Sample) -> Iterator[tuple[nn.Module, Sample]]:
    """A copy of a model and of its inputs, and fake tensors meanwhile. What the copy does is free.

    Raises:
        Exception: of whatever kind copying raises, or an operator on fake tensors.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    memo = made_anew(reachable(model))
    held: dict[int, torch.Tensor] = {}
    for module in model.modules():
        for leaf in pytree.tree_leaves(vars(module)):
            if isinstance(leaf, torch.Tensor) and not isinstance(leaf, FakeTensor):
                held[id(leaf)] = leaf
    for number, tensor in held.items():
        memo[number] = mode.from_tensor(tensor)
    copied = copy.deepcopy(model, memo)
    shapes = sample.map(mode.from_tensor)
    with mode:
        yield copied, shapes
