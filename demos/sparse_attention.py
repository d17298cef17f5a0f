"""Causal attention to all keys, a window, chosen blocks, or by dilation: time, memory, what each can learn.

    python demos/sparse_attention.py [--quick] [--output FOLDER]

1. Each kind is compared with a dense softmax under its own mask in float64: status 1 if one is wrong.
2. Time and peak memory of a forward call against the length, where the sparse kinds offer about equally many
   (query, key) pairs, and with 512 keys a query. The gain is dense / kind, in medians of interleaved calls.
3. Models of two layers, from the same parameters and on the same sequences, learn to copy a word from afar
   and to recall 16 pairs. The picture shows their accuracy against the distance, a JSON has all figures.

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
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.nn.functional import cross_entropy
from torch.nn.functional import scaled_dot_product_attention as sdpa

from dilated_attention_pytorch import DilatedPattern, LongNetConfig, LongNetLM, dilated_attention
from kernel_pytorch.advice import interleave, median_ratio, peak_memory

HEADS, HEAD_DIM, BLOCK, WORDS, BATCH, BINS, SEED = 4, 64, 128, 16, 32, 8, 0
WINDOW, CHOSEN = 512, 3  # 512 keys a query: as Longformer (arXiv:2004.05150), BigBird (arXiv:2007.14062)
TASKS = {"copying": 1, "recall": 16}  # pairs of a key and a word in a sequence
STEPS = {"copying": 800, "recall": 1600}  # of training
LIMIT = 16 * torch.finfo(torch.float32).eps  # relative RMS error allowed
Seen = Callable[[Tensor, Tensor], Tensor]
"""Queries ``[q, 1]``, keys ``[1, n]`` -> how often each key is offered, ``[q, n]`` or ``[h, q, n]``."""
flex = cache(partial(torch.compile, flex_attention, dynamic=True))


class Kind(NamedTuple):
    """One kind of attention at one length."""

    name: str
    seen: Seen
    attend: Callable[..., Tensor]
    """Query, key, value ``[b, n, h, d]`` -> ``[b, n, h, d]``."""
    pairs: int
    """(query, key) pairs that all heads offer."""


def heads_first(attend: Callable[..., Tensor], *qkv: Tensor, **options: Any) -> Tensor:
    """Call what takes and gives ``[b, h, n, d]``."""
    return attend(*(x.transpose(1, 2) for x in qkv), **options).transpose(1, 2)


def block_mask(seen: Seen, n: int) -> BlockMask:
    """Of a pattern that has a whole block if it has the block's nearest and farthest pair."""
    query = torch.arange(0, n, BLOCK)[:, None]
    key, last, lists = query.T, BLOCK - 1, []
    some = seen(query, torch.minimum(key + last, query)) & (key <= query)
    full = seen(query, key + last) & seen(query + last, key)
    for blocks in ((some & ~full).int(), full.int()):
        order = blocks.argsort(dim=1, descending=True, stable=True)
        lists += [blocks.sum(1).int()[None, None], order.int()[None, None]]
    return BlockMask.from_kv_blocks(*lists, BLOCK, lambda b, h, q, k: seen(q, k), (n, n))


