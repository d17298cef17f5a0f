"""The exceptions that a command turns into a line on stderr and an exit status."""

from __future__ import annotations

import torch

from kernel_pytorch.cli.errors import CommandError

from .options import TrainOptions

__all__ = ["CommandError", "RankError", "raise_if_out_of_memory"]


class RankError(CommandError):
    """Raised on one rank only, where the others cannot know of the error. A CommandError is raised on all."""

    of_one = True


def raise_if_out_of_memory(error: Exception, options: TrainOptions) -> None:
    """Raise a RankError that names the options that decide about memory, if ``error`` is about memory."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error):
        raise RankError(
            f"out of memory with --seq-len {options.seq_len} --batch-size {options.batch_size} "
            f"--embed-dim {options.embed_dim} --num-layers {options.num_layers}: lower one of them, "
            "or give --recompute or --grad-accumulation",
            status=1,
        ) from error
