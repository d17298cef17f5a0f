"""Causal attention to all keys, a window, chosen blocks, or by dilation: its time, its memory, what it can learn.

    python demos/sparse_attention.py [--quick] [--output FOLDER]

1. Each kind is compared with a dense softmax under its own mask in float64: status 1 if one is wrong.
2. Time (medians of interleaved pairs, 95 % intervals) and peak memory of a forward call against the length, where
   the sparse kinds offer about equally many (query, key) pairs, and at settings of published models.
3. Models of two layers, from the same parameters and on the same sequences, learn to copy a token from a distance
   and to recall 16 pairs; the picture shows their accuracy against the distance.

Letters: b batch, n sequence, h heads, d head dimension, q queries, w segment length, r dilation rate.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from dilated_attention_pytorch import DilatedPattern, LongNetConfig, LongNetLM, dilated_attention
from kernel_pytorch.advice import interleave, median_ratio, peak_memory

HEADS, HEAD_DIM, BLOCK, SEED = 4, 64, 128, 0
WINDOW, CHOSEN = 512, 3
"""512 keys a query: as Longformer (arXiv:2004.05150) and BigBird (arXiv:2007.14062)."""
WORDS, PAIRS, BATCH, EXAMS, BINS = 32, 16, 32, 128, 8
LIMIT = 16 * torch.finfo(torch.float32).eps
"""Relative RMS error allowed."""
flex = torch.compile(flex_attention, dynamic=True)


class Kind(NamedTuple):
    """One kind of attention at one length."""

    name: str
    seen: Callable[[Tensor, Tensor], Tensor]
    """Queries ``[q, 1]``, keys ``[1, n]`` -> how often each is offered, ``[q, n]`` or ``[h, q, n]``."""
    attend: Callable[..., Tensor]
    """Query, key, value ``[b, n, h, d]`` -> ``[b, n, h, d]``."""
    pairs: int
    """(query, key) pairs that all heads offer."""


def heads_first(attend: Callable[..., Tensor], *qkv: Tensor, **options: Any) -> Tensor:
    """Call what takes and gives ``[b, h, n, d]``."""
    return attend(*(x.transpose(1, 2) for x in qkv), **options).transpose(1, 2)


def block_mask(seen: Callable[[Tensor, Tensor], Tensor], n: int) -> BlockMask:
    """Of a pattern that has a whole block if it has the block's nearest and farthest pair."""
    query = torch.arange(0, n, BLOCK)[:, None]
    key, last = query.T, BLOCK - 1
    some = seen(query, torch.minimum(key + last, query)) & (key <= query)
    full = seen(query, key + last) & seen(query + last, key)
    lists = []
    for blocks in ((some & ~full).int(), full.int()):
        order = blocks.argsort(dim=1, descending=True, stable=True)
        lists += [blocks.sum(1).int()[None, None], order.int()[None, None]]
    mod = {"mask_mod": lambda b, h, q, k: seen(q, k), "seq_lengths": (n, n)}
    return BlockMask.from_kv_blocks(*lists, BLOCK_SIZE=BLOCK, **mod)