def make_kinds(n: int, *, equal: bool = True, scale: int = 1, training: bool = False) -> list[Kind]:
    """Dense, window, blocks and dilated; ``scale`` divides segments, window and blocks.

    Window and blocks offer about as many pairs as dilation does (``equal``), or 512 keys a query. They are
    FlexAttention, or masks for ``training``: FlexAttention has no backward on CPUs.
    """
    segments, rates = tuple(w // scale for w in LongNetConfig.segment_lengths), LongNetConfig.dilation_rates
    pairs = DilatedPattern(segments, rates, HEADS).flops(1, n, 1, is_causal=True) // 4
    at, block = torch.arange(n), torch.tensor(BLOCK // scale)
    window, chosen = torch.tensor(WINDOW // scale), torch.tensor(CHOSEN)  # one kernel serves all values
    by_window = HEADS * (n - at).cumsum(0)  # pairs with a window of 1, 2, ...
    by_chosen = HEADS * (at % block + 1 + block * torch.minimum(at // block, at[1:9, None])).sum(1)
    if equal:
        window, chosen = ((of - pairs).abs().argmin() + 1 for of in (by_window, by_chosen))

    def in_window(query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (query - key < window)

    def in_blocks(query: Tensor, key: Tensor) -> Tensor:
        """The own block and ``chosen`` earlier ones, spread evenly, the first among them."""
        own = query // block
        return (key <= query) & ((own - key // block) * chosen % own.clamp(min=1) < chosen)

    def by_dilation(query: Tensor, key: Tensor) -> Tensor:
        """Once for each branch that keeps both for the head, in one segment."""
        head, counts = torch.arange(HEADS)[:, None, None], torch.tensor(0)
        for w, r in zip(segments, rates, strict=True):
            kept = (query % w % r == head % r) & (key % w % r == head % r) & (query // w == key // w)
            counts = counts + (kept & (key <= query))
        return counts

    def form(seen: Seen) -> Callable[..., Tensor]:
        if training:
            return partial(heads_first, sdpa, attn_mask=seen(at[:, None], at[None]))
        mask = block_mask(seen, n)
        return lambda *qkv: heads_first(flex(), *qkv, block_mask=mask)

    dilated = partial(dilated_attention, segment_lengths=segments, dilation_rates=rates, is_causal=True)
    return [
        Kind("dense", torch.ge, partial(heads_first, sdpa, is_causal=True), int(by_window[-1])),
        Kind("window", in_window, form(in_window), int(by_window[: int(window)][-1])),
        Kind("blocks", in_blocks, form(in_blocks), int(by_chosen[chosen - 1])),
        Kind("dilated", by_dilation, dilated, pairs),
    ]


def error_of(kind: Kind, n: int, *, gradients: bool = False) -> float:
    """The worst relative RMS error against float64, of the outputs of 128 queries, and of gradients."""
    rows = torch.randperm(n)[:128]
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
    return max(float((f - r).detach().norm() / r.detach().norm()) for f, r in zip(found, right, strict=True))


def measure(n: int, *, equal: bool) -> list[dict[str, Any]]:
    """Time and peak memory of a forward call of each sparse kind, timed in turn with dense."""
    (dense, *sparse), cpu, figures = make_kinds(n, equal=equal), torch.device("cpu"), []
    qkv = torch.randn(3, 1, n, HEADS, HEAD_DIM).unbind()
    for kind in sparse:
        calls = [partial(k.attend, *qkv) for k in (dense, kind)]
        ratio = median_ratio(*interleave(*calls, pairs=11, max_seconds=30, device=cpu))
        peaks = [peak_memory(call, cpu) for call in calls]
        figure = {"kind": kind.name, "length": n, "equal": equal, "offered": [dense.pairs, kind.pairs]}
        figures.append({**figure, "gain": ratio.value, **asdict(ratio), "peak_bytes": peaks})
        print(
            f"{n:6} {kind.name:8}{kind.pairs / HEADS / n:5.0f} keys a query{1e3 * ratio.second_s:9.1f} ms"
            f"{peaks[1] / 1e6:7.1f} MB; dense{1e3 * ratio.first_s:9.1f} ms{peaks[0] / 1e6:7.1f} MB; "
            f"gain {ratio.value:.2f} ({ratio.low:.2f} to {ratio.high:.2f}, {ratio.pairs} pairs)",
            flush=True,
        )
    return figures


def draw_questions(n: int, pairs: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Tokens ``[b, n]``; positions of questions, their answers, and how far back those are, ``[b, pairs]``.

    Among distractors (32 to 63) stands a token for each pair of a key and a word (64 to 319), and later one
    (16 to 31) that asks for the word (0 to 15) of the key.
    """
    places = torch.rand(BATCH, n, generator=generator).argsort(1)[:, : 2 * pairs].view(BATCH, pairs, 2)
    pair, at = places.sort(-1).values.unbind(-1)
    key, answer = torch.arange(pairs), torch.randint(WORDS, (BATCH, pairs), generator=generator)
    tokens = torch.randint(32, 64, (BATCH, n), generator=generator)
    tokens.scatter_(1, pair, 64 + WORDS * key + answer).scatter_(1, at, (16 + key).expand(BATCH, -1))
    return tokens, at, answer, at - pair


def learn(task: str, kind: Kind, n: int, steps: int, exams: int) -> dict[str, Any]:
    """Train two layers; then count questions and right answers, ``[layers needed: 1, 2, more][distance]``."""
    torch.manual_seed(SEED)
    shape = LongNetConfig(vocab_size=320, embed_dim=64, num_layers=2, num_heads=HEADS, ffn_dim=128)
    model, generator, every = LongNetLM(shape), torch.Generator().manual_seed(SEED), torch.arange(n)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    one = kind.seen(every[:, None], every[None]).view(-1, n, n).any(0)
    layers, counts = 2 - one.int() - (one.float() @ one.float() > 0).int(), torch.zeros(2, 3, BINS)
    for step in range(steps + exams):
        tokens, at, answer, back = draw_questions(n, TASKS[task], generator)
        with torch.set_grad_enabled(step < steps):
            logits = model(tokens, attend=lambda _, *qkv: kind.attend(*qkv)).take_along_dim(at[..., None], 1)
        if step < steps:
            optimizer.zero_grad()
            cross_entropy(logits.flatten(0, 1), answer.flatten()).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            continue
        group = layers[at, at - back], back * BINS // n
        for count, which in zip(counts, (answer >= 0, logits.argmax(-1) == answer), strict=True):
            count.index_put_(group, which.float(), accumulate=True)
    total, right = counts.sum((1, 2)).tolist()
    parts = zip(("one layer", "two layers", "more"), *counts.sum(2).tolist(), strict=True)
    shares = (f", {name} {known / asked:.1%} of {asked / total:.0%}" for name, asked, known in parts if asked)
    print(f"{task:8}{kind.name:8}{right / total:6.1%} right", *shares, sep="", flush=True)
    score = {"task": task, "kind": kind.name, "steps": steps, "accuracy": right / total}
    score |= {"error": math.sqrt(right * (total - right) / total**3)}
    return score | {"asked": counts[0].tolist(), "right": counts[1].tolist()}


def draw(scores: list[dict[str, Any]], path: Path) -> None:
    """Accuracy against distance, a panel a task."""
    panels = Figure(figsize=(10, 4)).subplots(1, 2, sharey=True)
    for score in scores:
        panel = panels[list(TASKS).index(score["task"])]
        asked, right = (torch.tensor(score[name]).sum(0) for name in ("asked", "right"))
        panel.plot((torch.arange(BINS) + 0.5) / BINS, right / asked, marker="o", label=score["kind"])
        panel.set(title=score["task"], xlabel="distance / length", ylabel="right answers", ylim=(0, 1.05))
    panels[0].legend()
    panels[0].figure.savefig(path, bbox_inches="tight")


def main() -> None:
    """Run all; a wrong result ends it with status 1."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="two lengths, and too few steps to learn")
    parser.add_argument("--output", type=Path, default=Path(), metavar="FOLDER", help="for JSON and picture")
    args = parser.parse_args()
    if args.output.exists() and not args.output.is_dir():
        parser.error(f"--output {args.output} is not a folder")
    args.output.mkdir(parents=True, exist_ok=True)
    sizes = [(1024 << i, equal) for equal in (True, False) for i in range(2 if args.quick else 6)]
    n, scale, steps, exams = (128, 64, 5, 5) if args.quick else (256, 32, None, 256)
    small = make_kinds(n, scale=scale, training=True)
    kinds = [(kind, size) for size, equal in [(999, True), *sizes] for kind in make_kinds(size, equal=equal)]
    for kind, size in [*kinds, *((kind, n) for kind in small)]:
        if not (error := error_of(kind, size, gradients=kind in small)) <= LIMIT:
            sys.exit(f"wrong: {kind.name}, {size} tokens: error {error:.1e}")
    timings = [timing for size, equal in sizes for timing in measure(size, equal=equal)]
    scores = [learn(task, kind, n, steps or STEPS[task], exams) for task in TASKS for kind in small]
    for task in TASKS:
        *others, own = (score for score in scores if score["task"] == task)
        for other in others:
            gap, error = own["accuracy"] - other["accuracy"], math.hypot(own["error"], other["error"])
            word = "level with" if abs(gap) <= 2 * error else "ahead of" if gap > 0 else "behind"
            print(f"{task}: dilated is {word} {other['kind']}, {100 * gap:+.1f} points")
    record = {"machine": platform.machine(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    record |= {"date": time.strftime("%Y-%m-%d"), "seed": SEED, "command": " ".join(sys.argv)}
    path, figures = args.output / "sparse_attention.json", {"timings": timings, "length": n, "scores": scores}
    path.write_text(json.dumps({**record, **figures}, indent=1))
    draw(scores, path.with_suffix(".png"))
    print(", ".join(f"{name} {value}" for name, value in record.items()), f"; written: {path}, .png", sep="")


if __name__ == "__main__":
    main()
