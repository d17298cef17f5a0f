"""Dilated attention around a ring: what travels, who works how much, and how far communication hides.

Letters: P ranks, n sequence, h heads, d head dimension, w segment length, r dilation rate.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import torch

from dilated_attention_pytorch.core.pattern import DilatedPattern
from dilated_attention_pytorch.core.sharding import Sharding, chunks_of

from .links import Links, why_no_links
from .measure import progress
from .registry import Options, Table, benchmark
from .ring_step import Step

HEADS, HEAD_DIM = 8, 64
RATES = (1, 2, 4)
SHARDINGS: tuple[Sharding, ...] = ("contiguous", "zigzag")
Row = list[str]


@benchmark(
    "ring",
    numerics=(
        "tests/dilated_attention_pytorch/ring_attention/test_ring.py",
        "tests/dilated_attention_pytorch/ring_attention/test_traffic.py",
    ),
)
def ring(options: Options) -> list[Table]:
    """Dilated attention around a ring: traffic, balance, and the overlap of communication."""
    sections: dict[str, Callable[[], list[Table]]] = {
        "traffic": lambda: [_traffic()],
        "balance": lambda: [_balance()],
        "steps": lambda: _steps(options),
    }
    tables = []
    for name in options.select(sections):
        progress(name)
        tables += sections[name]()
    return tables


def _traffic() -> Table:
    rows = []
    patterns: dict[str, list[tuple[int, tuple[int, ...]]]] = {
        "n grows": [(2**k, (8192, 32768, 131072)) for k in (17, 18, 20)],
        "w grows": [(2**20, tuple(scale * w for w in (8192, 32768, 131072))) for scale in (1, 4, 8)],
    }
    for (name, cases), kv_heads in product(patterns.items(), (8, 2)):
        for seq, segments in cases:
            pattern = DilatedPattern(segments, RATES, HEADS, num_kv_heads=kv_heads)
            cells = []
            for size in (2, 4, 8):
                received = _worst_mebibytes(pattern, size, seq)
                everything = 2 * HEAD_DIM * 2 * kv_heads * (seq - seq // size) / 2**20
                cells.append(f"{received:.1f} ({received / everything:.1%})")
            rows.append([name, f"{seq:,}", ", ".join(f"{w:,}" for w in segments), str(kv_heads), *cells])
    return Table(
        title="MiB that a rank receives in a forward",
        columns=("case", "n", "w", "K/V heads", "P = 2", "P = 4", "P = 8"),
        rows=rows,
        note="The rank that receives most; contiguous, not causal, batch 1, 8 heads of 64, r = 1, 2, 4, "
        "bfloat16. In brackets: the share of what gathering all keys and values would bring.",
    )


def _worst_mebibytes(pattern: DilatedPattern, size: int, seq: int) -> float:
    most = 0
    for rank in range(size):
        keys = pattern.remote_keys(rank, size, seq)
        most = max(most, sum(len(head) for branch in keys for head in branch))
    return 2 * HEAD_DIM * most * 2 / 2**20


def _balance() -> Table:
    seq = 2**15
    rows = []
    for size in (2, 4, 8):
        for parts in (1.0, 1.5, 2.0, 3.0, 2.0 * size):
            w = int(parts * seq / (2 * size))
            pattern = DilatedPattern((w,), (1,), 1)
            cells = [f"{_imbalance(pattern, size, seq, sharding):.2f}" for sharding in SHARDINGS]
            rows.append([str(size), f"{parts / 2:g}", *cells])
    return Table(
        title="Causal work of the busiest rank / of the idlest",
        columns=("P", "w in shards", *SHARDINGS),
        rows=rows,
        note=f"One branch, r = 1, n = {seq:,}; offered pairs (`DilatedPattern.flops`).",
    )


def _imbalance(pattern: DilatedPattern, size: int, seq: int, sharding: Sharding) -> float:
    work = []
    for rank in range(size):
        positions = torch.cat([torch.arange(*chunk) for chunk in chunks_of(rank, size, seq, sharding)])
        work.append(pattern.flops(1, seq, HEAD_DIM, is_causal=True, query_positions=positions))
    return max(work) / min(work)


def _steps(options: Options) -> list[Table]:
    reason = why_no_links()
    overlap = Table(
        title="Step time / max(compute, communication)",
        columns=(
            "pass",
            "P",
            "compute ms",
            "messages ms",
            "overlapped ms",
            "/ max",
            "one by one ms",
            "/ max",
        ),
        rows=[] if reason is None else [[f"not measured: {reason}", *[""] * 7]],
        note="P processes of one thread in network namespaces, joined by veth pairs and a bridge; `tc tbf` "
        "shapes each link so that communication takes about as long as computation. One segment of 4,096 "
        "tokens, all of whose keys and values travel; float32. Medians of the slowest rank's time.",
    )
    buffers = Table(
        title="Step time with message buffers from the pool / from the allocator",
        columns=("pass", "P", "pool ms", "allocator ms", "ratio"),
        rows=[] if reason is None else [[f"not measured: {reason}", *[""] * 4]],
        note='The same, links not shaped; `memory_pool_strategy="simple"`.',
    )
    for size, backward in product((2, 4), (False, True)) if reason is None else ():
        step = Step(seq=4096, heads=HEADS, head_dim=HEAD_DIM, backward=backward)
        rounds = min(options.pairs, 9)
        with Links(size) as links:
            free = step.measure(links, rounds)
            rate = 8 * free.bytes_sent / free.seconds["compute"]
            links.shape(rate)
            first = step.measure(links, rounds=3).seconds
            links.shape(rate * first["communication"] / first["compute"])
            shaped = step.measure(links, rounds)
        name = ["forward + backward" if backward else "forward", str(size)]
        ms = {mode: 1e3 * seconds for mode, seconds in shaped.seconds.items()}
        bound = max(ms["compute"], ms["communication"])
        row = [*name, f"{ms['compute']:.0f}", f"{ms['communication']:.0f}"]
        for mode in ("overlap", "serial"):
            row += [f"{ms[mode]:.0f}", f"{ms[mode] / bound:.2f}"]
        overlap.rows.append(row)
        pooled, plain = (1e3 * free.seconds[mode] for mode in ("pooled", "overlap"))
        buffers.rows.append([*name, f"{pooled:.0f}", f"{plain:.0f}", f"{pooled / plain:.2f}"])
        progress(f"  {', '.join(row)}; pool {pooled / plain:.2f}")
    return [overlap, buffers]
