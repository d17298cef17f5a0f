"""Deadlines and what comes next, on a clock that is given."""

from __future__ import annotations

import pytest
from advice_records import MACHINE, request, trial
from recorded_facts import recorded_facts

from kernel_pytorch.advice.facts import Options, unknown
from kernel_pytorch.advice.messages import (
    Confirmed,
    Found,
    Loaded,
    Observed,
    Planned,
    Request,
    Tried,
    Trying,
)
from kernel_pytorch.advice.run_record import RunRecord
from kernel_pytorch.advice.target import TargetError

BUDGET_S = 20.0
BEGAN = 1000.0
"""When the runs here begin, by the clock."""
LOADED = Loaded(facts=recorded_facts(call=unknown("not measured")), machine=MACHINE)
PLANNED = Planned(trials=(trial("one", "not tried"), trial("two", "not tried")), until=BEGAN + 26)


def begun() -> tuple[RunRecord, Request]:
    """A run, and what its first worker is to do."""
    record = RunRecord(request(options=Options(budget_s=BUDGET_S)), lambda line: None, BEGAN)
    first = record.next(BEGAN)
    assert first is not None
    return record, first


def in_trials() -> tuple[RunRecord, Request]:
    """A run 6 s after it began, loaded within 3 s."""
    record, first = begun()
    record.note(first, LOADED, BEGAN + 3)
    record.note(first, Found(facts=recorded_facts()), BEGAN + 5)
    record.note(first, Observed(findings=()), BEGAN + 6)
    record.note(first, PLANNED, BEGAN + 6)
    return record, first


def test_all_is_over_within_15_s_beyond_the_budget():
    record, first = begun()
    assert first.until <= BEGAN + BUDGET_S + 15 - 1
    assert record.deadline == first.until
    assert first.trials_until is None


def test_a_file_that_does_not_load_in_time():
    record, first = begun()
    with pytest.raises(TargetError, match=r"model.py:make: not loaded after 32 s"):
        record.ended(first, "out of time", "", BEGAN + 32)


def test_an_endless_analysis_leaves_the_facts_that_need_no_call():
    record, first = begun()
    record.note(first, LOADED, BEGAN + 3)
    assert record.deadline == first.until
    record.ended(first, "out of time", "it did not end in time", BEGAN + 33)
    assert record.next(BEGAN + 33) is None
    report = record.report(BEGAN + 33)
    assert report.facts.failed == "it did not end in time while it was analysed"
    assert (report.trials, report.result, report.machine) == ((), None, MACHINE)


def test_findings_have_a_time_of_their_own():
    record, first = begun()
    record.note(first, LOADED, BEGAN + 3)
    record.note(first, Found(facts=recorded_facts()), BEGAN + 5)
    assert BEGAN + 5 < record.deadline < BEGAN + 5 + BUDGET_S
    record.ended(first, "out of time", "it did not end in time", record.deadline)
    second = record.next(BEGAN + 14)
    assert not second.observe
    assert second.facts == recorded_facts()


def test_a_trial_has_until_shortly_after_its_own_end():
    record, first = in_trials()
    record.note(first, Trying(strategy="one", until=BEGAN + 9), BEGAN + 6)
    assert BEGAN + 9 < record.deadline <= BEGAN + 10
    record.note(first, Tried(trial=trial("one")), BEGAN + 8)
    assert record.deadline == first.until


def test_a_fresh_worker_gets_what_is_known():
    record, first = in_trials()
    record.note(first, Tried(trial=trial("one")), BEGAN + 8)
    record.note(first, Trying(strategy="two", until=BEGAN + 9), BEGAN + 8)
    record.ended(first, "killed", "killed by signal 11", BEGAN + 9)
    second = record.next(BEGAN + 9)
    assert [(made.strategy, made.verdict) for made in second.done] == [("one", "kept"), ("two", "killed")]
    assert (second.facts, second.observe, second.confirm) == (recorded_facts(), False, ())
    assert second.trials_until == PLANNED.until


def test_no_worker_is_started_for_trials_when_it_could_not_begin_in_time():
    record, first = in_trials()
    record.note(first, Trying(strategy="one", until=BEGAN + 23), BEGAN + 6)
    record.ended(first, "out of time", "it did not end in time", BEGAN + 24)
    assert record.next(BEGAN + 24) is None  # loading took 3 s, and trials end at 26
    reasons = {made.strategy: made.reason for made in record.report(BEGAN + 24).trials}
    assert reasons == {"one": "it did not end in time", "two": "no time was left"}


def test_what_was_kept_is_confirmed_when_the_time_for_trials_is_over():
    record, first = in_trials()
    record.note(first, Tried(trial=trial("one")), BEGAN + 8)
    record.note(first, Trying(strategy="two", until=BEGAN + 23), BEGAN + 8)
    record.ended(first, "out of time", "it did not end in time", BEGAN + 24)
    last = record.next(BEGAN + 24)
    assert last.confirm == ("one",)
    record.note(last, LOADED, BEGAN + 27)
    record.note(last, Confirmed(trial=trial("one", "reverted", "its interval reaches 1")), BEGAN + 30)
    assert record.next(BEGAN + 30) is None
    report = record.report(BEGAN + 30)
    assert (report.confirmed, report.kept, report.seconds) == (True, (), 30.0)


def test_a_model_that_fails_on_the_inputs_is_not_tried():
    record, first = begun()
    record.note(first, LOADED, BEGAN + 3)
    record.note(first, Found(facts=recorded_facts(failed="ValueError: no")), BEGAN + 5)
    record.finished(first)
    assert record.next(BEGAN + 5) is None
    assert record.report(BEGAN + 5).facts.failed == "ValueError: no"


def test_a_worker_that_ends_between_trials_ends_the_search():
    record, first = in_trials()
    record.ended(first, "killed", "killed by signal 9", BEGAN + 7)
    assert record.next(BEGAN + 7) is None
    reasons = {made.reason for made in record.report(BEGAN + 7).trials}
    assert reasons == {"the trials ended early: killed by signal 9"}
