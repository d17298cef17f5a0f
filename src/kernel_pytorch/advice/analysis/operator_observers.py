"""Observers of operators: float64, layouts of convolutions, random numbers. Imports torch."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from . import blame
from .observations import ConvolutionLayout, Float64Use
from .operators import Operator, Where
from .storages import nbytes

_WIDE = (torch.float64, torch.complex128)


@dataclass
class _Root:
    where: Where
    operators: int = 0
    bytes: int = 0


class Float64:
    """Where float64 enters, and what computes with it from there on."""

    def __init__(self) -> None:
        self.roots: dict[Where, _Root] = {}

    def see(self, operator: Operator) -> None:
        wide = [
            (tensor, origin)
            for tensor, origin in zip(operator.outputs, operator.results, strict=True)
            if tensor.dtype in _WIDE and tensor.numel() > 1
        ]
        if not wide or operator.is_view:
            return
        root = next((o.notes["float64"] for o in operator.origins if o and "float64" in o.notes), None)
        if root is None and operator.where is not None:
            root = self.roots.setdefault(operator.where, _Root(operator.where))
        if root is None:
            return
        root.operators += 1
        for tensor, origin in wide:
            root.bytes += nbytes(tensor)
            origin.notes["float64"] = root

    def found(self) -> tuple[Float64Use, ...]:
        return tuple(
            Float64Use(place=blame.place(*root.where), operators=root.operators, bytes=root.bytes)
            for root in self.roots.values()
        )


class Layout:
    """Two-dimensional convolutions whose input is not channels_last though it matters."""

    def __init__(self) -> None:
        self.all = self.wrong = self.bytes = 0
        self.first: Where | None = None

    def see(self, operator: Operator) -> None:
        if operator.name != "convolution" or operator.inputs[0].dim() != 4 or operator.where is None:
            return
        image = operator.inputs[0]
        self.all += 1
        if image.is_contiguous(memory_format=torch.channels_last) or not _wants_channels_last(image):
            return
        if _cuts_patches(operator):
            return
        self.wrong += 1
        self.bytes += nbytes(image) + nbytes(operator.outputs[0])
        self.first = self.first or operator.where

    def found(self) -> ConvolutionLayout | None:
        if self.first is None:
            return None
        return ConvolutionLayout(
            place=blame.place(*self.first), calls=self.wrong, of=self.all, bytes=self.bytes
        )


def _cuts_patches(operator: Operator) -> bool:
    """Whether each pixel is read once, as where a vision transformer cuts an image."""
    kernel, stride = list(operator.inputs[1].shape[2:]), list(operator.args[3])
    return kernel == stride and max(kernel) > 1


def _wants_channels_last(image: torch.Tensor) -> bool:
    """On a CPU always; on a GPU where tensor cores compute."""
    return image.device.type == "cpu" or image.dtype in (torch.float16, torch.bfloat16)


@dataclass
class Random:
    """Operators that draw random numbers: line and name of each."""

    drawn: list[tuple[Where | None, str]] = field(default_factory=list)

    def see(self, operator: Operator) -> None:
        if torch.Tag.nondeterministic_seeded in operator.func.tags:
            call = operator.run.call
            self.drawn.append((operator.where, call.name if call is not None else operator.name))
