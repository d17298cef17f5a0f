"""Messages between the ranks of a ring: those of :mod:`kernel_pytorch.groups`, by the names used here."""

from __future__ import annotations

from contextlib import suppress

import torch
from torch.distributed import ProcessGroup

from kernel_pytorch.groups import GroupError, tell_all

RingError = GroupError
"""A rank of the ring has failed, or works on another problem than this one."""


def tell(group: ProcessGroup, device: torch.device, error: Exception) -> None:
    """Say in the place of :func:`kernel_pytorch.groups.agree` why this rank cannot go on."""

    def fail() -> bytes:
        raise error

    with suppress(type(error)):
        tell_all(fail, group, device=device)
