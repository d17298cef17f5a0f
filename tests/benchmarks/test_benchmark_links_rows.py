"""The benchmark of the links: which rows are measured, and what is told of them."""

from __future__ import annotations

import subprocess
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.links import ranks
from benchmarks.links.cells import ratio
from benchmarks.links.patterns import alternating, with_plain
from benchmarks.links.rows import Rows, commit, last_of_each, read
from benchmarks.links.tables import tables


def rows(path: Path, **changes: Any) -> Rows:
    here: dict[str, Any] = {"quick": False, "again": False, "machine": "m", "commit": "c1"}
    return Rows(path=path, **(here | changes))


def test_what_is_there_of_this_commit_is_not_measured_again(tmp_path: Path) -> None:
    path, cases = tmp_path / "rows.jsonl", [{"kb": 1}, {"kb": 2}]
    for case in rows(path).missing("rates", cases):
        rows(path).add("rates", case, value=case["kb"])
        break
    assert list(rows(path).missing("rates", cases)) == [{"kb": 2}]
    others: list[dict[str, Any]] = [{"commit": "c2"}, {"commit": None}, {"again": True}, {"quick": True}]
    for other in others:
        assert list(rows(path, **other).missing("rates", cases)) == cases
    assert list(rows(path).missing("bytes", cases)) == cases
    (row,) = read(path)
    assert {"machine", "commit", "load", "at", "quick"} <= row.keys()


def test_results_are_no_change_of_what_is_measured(tmp_path: Path) -> None:
    def git(*words: str) -> str:
        command = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    assert commit(tmp_path) is None
    results, source = tmp_path / "benchmarks" / "results" / "rows.jsonl", tmp_path / "source.py"
    results.parent.mkdir(parents=True)
    for path in (results, source):
        path.write_text("1\n")
    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message", "all")
    head = git("rev-parse", "--short", "HEAD")
    results.write_text("2\n")
    assert commit(tmp_path) == head
    source.write_text("2\n")
    assert commit(tmp_path) is None


def test_the_last_row_of_a_case_counts() -> None:
    found = last_of_each(
        [
            {"part": "rates", "case": {"a": 1, "b": 2}, "value": 1},
            {"part": "bytes", "case": {"a": 1, "b": 2}, "value": 2},
            {"part": "rates", "case": {"b": 2, "a": 1}, "value": 3},
        ]
    )
    assert [row["value"] for row in found] == [3, 2]


def test_no_call_always_follows_the_same_one() -> None:
    assert alternating(["a", "b"], 3) == [["a", "b"], ["b", "a"], ["a", "b"]]


def test_plain_calls_are_made_in_as_many_rounds_as_there_is_time_for() -> None:
    often, rarely = with_plain(["a", "b"], 10, 0.01), with_plain(["a", "b"], 10, 1.5)
    assert [sorted(names) for names in often] == [["a", "b", "plain", "plain again"]] * 10
    assert [len(names) for names in rarely] == [2, 4] * 5
    assert all({"a", "b"} <= set(names) for names in rarely)
    first = [names.index("plain") < names.index("plain again") for names in often]
    assert first == [True, False] * 5


def test_a_call_takes_from_the_last_rank_that_begins_to_the_last_one_that_ends() -> None:
    by_rank = [[[(0.0, 2.0), (10.0, 11.0)]], [[(0.5, 1.0), (10.0, 14.0)]]]
    assert ranks.seconds(by_rank, [["a", "b"]]) == {"a": [1.5], "b": [4.0]}


