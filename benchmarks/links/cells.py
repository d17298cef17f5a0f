"""What the cells of tables show. Pure functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median

import numpy as np
import numpy.typing as npt

from kernel_pytorch.advice.prove.ratio import RESAMPLES

from .rows import Row

Statistic = Callable[..., npt.NDArray[np.float64]]
Ratio = tuple[float, float, float]
"""Value and 95 % interval."""


def ratio(first: Sequence[float], second: Sequence[float], statistic: Statistic = np.median) -> Ratio:
    """Of a statistic of both, with the 95 % interval of a bootstrap of pairs."""
    times = np.array([first, second])
    index = np.random.default_rng(0).integers(times.shape[1], size=(RESAMPLES, times.shape[1]))
    above, below = statistic(times[:, index], axis=-1)
    low, high = np.quantile(above / below, (0.025, 0.975))
    above, below = statistic(times, axis=-1)
    return float(above / below), float(low), float(high)


def where(row: Row) -> list[str]:
    """Hosts, links and size of a row."""
    case = row["case"]
    shaped = [f"{case['mbit_s']} Mbit/s"] if case.get("mbit_s") else []
    delayed = [f"{case['delay_ms']} ms each way"] if case.get("delay_ms") else []
    return [case["hosts"], ", ".join([*shaped, *delayed]) or "not shaped", size(row)]


def size(row: Row) -> str:
    """Of its tensor."""
    kb = row["case"]["kb"]
    return f"{kb // 1024} MB" if kb >= 1024 else f"{kb} KB"


def ms(seconds: Sequence[float]) -> str:
    """The median."""
    return f"{1e3 * median(seconds):.1f}"


def with_interval(value: Ratio) -> str:
    """Value and interval."""
    return f"{value[0]:.3f} ({value[1]:.3f} to {value[2]:.3f})"


def judged(value: float, goal: float, shown: str, *, least: bool) -> list[str]:
    """The goal, and whether it is met."""
    met = value >= goal if least else value <= goal
    return [f"{'>=' if least else '<='} {shown.format(goal)}", "met" if met else "missed"]
