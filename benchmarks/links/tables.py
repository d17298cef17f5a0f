"""The rows as tables. Pure functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import mean, median

from ..registry import Table
from . import pattern_tables
from .cells import judged, ms, ratio, size, where, with_interval
from .rows import Row

PAYLOAD = 0.96
"""Of what a link carries: the rest are headers."""


def tables(rows: Sequence[Row]) -> list[Table]:
    """All that is to be told of some rows, the last one of each case."""
    made = [table(_of(rows, parts)) for parts, table in TABLES if _of(rows, parts)]
    return [*made, _origin(rows)]


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
            [case["hosts"], size(row), case["pattern"], case["format"], f"{row['counted'] / 1e6:.2f}",
             f"{row['interfaces'] / 1e6:.2f}", f"{value:.4f}", "met" if abs(value - 1) <= 0.02 else "missed"]
        )  # fmt: skip
    columns = ("hosts", "size", "pattern", "format", "counted, MB", "interfaces, MB", "ratio", "")
    note = (
        "What all ranks say they sent to other hosts, and what interfaces sent, without headers of Ethernet, "
        "IP and TCP. Goal: 2 %. gloo adds about 150 bytes to a message: it shows where these have a few KB."
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
    sent: dict[str, float | None] = {}
    for row in rows:
        losses.setdefault(row["case"]["method"], []).append(row["loss"])
        sent[row["case"]["method"]] = row["step_bytes"]
    plain = losses.get("plain", [])
    spread = max(plain, default=0.0) - min(plain, default=0.0)
    found = []
    for method, some in losses.items():
        gap = mean(some) - mean(plain) if plain else None
        held = method in ("bf16", "quantized_8bit") and gap is not None
        goal = judged(abs(gap), spread, "{:.4f}", least=False) if held and gap is not None else ["", ""]
        told = "" if gap is None else f"{gap:+.4f}"
        step = sent[method]
        sent_mb = "" if step is None else f"{step / 1e6:.3f}"
        found.append([method, sent_mb, f"{mean(some):.4f}", str(len(some)), told, *goal])
    columns = ("gradients", "MB a step", "loss", "seeds", "gap", "goal", "")
    note = (
        "A small LongNet, four ranks, DDP, 200 steps: what a rank sends; mean loss of the last 20, over "
        "seeds, and the gap to that of DDP's own averages. The goal is the spread of theirs, from the least "
        "seed to the greatest."
    )
    return Table(title="Loss by format of gradients", columns=columns, rows=found, note=note)


def _urgent(rows: Sequence[Row]) -> Table:
    found = []
    for row in rows:
        small, whole = row["small_s"], row["all_s"]
        fifo, again = "first in, first out", "first in, first out again"
        chunks = median(small["urgent"]) / row["chunk_s"]
        longer, itself = ratio(whole["urgent"], whole[fifo]), ratio(whole[again], whole[fifo])
        met = chunks <= 2 and longer[0] <= 1.05
        cells = [*where(row), f"{1e3 * row['chunk_s']:.0f}", ms(small["urgent"]), f"{chunks:.2f}"]
        cells += [ms(small[fifo]), with_interval(longer), with_interval(itself)]
        found.append([*cells, "met" if met else "missed", str(row["load"])])
    columns = ("hosts", "links", "size", "chunk ms", "urgent ms", "chunks", "not urgent ms",
               "all / first in, first out", "that / itself", "", "load")  # fmt: skip
    note = (
        "64 KB of high priority, submitted 0.1 s after a bigger operation; a chunk is what one of that takes "
        "first in, first out. Goals: 2 chunks at most; all of it at most 1.05 times as long."
    )
    return Table(title="Something urgent", columns=columns, rows=found, note=note)


def _cost(rows: Sequence[Row]) -> Table:
    found = []
    for row in rows:
        times = row["calls_s"]
        plain = median([*times["plain"], *times["plain again"]])
        cost, itself = median(times["recorded"]) - plain, ratio(times["plain"], times["plain again"])
        share = cost * row["calls_a_step"] / row["step_s"]
        cells = [f"{1e6 * plain:.1f}", f"{1e6 * cost:.1f}", with_interval(itself)]
        cells += [f"{row['calls_a_step']:.1f}", f"{1e3 * row['step_s']:.1f}", f"{100 * share:.2f} %"]
        found.append([*cells, "met" if share <= 0.01 else "missed", str(row["load"])])
    columns = ("plain us", "recording us", "plain / plain", "calls a step", "step ms", "share", "", "load")
    note = (
        "A call of one rank alone, recorded to a file; a step of a small LongNet with DDP on four ranks. "
        "Goal: 1 % of it."
    )
    return Table(title="Cost of recording", columns=columns, rows=found, note=note)


def _faults(rows: Sequence[Row]) -> Table:
    trials: dict[tuple[str, bool], list[Row]] = {}
    for row in rows:
        what = "slow pair" if row["part"] == "slow-pair" else row["case"]["fault"]
        trials.setdefault((what, row["case"]["check"]), []).append(row)
    found = []
    for (what, check), some in trials.items():
        right, loads = sum(row["right"] for row in some), [row["load"] for row in some]
        cells = [what, "check" if check else "", f"{right} / {len(some)}"]
        found.append([*cells, "met" if right == len(some) else "missed", f"{min(loads)} to {max(loads)}"])
    columns = ("fault", "", "right / trials", "", "load")
    note = (
        "Four ranks, recorded as by `kernel-pytorch profile job`. Right: the first finding has the right "
        "kind, rank (of a slow pair: both) and line, none blames another; healthy: no finding. Goal: all."
    )
    return Table(title="Faults found", columns=columns, rows=found, note=note)


TABLES: tuple[tuple[tuple[str, ...], Callable[[Sequence[Row]], Table]], ...] = (
    (("rates",), _rates),
    (("patterns",), pattern_tables.adaptive),
    (("patterns", "bf16"), pattern_tables.against_plain),
    (("patterns",), pattern_tables.fixed),
    (("bytes",), _bytes),
    (("loss",), _loss),
    (("urgent",), _urgent),
    (("cost",), _cost),
    (("faults", "slow-pair"), _faults),
)


def _of(rows: Sequence[Row], parts: Sequence[str]) -> list[Row]:
    return [row for row in rows if row["part"] in parts]
