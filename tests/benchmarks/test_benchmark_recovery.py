import pytest
from benchmarks.recovery.bounds import lower_bound
from benchmarks.recovery.tables import tables
from benchmarks.recovery.training import differences


@pytest.mark.parametrize(
    ("successes", "trials", "bound"),
    [(20, 20, 0.8609), (10, 10, 0.7411), (1, 1, 0.05), (19, 20, 0.7839), (0, 5, 0.0), (0, 0, 0.0)],
)
def test_the_lower_bound_is_that_of_clopper_and_pearson(successes, trials, bound):
    assert lower_bound(successes, trials) == pytest.approx(bound, abs=1e-4)


def trial(fault: str, **facts: object) -> dict[str, object]:
    well = {
        "by": "job",
        "target": "local",
        "recovered": True,
        "seconds": 9.0,
        "start_s": 6.0,
        "steps_lost": 7,
        "steps_since_save": 7,
        "difference": 0.0,
    }
    return {**well, "fault": fault, **facts}


def rows(found: list, title: str) -> dict[str, list[str]]:
    (table,) = [table for table in found if table.title == title]
    assert all(len(row) == len(table.columns) for row in table.rows)
    return {row[0]: row[1:] for row in table.rows}


def test_each_fault_has_a_row_also_if_it_was_not_measured():
    found = tables([trial("kill-worker"), trial("kill-worker", recovered=False, seconds=None)])
    faults = rows(found, "Faults, target local")
    assert faults["kill -9 a worker"] == [
        "1 / 2",
        "0.03",
        "9.0 (9.0 to 9.0)",
        "6.0 (6.0 to 6.0)",
        "7 / 7",
        "0, bit for bit",
    ]
    assert faults["requeue"][0] == "not measured"
    assert faults["all"][:2] == ["1 / 2", "0.03"]


def test_times_are_those_of_an_idle_machine():
    found = tables([trial("kill-worker", load=2.0), trial("kill-worker", load=9.0, seconds=60.0)])
    assert rows(found, "Faults, target local")["kill -9 a worker"][:3] == [
        "2 / 2",
        "0.22",
        "9.0 (9.0 to 9.0)",
    ]
    worker = rows(found, "Figures")["kill -9 a worker, to next step beyond a start, local, median"]
    assert (worker[0], worker[-1]) == ("3.0 s", "1")


def test_a_job_that_did_not_get_as_far_as_its_fault_is_told_and_not_counted():
    found = tables([trial("hang"), trial("hang", recovered=False, injected=False, load=12.6)])
    assert rows(found, "Faults, target local")["all"][0] == "1 / 1"
    assert found[0].note.endswith("did not get as far as its fault: 1, at a load of 13.")
    assert rows(found, "Figures")["recovered / trials, all faults"][0] == "1.000"


def test_what_was_asked_for_is_met_or_missed():
    found = tables(
        [
            trial("requeue", steps_lost=1),
            trial("kill-worker", steps_lost=9),
            trial("lose-node-smaller", difference=1e-6, seconds=30.0),
            trial("hang", stacks_late_s=1.5, right_rank=True),
            trial("hang", recovered=False, stacks_late_s=2.5, right_rank=False),
            {"by": "command", "target": "slurm", "figure": "submit_s", "value": 0.5, "torch": False},
        ]
    )
    figures = rows(found, "Figures")
    verdicts = {what: row[2] for what, row in figures.items()}
    assert verdicts["steps lost, asked to stop"] == "missed"
    assert verdicts["steps lost beyond those since the checkpoint, other faults"] == "missed"
    assert verdicts["difference, same world"] == "met"
    assert verdicts["difference, other world"] == "met"
    assert figures["stacks on disk, s after the limit"][0] == "2.5 s"
    assert verdicts["hangs of which the right rank is named"] == "missed"
    assert verdicts["kill -9 a worker, to next step beyond a start, local, median"] == "met"
    assert verdicts["lose a node, of 1:2, to next step beyond a start, local, median"] == "missed"
    assert figures["kill -9 a worker, to next step beyond a start, slurm, median"][0] == "not measured"
    assert verdicts["`kernel-pytorch submit`, slurm, median"] == "met"


def test_what_was_done_by_hand_has_a_table_of_its_own():
    hand = {"by": "hand", "target": "slurm", "fault": "hang", "recovered": False}
    (table,) = tables([hand, {**hand, "recovered": True}])
    assert table.rows == [["SIGSTOP a rank", "1 / 2"]]


def test_rows_are_compared_only_if_they_are_those_of_all_steps():
    expected = [3.0, 2.0, 1.0]
    assert differences([(1, 3.0), (2, 2.0)], expected, 2) == 0
    assert differences([(1, 3.0), (2, 2.25)], expected, 2) == 0.25
    assert differences([(1, 3.0)], expected, 2) is None
    assert differences([(1, 3.0), (2, 2.0), (2, 2.0)], expected, 2) is None
