"""Part ``slow-pair``: whether the profiler names the pair of hosts whose link is slow."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup

from kernel_pytorch.links.measure import measure_links
from kernel_pytorch.links.profile.exchange import collect
from kernel_pytorch.links.profile.findings import findings
from kernel_pytorch.links.profile.recorder import Recorder

from .rows import Case, Rows
from .worlds import in_worlds

TRIALS = 20
STEPS = 10
MEASURE_S = 2.0
USUAL_MBIT_S, SLOW_MBIT_S = 200, 20


def cases(quick: bool) -> Iterator[Case]:
    """With and without ``check``, several times each."""
    for trial in range(1 if quick else TRIALS):
        for check in (False, True):
            yield {"hosts": "a b c d", "mbit_s": USUAL_MBIT_S, "check": check, "trial": trial}


def measure(rows: Rows) -> None:
    """Add a row for each case."""
    for case, world in in_worlds(rows.missing("slow-pair", cases(rows.quick))):
        a, b = sorted(random.Random(f"{case['trial']} {case['check']}").sample(range(4), 2))
        world.links.shape_pair(a, b, SLOW_MBIT_S * 1e6)
        found = world.results(steps, case["check"])[0]
        world.links.shape_pair(a, b, None)
        right = bool(found) and all(each[:2] == ["slow_link", [a, b]] for each in found)
        rows.add("slow-pair", case, wanted=[a, b], found=found, right=right)


def steps(group: ProcessGroup, check: bool) -> list[list[Any]]:
    """Kind, ranks and text of what is found after a few steps and a round of measuring."""
    recorder = Recorder()
    recorded, gradients = recorder.wrap(group, check=check), torch.ones(1 << 16)
    for _ in range(STEPS):
        recorder.step()
        dist.all_reduce(gradients, group=recorded)
    recorder.step()
    records, links = collect(recorder, group), measure_links(group, seconds=MEASURE_S)
    return [[each.kind, list(each.ranks), each.text] for each in findings(records, links)]
