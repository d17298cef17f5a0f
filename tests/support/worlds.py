"""Process groups for tests: one long-lived gloo world for each size, real processes, any function in them."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import tempfile
from collections.abc import Callable, Sequence
from datetime import timedelta
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.links import Links
from benchmarks.links.namespaces import GLOO, enter

TIMEOUT_S = 60
_PROCESSES = multiprocessing.get_context("forkserver")
"""Ranks are forked from a process that has imported PyTorch: importing takes most of a rank's start."""
_PROCESSES.set_forkserver_preload(
    ["torch._dynamo", "torch._inductor.config", "torch.distributed.tensor", __name__]
)
AnyWorld = TypeVar("AnyWorld", bound="World")


class World:
    """``size`` processes in one process group. Use as a context manager.

    Args:
        size: number of ranks.
        timeout_s: of the process group.
    """

    def __init__(self, size: int, timeout_s: float = TIMEOUT_S) -> None:
        self.size, self.timeout_s = size, timeout_s
        self._start()

    def _start(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        store = str(Path(self._folder.name, "store"))
        self._processes: list[BaseProcess] = []
        self._pipes: list[connection.Connection] = []
        for rank in range(self.size):
            mine, theirs = _PROCESSES.Pipe()
            self._processes.append(self._start_rank(rank, store, theirs))
            theirs.close()
            self._pipes.append(mine)

    def _start_rank(self, rank: int, store: str, pipe: connection.Connection) -> BaseProcess:
        host = self._host(rank)
        environment = {**os.environ, **(GLOO if host else {})}
        arguments = (rank, self.size, store, self.timeout_s, pipe, host, environment)
        process = _PROCESSES.Process(target=_serve, args=arguments, daemon=True)
        process.start()
        return process

    def _host(self, rank: int) -> str | None:
        """The namespace of a rank; None: this one."""
        return None

    def run(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """``function(group, *args)`` on every rank; what it returns, or the exception it raised, by rank.

        EOFError stands for a rank that died.
        """
        self._send(function, args)
        return [self._receive(rank, 4 * TIMEOUT_S) for rank in range(self.size)]

    def results(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """As :meth:`run`, but what a rank raised is raised here, and the world restarted."""
        self._send(function, args)
        ranks: dict[Any, int] = {pipe: rank for rank, pipe in enumerate(self._pipes)}
        answers: dict[int, Any] = {}
        while ranks:
            ready = connection.wait(list(ranks), 4 * TIMEOUT_S)
            for pipe in ready or list(ranks):
                rank = ranks.pop(pipe)
                answers[rank] = self._receive(rank, 0)
                if isinstance(answers[rank], BaseException):
                    self._stop()
                    self._start()
                    raise answers[rank]
        return [answers[rank] for rank in range(self.size)]

    def _send(self, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
        for pipe in self._pipes:
            pipe.send_bytes(pickle.dumps((function, args)))

    def _receive(self, rank: int, patience_s: float) -> Any:
        try:
            if not self._pipes[rank].poll(patience_s):
                return TimeoutError(f"rank {rank} of {self.size} hangs")
            return pickle.loads(self._pipes[rank].recv_bytes())
        except (EOFError, ConnectionResetError):
            return EOFError(f"rank {rank} died")

    def _stop(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()
        self._folder.cleanup()

    def __enter__(self: AnyWorld) -> AnyWorld:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()


class HostWorld(World):
    """A world whose ranks run on given hosts of ``links``: ``HostWorld(links, [0, 1, 0, 1])``.

    Args:
        links: entered already, and left after this world.
        hosts: of each rank, by rank.
        timeout_s: of the process group.
    """

    def __init__(self, links: Links, hosts: Sequence[int], timeout_s: float = TIMEOUT_S) -> None:
        self.links, self.hosts = links, list(hosts)
        super().__init__(len(self.hosts), timeout_s)

    def _host(self, rank: int) -> str:
        return self.links.name(self.hosts[rank])


def _serve(
    rank: int,
    size: int,
    store: str,
    timeout_s: float,
    pipe: connection.Connection,
    host: str | None,
    environment: dict[str, str],
) -> None:
    os.environ.clear()  # it is that of the process when it made its first world
    os.environ.update(environment)
    if host is not None:
        enter(host)
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
