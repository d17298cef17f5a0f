"""``loss.png``: bits per byte against step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .checkpoint import write_atomically


def plot_loss(path: Path, rows: Sequence[dict[str, Any]], title: str) -> None:
    """Draw the rows of ``metrics.jsonl`` into a PNG.

    Args:
        path: the file.
        rows: each with ``step`` and ``train_bits_per_byte``, some with ``val_bits_per_byte``.
        title: above the axes.

    Raises:
        ImportError: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    steps = [row["step"] for row in rows]
    train = [row["train_bits_per_byte"] for row in rows]
    axes.plot(steps, train, color="C0", alpha=0.3, linewidth=0.8, label="train, each step")
    axes.plot(steps, _smoothed(train), color="C0", linewidth=1.5, label="train, smoothed")
    evaluated = [row for row in rows if "val_bits_per_byte" in row]
    if evaluated:
        axes.plot(
            [row["step"] for row in evaluated],
            [row["val_bits_per_byte"] for row in evaluated],
            color="C1",
            marker="o",
            markersize=4,
            label=f"held out, {evaluated[-1]['val_bits_per_byte']:.3f} at step {evaluated[-1]['step']}",
        )
    axes.set_title(title)
    axes.set_xlabel("step")
    axes.set_ylabel("bits per byte")
    axes.grid(alpha=0.3)
    axes.legend()
    write_atomically(path, lambda file: figure.savefig(file, format="png"))


def _smoothed(values: Sequence[float]) -> list[float]:
    """The running mean with weights that fall by 0.95 a step, the first steps not biased towards 0."""
    smoothed, total, weight = [], 0.0, 0.0
    for value in values:
        total, weight = 0.95 * total + value, 0.95 * weight + 1
        smoothed.append(total / weight)
    return smoothed
