"""A job in which one rank does something wrong: ``faulty_script.py FAULT RANK STEP CALL STEPS``."""

from __future__ import annotations

import os
import signal
import sys
import time
from datetime import timedelta

import torch
import torch.distributed as dist

LATE_S = 0.05
NUMBERS = 1 << 14


def main(fault: str, culprit: int, wrong_step: int, wrong_call: int, steps: int) -> None:
    """Take steps of three equal calls each, on three lines; the names of faults are those of ``faults``."""
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])
    dist.barrier()  # ranks start late on a busy machine, and importing what optimizers need takes long
    group = dist.new_group(timeout=timedelta(seconds=4))
    mine = dist.get_rank() == culprit
    gradients = torch.ones(NUMBERS)
    for step in range(steps):
        wrong = [mine and (step, call) == (wrong_step, wrong_call) for call in range(3)]
        time.sleep(0.005)
        if fault == "late rank" and mine:
            time.sleep(LATE_S)
        if not _goes_wrong(fault, wrong[0]):
            part, op = _input(gradients, fault, wrong[0])
            dist.all_reduce(part, op, group)  # call 0
        time.sleep(0.002)
        if not _goes_wrong(fault, wrong[1]):
            part, op = _input(gradients, fault, wrong[1])
            dist.all_reduce(part, op, group)  # call 1
        time.sleep(0.002)
        if not _goes_wrong(fault, wrong[2]):
            part, op = _input(gradients, fault, wrong[2])
            dist.all_reduce(part, op, group)  # call 2
        optimizer.step()
    dist.barrier(group)
    dist.destroy_process_group()


def _goes_wrong(fault: str, now: bool) -> bool:
    """Whether the call is skipped; or the rank dies."""
    if now and fault == "dead rank":
        os.kill(os.getpid(), signal.SIGKILL)
    return now and fault == "skipped call"


def _input(tensor: torch.Tensor, fault: str, now: bool) -> tuple[torch.Tensor, dist.ReduceOp.RedOpType]:
    """What is reduced, and how."""
    part = tensor[: NUMBERS // 2] if now and fault == "other shape" else tensor
    return part, dist.ReduceOp.MAX if now and fault == "other reduce operation" else dist.ReduceOp.SUM


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
