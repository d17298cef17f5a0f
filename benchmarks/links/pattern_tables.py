"""The tables of patterns. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

import numpy as np

from ..registry import Table
from .cells import judged, ms, ratio, where, with_interval
from .rows import Row

STEADY = 0.02
"""By how much plain may differ from itself where ADAPTIVE is held to 0.97."""


def adaptive(rows: Sequence[Row]) -> Table:
    """ADAPTIVE beside the best fixed pattern, choosing included."""
    found = []
    for row in rows:
        times = row["times_s"]
        value = ratio(times[row["best"]], times["adaptive"], np.mean)
        itself = ratio(times["plain"], times["plain again"], np.mean)
        steady = max(abs(itself[1] - 1), abs(itself[2] - 1)) <= STEADY
        goal = 0.97 if steady else min(0.97, itself[1])
        found.append(
            [
                *where(row),
                row["best"],
                ms(times[row["best"]]),
                ms(times["adaptive"]),
                with_interval(value),
                f"{with_interval(itself)}, {len(times['plain'])} rounds",
                *judged(value[0], goal, "{:.3f}", least=True),
                str(row["load"]),
            ]
        )
    columns = ("hosts", "links", "size", "best", "ms", "ADAPTIVE ms", "best / ADAPTIVE", "plain / plain",
               "goal", "", "load")  # fmt: skip
    note = (
        "all_reduce of float32. Best: of the fixed patterns, by median. All calls of ADAPTIVE from its first "
        "one on, each beside one of the best pattern; ratios are of sums, so that choosing counts; ms are "
        f"medians. Goal: 0.97; where plain against itself is not within {STEADY} of 1, the lower end of its "
        "interval, if that is less."
    )
    return Table(title="ADAPTIVE and the best fixed pattern", columns=columns, rows=found, note=note)


def fixed(rows: Sequence[Row]) -> Table:
    """Each fixed pattern, measured and expected."""
    names = ("ring", "tree", "butterfly", "hierarchical")
    found, good, all_of = [], 0, 0
    for row in rows:
        line = [*where(row), ms(row["few_s"]["plain"])]
        for name in names:
            measured, expected = median(row["few_s"][name]), row["expected_s"].get(name)
            share = None if expected is None else expected / measured
            line.append(f"{1e3 * measured:.1f}" + ("" if share is None else f" ({share:.2f})"))
            if row["case"].get("mbit_s"):
                all_of += 1
                good += share is not None and abs(share - 1) <= 0.2
        found.append(line)
    note = (
        "Milliseconds, medians, and beside them expected / measured time; expected from the links before any "
        f"collective was timed. Within 20 %, of the shaped links: {good} of {all_of}; goal: 9 of 10."
    )
    return Table(
        title="Fixed patterns", columns=("hosts", "links", "size", "plain", *names), rows=found, note=note
    )


def against_plain(rows: Sequence[Row]) -> Table:
    """ADAPTIVE beside torch's all_reduce, and beside the time that the links take at least."""
    found = []
    for row in rows:
        case, times = row["case"], row["times_s"]
        wanted = _GOALS.get(
            (row["part"], case["hosts"], case.get("mbit_s"), case.get("delay_ms"), case["kb"])
        )
        if wanted is None:
            continue
        name = "adaptive, bf16" if row["part"] == "bf16" else "adaptive"
        value, itself = (
            median(times["plain"]) / median(times[name]),
            ratio(times["plain"], times["plain again"]),
        )
        what = f"plain / ADAPTIVE{', bfloat16 allowed' if row['part'] == 'bf16' else ''}"
        found.append(
            [
                what,
                *where(row),
                f"{value:.2f}",
                with_interval(itself),
                *judged(value, wanted, "{:.2f}", least=True),
            ]
        )
    for row in rows:
        case = row["case"]
        if row["part"] == "patterns" and (case.get("mbit_s"), case["kb"]) == (200, 16384):
            between = [figure["value"] for a, b, figure in row["links"]["gbit_s"] if a != b]
            bound = case["kb"] * 8192 / (min(between) * 1e9)
            value, itself = (
                median(row["times_s"]["adaptive"]) / bound,
                ratio(row["times_s"]["plain"], row["times_s"]["plain again"]),
            )
            found.append(
                ["ADAPTIVE / bytes that must leave a host at its rate", *where(row), f"{value:.2f}",
                 with_interval(itself), *judged(value, 1.10, "{:.2f}", least=False)]
            )  # fmt: skip
    columns = ("what", "hosts", "links", "size", "measured", "plain / plain", "goal", "")
    return Table(
        title="Against plain, and against the bound", columns=columns, rows=found, note="Of medians."
    )


_GOALS = {
    ("patterns", "a b a b", 200, None, 16384): 2.6,
    ("bf16", "a b a b", 200, None, 16384): 4.0,
    ("patterns", "a b a b", None, 10, 64): 1.9,
}
