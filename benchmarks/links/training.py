"""A small LongNet trained by the ranks with DDP, its gradients sent in several formats."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from dilated_attention_pytorch.models import LongNetConfig, LongNetLM
from kernel_pytorch.links.compress.hooks import register_comm_hook

from ..recovery.training import write_text
from .ranks import STATE

SMALL = LongNetConfig(
    embed_dim=64, num_layers=2, num_heads=2, segment_lengths=(64, 128), dilation_rates=(1, 2), ffn_dim=128
)
SEQ, BATCH = 128, 4
LAST = 20
"""Steps whose loss counts."""
_OPTIONS: dict[str, dict[str, Any]] = {"topk": {"ratio": 0.01}, "powersgd": {"rank": 4}}


def train(group: ProcessGroup, method: str, seed: int, steps: int) -> dict[str, float | None]:
    """Train, and return the mean loss of the last steps over all ranks, and of a step the median seconds and
    the bytes that this rank's hook says it sent.

    Args:
        group: of all ranks.
        method: a format of gradients; "plain" is DDP's own average.
        seed: of the parameters and of the windows of the text.
        steps: number.
    """
    with tempfile.TemporaryDirectory() as folder:
        write_text(Path(folder, "text"))
        text = torch.tensor(list(Path(folder, "text").read_bytes()))
    torch.manual_seed(seed)
    model = DistributedDataParallel(LongNetLM(SMALL), process_group=group)
    hook = None if method == "plain" else register_comm_hook(model, method, **_OPTIONS.get(method, {}))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    draw = torch.Generator().manual_seed(100 * seed + dist.get_rank(group))
    losses, times = [], []
    for _ in range(steps):
        begin = time.perf_counter()
        starts = torch.randint(len(text) - SEQ - 1, (BATCH, 1), generator=draw)
        windows = text[starts + torch.arange(SEQ + 1)]
        logits = model(windows[:, :-1])
        loss = cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
        times.append(time.perf_counter() - begin)
    mean = torch.stack(losses[-LAST:]).mean()
    dist.all_reduce(mean, group=group)
    return {
        "loss": mean.item() / dist.get_world_size(group),
        "step_s": sorted(times)[len(times) // 2],
        "step_bytes": None if hook is None else hook.bytes_sent / steps,
    }


def make_hook(group: ProcessGroup, numbers: int, method: str) -> None:
    """A model of one matrix, its gradients sent in a format, one step done: DDP tells its buckets in it."""
    side = int(numbers**0.5)
    model = DistributedDataParallel(torch.nn.Linear(side, side, bias=False), process_group=group)
    STATE["model"], STATE["hook"] = model, register_comm_hook(model, method, **_OPTIONS.get(method, {}))
    run_hook(group, 1)


def run_hook(group: ProcessGroup, steps: int) -> int:
    """Bytes that this rank's hook says it sent in some steps."""
    del group
    model, before = STATE["model"], STATE["hook"].bytes_sent
    for _ in range(steps):
        model(torch.randn(2, model.module.in_features)).sum().backward()
    return int(STATE["hook"].bytes_sent - before)
