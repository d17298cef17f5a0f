"""Messages in batches, which torch hands to NCCL as one only if a group is no subclass of its own."""

from __future__ import annotations

import functools
from typing import Any


def keep_batches(names: Any) -> None:
    """Have ``batch_isend_irecv`` treat a recording group as it treats the one within.

    Else the two messages of an exchange would go one after the other, and NCCL would wait for ever.

    Args:
        names: ``torch.distributed.distributed_c10d``, or what has the same functions.
    """
    batch = names.batch_isend_irecv
    if getattr(batch, "keeps_batches", False):
        return

    @functools.wraps(batch)
    def batch_isend_irecv(ops: list[Any]) -> Any:
        group = (ops[0].group if ops else None) or names._get_default_group()
        device = ops[0].tensor.device if ops else None
        inner = getattr(group, "inner", None)
        if device is None or inner is None or not inner._get_backend(device).supports_coalescing:
            return batch(ops)
        with names._coalescing_manager(group, device, async_ops=True) as manager:
            for op in ops:
                peer = {"group_dst" if op.op is names.isend else "group_src": op.group_peer}
                op.op(op.tensor, group=op.group, tag=op.tag, **peer)
        return manager.works

    batch_isend_irecv.keeps_batches = True  # type: ignore[attr-defined]
    names.batch_isend_irecv = batch_isend_irecv
