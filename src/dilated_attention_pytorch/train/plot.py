"""``loss.png``: bits per byte against step, and below it the learning rate and the bytes seen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import numpy as np

from .checkpoint import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

_MAX_POINTS = 2000
"""Of a curve; more than there are pixels."""
_MAX_LABEL = 60
"""Letters of a resume's label; as many as fit."""


def plot_loss(
    path: Path, rows: Sequence[dict[str, Any]], title: str, *, resumes: Sequence[tuple[int, str]] = ()
) -> None:
    """Draw the rows of ``metrics.jsonl`` into a PNG.

    Args:
        path: the file.
        rows: at least one.
        title: above the axes.
        resumes: steps after which the run was resumed, each with a few words, such as "lr 0.004 -> 0.001".

    Raises:
        ImportError: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    figure = loss_figure(rows, title, resumes=resumes)
    write_atomically(path, lambda file: figure.savefig(file, format="png"))


def loss_figure(
    rows: Sequence[dict[str, Any]], title: str, *, resumes: Sequence[tuple[int, str]] = ()
) -> Figure:
    """What :func:`plot_loss` draws."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    loss, rate = figure.subplots(2, sharex=True, height_ratios=(3, 1))
    loss.set_title(_printable(title), pad=24, parse_math=False)
    _draw_loss(loss, rows)
    _draw_rate(rate, rows)
    for step, words in resumes:
        for axes in (loss, rate):
            axes.axvline(step, color="0.5", linestyle=":", linewidth=1)
        label = shorten(_printable(words), _MAX_LABEL, placeholder=" ...")
        text = loss.text(step, 0.98, label, transform=loss.get_xaxis_transform(), parse_math=False)
        text.set(rotation=90, fontsize=7, ha="right", va="top")
        text.set_in_layout(False)  # it is inside of the axes
    return figure


def _draw_loss(axes: Axes, rows: Sequence[dict[str, Any]]) -> None:
    steps, train = _column(rows, "step"), _column(rows, "train_bits_per_byte")
    shown = _thinned(len(rows))
    every = "each step" if len(shown) == len(rows) else f"one step of {shown[1] - shown[0]:,}"
    window = max(10, len(rows) // 100)
    marker = "." if len(rows) == 1 else ""
    mean = _trailing_mean(train, window)
    for values, alpha, width, label in (
        (train, 0.3, 0.8, f"train, {every}"),
        (mean, 1.0, 1.5, f"train, mean of the last {window:,} steps"),
    ):
        axes.plot(
            *(steps[shown], values[shown]), color="C0", marker=marker, alpha=alpha, lw=width, label=label
        )
    evaluated = [row for row in rows if "val_bits_per_byte" in row]
    held_out = _column(evaluated, "val_bits_per_byte")
    if evaluated:
        shown = _thinned(len(evaluated))
        axes.plot(
            _column(evaluated, "step")[shown],
            held_out[shown],
            color="C1",
            marker="o" if len(shown) <= 100 else "",
            markersize=4,
            label=f"held out, {held_out[-1]:.3f} at step {evaluated[-1]['step']:,}",
        )
    settled = rows[_end_of_warmup(_column(rows, "learning_rate")) :]
    names = ("train_bits_per_byte", "val_bits_per_byte")
    visible = [row[name] for name in names for row in settled if name in row]
    low, high = min(visible), max(visible)
    margin = max(0.05 * (high - low), 0.01)
    axes.set_ylim(low - margin, high + margin)
    axes.set_ylabel("bits per byte")
    axes.grid(alpha=0.3)
    # Above the axes, where it hides no label of a resume.
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, frameon=False, fontsize=8)


def _draw_rate(axes: Axes, rows: Sequence[dict[str, Any]]) -> None:
    shown = _thinned(len(rows))
    steps = _column(rows, "step")[shown]
    marker = "." if len(rows) == 1 else ""
    axes.plot(steps, _column(rows, "learning_rate")[shown], color="C2", marker=marker)
    axes.set_xlabel("step")
    axes.set_ylabel("learning rate", color="C2")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    if all("bytes" in row for row in rows):  # older versions did not write it
        seen = axes.twinx()
        seen.plot(steps, np.cumsum(_column(rows, "bytes"))[shown], color="C3", marker=marker)
        seen.set_ylabel("bytes seen", color="C3")
        seen.set_ylim(bottom=0)


def _printable(text: str) -> str:
    """``text`` with ``?`` for what of a file's name is not UTF-8."""
    return text.encode("utf-8", "replace").decode()


def _column(rows: Sequence[dict[str, Any]], name: str) -> NDArray[Any]:
    return np.array([row[name] for row in rows])


def _thinned(count: int) -> NDArray[Any]:
    """Indices of at most ``_MAX_POINTS`` of ``count`` points, evenly spaced, the last of them always."""
    stride = -(-count // _MAX_POINTS)
    return np.arange((count - 1) % stride, count, stride)


def _trailing_mean(values: NDArray[Any], window: int) -> NDArray[Any]:
    """The mean of each value and the ``window - 1`` before it, of the first ones as many as there are."""
    sums = np.concatenate(([0.0], np.cumsum(values)))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)


def _end_of_warmup(rates: NDArray[Any]) -> int:
    """Index of the first value that the axis makes room for, the first after the learning rate's rise.

    Where that is short, it takes a twentieth of the steps until a model knows how frequent each byte is.
    """
    falling = np.flatnonzero(np.diff(rates) <= 0)
    return max(int(falling[0]) + 1 if len(falling) else 0, len(rates) // 20)
