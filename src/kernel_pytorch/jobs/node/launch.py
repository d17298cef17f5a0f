"""How torchrun is called."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Launch:
    """What an agent is to start."""

    folder: Path
    """Of the job."""
    attempt: int
    python: str
    """The interpreter of agent and ranks."""
    nodes: tuple[int, int]
    """Least and greatest number."""
    ranks_per_node: int
    endpoint: str
    """``host:port`` of torchrun's store."""
    local_address: str | None
    """By which other nodes reach this one; None: torchrun finds one."""
    is_host: bool
    """Whether this node has the store."""
    max_restarts: int
    beats: Path
    """Folder of the ranks' beats, on this node."""
    checkpoint_every_s: float
    timeouts: Mapping[str, float]
    """Seconds, by the names of :func:`.timing.torchrun_timeouts`."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """More variables for the ranks."""
    numa_binding: str | None = None
    """For torchrun's ``--numa-binding``."""

    def command(self) -> list[str]:
        """The agent's command line."""
        names = ("join_timeout", "last_call_timeout", "keep_alive_interval")
        conf = {"is_host": int(self.is_host)} | {name: math.ceil(self.timeouts[name]) for name in names}
        options = {
            "nnodes": "{}:{}".format(*self.nodes),
            "nproc-per-node": self.ranks_per_node,
            "rdzv-backend": "c10d",
            "rdzv-endpoint": self.endpoint,
            "rdzv-id": f"{self.folder.name}-{self.attempt}",
            "rdzv-conf": ",".join(f"{name}={value}" for name, value in conf.items()),
            "max-restarts": self.max_restarts,
            # It may be told to end by this one only. By default SIGTERM too is passed on to the ranks.
            "signals-to-handle": "SIGQUIT",
            "local-addr": self.local_address,
            "numa-binding": self.numa_binding,
        }
        given = [f"--{name}={value}" for name, value in options.items() if value is not None]
        agent = [self.python, "-m", "kernel_pytorch.jobs.node.torchrun", str(os.getpid())]
        rank = ["--no-python", self.python, "-m", "kernel_pytorch.jobs.rank", str(self.folder)]
        return [*agent, *given, *rank]

    def variables(self) -> dict[str, str]:
        """The agent's environment: this process's, and what ranks need."""
        # torchrun takes options from PET_*.
        own = {name: value for name, value in os.environ.items() if not name.startswith("PET_")}
        return {
            **own,
            "PYTHONFAULTHANDLER": "1",
            # Sharing it makes torchrun fail half of its restarts after a rank was killed.
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
            # As --shutdown-timeout, which torch 2.11 does not know.
            "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(math.ceil(self.timeouts["shutdown_timeout"])),
            **self.environment,
            **self.identity(),
            "KERNEL_PYTORCH_CHECKPOINT_EVERY": f"{self.checkpoint_every_s:g}",
            "KERNEL_PYTORCH_NODE_PID": str(os.getpid()),
        }

    def identity(self) -> dict[str, str]:
        """What tells the processes of this node in this attempt from all others."""
        return {
            "KERNEL_PYTORCH_JOB": str(self.folder),
            "KERNEL_PYTORCH_ATTEMPT": str(self.attempt),
            "KERNEL_PYTORCH_BEATS": str(self.beats),
        }
