"""Buffers of the pool against new ones: getting one, writing it all, giving it back.

On CPU a new large allocation gets its pages from the kernel at the first write. On CUDA the competitor is
the caching allocator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch

from dilated_attention_pytorch.core.memory import UnifiedMemoryPool
from dilated_attention_pytorch.core.memory.unified_pool import STRATEGIES

from .measure import compare, progress
from .registry import Options, Table, benchmark

MIB = 1 << 20
SIZES = {"64 KiB": MIB // 16, "1 MiB": MIB, "8 MiB": 8 * MIB, "32 MiB": 32 * MIB, "64 MiB": 64 * MIB}
SIZES["256 MiB"] = 256 * MIB
MIXED = tuple(MIB + step * 37 * MIB // 23 for step in range(24))
"""24 sizes from 1 to 38 MiB, in bytes."""
MIXED_LIVE = 4
"""Buffers of these that are out at once."""
WORK = 64 * MIB
"""Bytes written in one timed call, at least: small buffers are got many times."""


@benchmark("pool", numerics=("tests/dilated_attention_pytorch/core/memory",))
def pool(options: Options) -> list[Table]:
    """Memory pool: get a buffer, write it, return it, against torch.empty."""
    cases: dict[str, Callable[[str], list[str]]] = {
        **{size: partial(_same_size, options, nbytes) for size, nbytes in SIZES.items()},
        "mixed": partial(_mixed, options),
    }
    pairs = {f"{size}, {strategy}": (size, strategy) for size in cases for strategy in STRATEGIES}
    names = options.select(pairs)
    rows = []
    for number, name in enumerate(names, 1):
        progress(f"[{number}/{len(names)}] {name}")
        size, strategy = pairs[name]
        rows.append([name, *cases[size](strategy)])
        progress("  " + ", ".join(rows[-1][1:]))
    return [
        Table(
            title="Get, write, return / torch.empty and write",
            columns=("case", "us", "torch.empty us", "ratio", "95 % interval", "pairs"),
            rows=rows,
            note="Microseconds for one buffer of float32. Mixed: 24 sizes from 1 to 38 MiB in turn, 4 out at "
            "once. A ratio is one of medians over interleaved pairs, its interval a paired bootstrap.",
        )
    ]


def _same_size(options: Options, nbytes: int, strategy: str) -> list[str]:
    return _against_empty(options, strategy, [nbytes] * max(1, WORK // nbytes), live=1)


def _mixed(options: Options, strategy: str) -> list[str]:
    return _against_empty(options, strategy, MIXED, live=MIXED_LIVE)


def _against_empty(options: Options, strategy: str, sizes: Sequence[int], live: int) -> list[str]:
    lender = UnifiedMemoryPool(strategy)
    elements = [nbytes // 4 for nbytes in sizes]

    def ours() -> None:
        out = []
        for count in elements:
            out.append(lender.get_buffer(count, torch.float32, options.device).fill_(1.0))
            if len(out) == live:
                lender.return_buffer(out.pop(0))
        for buffer in out:
            lender.return_buffer(buffer)

    def new() -> None:
        out = []
        for count in elements:
            out.append(torch.empty(count, dtype=torch.float32, device=options.device).fill_(1.0))
            if len(out) == live:
                out.pop(0)

    for _ in range(3):  # the adaptive strategy chooses by what it has seen
        ours()
    ratio = compare(ours, new, options)
    unit = 1e6 / len(elements)
    return [
        f"{ratio.first_s * unit:.1f}",
        f"{ratio.second_s * unit:.1f}",
        f"{ratio.value:.3f}",
        f"{ratio.low:.3f} to {ratio.high:.3f}",
        str(ratio.pairs),
    ]
