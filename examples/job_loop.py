"""A plain PyTorch loop that can be stopped, watched, killed and resumed as a job, and that also runs alone.

torchrun --nproc-per-node 2 examples/job_loop.py runs/line
kernel-pytorch submit --nodes 2 --ranks-per-node 2 -- python examples/job_loop.py runs/line
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from kernel_pytorch.jobs import rank


def any_rank(flag: bool) -> bool:
    """Whether the flag is set on any rank. All get the same answer, and so leave after the same step."""
    votes = torch.tensor(int(flag))
    dist.all_reduce(votes, dist.ReduceOp.MAX)
    return bool(votes)


def save(path: Path, state: dict[str, object]) -> None:
    """Replace the checkpoint, or leave it as it was, whatever happens in between."""
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def train(folder: Path, steps: int) -> None:
    """Fit a line, on any number of ranks; goes on where the last attempt stopped."""
    torch.manual_seed(0)
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    checkpoint, done = folder / "checkpoint.pt", 0
    if checkpoint.exists():
        state = torch.load(checkpoint)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        done = state["step"]

    job = rank.current()
    job.handle_signals()
    every_s, saved_at = job.checkpoint_every_s or 600, time.monotonic()
    for step in range(done + 1, steps + 1):
        torch.manual_seed(step * dist.get_world_size() + dist.get_rank())
        inputs = torch.randn(8, 4)
        loss = (model(inputs) - inputs.sum(1, keepdim=True)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        job.beat(step)
        stop = any_rank(job.must_stop())
        if stop or step == steps or any_rank(time.monotonic() > saved_at + every_s):
            job.beat(step, "saving")
            begin = time.monotonic()
            if any_rank(not job.newest()):
                sys.exit("another attempt has begun; this one stops without saving")
            if dist.get_rank() == 0:
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
                save(checkpoint, state)
            dist.barrier()
            saved_at = time.monotonic()
            job.saved(step, saved_at - begin)
            print(f"rank {dist.get_rank()}: saved step {step}, loss {loss:.4f}")
        if stop and step < steps:
            job.left(step)
            return


if __name__ == "__main__":
    dist.init_process_group("gloo")
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    try:
        train(out, steps=int(sys.argv[2]) if len(sys.argv) > 2 else 100)
    finally:  # threads of the group that outlive it end the process with SIGABRT
        dist.destroy_process_group()
