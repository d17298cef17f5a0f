"""What compressed gradients cost in loss: a small LongNet under DistributedDataParallel, with each hook."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import mean
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from dilated_attention_pytorch.models import LongNetConfig, LongNetLM
from kernel_pytorch.links.compress.hooks import register_comm_hook

from .measure import progress
from .registry import Options, Table, benchmark
from .verify import REPOSITORY

RANKS, STEPS, SEEDS = 4, 200, (0, 1, 2)
BATCH, SEQ = 2, 128
"""Sequences of a rank, and their bytes."""
MODEL = LongNetConfig(
    embed_dim=64, num_layers=2, num_heads=4, segment_lengths=(32, 128), dilation_rates=(1, 2)
)
HOOKS: dict[str, tuple[str, dict[str, Any]] | None] = {
    "plain DDP": None,
    "none": ("none", {}),
    "fp16": ("fp16", {}),
    "bf16": ("bf16", {}),
    "quantized_8bit": ("quantized_8bit", {}),
    "topk, 1 %": ("topk", {"ratio": 0.01}),
    "powersgd, rank 4": ("powersgd", {"rank": 4}),
}


@benchmark(
    "compressed-training",
    numerics=(
        "tests/kernel_pytorch/links/test_compressed_tensor.py",
        "tests/kernel_pytorch/links/test_comm_hook.py",
    ),
)
def compressed_training(options: Options) -> list[Table]:
    """Compressed gradients: loss after 200 steps of a small LongNet on 4 ranks, by method."""
    names = options.select(name for name in HOOKS if HOOKS[name] is not None)
    with tempfile.TemporaryDirectory() as folder:
        train = partial(_rank, folder=folder, names=("plain DDP", *names), text=_text())
        with ProcessPoolExecutor(RANKS, get_context("spawn")) as ranks:
            found, *_ = ranks.map(train, range(RANKS))
    plain = found["plain DDP"]["losses"]
    spread = max(plain) - min(plain)
    rows = []
    for name, result in found.items():
        gaps = [loss - other for loss, other in zip(result["losses"], plain, strict=True)]
        megabytes = result["megabytes"]
        rows.append(
            [
                name,
                *(f"{loss:.4f}" for loss in result["losses"]),
                f"{mean(gaps):+.4f}" if HOOKS[name] else "",
                ("yes" if abs(mean(gaps)) <= spread else "no") if HOOKS[name] else "",
                "not counted" if megabytes is None else f"{megabytes:.3f}",
            ]
        )
    return [
        Table(
            title=f"Held-out loss after {STEPS} steps",
            columns=("method", *(f"seed {seed}" for seed in SEEDS), "gap", "within spread", "MB a step"),
            rows=rows,
            note=f"{RANKS} ranks, {BATCH} x {SEQ} bytes of this repository's sources each, "
            f"{sum(p.numel() for p in LongNetLM(MODEL).parameters()):,} parameters, AdamW. A seed decides "
            "about initial weights and batches. Gap: mean over the seeds of the loss less that of plain DDP. "
            f"Spread: largest less smallest loss of plain DDP, {spread:.4f}. MB a step: that a rank sends to "
            "others.",
        )
    ]


def _rank(rank: int, folder: str, names: Sequence[str], text: bytes) -> dict[str, Any]:
    """Losses by seed and megabytes that a step sends, by method."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS)
    tokens = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    found = {}
    for name in names:
        runs = [_train(HOOKS[name], seed, tokens) for seed in SEEDS]
        found[name] = {"losses": [loss for loss, _ in runs], "megabytes": runs[0][1]}
        if rank == 0:
            progress(f"  {name}: {found[name]}")
    dist.destroy_process_group()
    return found


def _train(hook: tuple[str, dict[str, Any]] | None, seed: int, text: Tensor) -> tuple[float, float | None]:
    """Loss on held-out text, of rank 0, and megabytes that this rank sent in a step."""
    torch.manual_seed(seed)
    model = LongNetLM(MODEL)
    ddp = DistributedDataParallel(model, bucket_cap_mb=0.25)
    state = None if hook is None else register_comm_hook(ddp, hook[0], seed=seed, **hook[1])
    optimizer = torch.optim.AdamW(ddp.parameters(), lr=2e-3)
    held_out, training = text[: len(text) // 10], text[len(text) // 10 :]
    chance = torch.Generator().manual_seed(1000 * seed + dist.get_rank())
    for _ in range(STEPS):
        optimizer.zero_grad()
        torch.autograd.backward(_loss(ddp, _batch(training, BATCH, chance)))
        optimizer.step()
    loss = float("nan")
    if dist.get_rank() == 0:
        with torch.no_grad():
            loss = float(_loss(model, _batch(held_out, 64, torch.Generator().manual_seed(0))))
    return loss, None if state is None else state.bytes_sent / STEPS / 1e6


def _loss(model: torch.nn.Module, tokens: Tensor) -> Tensor:
    logits = model(tokens[:, :-1])
    return cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def _batch(text: Tensor, size: int, chance: torch.Generator) -> Tensor:
    begins = torch.randint(len(text) - SEQ, (size, 1), generator=chance)
    return text[begins + torch.arange(SEQ + 1)]


def _text() -> bytes:
    return b"".join(path.read_bytes() for path in sorted(Path(REPOSITORY, "src").rglob("*.py")))
