"""The trials as tables. Pure functions."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from ..registry import Table
from .bounds import lower_bound
from .faults import FAULTS

Trial = Mapping[str, Any]
MOST_DIFFERENCE = 1e-4
"""Bits per byte, between worlds of different sizes."""
WORKER_S, SMALLER_S, STACKS_S = 5.0, 15.0, 5.0
SUBMIT_S, STATUS_S, BEAT_S = 1.5, 0.5, 20e-6
IDLE_LOAD = 4.5
"""Load average below which the machine was idle but for trials: one leaves 2 to 4 behind."""


def tables(trials: Sequence[Trial]) -> list[Table]:
    """All that is to be told of some trials, those of both targets mixed."""
    jobs = [trial for trial in trials if trial["by"] == "job"]
    by_hand = [trial for trial in trials if trial["by"] == "hand"]
    found = []
    for target in ("local", "slurm"):
        of_target = [trial for trial in jobs if trial["target"] == target]
        if of_target:
            found.append(_recovery(target, of_target))
    jobs = [trial for trial in jobs if _injected(trial)]
    if jobs:
        found.append(_asked(jobs, trials))
    for target, what in (("local", "plain torchrun"), ("slurm", "a batch script written by hand")):
        of_target = [trial for trial in by_hand if trial["target"] == target]
        if of_target:
            found.append(_by_hand(target, what, of_target))
    return found


def _recovery(target: str, trials: Sequence[Trial]) -> Table:
    rows = []
    without = [trial for trial in trials if not _injected(trial)]
    trials = [trial for trial in trials if _injected(trial)]
    for name, fault in FAULTS.items():
        of_fault = [trial for trial in trials if trial["fault"] == name]
        if not of_fault:
            rows.append([fault.what, "not measured", "", "", "", "", ""])
            continue
        good = [trial for trial in of_fault if trial["recovered"]]
        timed = _idle(good)
        rows.append(
            [
                fault.what,
                f"{len(good)} / {len(of_fault)}",
                f"{lower_bound(len(good), len(of_fault)):.2f}",
                _span([trial["seconds"] for trial in timed]),
                _span([trial["start_s"] for trial in timed]),
                _of(good, "steps_lost", "steps_since_save"),
                _difference(good),
            ]
        )
    good = [trial for trial in trials if trial["recovered"]]
    bound = lower_bound(len(good), len(trials))
    rows.append(["all", f"{len(good)} / {len(trials)}", f"{bound:.2f}", "", "", "", _difference(good)])
    columns = (
        "fault",
        "recovered / trials",
        "95 % lower bound",
        "s to next step",
        "s of a start",
        "steps lost / since checkpoint",
        "greatest difference",
    )
    note = (
        "2 nodes x 2 ranks, `longnet train`. Seconds from the fault to the end of the next step, and those "
        "that the same ranks took from their start to their first step: median, lowest to highest. Steps: "
        "the most. The difference, in bits per byte, of any row of the metrics from those of an "
        "uninterrupted run. The bound is Clopper and Pearson's, one-sided."
    )
    note += (
        f" Times are of the {len(_idle(good))} recovered trials before which the load average was below "
        f"{IDLE_LOAD}; beside the others, tests ran."
    )
    if without:
        loads = ", ".join(f"{trial['load']:.0f}" for trial in without)
        note += " Not counted, since the job did not get as far as its fault: "
        note += f"{len(without)}, at a load of {loads}."
    machines = sorted({trial["machine"] for trial in trials if "machine" in trial})
    if len(machines) > 1:
        note += f" Machines: {', '.join(machines)}."
    return Table(title=f"Faults, target {target}", columns=columns, rows=rows, note=note)


def _injected(trial: Trial) -> bool:
    """Whether the job got as far as its fault."""
    return bool(trial.get("injected", True))


def _asked(jobs: Sequence[Trial], trials: Sequence[Trial]) -> Table:
    good = [trial for trial in jobs if trial["recovered"]]
    same = [trial for trial in good if FAULTS[trial["fault"]].same_world]
    other = [trial for trial in good if not FAULTS[trial["fault"]].same_world]
    stops = [trial for trial in good if FAULTS[trial["fault"]].asked]
    faults = [trial for trial in good if not FAULTS[trial["fault"]].asked]
    hangs = [trial for trial in jobs if trial["fault"] == "hang"]
    rows = [
        _row("recovered / trials, all faults", len(good) / len(jobs), "{:.3f}", 1.0, len(jobs), least=True),
        _row("difference, same world", _most(same, "difference"), "{:.1e} bits per byte", 0.0, len(same)),
        _row(
            "difference, other world",
            _most(other, "difference"),
            "{:.1e} bits per byte",
            MOST_DIFFERENCE,
            len(other),
        ),
        _row("steps lost, asked to stop", _most(stops, "steps_lost"), "{:g}", 0.0, len(stops)),
        _row(
            "steps lost beyond those since the checkpoint, other faults",
            max((trial["steps_lost"] - trial["steps_since_save"] for trial in faults), default=None),
            "{:g}",
            0.0,
            len(faults),
        ),
        _row(
            "stacks on disk, s after the limit",
            _most(hangs, "stacks_late_s"),
            "{:.1f} s",
            STACKS_S,
            len(hangs),
        ),
        _row(
            "hangs of which the right rank is named",
            sum(bool(trial.get("right_rank")) for trial in hangs) / len(hangs) if hangs else None,
            "{:.3f}",
            1.0,
            len(hangs),
            least=True,
        ),
    ]
    for target in ("local", "slurm"):
        for fault, limit in (("kill-worker", WORKER_S), ("lose-node-smaller", SMALLER_S)):
            of_fault = [
                trial for trial in _idle(good) if (trial["target"], trial["fault"]) == (target, fault)
            ]
            beyond = [trial["seconds"] - trial["start_s"] for trial in of_fault]
            middle = statistics.median(beyond) if beyond else None
            what = f"{FAULTS[fault].what}, to next step beyond a start, {target}, median"
            rows.append(_row(what, middle, "{:.1f} s", limit, len(of_fault)))
    for target in ("local", "slurm"):
        for figure, what, shown, limit, scale in (
            ("submit_s", "`kernel-pytorch submit`", "{:.2f} s", SUBMIT_S, 1),
            ("status_s", "`kernel-pytorch status`", "{:.2f} s", STATUS_S, 1),
            ("beat_s", "`job.beat`", "{:.1f} us", BEAT_S * 1e6, 1e6),
        ):
            values = [
                trial["value"] * scale
                for trial in trials
                if trial["by"] == "command" and (trial["target"], trial["figure"]) == (target, figure)
            ]
            if values and (figure, target) != ("beat_s", "slurm"):
                # On local, submit waits until the nodes have met.
                limit_of = None if (figure, target) == ("submit_s", "local") else limit
                rows.append(
                    _row(f"{what}, {target}, median", statistics.median(values), shown, limit_of, len(values))
                )
    loads = [trial for trial in trials if trial.get("torch")]
    rows.append(_row("of these commands, those that load torch", len(loads), "{:g}", 0.0, None))
    note = (
        "Both targets together where none is named. A start is the same ranks' first one. On local, `submit` "
        "waits until the node programs have met; on Slurm, until sbatch has accepted."
    )
    return Table(title="Figures", columns=("what", "measured", "asked", "", "of"), rows=rows, note=note)


def _idle(trials: Sequence[Trial]) -> list[Trial]:
    return [trial for trial in trials if trial.get("load", 0.0) < IDLE_LOAD]


def _row(
    what: str,
    value: float | None,
    shown: str,
    limit: float | None,
    count: int | None,
    *,
    least: bool = False,
) -> list[str]:
    if value is None:
        return [what, "not measured", "", "", ""]
    number = "" if count is None else str(count)
    if limit is None:
        return [what, shown.format(value), "", "", number]
    met = value >= limit if least else value <= limit
    asked = f"{'>=' if least else '<='} {shown.format(limit)}"
    return [what, shown.format(value), asked, "met" if met else "missed", number]


def _by_hand(target: str, what: str, trials: Sequence[Trial]) -> Table:
    rows = []
    for name in FAULTS:
        of_fault = [trial for trial in trials if trial["fault"] == name]
        if of_fault:
            good = sum(trial["recovered"] for trial in of_fault)
            rows.append([FAULTS[name].what, f"{good} / {len(of_fault)}"])
    note = (
        "`--max-restarts 3`, all else torchrun's defaults; ranks resume where there is a checkpoint. Not "
        "recovered: not all steps were taken 90 s after the fault, or nothing ran any more."
    )
    title = f"The same faults, {what}"
    return Table(title=title, columns=("fault", "recovered / trials"), rows=rows, note=note)


def _span(values: Sequence[float]) -> str:
    if not values:
        return ""
    return f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def _of(trials: Sequence[Trial], *names: str) -> str:
    return " / ".join("" if not trials else f"{_most(trials, name):g}" for name in names)


def _most(trials: Sequence[Trial], name: str) -> float | None:
    return max((trial[name] for trial in trials if trial.get(name) is not None), default=None)


def _difference(trials: Sequence[Trial]) -> str:
    most = _most(trials, "difference")
    if most is None:
        return ""
    return "0, bit for bit" if most == 0 else f"{most:.1e}"
