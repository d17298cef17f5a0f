"""The inputs of a call: cloned, moved, drawn anew, at other lengths. Imports torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils import _pytree as pytree


@dataclass(frozen=True)
class Sample:
    """Arguments of a model: positional and by keyword, in any nesting."""

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, value: Any) -> Sample:
        """From a tensor, a tuple or list (positional), or a dict (by keyword)."""
        if isinstance(value, Sample):
            return value
        if isinstance(value, Mapping):
            if unnamed := [key for key in value if not isinstance(key, str)]:
                raise ValueError(f"inputs in a dict are passed by keyword: {unnamed[0]!r} is no name")
            return cls((), dict(value))
        if isinstance(value, (tuple, list)):
            return cls(tuple(value))
        return cls((value,))

    def call(self, model: Callable[..., Any]) -> Any:
        """Call a model with these inputs."""
        return model(*self.args, **self.kwargs)

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Sample:
        """With each tensor changed."""
        args, kwargs = pytree.tree_map_only(torch.Tensor, change, (self.args, dict(self.kwargs)))
        return Sample(args, kwargs)

    def tensors(self) -> list[torch.Tensor]:
        """All tensors, in order."""
        return [
            leaf
            for leaf in pytree.tree_leaves((self.args, dict(self.kwargs)))
            if isinstance(leaf, torch.Tensor)
        ]

    def clone(self) -> Sample:
        """Leaves of their own, with strides and requires_grad kept."""
        return self.map(lambda t: t.detach().clone().requires_grad_(t.requires_grad))

    def draw(self, seed: int) -> Sample:
        """Fresh values of the same kind; equal seeds give equal values.

        Floating tensors are normal with the tensor's mean and standard deviation, cut off at its least and
        greatest value. Integers, booleans and tensors with infinities or NaN are permuted along the longest
        dimension, each column by itself: ids stay valid, and columns keep their meaning.
        """
        generator = torch.Generator().manual_seed(seed)
        return self.map(lambda tensor: _drawn(tensor, generator))

    @property
    def length(self) -> int | None:
        """Size of dimension 1 of the first tensor, or of its only one; None: that tensor has more than three
        dimensions, as images have, or none."""
        first = next(iter(self.tensors()), None)
        if first is None or not 1 <= first.dim() <= 3:
            return None
        return first.shape[min(1, first.dim() - 1)]

    def at_length(self, length: int) -> Sample:
        """Cut, or repeated from the start, to another length, in all tensors that have the length.

        Raises:
            ValueError: it is not clear which dimension is the length.
        """
        now = self.length
        if now is None or now < 1 or length < 1:
            raise ValueError(
                f"inputs of shapes {[tuple(tensor.shape) for tensor in self.tensors()]} cannot be given the "
                f"length {length}: a function that takes length= can make them"
            )
        first = self.tensors()[0]
        return self.map(lambda tensor: _at_length(tensor, now, length, tensor is first))

    def moved(self, device: torch.device, dtype: torch.dtype | None = None) -> tuple[Sample, tuple[str, ...]]:
        """On ``device``, and a remark for each input that was elsewhere or an array of numpy.

        Args:
            dtype: for floating arrays of numpy, which are float64 by default.
        """
        remarks = []

        def move(name: str, leaf: Any) -> Any:
            if isinstance(leaf, torch.Tensor):
                if leaf.device == device:
                    return leaf
                remarks.append(f"input {name} was moved from {leaf.device} to {device}")
                return leaf.detach().to(device).requires_grad_(leaf.requires_grad)
            if type(leaf).__module__ != "numpy" or not hasattr(leaf, "__array__"):
                return leaf
            tensor = torch.tensor(leaf, device=device)
            tensor = tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor
            kind = str(tensor.dtype).removeprefix("torch.")
            remarks.append(f"input {name}, an array of NumPy, was made a tensor: {kind} on {device}")
            return tensor

        def move_all(name: str, value: Any) -> Any:
            return pytree.tree_map(lambda leaf: move(name, leaf), value)

        args = tuple(move_all(str(at), value) for at, value in enumerate(self.args))
        kwargs = {name: move_all(name, value) for name, value in self.kwargs.items()}
        return Sample(args, kwargs), tuple(remarks)


def _drawn(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    if tensor.numel() == 0 or tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        return tensor.detach().clone()
    values = tensor.detach().cpu()
    if values.is_complex():
        parts = torch.view_as_real(values.resolve_conj())
        fresh = torch.view_as_complex(
            torch.stack([_normal(part, generator) for part in parts.unbind(-1)], -1)
        )
    elif values.is_floating_point() and bool(values.double().isfinite().all()):
        fresh = _normal(values, generator)
    else:
        fresh = _permuted(values, generator)
    # clone keeps strides, as of channels_last
    return tensor.detach().clone().copy_(fresh).requires_grad_(tensor.requires_grad)


def _normal(values: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    known = values.double()
    fresh = torch.randn(values.shape, generator=generator, dtype=torch.float64)
    fresh = fresh * known.std(correction=0) + known.mean()
    return fresh.clamp(known.min(), known.max())


def _permuted(values: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    if values.dim() == 0:
        return values
    longest = max(range(values.dim()), key=lambda at: values.shape[at])
    order = torch.rand(values.shape, generator=generator).argsort(longest)
    return values.gather(longest, order)


def _at_length(tensor: torch.Tensor, now: int, length: int, first: bool) -> torch.Tensor:
    changed = tensor.detach()
    for at in _length_dims(tensor, now, first):
        changed = changed.index_select(at, torch.arange(length, device=tensor.device) % now)
    if changed.shape == tensor.shape:
        changed = changed.clone()
    return changed.requires_grad_(tensor.requires_grad)


def _length_dims(tensor: torch.Tensor, length: int, first: bool) -> list[int]:
    """Dimensions that are the length: of the first tensor one, of masks (length, length) two."""
    dims = tensor.dim()
    if first or (dims == 3 and tensor.shape[1] == length and tensor.is_floating_point()):
        return [min(1, dims - 1)]  # width may equal length
    found = [at for at in range(dims) if tensor.shape[at] == length]
    square = dims == 2 and len(found) == 2
    return found if square or dims == 1 else [at for at in found if at > 0]
