"""Process groups for tests: one long-lived gloo world for each size, real processes, any function in them."""

from __future__ import annotations

import multiprocessing
import pickle
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

TIMEOUT_S = 60


class World:
    """``size`` processes in one process group. Use as a context manager.

    Args:
        size: number of ranks.
        timeout_s: of the process group.
    """

    def __init__(self, size: int, timeout_s: float = TIMEOUT_S) -> None:
        self._folder = tempfile.TemporaryDirectory()
        context = multiprocessing.get_context("spawn")
        self.size = size
        self.processes = []
        self._pipes: list[Connection] = []
        store = Path(self._folder.name, "store")
        for rank in range(size):
            mine, theirs = context.Pipe()
            process = context.Process(
                target=_serve, args=(rank, size, str(store), timeout_s, theirs), daemon=True
            )
            process.start()
            theirs.close()
            self.processes.append(process)
            self._pipes.append(mine)

    def run(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """``function(group, *args)`` on every rank; what it returns, or the exception it raised, by rank."""
        return self.run_each(function, [args] * self.size)

    def run_each(self, function: Callable[..., Any], args: Sequence[Sequence[Any]]) -> list[Any]:
        """The same with other arguments for each rank; EOFError stands for a rank that died."""
        for pipe, mine in zip(self._pipes, args, strict=True):
            pipe.send_bytes(pickle.dumps((function, mine)))
        answers = []
        deadline = time.monotonic() + 4 * TIMEOUT_S
        for rank, pipe in enumerate(self._pipes):
            try:
                if not pipe.poll(max(0.0, deadline - time.monotonic())):
                    raise TimeoutError(f"rank {rank} of {self.size} hangs")
                answers.append(pickle.loads(pipe.recv_bytes()))
            except (EOFError, ConnectionResetError):
                answers.append(EOFError(f"rank {rank} died"))
        return answers

    def results(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """As :meth:`run`, but what a rank raised is raised here."""
        answers = self.run(function, *args)
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
        return answers

    def __enter__(self) -> World:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()
            process.join()
        self._folder.cleanup()


def _serve(rank: int, size: int, store: str, timeout_s: float, pipe: Connection) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)  # fills uninitialised memory with NaN
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=timeout_s),
    )
    while True:
        try:
            function, args = pickle.loads(pipe.recv_bytes())
        except EOFError:
            return
        try:
            answer = function(dist.group.WORLD, *args)
        except Exception as error:
            answer = error
        pipe.send_bytes(pickle.dumps(answer))
