"""Messages between the ranks of a ring, on top of :mod:`kernel_pytorch.groups`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.distributed import ProcessGroup

from kernel_pytorch import groups
from kernel_pytorch.groups import GroupError, tell_all

from ...kernels.operator import refuse_transforms

RingError = GroupError
"""A rank of the ring has failed, or works on another problem than this one."""

NO_TRANSFORMS = "ring attention; dilated_attention on one device takes them"


@_disable_dynamo
def agree(
    action: Callable[[], Mapping[str, Any]], group: ProcessGroup, device: torch.device
) -> list[dict[str, Any]]:
    """:func:`kernel_pytorch.groups.agree`, also under a transform of torch.func, which it bypasses."""
    with torch._C._DisableFuncTorch():
        return groups.agree(action, group, device=_sendable(device))


@_disable_dynamo
def check_travels(*tensors: Tensor) -> None:
    """Raise NotImplementedError for tensors that cannot be sent: transformed, or without numbers."""
    refuse_transforms(NO_TRANSFORMS, *tensors)
    if any(x.is_meta for x in tensors):
        raise NotImplementedError(
            "tensors on the device 'meta' do not go through ring attention, since they hold nothing to send; "
            "dilated_attention on one device takes them"
        )


@_disable_dynamo
def report_failure(group: ProcessGroup, device: torch.device, error: Exception) -> None:
    """Answer the other ranks' :func:`kernel_pytorch.groups.agree` with ``error``: they raise RingError.

    A rank that cannot make the call calls this instead, once for every group whose ranks wait for it.
    """

    def fail() -> bytes:
        raise error

    with suppress(type(error)), torch._C._DisableFuncTorch():
        tell_all(fail, group, device=_sendable(device))


def _sendable(device: torch.device) -> torch.device | None:
    return None if device.type == "meta" else device


def all_to_all(parts: Tensor, group: ProcessGroup) -> Tensor:
    """Send ``parts[i]`` to rank i; return what the ranks sent, by rank, ``[P, ...]``. Differentiable.

    Raises:
        NotImplementedError: under a transform, or for a tensor without numbers.
        RingError: a rank failed.
    """
    check_travels(parts)
    return _AllToAll.apply(parts, group)  # type: ignore[no-untyped-call,no-any-return]


class _AllToAll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, parts: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        parts = parts.contiguous()
        received = torch.empty_like(parts)
        try:
            dist.all_to_all_single(received, parts, group=group)
        except RuntimeError as error:
            reason = str(error).split("\n")[0]
            ranks = dist.get_process_group_ranks(group)
            raise RingError(f"the all-to-all among global ranks {ranks} failed: {reason}") from error
        return received

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return all_to_all(grad, ctx.group), None
