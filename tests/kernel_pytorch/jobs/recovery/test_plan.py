from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel_pytorch.jobs.recovery.classify import Failure
from kernel_pytorch.jobs.recovery.messages import KINDS, TYPES
from kernel_pytorch.jobs.recovery.plan import Decision, Limits, plan

ALWAYS = {
    "cancelled": ("done", 0),
    "done": ("done", 0),
    "no_space": ("fail", 1),
    "oom": ("fail", 1),
    "user": ("fail", 2),
}
"""Whatever is left."""
RESTARTED = ("crash", "hang", "network", "unknown")
REQUEUED = ("first_node_lost", "timeout")
ELASTIC = ("node_lost", "gpu")


def expected(kind: str, restarts: bool, requeues: bool, first: bool, smaller: bool) -> tuple[str, int]:
    """The contract, case by case."""
    if kind in ALWAYS:
        return ALWAYS[kind]
    if kind == "stopped":
        return "requeue", 75
    if kind in RESTARTED:
        return ("restart", 0) if restarts else ("fail", 1)
    if smaller and (kind == "node_lost" or (kind == "gpu" and not first)):
        return "go_on_smaller", 0
    assert kind in (*REQUEUED, *ELASTIC)
    return ("requeue", 75) if requeues else ("fail", 1)


CASES = list(itertools.product(KINDS, *[(True, False)] * 4))


def failed(kind: str, step: int | None = 8) -> Failure:
    return Failure(kind=kind, type=TYPES[kind], text=f"it was {kind}", nodes=("n2",), step=step)


@pytest.mark.parametrize(
    ("kind", "restarts", "requeues", "first", "smaller"),
    CASES,
    ids=[
        f"{kind}{' restarts' * restarts}{' requeues' * requeues}{' first' * first}{' min:max' * smaller}"
        for kind, restarts, requeues, first, smaller in CASES
    ],
)
def test_every_kind(kind: str, restarts: bool, requeues: bool, first: bool, smaller: bool):
    limits = Limits(
        max_retries=3,
        restarts_used=2 if restarts else 3,
        requeues=1 if requeues else 2,
        max_requeues=2,
        min_nodes=3 if smaller else 4,
        nodes_left=3,
        is_first_node=first,
    )
    decision = plan(failed(kind), [], limits)
    assert (decision.action, decision.exit_code) == expected(kind, restarts, requeues, first, smaller)
    assert f"it was {kind}" in decision.reason
    leaves = decision.action == "go_on_smaller" or (decision.action == "requeue" and kind != "stopped")
    assert decision.exclude == (("n2",) if leaves else ())


@pytest.mark.parametrize("kind", RESTARTED)
@pytest.mark.parametrize("step", [8, None])
def test_the_third_time_at_one_step_is_the_last(kind: str, step: int | None):
    limits = Limits(max_retries=100)
    same, other = failed(kind, step), failed(kind, 7)
    another = failed("crash" if kind != "crash" else "hang", step)
    assert plan(same, [same], limits).action == "restart"
    assert plan(same, [same, another, another], limits).action == "restart"
    assert plan(same, [same, another, failed("node_lost", step), same], limits).action == "fail"
    assert plan(same, [same, other, same], limits).action == "restart"  # it got as far as another step
    third = plan(same, [same, same], limits)
    assert third.exit_code == 1
    assert ("3 times at step 8" if step else "3 times before any known step") in third.reason


def test_a_request_to_stop_shows_progress_only_where_no_step_is_known():
    limits = Limits(max_retries=100)
    for step, action in [(None, "restart"), (8, "fail")]:
        crash, stopped = failed("crash", step), failed("stopped", step)
        assert plan(crash, [crash, crash, stopped], limits).action == action
        assert plan(crash, [stopped, crash, crash], limits).action == "fail"


def test_a_gpu_on_a_node_that_is_not_known_stops_all():
    decision = plan(replace(failed("gpu"), nodes=()), [], Limits(min_nodes=1, nodes_left=4))
    assert (decision.action, decision.exclude) == ("requeue", ())


def test_nodes_that_are_too_few_or_none_do_not_go_on():
    lost = failed("node_lost")
    for least, left, action in [(2, 2, "go_on_smaller"), (2, 1, "requeue"), (1, 0, "requeue")]:
        assert plan(lost, [], Limits(min_nodes=least, nodes_left=left)).action == action


