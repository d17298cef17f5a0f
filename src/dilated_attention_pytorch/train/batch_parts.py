"""Which part of a batch each rank computes.

Letters: b batch, n context, P ranks, C of them around each ring.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..core.sharding import Sharding
from ..ring_attention.sharding import shard_sequence
from .errors import CommandError
from .options import TrainOptions
from .ranks import Ranks

IGNORED = -100
"""The target of what is only padding."""


@dataclass(frozen=True, kw_only=True)
class BatchPart:
    """A batch cut into ``num_data`` parts of its rows and ``num_context`` shards of its contexts."""

    data_rank: int = 0
    """Which part of the rows."""
    num_data: int = 1
    """Parts of the rows, P / C."""
    context_rank: int = 0
    """Which shard of the contexts."""
    num_context: int = 1
    """Shards of the contexts, C."""
    sharding: Sharding = "contiguous"
    """Which positions are a shard: see ``shard_sequence``."""

    def at(self, place: int) -> BatchPart:
        """The part of the rank at a place: ring by ring, in each ring shard by shard."""
        data_rank, context_rank = divmod(place, self.num_context)
        return replace(self, data_rank=data_rank, context_rank=context_rank)

    def take(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The part of a batch.

        Args:
            tokens: int64 ``[b, n + 1]``.

        Returns:
            inputs and targets, int64 ``[ceil(b / num_data), n / num_context]``, rows beyond the batch with
            ``IGNORED`` as targets, and the positions of the columns in the context.
        """
        rows, beyond = shard_sequence(tokens, self.data_rank, self.num_data, dim=0)
        columns = torch.arange(tokens.shape[1] - 1, device=tokens.device)
        positions, _ = shard_sequence(columns, self.context_rank, self.num_context, self.sharding, dim=0)
        # The target of a shard's last token is in another shard.
        inputs, targets = rows[:, positions], rows[:, positions + 1]
        return inputs, targets.masked_fill(beyond[:, None], IGNORED), positions


def part_of_batch(
    ranks: Ranks, options: TrainOptions, num_context: int, sharding: Sharding, *, any_size: bool = False
) -> BatchPart:
    """This rank's part: ranks next to each other share a context.

    Args:
        ranks: who shares the batch.
        options: the run's.
        num_context: C.
        sharding: how contexts are cut.
        any_size: take any number of ranks: with the largest C not above ``num_context`` that divides the
            ranks and the context, and rows of padding where the ranks do not divide the batch.

    Raises:
        CommandError: the ranks, the batch or the context cannot be cut like this.
    """
    if num_context < 1:
        raise CommandError(f"--context-parallel must be at least 1, got {num_context}")
    if any_size:
        num_context = _largest_ring(ranks.size, options.seq_len, num_context, sharding)
    if ranks.size % num_context:
        raise CommandError(
            f"--context-parallel {num_context} needs {num_context} processes or a multiple of that, "
            f"got {ranks.size}: {ranks.launcher(num_context)} --context-parallel {num_context} ..."
        )
    num_data = ranks.size // num_context
    if options.batch_size % num_data and not any_size:
        raise CommandError(
            f"--batch-size must be a multiple of {num_data}, the {ranks.size} processes by "
            f"--context-parallel {num_context}, got {options.batch_size}"
        )
    parts = num_data * options.grad_accumulation
    if options.batch_size % parts and not any_size:
        raise CommandError(
            f"--batch-size must be a multiple of {parts}, the {ranks.size} processes by --context-parallel "
            f"{num_context} times --grad-accumulation {options.grad_accumulation}, got {options.batch_size}"
        )
    if num_context == 1:
        sharding = "contiguous"
    chunks = _chunks(num_context, sharding)
    if options.seq_len % chunks:
        raise CommandError(
            f"--seq-len must be a multiple of {chunks} with --context-parallel {num_context} "
            f"--sharding {sharding}, got {options.seq_len}"
        )
    return BatchPart(num_data=num_data, num_context=num_context, sharding=sharding).at(ranks.rank)


def _largest_ring(size: int, seq_len: int, most: int, sharding: Sharding) -> int:
    fitting = (
        c for c in range(1, min(most, size) + 1) if size % c == 0 and seq_len % _chunks(c, sharding) == 0
    )
    return max(fitting, default=1)


def _chunks(num_context: int, sharding: Sharding) -> int:
    """Pieces of equal length that a context is cut into."""
    return 2 * num_context if sharding == "zigzag" and num_context > 1 else num_context
