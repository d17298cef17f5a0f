"""As many threads as the process may use CPUs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ...machine.files import Files
from ...machine.host.limits import read_limits
from ..facts import Expectation, ModelFacts
from .protocol import Base

if TYPE_CHECKING:
    from torch import nn

    from ..sample import Sample


def usable_threads(granted_cpus: float) -> int:
    """Threads that can run at once, at least one."""
    return max(1, math.floor(granted_cpus + 0.01))


class Threads(Base):
    """Threads beyond the granted CPUs wait for each other in each operator."""

    name = "thread count"

    def applies(self, facts: ModelFacts) -> Expectation | str:
        if facts.granted_cpus is None:
            return "it is not known how many CPUs the process is granted"
        wanted = usable_threads(facts.granted_cpus)
        if facts.threads <= wanted:
            return f"{facts.threads} threads on {facts.granted_cpus:g} CPUs are not too many"
        return Expectation(
            gain=1.5, reason=f"{facts.threads} threads on {facts.granted_cpus:g} CPUs: {wanted}", seconds=2.0
        )

    def apply(self, model: nn.Module, sample: Sample) -> nn.Module:
        """
        Raises:
            ValueError: the limits of the process cannot be read.
        """
        granted = read_limits(Files()).usable_cpus
        if not granted:
            raise ValueError("it is not known how many CPUs the process is granted")
        self.threads = usable_threads(granted)
        return model

    def source(self) -> list[str]:
        return ["import torch", f"torch.set_num_threads({self.threads})"]
