"""The values of all ``--input``s, made again under other seeds and at other lengths. Imports torch."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from .inputs import Input
from .sample import Sample
from .target import TargetError, load_function

SEED = 0


class Inputs:
    """All ``--input``s of a run."""

    def __init__(self, inputs: Sequence[Input]) -> None:
        self._inputs = tuple(inputs)
        self._functions = {one.named: load_function(one.named) for one in inputs if one.named is not None}
        self._takes_length = {named for named, function in self._functions.items() if _takes_length(function)}

    def make(self, length: int | None, seed: int) -> Sample:
        """The inputs under a seed; only functions that take ``length=`` mind the length.

        Raises:
            TargetError: they cannot be made.
        """
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        for at, one in enumerate(self._inputs):
            value = seeded(seed + 1000 * at, functools.partial(self._value, one, length))
            more, named = as_arguments(value, one.keyword)
            args += more
            if twice := named.keys() & kwargs.keys():
                raise TargetError(f"--input: {min(twice)!r} is given twice")
            kwargs.update(named)
        return Sample(tuple(args), kwargs)

    def redraw(self, length: int | None, seed: int) -> Sample:
        """Fresh inputs: made again under another seed; those that come out the same are drawn.

        Args:
            length: None: the inputs' own.

        Raises:
            ValueError: they cannot be made of that length.
            TargetError: a function raises.
        """
        first, again = self.make(None, SEED), self.make(None, SEED + 1 + seed)
        if length is None:
            return _fresh(first, again, seed)
        if all(one.named in self._takes_length or one.kind == "value" for one in self._inputs):
            return _fresh(self.make(length, SEED), self.make(length, SEED + 1 + seed), seed)
        resized = again.at_length(length)
        if self._takes_length:
            resized = _functions_first(self.make(length, SEED + 1 + seed), resized, length)
        return _fresh(first.at_length(length), resized, seed)

    def _value(self, one: Input, length: int | None) -> Any:
        if one.named is not None:
            function = self._functions[one.named]
            takes = length is not None and one.named in self._takes_length
            return one.named.call(function, **({"length": length} if takes else {}))
        if one.kind == "value":
            return one.value
        try:
            return _tensor(one)
        except (RuntimeError, ValueError, OverflowError, TypeError) as error:
            reason = str(error).splitlines()[0]
            raise TargetError(f"--input {one.kind} of shape {one.shape} cannot be made: {reason}") from error


def as_arguments(value: Any, keyword: str | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What an ``--input`` is, as positional arguments and keywords."""
    if keyword is not None:
        return (), {keyword: value}
    if isinstance(value, Mapping):
        if unnamed := [key for key in value if not isinstance(key, str)]:
            raise TargetError(f"--input: a dict is passed by keyword, and {unnamed[0]!r} is no name")
        return (), dict(value)
    return (tuple(value), {}) if isinstance(value, (tuple, list)) else ((value,), {})


def _tensor(one: Input) -> torch.Tensor:
    dtype = getattr(torch, one.dtype)
    if one.kind == "randint":
        return torch.randint(one.low, one.high, one.shape, dtype=dtype)
    if one.kind == "rand" and dtype == torch.bool:
        return torch.rand(one.shape) < 0.5
    made: torch.Tensor = getattr(torch, one.kind)(one.shape, dtype=dtype)
    return made


def _fresh(first: Sample, again: Sample, seed: int) -> Sample:
    """``again``, with what is as in ``first`` drawn; fake tensors have no values and stay."""
    from torch._subclasses.fake_tensor import FakeTensor

    before = first.tensors()
    if len(before) != len(again.tensors()) or any(isinstance(t, FakeTensor) for t in again.tensors()):
        return again
    drawn = iter(again.draw(seed).tensors())
    old = iter(before)

    def choose(tensor: torch.Tensor) -> torch.Tensor:
        was, other = next(old), next(drawn)
        same = was.shape == tensor.shape and not was.is_meta and torch.equal(was, tensor)
        return other if same else tensor

    return again.map(choose)


def _functions_first(made: Sample, resized: Sample, length: int) -> Sample:
    """Of two samples of one structure, the tensors of ``made`` that a function has given the length."""
    others = iter(resized.tensors())

    def choose(tensor: torch.Tensor) -> torch.Tensor:
        other = next(others)
        return tensor if tensor.shape == other.shape else other

    return made.map(choose)


def seeded(seed: int, function: Callable[[], Any]) -> Any:
    """What a function returns with all generators seeded."""
    from .prove.task import seed_all

    seed_all(seed)
    return function()


def _takes_length(function: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False
    return "length" in parameters or any(one.kind is one.VAR_KEYWORD for one in parameters.values())