def make_kinds(n: int, *, equal: bool = True, scale: int = 1, training: bool = False) -> list[Kind]:
    """Dense, window, blocks and dilated.

    Args:
        equal: window and blocks offer about as many pairs as dilation, else 512 keys a query.
        scale: divides segments, window and blocks.
        training: a masked form of window and blocks: FlexAttention has no backward on CPUs.
    """
    segments, rates = [w // scale for w in LongNetConfig.segment_lengths], LongNetConfig.dilation_rates
    at, block, window, chosen = torch.arange(n), BLOCK // scale, WINDOW // scale, CHOSEN
    pairs = DilatedPattern(tuple(segments), rates, HEADS).flops(1, n, 1, is_causal=True) // 4

    def window_pairs(window: int) -> int:
        return HEADS * int((at + 1).clamp(max=window).sum())

    def block_pairs(chosen: int) -> int:
        return HEADS * int((at % block + 1 + block * (at // block).clamp(max=chosen)).sum())

    if equal:
        window = min(range(1, n + 1), key=lambda w: abs(window_pairs(w) - pairs))
        chosen = min(range(1, 9), key=lambda c: abs(block_pairs(c) - pairs))
    # Tensors, so that one compiled kernel serves every number.
    of_window, of_chosen, head = (
        torch.tensor(window),
        torch.tensor(chosen),
        torch.arange(HEADS)[:, None, None],
    )

    def in_window(query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (query - key < of_window)

    def in_blocks(query: Tensor, key: Tensor) -> Tensor:
        """The own block and ``chosen`` earlier ones, spread evenly, the first among them."""
        own = query // block
        return (key <= query) & ((own - key // block) * of_chosen % own.clamp(min=1) < of_chosen)

    def by_dilation(query: Tensor, key: Tensor) -> Tensor:
        """Once for each branch that keeps both for the head, in one segment."""
        kept = [
            (query % w % r == head % r) & (key % w % r == head % r) & (query // w == key // w)
            for w, r in zip(segments, rates, strict=True)
        ]
        return torch.stack(kept).sum(0) * (key <= query)

    def form(seen: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
        if training:
            mask = seen(at[:, None], at[None])
            return partial(heads_first, F.scaled_dot_product_attention, attn_mask=mask)
        return partial(heads_first, flex, block_mask=block_mask(seen, n))

    dense = partial(heads_first, F.scaled_dot_product_attention, is_causal=True)
    dilated = partial(dilated_attention, segment_lengths=segments, dilation_rates=rates, is_causal=True)
    return [
        Kind("dense", torch.ge, dense, window_pairs(n)),
        Kind("window", in_window, form(in_window), window_pairs(window)),
        Kind("blocks", in_blocks, form(in_blocks), block_pairs(chosen)),
        Kind("dilated", by_dilation, dilated, pairs),
    ]


def error_of(kind: Kind, n: int, *, gradients: bool = False) -> float:
    """The worst relative RMS error against float64, of the outputs of at most 333 queries, and of gradients."""
    rows = torch.randperm(n)[:333]
    single = [x.requires_grad_(gradients) for x in torch.randn(3, 1, n, HEADS, HEAD_DIM).unbind()]
    q, k, v = double = [x.detach().double().requires_grad_(gradients) for x in single]
    counts = kind.seen(rows[:, None], torch.arange(n)[None]).double()
    scores = torch.einsum("bqhd,bkhd->bhqk", q[:, rows], k) / math.sqrt(HEAD_DIM) + counts.log()
    right = [torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v)]
    found = [kind.attend(*single)[:, rows]]
    if gradients:
        weight = torch.randn_like(found[0])
        right += torch.autograd.grad((right[0] * weight).sum(), double)
        found += torch.autograd.grad((found[0] * weight).sum(), single)
    return max(float((f - r).norm() / r.norm()) for f, r in zip(found, right, strict=True))


def measure(n: int, *, equal: bool, pairs: int, max_seconds: float) -> list[dict[str, Any]]:
    """Time and peak memory of a forward call of each sparse kind, timed in turn with dense."""
    (dense, *sparse), cpu, figures = make_kinds(n, equal=equal), torch.device("cpu"), []
    qkv = torch.randn(3, 1, n, HEADS, HEAD_DIM).unbind()
    for kind in sparse:
        calls = [partial(k.attend, *qkv) for k in (dense, kind)]
        ratio = median_ratio(*interleave(*calls, pairs=pairs, max_seconds=max_seconds, device=cpu))
        figure = {"kind": kind.name, "length": n, "equal": equal, "offered": [dense.pairs, kind.pairs]}
        figure |= {"gain": ratio.value, **asdict(ratio), "bytes": [peak_memory(call, cpu) for call in calls]}
        figures.append(figure)
        print(
            f"{n:6} tokens {kind.name:8}{kind.pairs / HEADS / n:6.0f} keys a query {1e3 * ratio.second_s:8.1f} ms "
            f"{figure['bytes'][1] / 1e6:6.1f} MB   dense {1e3 * ratio.first_s:8.1f} ms "
            f"{figure['bytes'][0] / 1e6:6.1f} MB   {ratio.value:.2f} ({ratio.low:.2f} to {ratio.high:.2f})",
            flush=True,
        )
    return figures


def copying(n: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Tokens ``[b, n]``; positions of questions, answers, and the distances to those, ``[b, 1]``.

    One token is marked, a later one asks for it; every distance is equally likely.
    """
    back = torch.randint(1, n, (BATCH, 1), generator=generator)
    at = back + (torch.rand(BATCH, 1, generator=generator) * (n - back)).long()
    tokens = torch.randint(WORDS, (BATCH, n), generator=generator)
    answer = tokens.gather(1, at - back)
    return tokens.scatter(1, at - back, answer + WORDS).scatter(1, at, 2 * WORDS), at, answer, back


def recall(n: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    """As :func:`copying`, ``[b, 16]``: keys with a value behind each, and later each key again, as a question."""
    slots = torch.rand(BATCH, n // 2, generator=generator).argsort(1)[:, : 2 * PAIRS].view(BATCH, PAIRS, 2)
    pair, at = (2 * slots.sort(-1).values).unbind(-1)
    key = torch.rand(BATCH, WORDS, generator=generator).argsort(1)[:, :PAIRS]
    value = torch.randint(WORDS, 2 * WORDS, (BATCH, PAIRS), generator=generator)
    tokens = torch.randint(2 * WORDS, 3 * WORDS, (BATCH, n), generator=generator)
    return (
        tokens.scatter(1, pair, key).scatter(1, pair + 1, value).scatter(1, at, key),
        at,
        value,
        at - pair - 1,
    )


def learn(task: Callable[..., tuple[Tensor, ...]], kind: Kind, n: int, steps: int) -> dict[str, Any]:
    """Train two layers; count questions and right answers, ``[layers that reach: 1, 2, none][distance]``."""
    torch.manual_seed(SEED)
    shape = LongNetConfig(vocab_size=3 * WORDS, embed_dim=64, num_layers=2, num_heads=HEADS, ffn_dim=128)
    model, generator, every = LongNetLM(shape), torch.Generator().manual_seed(SEED), torch.arange(n)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    one = kind.seen(every[:, None], every[None]).view(-1, n, n).any(0)
    layers, counts = 2 - one.int() - (one.float() @ one.float() > 0).int(), torch.zeros(2, 3, BINS)
    for step in range(steps + EXAMS):
        tokens, at, answer, back = task(n, generator)
        with torch.set_grad_enabled(step < steps):
            logits = model(tokens, attend=lambda _, *qkv: kind.attend(*qkv)).take_along_dim(at[..., None], 1)
        if step >= steps:
            group = layers[at, at - back], back * BINS // n
            counts[0].index_put_(group, torch.ones(at.shape), accumulate=True)
            counts[1].index_put_(group, (logits.argmax(-1) == answer).float(), accumulate=True)
            continue
        optimizer.zero_grad()
        F.cross_entropy(logits.flatten(0, 1), answer.flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    total, right = counts.sum((1, 2)).tolist()
    parts = zip(("one layer reaches", "two", "none"), *counts.sum(2).tolist(), strict=True)
    found = "; ".join(
        f"{name} {a / total:.0%}" + (f", right {r / a:.0%}" if a else "") for name, a, r in parts
    )
    print(f"{task.__name__} {kind.name}: right {right / total:.1%}. Of the questions {found}", flush=True)
    score = {
        "task": task.__name__,
        "kind": kind.name,
        "asked": counts[0].tolist(),
        "right": counts[1].tolist(),
    }
    return score | {"accuracy": right / total, "error": math.sqrt(right * (total - right) / total**3)}


def draw(timings: list[dict[str, Any]], scores: list[dict[str, Any]], path: Path) -> None:
    """Accuracy against distance, a panel a task, and time against length."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    page, panels = pyplot.subplots(1, 3, figsize=(15, 4))
    for score in scores:
        panel, (asked, right) = (
            panels[score["task"] == "recall"],
            (torch.tensor(score[x]).sum(0) for x in ("asked", "right")),
        )
        panel.plot((torch.arange(BINS) + 0.5) / BINS, right / asked, marker="o", label=score["kind"])
        panel.set(title=score["task"], xlabel="distance / length", ylabel="right answers", ylim=(0, 1.05))
    for kind, of, seconds in (
        ("dense", "window", "first_s"),
        *((k, k, "second_s") for k in ("window", "blocks", "dilated")),
    ):
        line = [(t["length"], t[seconds]) for t in timings if t["equal"] and t["kind"] == of]
        panels[2].loglog(*zip(*line, strict=True), marker="o", label=kind)
    panels[2].set(title="forward call, equal pairs", xlabel="tokens", ylabel="seconds")
    panels[2].legend()
    page.savefig(path, bbox_inches="tight")
    pyplot.close(page)


def conclude(timings: list[dict[str, Any]], scores: list[dict[str, Any]]) -> None:
    """Say where dilated wins and loses: by more than two standard errors of the questions."""
    for task in ("copying", "recall"):
        *others, own = (score for score in scores if score["task"] == task)
        for other in others:
            gap, error = own["accuracy"] - other["accuracy"], math.hypot(own["error"], other["error"])
            word = "level with" if abs(gap) <= 2 * error else "ahead of" if gap > 0 else "behind"
            print(f"{task}: dilated is {word} {other['kind']} ({100 * gap:+.1f} points)")


def main() -> int:
    """Run all; 1 if a result was wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="two lengths, and too few steps to learn")
    parser.add_argument("--output", type=Path, default=Path(), metavar="FOLDER", help="for JSON and picture")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED)
    lengths = [1024 << i for i in range(2 if args.quick else 6)]
    size, scale, steps = (128, 64, (9, 9)) if args.quick else (256, 32, (400, 1500))
    small = make_kinds(size, scale=scale, training=True)
    checks = [(k, n, False) for n in (999, *lengths) for e in (True, False) for k in make_kinds(n, equal=e)]
    wrong = [
        f"wrong: {kind.name}, {n} tokens: error {error:.1e}"
        for kind, n, gradients in checks + [(kind, size, True) for kind in small]
        if not (error := error_of(kind, n, gradients=gradients)) <= LIMIT
    ]
    if wrong:
        print(*wrong, sep="\n", file=sys.stderr)
        return 1
    print(f"all within {LIMIT:.1e} of float64")
    timings = [
        f for e in (True, False) for n in lengths for f in measure(n, equal=e, pairs=11, max_seconds=30)
    ]
    scores = [
        learn(t, kind, size, s) for t, s in zip((copying, recall), steps, strict=True) for kind in small
    ]
    conclude(timings, scores)
    record = {"machine": platform.machine(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    record |= {"date": time.strftime("%Y-%m-%d"), "command": sys.argv, "seed": SEED, "length": size}
    path = args.output / "sparse_attention.json"
    path.write_text(json.dumps({**record, "steps": steps, "timings": timings, "scores": scores}, indent=1))
    draw(timings, scores, path.with_suffix(".png"))
    print(
        f"{record['machine']}, {record['threads']} threads, torch {record['torch']}; written: {path}, {path.stem}.png"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