def test_ranks_meet(tmp_path: Path) -> None:
    path = tmp_path / "meeting"
    ranks.empty_meeting(path, 3)
    seen: list[int] = []

    def rank(number: int) -> None:
        meeting = ranks.Meeting(str(path), number)
        for turn in range(3):
            meeting.wait()
            seen.append(turn)
            meeting.wait()

    threads = [threading.Thread(target=rank, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_a_ratio_counts_each_call_where_sums_are_asked_for() -> None:
    assert ratio([1.0, 1.0, 10.0], [2.0, 2.0, 2.0], np.mean)[0] == pytest.approx(2.0)
    assert ratio([1.0, 1.0, 10.0], [2.0, 2.0, 2.0])[0] == pytest.approx(0.5)
    assert ratio([2.0] * 9, [1.0] * 9) == (2.0, 2.0, 2.0)


def pattern_row(part: str, case: dict[str, Any], **seconds: float) -> dict[str, Any]:
    times = {name.replace("_", " "): [value] * 9 for name, value in seconds.items()}
    fixed = ("ring", "tree", "butterfly", "hierarchical")
    return {
        "part": part,
        "case": case,
        "machine": "m",
        "commit": "c1",
        "load": 1.5,
        "best": "ring",
        "times_s": times,
        "few_s": {name: [1.0] for name in ("plain", *fixed)},
        "expected_s": dict.fromkeys(fixed, 0.9) | {"tree": 0.7},
        "links": {"gbit_s": [[0, 0, {"value": 9.0}], [0, 1, {"value": 0.192}], [1, 0, {"value": 0.193}]]},
    }


def cells(found: list[Any], title: str) -> list[list[str]]:
    (table,) = [table for table in found if table.title == title]
    assert all(len(row) == len(table.columns) for row in table.rows)
    return table.rows


def test_adaptive_is_held_to_its_goals() -> None:
    case = {"hosts": "a b a b", "mbit_s": 200, "kb": 16384}
    good = {"ring": 0.7, "adaptive": 0.71, "plain": 2.0, "plain_again": 2.0}
    found = tables([pattern_row("patterns", case, **good)])
    (row,) = cells(found, "ADAPTIVE and the best fixed pattern")
    assert row[-3:-1] == [">= 0.970", "met"]
    against, bound = cells(found, "Against plain, and against the bound")
    assert (against[4], against[-1]) == ("2.82", "met")
    assert (bound[4], bound[-1]) == ("1.02", "met")
    (fixed,) = cells(found, "Fixed patterns")
    assert fixed[4:6] == ["1000.0 (0.90)", "1000.0 (0.70)"]
    assert "3 of 4" in next(table for table in found if table.title == "Fixed patterns").note

    bad = tables([pattern_row("patterns", case, **(good | {"adaptive": 0.8}))])
    assert cells(bad, "ADAPTIVE and the best fixed pattern")[0][-2] == "missed"
    assert [row[-1] for row in cells(bad, "Against plain, and against the bound")] == ["missed", "missed"]


def test_where_plain_is_not_steady_its_interval_is_the_goal() -> None:
    row = pattern_row("patterns", {"hosts": "a b a b", "kb": 64}, ring=0.9, adaptive=1.0, plain=1.0)
    row["times_s"]["plain again"] = [1.2] * 9
    (found,) = cells(tables([row]), "ADAPTIVE and the best fixed pattern")
    assert found[-3:-1] == [">= 0.833", "met"]


def test_rates_and_bytes_are_held_to_their_goals() -> None:
    base = {"machine": "m", "commit": None, "load": 1.0}
    rate = {"part": "rates", "case": {"mbit_s": 200}, "seconds": 2.9}
    links = [[0, 1, {"value": 0.19}], [1, 0, {"value": 0.2}], [0, 0, {"value": 9.0}]]
    sent = {"part": "bytes", "case": {"hosts": "a b a b", "kb": 1024, "pattern": "ring", "format": "none"}}
    found = tables(
        [
            base | rate | {"gbit_s": links},
            base | rate | {"gbit_s": links, "seconds": 3.1},
            base | rate | {"gbit_s": [[0, 1, {"value": 0.1}]]},
            base | sent | {"counted": 990, "interfaces": 1000},
            base | sent | {"counted": 970, "interfaces": 1000},
        ]
    )
    assert [row[-2] for row in cells(found, "Measured rates")] == ["met", "missed", "missed"]
    assert [row[-1] for row in cells(found, "Bytes")] == ["met", "missed"]
    assert [row[:3] for row in cells(found, "Rows")] == [["rates", "3", "None"], ["bytes", "2", "None"]]


BASE = {"machine": "m", "commit": "c1", "load": 1.0}


def test_what_is_urgent_waits_for_two_chunks_at_most() -> None:
    fifo = ("first in, first out", "first in, first out again")
    row: dict[str, Any] = BASE | {
        "part": "urgent",
        "case": {"hosts": "a b a b", "mbit_s": 200, "kb": 16384},
        "chunk_s": 0.05,
        "small_s": {"urgent": [0.09] * 5} | {name: [0.7] * 5 for name in fifo},
        "all_s": {"urgent": [0.82] * 5} | {name: [0.8] * 5 for name in fifo},
    }
    (good,) = cells(tables([row]), "Something urgent")
    assert (good[5], good[-2]) == ("1.80", "met")
    (late,) = cells(tables([row | {"chunk_s": 0.04}]), "Something urgent")
    assert late[-2] == "missed"
    row["all_s"]["urgent"] = [0.85] * 5
    assert cells(tables([row]), "Something urgent")[0][-2] == "missed"


def test_recording_costs_a_share_of_a_step() -> None:
    calls = {"plain": [1e-5] * 4, "plain again": [1e-5] * 4, "recorded": [4e-5] * 4}
    row = BASE | {"part": "cost", "case": {}, "calls_s": calls, "calls_a_step": 3.0, "step_s": 0.02}
    (found,) = cells(tables([row]), "Cost of recording")
    assert (found[1], found[-3], found[-2]) == ("30.0", "0.45 %", "met")
    assert cells(tables([row | {"step_s": 0.005}]), "Cost of recording")[0][-2] == "missed"


def test_every_trial_must_be_right() -> None:
    def trial(part: str, right: bool, **case: Any) -> dict[str, Any]:
        return BASE | {"part": part, "case": case, "right": right}

    found = tables(
        [
            trial("faults", True, fault="late rank", check=False),
            trial("faults", False, fault="late rank", check=False),
            trial("faults", True, fault="late rank", check=True),
            trial("slow-pair", True, check=True),
        ]
    )
    assert [row[:4] for row in cells(found, "Faults found")] == [
        ["late rank", "", "1 / 2", "missed"],
        ["late rank", "check", "1 / 1", "met"],
        ["slow pair", "check", "1 / 1", "met"],
    ]


def test_a_loss_is_held_to_the_spread_of_seeds() -> None:
    losses = {"plain": [1.0, 1.1, 1.2], "bf16": [1.1, 1.2, 1.2], "quantized_8bit": [1.4] * 3, "topk": [2.0]}
    rows = [
        BASE | {"part": "loss", "case": {"method": method, "seed": seed}, "loss": loss, "step_bytes": 4e5}
        for method, some in losses.items()
        for seed, loss in enumerate(some)
    ]
    found = cells(tables(rows), "Loss by format of gradients")
    assert [(row[0], row[-1]) for row in found] == [
        ("plain", ""), ("bf16", "met"), ("quantized_8bit", "missed"), ("topk", "")
    ]  # fmt: skip
