"""Draws docs/ring_attention.png from the definition: ``python docs/draw_ring.py``."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch

from dilated_attention_pytorch import DilatedPattern
from dilated_attention_pytorch.core.sharding import chunks_of

SEQ, SIZE, RANK = 64, 4, 1
SEGMENTS, RATES = (8, 32, 64), (1, 2, 4)
RANK_COLORS = ("#4477aa", "#ee6677", "#228833", "#ccbb44")


def draw_keys(axes: plt.Axes) -> None:
    """What rank 1 has, and what it must receive, by branch, for head 0."""
    pattern = DilatedPattern(SEGMENTS, RATES, 1)
    owner = {p: rank for rank in range(SIZE) for p in range(*chunks_of(rank, SIZE, SEQ, "contiguous")[0])}
    remote = pattern.remote_keys(RANK, SIZE, SEQ)
    rows = len(SEGMENTS)
    for p in range(SEQ):
        axes.add_patch(plt.Rectangle((p, rows + 0.4), 1, 0.8, color=RANK_COLORS[owner[p]], lw=0))
    for number, (w, r) in enumerate(pattern.branches):
        y = rows - 1 - number
        received = set(remote[number][0].tolist())
        for p in range(SEQ):
            member = (p % w) % r == 0
            if p in received:
                color = RANK_COLORS[owner[p]]
            elif owner[p] == RANK and member:
                color = "#ee6677"
            else:
                color = "#eeeeee"
            axes.add_patch(plt.Rectangle((p + 0.08, y + 0.1), 0.84, 0.8, color=color, lw=0))
        for start in range(0, SEQ, w):
            length = min(w, SEQ - start)
            axes.add_patch(plt.Rectangle((start, y + 0.02), length, 0.96, fill=False, ec="black", lw=1))
        axes.text(-1, y + 0.5, f"w = {w}, r = {r}\nreceives {len(received)} keys", ha="right", va="center")
    axes.text(-1, rows + 0.8, "held by rank", ha="right", va="center")
    for rank in range(SIZE):
        axes.text((rank + 0.5) * SEQ / SIZE, rows + 0.8, str(rank), ha="center", va="center", color="white")
    axes.set(xlim=(-0.5, SEQ + 0.5), ylim=(-0.1, rows + 1.3), title="What rank 1 computes with (head 0)")
    axes.axis("off")


def draw_work(axes: plt.Axes) -> None:
    """Causal work of each rank in both layouts."""
    pattern = DilatedPattern((SEQ,), (1,), 1)
    for number, sharding in enumerate(("contiguous", "zigzag")):
        work = []
        for rank in range(SIZE):
            held = torch.cat([torch.arange(*chunk) for chunk in chunks_of(rank, SIZE, SEQ, sharding)])
            work.append(pattern.flops(1, SEQ, 1, is_causal=True, query_positions=held) / 4)
        x = [rank + 0.4 * number for rank in range(SIZE)]
        axes.bar(x, work, 0.36, label=sharding, color=("#888888", "#4477aa")[number])
    axes.set_xticks([rank + 0.2 for rank in range(SIZE)], [f"rank {rank}" for rank in range(SIZE)])
    axes.set(title=f"Causal, one segment of {SEQ}:\n(query, key) pairs of each rank")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)


figure, panels = plt.subplots(1, 2, figsize=(11, 3), width_ratios=(2.6, 1), layout="constrained")
draw_keys(panels[0])
draw_work(panels[1])
figure.savefig(Path(__file__).with_name("ring_attention.png"), dpi=110)
