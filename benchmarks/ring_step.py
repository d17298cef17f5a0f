"""One step of ring attention, measured on every rank: whole, its computation alone, its messages alone.

``python -m benchmarks.ring_step SETTINGS RANK`` is one rank; :class:`Step` starts them all.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup

from dilated_attention_pytorch.ring_attention import (
    RingAttentionConfig,
    RingDilatedAttention,
    function,
    production,
)
from kernel_pytorch.groups import Message, Pending

from .links import Links

MODES = ("compute", "communication", "overlap", "serial", "pooled")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Of one step."""

    seconds: dict[str, float]
    """Median over the rounds of the slowest rank, by mode."""
    bytes_sent: int
    """By one rank."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One segment of ``seq`` tokens around a ring, batch 1, float32."""

    seq: int
    heads: int
    head_dim: int
    backward: bool

    def measure(self, links: Links, rounds: int) -> Measured:
        """Run it on the hosts of ``links``, the modes interleaved."""
        with tempfile.TemporaryDirectory() as folder:
            step = dataclasses.asdict(self)
            settings = {"step": step, "size": links.size, "rounds": rounds, "folder": folder}
            ranks = range(links.size)
            command = [sys.executable, "-m", "benchmarks.ring_step", json.dumps(settings)]
            processes = [links.start(rank, [*command, str(rank)]) for rank in ranks]
            failed = [rank for rank, process in enumerate(processes) if process.wait()]
            if failed:
                raise RuntimeError(f"ranks {failed} of the ring failed")
            results = [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in ranks]
        slowest = {
            mode: [max(times) for times in zip(*(result[mode] for result in results), strict=True)]
            for mode in MODES
        }
        return Measured(
            seconds={mode: median(times) for mode, times in slowest.items()},
            bytes_sent=max(result["bytes_sent"] for result in results),
        )


class _NoMessages:
    """Replaces ``Pending``: sends nothing, and "receives" zeros."""

    def __init__(self, group: ProcessGroup, sends: Sequence[Message], receives: Sequence[Message]) -> None:
        for _, x in receives:
            x.zero_()

    def wait(self) -> None:
        pass


class _Recorder:
    """Note the messages of a step; :meth:`run` sends them again, without computing."""

    def __init__(self) -> None:
        self.posted: list[tuple[Sequence[Message], Sequence[Message]]] = []

    def post(self, group: ProcessGroup, sends: Sequence[Message], receives: Sequence[Message]) -> _NoMessages:
        self.posted.append((sends, receives))
        return _NoMessages(group, sends, receives)

    def run(self, group: ProcessGroup) -> None:
        under_way: list[Pending] = []
        for sends, receives in self.posted:
            under_way.append(Pending(group, sends, receives))
            if len(under_way) > 1:  # two at a time, as in a step
                under_way.pop(0).wait()
        for pending in under_way:
            pending.wait()

    @property
    def bytes_sent(self) -> int:
        return sum(x.numel() * x.element_size() for sends, _ in self.posted for _, x in sends)


def _rank(step: Step, size: int, rounds: int, folder: Path, rank: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=size)
    group = dist.group.WORLD
    assert group is not None
    shape = (1, step.seq // size, step.heads, step.head_dim)
    q, k, v = (torch.randn(shape, requires_grad=step.backward) for _ in range(3))

    config = RingAttentionConfig(segment_lengths=[step.seq], dilation_rates=[1])
    overlapped = RingDilatedAttention(config, group)
    serial = RingDilatedAttention(dataclasses.replace(config, overlap_communication=False), group)
    pooled = RingDilatedAttention(dataclasses.replace(config, memory_pool_strategy="simple"), group)

    def whole(attention: RingDilatedAttention) -> None:
        out = attention(q, k, v)
        if step.backward:
            torch.autograd.grad(out, (q, k, v), torch.ones_like(out))

    recorder = _Recorder()
    with patch.object(function, "Pending", recorder.post):
        whole(overlapped)

    def compute() -> None:
        no_headers = [{"_has_padding": False}]
        with ExitStack() as stack:
            stack.enter_context(patch.object(function, "Pending", _NoMessages))
            for module in (function, production):
                stack.enter_context(patch.object(module, "agree", lambda *_, **__: no_headers))
            whole(overlapped)

    modes: dict[str, Callable[[], None]] = {
        "compute": compute,
        "communication": lambda: recorder.run(group),
        "overlap": lambda: whole(overlapped),
        "serial": lambda: whole(serial),
        "pooled": lambda: whole(pooled),
    }
    times: dict[str, list[float]] = {mode: [] for mode in modes}
    order = list(modes)
    for number in range(rounds + 1):
        for mode in order:
            dist.barrier(group)
            start = time.perf_counter()
            modes[mode]()
            if number:  # the first round warms up
                times[mode].append(time.perf_counter() - start)
        order.append(order.pop(0))  # no mode always follows the same one: a link that idled starts slowly
    (folder / f"{rank}.json").write_text(json.dumps({**times, "bytes_sent": recorder.bytes_sent}))
    dist.barrier(group)
    dist.destroy_process_group()


if __name__ == "__main__":
    parsed = json.loads(sys.argv[1])
    _rank(Step(**parsed["step"]), parsed["size"], parsed["rounds"], Path(parsed["folder"]), int(sys.argv[2]))
