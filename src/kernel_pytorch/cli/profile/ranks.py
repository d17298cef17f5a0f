"""The processes that run one command together: those that torchrun started, or that the command starts."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from ...groups import GroupError, tell_all
from ..errors import CommandError
from ..shell import Program
from . import TOGETHER

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_ENVIRONMENT = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_TIMEOUT_S = 120.0
"""Of a rank that does not come or does not answer."""


@dataclass(frozen=True)
class Ranks:
    """The ranks as one of them sees them: the :class:`~kernel_pytorch.cli.shell.Peers` of a command."""

    rank: int
    group: ProcessGroup | None
    """None: without torch."""

    @property
    def first(self) -> bool:
        """Whether this is the one that prints."""
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """The values, such as JSON can have, of all ranks, by rank."""
        import json

        if self.group is None:
            return [value]
        return [json.loads(answer) for answer in tell_all(lambda: json.dumps(value).encode(), self.group)]


def main_of_rank(program: Program, arguments: Sequence[str]) -> int:
    """Run a command: together with the other ranks where a launcher has started several, else alone."""
    together = arguments[1:2] and arguments[1] in TOGETHER
    if together and all(name in os.environ for name in _ENVIRONMENT):
        return in_group(program, arguments, int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    return program.main(arguments)


def in_group(program: Program, arguments: Sequence[str], rank: int, size: int, store: str = "env://") -> int:
    """Join the other ranks and run a command as one of them. Only rank 0 has a standard output.

    Args:
        program, arguments: what to run, the same on all ranks.
        rank, size: of this process, and how many there are.
        store: where they meet, as a URL of torch.distributed.
    """
    try:
        import torch.distributed as dist
    except ImportError:
        return program.main(arguments, Ranks(rank, None))
    try:
        timeout = timedelta(seconds=_TIMEOUT_S)
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=size, timeout=timeout)
    except (RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        print(f"{program.name} profile: error: rank {rank} cannot join the others: {reason}", file=sys.stderr)
        return 1
    try:
        with open(os.devnull, "w") as nowhere, nullcontext() if rank == 0 else redirect_stdout(nowhere):
            return program.main(arguments, Ranks(rank, dist.group.WORLD))
    except GroupError:  # at the end, where ranks wait for each other; why was printed before
        return 1
    finally:
        # A group that something still refers to when the interpreter exits may abort the process.
        gc.collect()
        dist.destroy_process_group()


def need_torch() -> None:
    """Check that torch is there, without loading it.

    Raises:
        CommandError: it is not.
    """
    from importlib.util import find_spec

    if find_spec("torch") is None:
        raise CommandError("profile needs torch (pip install torch)")