def test_a_job_that_is_stopped_over_and_over_without_a_step_ends():
    stopped, limits = failed("stopped"), Limits(max_idle_stops=2)
    assert plan(stopped, [stopped], limits).action == "requeue"
    assert plan(stopped, [stopped, stopped, failed("stopped", 7)], limits).action == "requeue"
    last = plan(stopped, [failed("stopped", 7), stopped, stopped], limits)
    assert (last.action, last.exit_code) == ("fail", 1)
    assert "3 times in a row without a step" in last.reason
    unknown = failed("stopped", None)
    assert "without a known step" in plan(unknown, [unknown, unknown], limits).reason


def test_a_job_without_requeues_is_still_run_again_when_it_was_stopped():
    decision = plan(failed("stopped"), [], Limits(max_retries=0, max_requeues=0))
    assert (decision.action, decision.exit_code) == ("requeue", 75)


def test_reasons_say_what_is_left():
    assert plan(failed("crash"), [], Limits(restarts_used=1)).reason == "it was crash; restart 2 of 3"
    assert plan(failed("first_node_lost"), [], Limits()).reason == (
        "it was first_node_lost; requeue 1 of 20 without n2"
    )
    assert (
        "4 nodes go on, 3 are enough"
        in plan(failed("node_lost"), [], Limits(min_nodes=3, nodes_left=4)).reason
    )
    assert "all 3 restarts are used" in plan(failed("hang"), [], Limits(restarts_used=3)).reason
    assert "the same memory each time" in plan(failed("oom"), [], Limits()).reason


FAILURES = st.builds(failed, st.sampled_from(KINDS), st.none() | st.integers(0, 5))
LIMITS = st.builds(
    Limits,
    max_retries=st.integers(0, 4),
    max_requeues=st.integers(0, 4),
    max_idle_stops=st.integers(0, 4),
    min_nodes=st.integers(1, 4),
    nodes_left=st.integers(1, 5),
    is_first_node=st.booleans(),
)


def follow(failures: list[Failure], limits: Limits) -> list[Decision]:
    """Do what the plan says, as a node program does, until it ends or nothing fails any more."""
    decisions: list[Decision] = []
    history: list[Failure] = []
    nodes = limits.nodes_left
    for failure in failures:
        lost = failure.kind in ELASTIC
        decision = plan(failure, history, replace(limits, nodes_left=limits.nodes_left - lost))
        decisions.append(decision)
        history.append(failure)
        if decision.action in ("done", "fail"):
            break
        if decision.action == "restart":
            limits = replace(limits, restarts_used=limits.restarts_used + 1)
        elif decision.action == "go_on_smaller":
            limits = replace(limits, nodes_left=limits.nodes_left - 1)
        else:
            fault = failure.kind != "stopped"
            limits = replace(limits, nodes_left=nodes, requeues=limits.requeues + fault)
    return decisions


@given(st.lists(FAILURES, max_size=60), LIMITS)
def test_no_sequence_of_failures_loops(failures: list[Failure], limits: Limits):
    decisions = follow(failures, limits)
    did = [decision.action for decision in decisions]
    kinds = [failure.kind for failure in failures[: len(decisions)]]
    stops = kinds.count("stopped")
    assert did.count("restart") <= limits.max_retries
    assert did.count("requeue") <= limits.max_requeues + stops
    # Between two requeues each node can be lost once.
    assert did.count("go_on_smaller") <= limits.nodes_left * (did.count("requeue") + 1)
    assert all(decision.exit_code in (0, 75, 1, 2) for decision in decisions)
    assert all(action in ("done", "fail") for kind, action in zip(kinds, did, strict=True) if kind in ALWAYS)
    for decision in decisions:
        assert (decision.exit_code == 75) == (decision.action == "requeue")
        assert (decision.exit_code in (1, 2)) == (decision.action == "fail")


@given(FAILURES, LIMITS)
def test_one_failure_that_never_goes_away_ends(failure: Failure, limits: Limits):
    most = limits.max_retries + (limits.max_requeues + 1) * (limits.nodes_left + 1) + 3
    most += limits.max_idle_stops
    decisions = follow([failure] * (most + 1), limits)
    assert len(decisions) <= most
    assert decisions[-1].action in ("done", "fail")
