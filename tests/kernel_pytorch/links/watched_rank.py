"""A rank of the tests of hangs. ``watched_rank.py FOLDER RANK SIZE KIND``"""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from kernel_pytorch.links.profile.recorder import Recorder
from kernel_pytorch.links.profile.watch import Watch


def elsewhere(store: dist.Store) -> None:
    """A rank that does not come to the call of the others; until they have found out."""
    store.wait(["found out"], timedelta(seconds=60))


def main(folder: Path, rank: int, size: int, kind: str) -> None:
    store = dist.TCPStore("127.0.0.1", int(os.environ["PORT"]), size, rank == 0)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=timedelta(seconds=5))
    recorder = Recorder(folder)
    group = recorder.wrap()
    watch = Watch(recorder, store, patience_s=3.0)
    dist.all_reduce(torch.ones(3), group=group)
    odd = rank == size - 1
    if odd and kind == "missing":
        elsewhere(store)
    elif odd and kind == "dead":
        os.kill(os.getpid(), 9)
    else:
        try:
            dist.all_reduce(torch.ones(7), group=group)
        except RuntimeError:
            store.set("found out", "")
    if kind == "missing":
        for other in range(size):  # the store ends with rank 0
            store.set(f"end {rank}", "")
            store.wait([f"end {other}"] if rank == 0 else [f"end {rank}"])
    watch.close()
    recorder.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
