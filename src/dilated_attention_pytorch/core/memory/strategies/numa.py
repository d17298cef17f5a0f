"""Host memory on the NUMA node of the thread that requests it."""

from __future__ import annotations

import ctypes
import logging
import mmap
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import UntypedStorage

from .base import Arena, Taken
from .bucketed import BucketedStrategy

NODES = Path("/sys/devices/system/node")

_logger = logging.getLogger(__name__)


class NUMAStrategy(BucketedStrategy):
    """Size classes, with free lists of host memory for each NUMA node. A thread's node is that of its CPU.

    On several nodes new host memory is mapped from the system and first written by the calling thread: Linux
    takes a page from the node of the thread that first writes it. On one node, if nodes cannot be read, and
    for other devices, this is :class:`BucketedStrategy`; the log and the statistics (``numa_nodes``) say so.
    Threads that may run on several nodes should be bound to one.

    Args:
        nodes: the folder where Linux lists its nodes.
    """

    name = "numa"

    def __init__(self, nodes: Path = NODES) -> None:
        super().__init__()
        self.arguments = (nodes,)
        self._node_of_cpu = read_nodes(nodes)
        self.num_nodes = len(set(self._node_of_cpu.values())) or None
        """NUMA nodes with CPUs; None if that cannot be read."""
        if self.num_nodes is None:
            _logger.info("NUMA nodes cannot be read from %s: host memory is kept as for one node", nodes)
        elif self.num_nodes == 1:
            _logger.info("one NUMA node: host memory needs no placement")

    def take(self, nbytes: int, arena: Arena) -> Taken:
        if self.num_nodes is None or self.num_nodes == 1 or arena.device.type != "cpu":
            return super().take(nbytes, arena)
        return super().take(nbytes, arena._replace(node=self._node_of_cpu.get(current_cpu())))

    def allocate(self, nbytes: int, device: torch.device) -> UntypedStorage:
        if self.num_nodes is None or self.num_nodes == 1 or device.type != "cpu":
            return super().allocate(nbytes, device)
        # Memory that malloc recycles has pages already, on any node; these have none yet. One byte is
        # written per page, by NumPy: torch might do it in other threads.
        memory = mmap.mmap(-1, nbytes)
        np.frombuffer(memory, dtype=np.uint8)[:: mmap.PAGESIZE] = 0
        return torch.frombuffer(memory, dtype=torch.uint8).untyped_storage()

    def details(self) -> dict[str, Any]:
        return {"numa_nodes": self.num_nodes}


def read_nodes(nodes: Path) -> dict[int, int]:
    """The node of each CPU; empty if that cannot be read."""
    node_of_cpu = {}
    for folder in nodes.glob("node*"):
        match = re.fullmatch(r"node(\d+)", folder.name)
        if match is None:
            continue
        try:
            listed = (folder / "cpulist").read_text().strip()
        except OSError:
            return {}
        for part in filter(None, listed.split(",")):
            first, _, last = part.partition("-")
            node_of_cpu.update(dict.fromkeys(range(int(first), int(last or first) + 1), int(match[1])))
    return node_of_cpu


def current_cpu() -> int:
    """The CPU that the calling thread runs on; -1 if the C library cannot say."""
    try:
        return int(ctypes.CDLL(None).sched_getcpu())
    except (AttributeError, OSError, TypeError):
        return -1
