"""Watches every call of a torch function from Python, and the user's frames around it. Imports torch."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any, Protocol

import torch
from torch.overrides import TorchFunctionMode

from . import blame
from .operators import Call, Run
from .storages import key_of, tensors


@dataclass
class Site:
    """A line that a frame is at. One run of a function is one frame."""

    serial: int
    """Of the frame."""
    file: str
    line: int


@dataclass
class FunctionCall:
    """One call that returned."""

    full_name: str
    """As "__bool__"."""
    inputs: list[torch.Tensor]
    outputs: list[torch.Tensor]
    args: Sequence[Any]
    sites: tuple[Site, ...]
    """The user's, outermost first; never empty."""
    direct: bool
    """Whether the user's code called it, not a function of torch."""

    @property
    def name(self) -> str:
        """Without underscores around it."""
        return self.full_name.strip("_")

    @property
    def is_view(self) -> bool:
        """Whether it returned no storage of its own."""
        own = {key_of(tensor) for tensor in self.inputs}
        return all(key_of(tensor) in own for tensor in self.outputs)


class CallObserver(Protocol):
    """Looks at each call."""

    def saw(self, call: FunctionCall) -> None:
        """Called when it returned."""
        ...


class CallWatch(TorchFunctionMode):
    """Shows each call to observers; those that a torch function makes in turn are part of it."""

    def __init__(self, run: Run, observers: Sequence[CallObserver]) -> None:
        super().__init__()
        self.run, self.observers = run, observers
        self._frames: list[tuple[FrameType, int]] = []
        self._count = 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", type(func).__name__)
        if name in ("__get__", "__set__"):
            return func(*args, **kwargs)
        inputs = list(tensors((args, kwargs)))
        direct = blame.is_users(sys._getframe(1).f_code.co_filename)
        sites = self._sites()
        outer, self.run.call = self.run.call, Call(name.strip("_"), bool(inputs))
        try:
            out = func(*args, **kwargs)
        finally:
            self.run.call = outer
        if sites:
            call = FunctionCall(name, inputs, list(tensors(out)), args, sites, direct)
            for observer in self.observers:
                observer.saw(call)
        return out

    def forget(self) -> None:
        """Let go of the frames that were seen last."""
        self._frames.clear()

    def _sites(self) -> tuple[Site, ...]:
        """The user's frames with serial numbers.

        The frames of the last call are held so that the next run of a function is another object.
        """
        frames = list(blame.users_frames(self.run.until))[::-1]
        same = 0
        for (known, _), frame in zip(self._frames, frames, strict=False):
            if known is not frame:
                break
            same += 1
        del self._frames[same:]
        for frame in frames[same:]:
            self._count += 1
            self._frames.append((frame, self._count))
        return tuple(Site(serial, frame.f_code.co_filename, frame.f_lineno) for frame, serial in self._frames)
