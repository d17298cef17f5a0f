"""What a search for a placement need not try twice, because exchanging devices changes no link."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import numpy.typing as npt

from .problem import Problem


class Symmetry:
    def __init__(self, problem: Problem) -> None:
        levels, count = problem.levels, problem.count
        kinds = [
            tuple(of >> device & 1 for of in (problem.degraded, problem.unknown, *problem.needs))
            for device in range(count)
        ]
        members: dict[int, list[int]] = {}
        for device, node in enumerate(problem.nodes):
            members.setdefault(node, []).append(device)
        blocks = list(members.values())
        self._twins = [1 << device for device in range(count)]
        """For each device those of its node that could stand in for it."""
        for block in blocks:
            for i, j in combinations(block, 2):
                if kinds[i] == kinds[j] and set(np.flatnonzero(levels[i] != levels[j]).tolist()) <= {i, j}:
                    self._twins[i] = self._twins[j] = self._twins[i] | self._twins[j]
        self._images: list[list[tuple[int, int]]] = [[] for _ in range(count)]
        """For each device (devices of its node and of one like it, the twins of its counterpart there)."""
        for a, b in combinations(blocks, 2):
            if [kinds[i] for i in a] == [kinds[i] for i in b] and _exchangeable(levels, a, b):
                both = sum(1 << i for i in a + b)
                for i, j in zip(a, b, strict=True):
                    self._images[i].append((both, self._twins[j]))

    def others(self, device: int, used: int) -> int:
        """``device`` and higher ones that lead to nothing better than it does, while ``used`` are taken."""
        found = self._twins[device]
        for both, twins in self._images[device]:
            if not used & both:
                found |= twins
        return found


def _exchangeable(levels: npt.NDArray[np.int64], a: list[int], b: list[int]) -> bool:
    """Whether exchanging the devices of ``a``, in order, for those of ``b`` changes no level."""
    exchanged = np.arange(len(levels))
    exchanged[a], exchanged[b] = b, a
    return bool((levels[a] == levels[b][:, exchanged]).all())
