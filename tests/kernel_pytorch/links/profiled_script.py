"""A training script, as a user has it."""

import os
import pickle
import sys

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel


class Kept:
    """Pickled by the name of this module, as DataLoader workers and checkpoints do."""


def main() -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.manual_seed(0)
    model = DistributedDataParallel(torch.nn.Linear(8, 8))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(4):
        model(torch.full((2, 8), float(rank))).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        dist.barrier()
    assert pickle.loads(pickle.dumps(Kept)) is Kept
    told = f"rank {rank} of {dist.get_world_size()}: {dist.get_backend()} {sys.argv[1:]}"
    with open(f"told-{rank}", "w") as file:
        file.write(told)
    if "fail" in sys.argv:
        raise ValueError("the script's own mistake")
    if "exit" in sys.argv:
        sys.exit(3)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
    print(f"{os.path.basename(__file__)} is done\n", end="", flush=True)  # in one piece
