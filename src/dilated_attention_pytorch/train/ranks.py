"""The processes that torchrun started for one training, and how they agree."""

from __future__ import annotations

import gc
import os
import pickle
from collections.abc import Callable
from contextlib import nullcontext, redirect_stdout, suppress
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from kernel_pytorch.groups import RankFailed, tell_all

from .errors import CommandError

T = TypeVar("T")

_MODULE = "dilated_attention_pytorch.train"
_ENVIRONMENT = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Ranks:
    """All processes of one training, seen from one of them. The methods are called by all of them."""

    rank: int = 0
    """Which of them this is."""
    size: int = 1
    """How many there are."""
    local_rank: int = 0
    """Which of those on this machine this is."""
    local_size: int = 1
    """How many are on this machine."""
    group: ProcessGroup | None = None
    """All of them; None for a process alone."""

    @property
    def first(self) -> bool:
        """Whether this is the one that prints, and writes what is written once."""
        return self.rank == 0

    def together(self, action: Callable[[], T]) -> T:
        """Do ``action``, and return when all ranks have done it.

        Raises:
            CommandError, OSError: on every rank, that of the first rank where ``action`` raised it. Any other
                exception stays on its rank; the others raise a CommandError that names the rank.
        """
        if self.group is None:
            return action()
        results: list[T] = []

        def answer() -> bytes:
            try:
                results.append(action())
            except (CommandError, OSError) as error:
                with suppress(Exception):  # one that cannot be pickled stays here, as any other
                    return pickle.dumps(error)
                raise
            return b""

        try:
            answers = tell_all(answer, self.group)
        except RankFailed as error:
            raise CommandError(str(error), status=1) from None
        for answered in answers:
            if answered:
                raise pickle.loads(answered)
        return results[0]

    def on_first(self, action: Callable[[], T]) -> T | None:
        """Do ``action`` on rank 0 only; its result there, None elsewhere. Raises as :meth:`together`."""
        return self.together(action if self.first else lambda: None)

    def highest(self, number: int) -> int:
        """The highest ``number`` of any rank."""
        if self.group is None:
            return number
        tensor = torch.tensor(number)
        dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self.group)
        return int(tensor)

    def total(self, tensor: Tensor) -> Tensor:
        """The sum of all ranks' ``tensor``."""
        if self.group is not None:
            tensor = tensor.clone()
            dist.all_reduce(tensor, group=self.group)
        return tensor

    def gather(self, value: T) -> list[T]:
        """Every rank's ``value``, by rank."""
        if self.group is None:
            return [value]
        return [pickle.loads(answer) for answer in tell_all(lambda: pickle.dumps(value), self.group)]

    def launcher(self, size: int | None = None) -> str:
        """The command line that starts ``size`` ranks, by default as many as these are."""
        size = self.size if size is None else size
        if size == self.size > self.local_size:
            nodes = f"--nnodes {size // self.local_size} --nproc-per-node {self.local_size}"
        else:
            nodes = f"--nproc-per-node {size}"
        return f"torchrun {nodes} -m {_MODULE}"


def launched() -> bool:
    """Whether this process is one of several that torchrun started, or something that does the same."""
    return all(name in os.environ for name in _ENVIRONMENT) and os.environ["WORLD_SIZE"] != "1"


def as_one_of_several(command: Callable[[Ranks], T]) -> T:
    """Join the others, and run ``command`` as one of them. Only rank 0 has a standard output."""
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    dist.init_process_group(backend)
    try:
        rank = dist.get_rank()
        with open(os.devnull, "w") as nowhere, nullcontext() if rank == 0 else redirect_stdout(nowhere):
            return command(
                Ranks(
                    rank,
                    dist.get_world_size(),
                    int(os.environ.get("LOCAL_RANK", 0)),
                    int(os.environ.get("LOCAL_WORLD_SIZE", 1)),
                    dist.group.WORLD,
                )
            )
    finally:
        # A group that something still refers to when the interpreter exits may abort the process.
        gc.collect()
        dist.destroy_process_group()
