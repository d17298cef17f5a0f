"""Compressed gradients for DistributedDataParallel."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from torch.nn.parallel import DistributedDataParallel

from ..methods import CompressionMethod
from .hook_state import HookState
from .options import HookOptions

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def register_comm_hook(
    ddp: DistributedDataParallel,
    method: CompressionMethod | str,
    *,
    process_group: ProcessGroup | None = None,
    **options: Any,
) -> HookState:
    """Have a DDP model average its gradients in another format. All ranks call it, before the first backward.

    NONE: as they are. FP16, BF16: each number, sums in float32. QUANTIZED_8BIT: 8 bits for each number,
    without a bias. TOPK: the largest. POWERSGD: a matrix as the product of two thin ones. Parameters of one
    dimension, small ones, and those that POWERSGD would not halve are sent whole. The averages have the same
    bits on all ranks (with POWERSGD, where their processors are equal: each multiplies the two by itself).
    They do not depend on how DDP fills its buckets.

    What a format loses of a gradient is added to the next one. It is in the units of its step: with a loss
    scaler that changes its scale, what is left of earlier steps counts as if it had the new one.

    Args:
        ddp: all of whose gradients are dense.
        method: not ADAPTIVE.
        process_group: of the same ranks, and used by nothing else; default: one is made, with the timeout of
            ddp's.
        options: fields of :class:`.options.HookOptions`.

    Returns:
        The state of the hook. If a rank fails, or does not answer within the group's timeout, ``backward``
        raises RuntimeError on the others.

    Raises:
        TypeError: ``ddp`` is not DistributedDataParallel, or an option is unknown.
        ValueError: an option has no such value.
        GroupError: the ranks disagree about the arguments or the parameters, or one failed.
    """
    if not isinstance(ddp, DistributedDataParallel):
        raise TypeError(f"ddp must be a DistributedDataParallel, got {type(ddp).__name__}")
    known = inspect.signature(HookOptions).parameters.keys() - {"method"}
    if unknown := options.keys() - known:
        raise TypeError(f"unknown option {', '.join(sorted(unknown))}; options: {', '.join(sorted(known))}")
    state = HookState(ddp, HookOptions(method=CompressionMethod(method), **options), process_group)

    def hook(state: HookState, bucket):  # type: ignore[no-untyped-def]  # DDP compares types, not their names
        return state.average(bucket)

    ddp.register_comm_hook(state, hook)
    return state
