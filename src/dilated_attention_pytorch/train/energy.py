"""Energy that training takes, where the hardware counts it."""

from __future__ import annotations

import math
from types import TracebackType

import torch

from kernel_pytorch.machine.facts import DeviceInfo, NodeTopology
from kernel_pytorch.machine.live import Machine
from kernel_pytorch.machine.torch_devices import cuda_gpu
from kernel_pytorch.power.energy import EnergyMeter

from .ranks import Ranks


class TokenEnergy:
    """Joules per token, of the devices that compute: each rank's GPU; on hosts without, the CPU packages.

    A CPU's counters count whatever else runs on it. Use as a context manager.

    Args:
        device: on which this rank computes.
        ranks: all of them; they ask at the same steps.
        root: folder that holds ``proc`` and ``sys``.
    """

    def __init__(self, device: torch.device, ranks: Ranks, root: str = "/") -> None:
        self._ranks = ranks
        self._machine = Machine(root, mounts=(), load_torch=False)
        self._devices = _own_devices(self._machine.node, device)
        self._counts = device.type != "cpu" or ranks.local_rank == 0  # one rank a host counts its packages
        self._meter = EnergyMeter(self._machine.read, self._devices)

    def __enter__(self) -> TokenEnergy:
        self._meter.__enter__()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._meter.__exit__(exc_type, exc, traceback)
        self._machine.close()

    def per_token(self, tokens: int) -> float | None:
        """Joules of all ranks since the last call for each of ``tokens``; None if a rank has no figure.

        Args:
            tokens: that all ranks trained on since the last call.
        """
        joules: float | None = 0.0
        if self._counts:
            self._meter.__exit__(None, None, None)
            joules = self._meter.total_j
            self._meter.__enter__()
        total = self._ranks.total(torch.tensor(math.nan if joules is None else joules, dtype=torch.float64))
        return None if total.isnan() else total.item() / tokens


def _own_devices(node: NodeTopology, device: torch.device) -> list[DeviceInfo]:
    if device.type == "cpu":
        return [found for found in node.devices if found.kind == "cpu"]
    gpu = cuda_gpu(torch.cuda.current_device() if device.index is None else device.index)
    return [found for found in node.devices if gpu.is_of(found)]
