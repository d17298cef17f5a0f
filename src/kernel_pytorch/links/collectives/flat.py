"""torch's own all-reduce: a ring in the order of the group's ranks, in gloo; in NCCL what it takes."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from ...groups import GroupError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_OPS = {
    "sum": dist.ReduceOp.SUM,
    "max": dist.ReduceOp.MAX,
    "min": dist.ReduceOp.MIN,
    "product": dist.ReduceOp.PRODUCT,
}
# Those of gloo in all PyTorch versions that are supported; NCCL has them too.
_DTYPES = {torch.float16, torch.float32, torch.float64, torch.int8, torch.uint8, torch.int32, torch.int64}


def keeps_order() -> bool:
    """Whether this PyTorch makes groups whose ranks are in any order."""
    return "sort_ranks" in inspect.signature(dist.new_group).parameters


def can_reduce(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether torch's all-reduce takes a dtype."""
    return dtype in _DTYPES or (dtype is torch.bfloat16 and device.type == "cuda")


def all_reduce(tensor: Tensor, group: ProcessGroup, op: str) -> None:
    """Reduce in place.

    Args:
        tensor: contiguous.
        op: sum, max, min or product.

    Raises:
        GroupError: a rank failed or did not answer within the group's timeout.
    """
    try:
        dist.all_reduce(tensor, _OPS[op], group=group)
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise GroupError(f"a rank failed or did not answer: {reason}") from error
