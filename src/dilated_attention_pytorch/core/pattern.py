"""Who attends to whom: the definition of dilated attention that every other file answers to.

Letters: b batch, n sequence, h query heads, w segment length, r dilation rate, o offset of a head.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor

from .sharding import Sharding, chunks_of
from .validation import check_branches, check_heads


@dataclass(frozen=True)
class DilatedPattern:
    """The branches of LongNet's dilated attention (arXiv:2307.02486, section 2).

    Position ``p`` belongs to branch ``(w, r)`` for head ``j`` when ``(p % w) % r == j % r``. A query sees a
    key through a branch when both belong to it and lie in one segment (``p // w``); causal also: when the
    key does not come later. A key offered by several branches counts once for each.

    A pattern that leaves some (position, head) pairs without a branch, and so without an output, is warned of
    once in a process, around a ring on every rank. To silence it:
    ``warnings.filterwarnings("ignore", "The pattern serves only")``.

    Args:
        segment_lengths: ``w`` of each branch, at least 1; it may exceed the sequence.
        dilation_rates: ``r`` of each branch, at least 1.
        num_heads: query heads.
        num_kv_heads: key/value heads; must divide ``num_heads``. Default: ``num_heads``.

    Raises:
        TypeError, ValueError: naming the argument and its value.
    """

    segment_lengths: tuple[int, ...]
    dilation_rates: tuple[int, ...]
    num_heads: int
    num_kv_heads: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        segments, rates = check_branches(self.segment_lengths, self.dilation_rates)
        kv_heads = self.num_heads if self.num_kv_heads is None else self.num_kv_heads
        check_heads(self.num_heads, kv_heads)
        object.__setattr__(self, "segment_lengths", segments)
        object.__setattr__(self, "dilation_rates", rates)
        object.__setattr__(self, "num_kv_heads", kv_heads)
        if not self.serves_all and not torch.compiler.is_compiling():
            _warn_of_gaps(segments, rates, self.num_heads)

    @property
    def branches(self) -> tuple[tuple[int, int], ...]:
        """The pairs (segment length, dilation rate)."""
        return tuple(zip(self.segment_lengths, self.dilation_rates, strict=True))

    @property
    def serves_all(self) -> bool:
        """Whether a branch serves each (position, head) of every sequence: :meth:`coverage` is always 1."""
        # Without a rate of 1 no branch has position 0 for head 1. A single head, its offset always 0, lacks
        # position 1 unless a branch has segments of 1.
        return 1 in self.dilation_rates or (self.num_heads == 1 and 1 in self.segment_lengths)

    def mask(self, seq: int, is_causal: bool = False, positions: Tensor | None = None) -> Tensor:
        """How often query ``i`` is offered key ``s``: int64 ``[h, n, n]``. For small sequences: it is dense.

        Args:
            seq: n.
            is_causal: offer no key that stands later in the tensor than the query.
            positions: int64 ``[n]``, the rank that decides membership; default ``0 .. n-1``.
        """
        if positions is None:
            positions = torch.arange(seq)
        heads = torch.arange(self.num_heads, device=positions.device)
        counts = torch.zeros(self.num_heads, seq, seq, dtype=torch.int64, device=positions.device)
        for w, r in self.branches:
            member = (positions % w) % r == (heads % r)[:, None]
            segment = positions // w
            offered = member[:, :, None] & member[:, None, :] & (segment[:, None] == segment[None, :])
            counts = counts + offered  # not in place: under vmap only positions may be mapped
        return counts.tril() if is_causal else counts

    def coverage(self, seq: int) -> float:
        """The fraction of (position, head) pairs that at least one branch serves; 1.0 for ``seq == 0``."""
        if seq == 0:
            return 1.0
        position = torch.arange(seq)
        served = 0
        for head in range(self.num_heads):
            by_any = torch.zeros(seq, dtype=torch.bool)
            for w, r in self.branches:
                by_any |= (position % w) % r == head % r
            served += int(by_any.sum())
        return served / (seq * self.num_heads)

    def flops(
        self,
        batch: int,
        seq: int,
        head_dim: int,
        is_causal: bool = False,
        query_positions: Tensor | None = None,
    ) -> int:
        """Floating-point operations of the forward: ``4 * head_dim`` per offered (query, key) pair.

        The backward costs 2.5 times as much. Without ``positions``: membership is by index.

        Args:
            batch: b.
            seq: n.
            head_dim: d.
            is_causal: count the allowed pairs only.
            query_positions: int64 ``[m]``, count these queries only (a rank's share); default all.
        """
        pairs = 0
        for w, r in self.branches:
            full, tail = divmod(seq, w)
            for head in range(self.num_heads):
                offset = head % r
                if query_positions is not None:
                    pairs += _pairs_of(query_positions, w, r, offset, seq, is_causal)
                    continue
                for count, length in ((full, w), (1, tail)):
                    rows = num_rows(length, r, offset)
                    pairs += count * (rows * (rows + 1) // 2 if is_causal else rows * rows)
        return 4 * head_dim * batch * pairs

    def remote_keys(
        self,
        rank: int,
        world_size: int,
        seq: int,
        sharding: Sharding = "contiguous",
        is_causal: bool = False,
    ) -> list[list[Tensor]]:
        """The positions whose keys and values a rank of a ring must receive, by branch and key/value head.

        They lie outside its shard, in a segment in which it holds a query, and belong to the branch for a
        query head that uses the key/value head; causal also: not after its last query in that segment.
        Times ``2 * batch * head_dim``, their number is the number of elements received.

        Args:
            rank, world_size: rank in the ring, and its size P.
            seq: n, of the whole sequence.
            sharding: see :func:`~dilated_attention_pytorch.ring_attention.shard_sequence`.
            is_causal: no query sees a later token.

        Returns:
            ``result[branch][kv_head]``: int64 positions, ascending.
        """
        held = torch.cat([torch.arange(*chunk) for chunk in chunks_of(rank, world_size, seq, sharding)])
        position = torch.arange(seq)
        remote = torch.ones(seq, dtype=torch.bool)
        remote[held] = False
        kv_heads = self.num_heads if self.num_kv_heads is None else self.num_kv_heads
        group = self.num_heads // kv_heads
        result = []
        for w, r in self.branches:
            last_query = torch.full((-(-seq // w),), -1).scatter_reduce(0, held // w, held, "amax")
            last_query = last_query[position // w]
            needed = remote & (position <= last_query if is_causal else last_query >= 0)
            offset = (position % w) % r
            used = [torch.tensor([j % r for j in range(c * group, (c + 1) * group)]) for c in range(kv_heads)]
            result.append([position[needed & torch.isin(offset, offsets)] for offsets in used])
        return result


def num_rows(length: int, rate: int, offset: int) -> int:
    """How many of ``length`` positions belong to ``offset``: the size of ``range(offset, length, rate)``."""
    return len(range(offset, length, rate))


def _pairs_of(queries: Tensor, w: int, r: int, offset: int, seq: int, is_causal: bool) -> int:
    inside = queries[(queries % w) % r == offset]
    if is_causal:
        return int(((inside % w) // r + 1).sum())
    length = (seq - inside // w * w).clamp(max=w)
    return int(((length - offset + r - 1) // r).sum())


@cache
def _warn_of_gaps(segments: tuple[int, ...], rates: tuple[int, ...], heads: int) -> None:
    """Cached, to warn once of each pattern."""
    # In plain Python: it may run under a default device, or in a mode, where tensors have no values.
    branches = tuple(zip(segments, rates, strict=True))
    seq = min(max(segments), 1024)
    served = sum(any((p % w) % r == j % r for w, r in branches) for j in range(heads) for p in range(seq)) / (
        seq * heads
    )
    warnings.warn(
        f"The pattern serves only {100 * served:.3g} % of the (token, head) pairs (coverage {served:.3g}), "
        f"the output of the others is 0: segment_lengths={list(segments)}, dilation_rates={list(rates)}, "
        f"num_heads={heads}. A branch with dilation rate 1 serves all",
        stacklevel=4,
    )
