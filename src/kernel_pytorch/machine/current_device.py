"""Setting torch's current device in a context."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from .facts import DeviceInfo

logger = logging.getLogger(__name__)


@contextmanager
def current_device(devices: Sequence[DeviceInfo]) -> Iterator[list[DeviceInfo]]:
    """Make the first device that torch sees its current device, and give all that it sees.

    Raises:
        ValueError: torch sees none of ``devices``.
    """
    if all(device.kind == "cpu" for device in devices):
        yield list(devices)
        return
    import torch

    from .torch_devices import torch_device

    seen: list[DeviceInfo] = []
    torch_devices: list[torch.device] = []
    hidden: list[str] = []
    for device in devices:
        try:
            torch_devices.append(torch_device(device))
            seen.append(device)
        except ValueError as error:
            hidden.append(str(error))
    for why in hidden:
        logger.info("left out: %s", why)
    if not seen:
        raise ValueError("; ".join(hidden))
    first = torch_devices[0]
    if first.type == "cpu":
        yield seen
        return
    module = torch.get_device_module(first)
    before = module.current_device()
    module.set_device(first)
    try:
        yield seen
    finally:
        module.set_device(before)
