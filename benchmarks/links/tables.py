"""The rows as tables. Pure functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import mean, median

import numpy as np
import numpy.typing as npt

from ..measure import RESAMPLES
from ..registry import Table
from .rows import Row

Statistic = Callable[..., npt.NDArray[np.float64]]
PAYLOAD = 0.96
"""Of what a link carries: the rest are headers."""
STEADY = 0.02
"""By how much plain may differ from itself where ADAPTIVE is held to 0.97."""


def tables(rows: Sequence[Row]) -> list[Table]:
    """All that is to be told of some rows, the last one of each case."""
    made = [table(_of(rows, parts)) for parts, table in TABLES if _of(rows, parts)]
    return [*made, _origin(rows)]


def ratio(first: Sequence[float], second: Sequence[float], statistic: Statistic = np.median) -> Ratio:
    """Of a statistic of both, with the 95 % interval of a bootstrap of pairs."""
    times = np.array([first, second])
    index = np.random.default_rng(0).integers(times.shape[1], size=(RESAMPLES, times.shape[1]))
    above, below = statistic(times[:, index], axis=-1)
    low, high = np.quantile(above / below, (0.025, 0.975))
    above, below = statistic(times, axis=-1)
    return float(above / below), float(low), float(high)


Ratio = tuple[float, float, float]
"""Value and interval."""


def _patterns(rows: Sequence[Row]) -> Table:
    found = []
    for row in rows:
        times = row["times_s"]
        value = ratio(times[row["best"]], times["adaptive"], np.mean)
        itself = ratio(times["plain"], times["plain again"], np.mean)
        steady = max(abs(itself[1] - 1), abs(itself[2] - 1)) <= STEADY
        goal = 0.97 if steady else itself[1]
        found.append(
            [
                *_where(row),
                row["best"],
                _ms(times[row["best"]]),
                _ms(times["adaptive"]),
                _with_interval(value),
                f"{_with_interval(itself)}, {len(times['plain'])} rounds",
                *_judged(value[0], goal, "{:.3f}", least=True),
                str(row["load"]),
            ]
        )
    columns = ("hosts", "links", "size", "best", "ms", "ADAPTIVE ms", "best / ADAPTIVE", "plain / plain",
               "goal", "", "load")  # fmt: skip
    note = (
        "all_reduce of float32. Best: of the fixed patterns, by median. All calls of ADAPTIVE from its first "
        "one on, each beside one of the best pattern; ratios are of sums, so that choosing counts; ms are "
        f"medians. Goal: 0.97 where plain against itself is within {STEADY} of 1, else the lower end of its "
        "interval."
    )
    return Table(title="ADAPTIVE and the best fixed pattern", columns=columns, rows=found, note=note)


def _fixed(rows: Sequence[Row]) -> Table:
    names = ("ring", "tree", "butterfly", "hierarchical")
    found, good, all_of = [], 0, 0
    for row in rows:
        line = [*_where(row), _ms(row["few_s"]["plain"])]
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


def _against_plain(rows: Sequence[Row]) -> Table:
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
                *_where(row),
                f"{value:.2f}",
                _with_interval(itself),
                *_judged(value, wanted, "{:.2f}", least=True),
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
                ["ADAPTIVE / bytes that must leave a host at its rate", *_where(row), f"{value:.2f}",
                 _with_interval(itself), *_judged(value, 1.10, "{:.2f}", least=False)]
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


def _rates(rows: Sequence[Row]) -> Table:
    found = []
    for row in rows:
        between = [figure["value"] for a, b, figure in row["gbit_s"] if a != b]
        wanted = PAYLOAD * row["case"]["mbit_s"] / 1e3
        shares = [rate / wanted for rate in between]
        met = all(abs(share - 1) <= 0.05 for share in shares) and row["seconds"] <= 3
        cells = [str(row["case"]["mbit_s"]), " ".join(f"{rate:.4f}" for rate in between)]
        cells += [" ".join(f"{share:.3f}" for share in shares), f"{row['seconds']:.2f}"]
        found.append([*cells, "met" if met else "missed", str(row["load"])])
    columns = ("set, Mbit/s", "measured, Gbit/s", f"/ ({PAYLOAD} x set)", "seconds", "", "load")
    note = "Four ranks on two hosts, a b a b; each direction. Goal: within 5 %, in 3 s at most."
    return Table(title="Measured rates", columns=columns, rows=found, note=note)


def _bytes(rows: Sequence[Row]) -> Table:
    found = []
    for row in rows:
        value = row["counted"] / row["interfaces"]
        case = row["case"]
        found.append(
            [case["hosts"], _size(row), case["pattern"], case["format"], f"{row['counted'] / 1e6:.2f}",
             f"{row['interfaces'] / 1e6:.2f}", f"{value:.4f}", "met" if abs(value - 1) <= 0.02 else "missed"]
        )  # fmt: skip
    columns = ("hosts", "size", "pattern", "format", "counted, MB", "interfaces, MB", "ratio", "")
    note = (
        "What all ranks say they sent to other hosts, and what interfaces sent, without headers. Goal: 2 %."
    )
    return Table(title="Bytes", columns=columns, rows=found, note=note)


def _origin(rows: Sequence[Row]) -> Table:
    found = []
    for part in dict.fromkeys(row["part"] for row in rows):
        some = _of(rows, (part,))
        commits, loads = sorted({str(row["commit"]) for row in some}), [row["load"] for row in some]
        found.append([part, str(len(some)), " ".join(commits), f"{min(loads)} to {max(loads)}"])
    note = "Load average of a minute, after each row. Commit None: something was not committed."
    return Table(title="Rows", columns=("part", "rows", "commit", "load"), rows=found, note=note)


def _loss(rows: Sequence[Row]) -> Table:
    losses: dict[str, list[float]] = {}
    for row in rows:
        losses.setdefault(row["case"]["method"], []).append(row["loss"])
    plain = losses.get("plain", [])
    spread = max(plain, default=0.0) - min(plain, default=0.0)
    found = []
    for method, some in losses.items():
        gap = mean(some) - mean(plain) if plain else None
        held = method in ("bf16", "quantized_8bit") and gap is not None
        judged = _judged(abs(gap), spread, "{:.4f}", least=False) if held and gap is not None else ["", ""]
        told = "" if gap is None else f"{gap:+.4f}"
        found.append([method, f"{mean(some):.4f}", str(len(some)), told, *judged])
    columns = ("gradients", "loss", "seeds", "gap", "goal", "")
    note = (
        "A small LongNet, four ranks, DDP, 200 steps: mean loss of the last 20, over seeds, and the gap to "
        "that of DDP's own averages. The goal is the spread of theirs, from the least seed to the greatest."
    )
    return Table(title="Loss by format of gradients", columns=columns, rows=found, note=note)


TABLES: tuple[tuple[tuple[str, ...], Callable[[Sequence[Row]], Table]], ...] = (
    (("rates",), _rates),
    (("patterns",), _patterns),
    (("patterns", "bf16"), _against_plain),
    (("patterns",), _fixed),
    (("bytes",), _bytes),
    (("loss",), _loss),
)


def _of(rows: Sequence[Row], parts: Sequence[str]) -> list[Row]:
    return [row for row in rows if row["part"] in parts]


def _where(row: Row) -> list[str]:
    case = row["case"]
    shaped = [f"{case['mbit_s']} Mbit/s"] if case.get("mbit_s") else []
    delayed = [f"{case['delay_ms']} ms each way"] if case.get("delay_ms") else []
    return [case["hosts"], ", ".join([*shaped, *delayed]) or "not shaped", _size(row)]


def _size(row: Row) -> str:
    kb = row["case"]["kb"]
    return f"{kb // 1024} MB" if kb >= 1024 else f"{kb} KB"


def _ms(seconds: Sequence[float]) -> str:
    return f"{1e3 * median(seconds):.1f}"


def _with_interval(value: Ratio) -> str:
    return f"{value[0]:.3f} ({value[1]:.3f} to {value[2]:.3f})"


def _judged(value: float, goal: float, shown: str, *, least: bool) -> list[str]:
    met = value >= goal if least else value <= goal
    return [f"{'>=' if least else '<='} {shown.format(goal)}", "met" if met else "missed"]
