"""Part ``loss``: what formats of gradients cost in loss."""

from __future__ import annotations

from collections.abc import Iterator

from tests.support.worlds import World

from . import ranks, training
from .rows import Case, Rows

STEPS = 200
METHODS = ("plain", "none", "fp16", "bf16", "quantized_8bit", "powersgd", "topk")


def cases(quick: bool) -> Iterator[Case]:
    """Formats and seeds."""
    for seed in range(1 if quick else 3):
        for method in METHODS:
            yield {"method": method, "seed": seed}


def measure(rows: Rows) -> None:
    """Add a row for each case."""
    missing = list(rows.missing("loss", cases(rows.quick)))
    if not missing:
        return
    with World(4) as world:
        world.results(ranks.plainly)
        for case in missing:
            steps = 10 if rows.quick else STEPS
            rows.add("loss", case, **world.results(training.train, case["method"], case["seed"], steps)[0])
