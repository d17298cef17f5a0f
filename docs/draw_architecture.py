"""Draws docs/architecture.svg from the imports of the code: ``python docs/draw_architecture.py``."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch

SOURCES = Path(__file__).parents[1] / "src"
# Where each box stands: (column, height); what a folder imports from stands lower.
BOXES = {
    "dilated_attention_pytorch.train": (1, 7.2),
    "dilated_attention_pytorch.integrations": (2, 7.2),
    "dilated_attention_pytorch.models": (0, 6.2),
    "dilated_attention_pytorch.ring_attention": (1, 5.4),
    "dilated_attention_pytorch.kernels": (0, 4.6),
    "dilated_attention_pytorch.core": (1, 3.8),
    "kernel_pytorch.cli": (3, 7.2),
    "kernel_pytorch.distributed_scale": (4, 6.2),
    "kernel_pytorch.utils": (5, 7.2),
    "kernel_pytorch.advice": (5, 6.2),
    "kernel_pytorch.jobs": (5, 5.2),
    "kernel_pytorch.placement": (3, 5.2),
    "kernel_pytorch.links": (5, 3.2),
    "kernel_pytorch.power": (4, 4.2),
    "kernel_pytorch.watch": (3, 3.2),
    "kernel_pytorch.machine": (4, 2.2),
    "kernel_pytorch.groups": (3, 1.2),
}


def arrows() -> Counter[tuple[str, str]]:
    """How many imports lead from one box to another."""
    found: Counter[tuple[str, str]] = Counter()
    for path in SOURCES.rglob("*.py"):
        package = path.relative_to(SOURCES).parent.parts
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                base = package[: len(package) - node.level + 1] if node.level else ()
                module = [*base, *(node.module or "").split(".")]
                for name in [module[1:2]] if module[1:2] else [[alias.name] for alias in node.names]:
                    ours, theirs = ".".join(package[:2]), ".".join([module[0], *name])
                    if ours != theirs and ours in BOXES and theirs in BOXES:
                        found[ours, theirs] += 1
    return found


def draw(target: Path) -> None:
    figure = Figure(figsize=(9, 7), layout="constrained")
    axes = figure.add_subplot()
    axes.set_axis_off()
    axes.set_xlim(-0.5, 5.6)
    axes.set_ylim(0.6, 8)
    for column, package in ((0.5, "dilated_attention_pytorch"), (4, "kernel_pytorch")):
        axes.text(column, 7.8, package, ha="center", weight="bold")
    for (ours, theirs), count in sorted(arrows().items()):
        between = ours.split(".")[0] != theirs.split(".")[0]
        axes.add_patch(
            FancyArrowPatch(
                BOXES[ours],
                BOXES[theirs],
                arrowstyle="-|>",
                mutation_scale=10,
                shrinkA=14,
                shrinkB=14,
                linewidth=min(0.5 + 0.15 * count, 2.5),
                color="tab:orange" if between else "0.5",
                connectionstyle="arc3,rad=0.12",
            )
        )
    for name, (x, y) in BOXES.items():
        label = name.split(".")[1]
        axes.text(x, y, label, ha="center", va="center", bbox={"boxstyle": "round", "facecolor": "white"})
    figure.savefig(target, metadata={"Date": None})


if __name__ == "__main__":
    draw(Path(__file__).with_name("architecture.svg"))
