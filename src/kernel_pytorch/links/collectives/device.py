"""Tensors of an accelerator, on the thread that posts."""

from __future__ import annotations

from types import TracebackType

import torch
from torch import Tensor


class Ready:
    """A context for the worker: a tensor is ready when it begins, and what was done to it when it ends."""

    def __init__(self, tensor: Tensor | None) -> None:
        """On the thread that computed ``tensor``."""
        self._device = None if tensor is None or tensor.device.type == "cpu" else tensor.device
        self._event: torch.Event | None = None
        if self._device is not None:
            self._event = torch.accelerator.current_stream(self._device).record_event()

    def __enter__(self) -> None:
        if self._device is not None and self._event is not None:
            torch.accelerator.set_device_index(self._device)
            torch.accelerator.current_stream(self._device).wait_event(self._event)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._device is not None:
            torch.accelerator.current_stream(self._device).synchronize()
