"""Findings in jobs of which the culprit is known, and none in healthy ones."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_links import made_up
from made_up_runs import Line, calls_of, changed, killed, made_up_run, with_skip

from kernel_pytorch.links.facts import Figure, RankPair
from kernel_pytorch.links.methods import CommunicationPattern, Operation
from kernel_pytorch.links.profile.advice import pattern_s, recommendations
from kernel_pytorch.links.profile.findings import find, findings
from kernel_pytorch.links.profile.join import join
from kernel_pytorch.links.profile.record import CallRecord, EndRecord
from kernel_pytorch.watch.health import HealthState

LINES = (
    Line(site="/me/train.py:70", operation="all_gather", nbytes=1 << 20, compute_ms=15, moving_ms=3),
    Line(site="/me/train.py:88", compute_ms=60, moving_ms=8),
    Line(site="/me/train.py:90", operation="barrier", nbytes=0, compute_ms=5, moving_ms=0.3),
)


def kinds(found):
    return [(each.kind, each.ranks) for each in found]


@pytest.mark.parametrize("seed", range(20))
def test_healthy_runs_have_no_finding(seed):
    """Also where each time is off by half, now and then by a multiple: a busy machine."""
    noise = (0.02, 0.1, 0.3, 0.6)[seed % 4]
    assert findings(made_up_run(*LINES, noise=noise, seed=seed, steps=(12, 40)[seed % 2])) == []


@pytest.mark.parametrize("seed", range(4))
def test_a_machine_that_is_busy_for_a_while_makes_no_finding(seed):
    """A neighbour takes 40 ms of each step from one rank, for two fifths of the run."""
    run = made_up_run(
        *LINES, late_ms=lambda step, rank: 40.0 * (rank == 1 and step > 18), seed=seed, steps=30
    )
    assert findings(run) == []


def test_what_does_not_hold_throughout_is_no_finding():
    """31 of 40 steps are more than chance, but a neighbour may come after a fourth of the run."""
    run = made_up_run(*LINES, late_ms=lambda step, rank: 40.0 * (rank == 1 and step > 9), steps=40)
    assert findings(run) == []


def test_lateness_that_varies_as_much_as_it_is_long_is_no_finding():
    """As of the process that gets least of CPUs that have too much to do: always late, never alike."""
    late = np.random.default_rng(0).uniform(12, 60, 41)
    run = made_up_run(*LINES, late_ms=lambda step, rank: late[step] * (rank == 1), noise=0.01, steps=40)
    assert findings(run) == []


def test_work_that_varies_makes_no_finding():
    """Another rank is the last one each time: nobody can be named."""
    last = np.random.default_rng(0).integers(4, size=41)
    run = made_up_run(*LINES, late_ms=lambda step, rank: 40.0 * (rank == last[step]), steps=40)
    assert findings(run) == []


@settings(max_examples=25)
@given(ranks=st.integers(2, 6), data=st.data(), seed=st.integers(0, 1_000))
def test_a_late_rank_is_named(ranks, data, seed):
    late = data.draw(st.integers(0, ranks - 1))
    (finding,) = findings(made_up_run(*LINES, ranks=ranks, late_ms={late: 50.0}, seed=seed))
    assert kinds([finding]) == [("late_rank", (late,))]
    assert (finding.collective, finding.site) == ("all_gather 1 MB", "/me/train.py:70")
    assert finding.ms_per_step == pytest.approx(50, rel=0.1)
    assert finding.ms_in_all == pytest.approx(50 * 30, rel=0.1)
    assert finding.step == 1
    assert finding.evidence.state is HealthState.DEGRADED
    assert finding.evidence.value > finding.evidence.threshold


def test_the_words_of_a_late_rank():
    (finding,) = findings(made_up_run(late_ms={2: 55.0}, noise=0))
    assert finding.text == "rank 2 comes 55 ms late to all_reduce 25 MB (train.py:88): 55 ms of each step"
    (finding,) = findings(made_up_run(late_ms={2: 55.0}, noise=0, marked=False))
    assert finding.text == "rank 2 comes 55 ms late to all_reduce 25 MB (train.py:88): 55 ms of each call"
    assert finding.ms_per_step is None


def test_only_the_first_of_equal_calls_is_late():
    """As where gradients are reduced one by one: the rank waits with the others from then on."""
    run = made_up_run(Line(compute_ms=1, times=12), late_ms={1: 50.0})
    (finding,) = findings(run)
    assert kinds([finding]) == [("late_rank", (1,))]
    assert finding.ms_per_step == pytest.approx(50, rel=0.1)
    assert finding.text.startswith("rank 1 comes ")


def test_what_comes_before_the_first_step_is_left_out():
    """Rank 3 starts late; that is no finding. Nor do many calls then hide what is one later."""
    run = made_up_run(Line(), late_ms=lambda step, rank: 500.0 * (rank == 3 and step < 20), steps=40)
    for rank in run:
        for call in calls_of(rank):
            call.step = max(call.step - 19, 0)
    assert findings(run) == []
    run = made_up_run(Line(), late_ms=lambda step, rank: 50.0 * (rank == 1 and step > 30), steps=50)
    for rank in run:
        for call in calls_of(rank):
            call.step = max(call.step - 30, 0)
    assert kinds(findings(run)) == [("late_rank", (1,))]


def test_a_rank_that_is_a_little_late_to_each_call():
    """0.8 ms each time is nothing, of 40 calls in a step it is a tenth of it."""
    run = made_up_run(Line(compute_ms=6, moving_ms=1, times=40), noise=0.1, steps=25)
    for rank in run:
        if rank.header.rank == 2:
            for call in calls_of(rank):
                call.posted += 0.8e-3
                call.waited = max(call.waited - 0.8e-3, 0.0)
    (finding,) = findings(run)
    assert kinds([finding]) == [("late_rank", (2,))]
    assert finding.ms_per_step == pytest.approx(0.8 * 40, rel=0.3)
    assert " ms late to 40 calls together, most to all_reduce 25 MB (train.py:88): " in finding.text
    assert findings(made_up_run(Line(compute_ms=6, moving_ms=1, times=40), noise=0.1, steps=25)) == []


def test_ranks_that_are_late_together_are_one_finding():
    (finding,) = findings(made_up_run(*LINES, late_ms={1: 50.0, 3: 50.0}))
    assert kinds([finding]) == [("late_rank", (1, 3))]


def test_a_late_rank_is_late_although_the_others_do_not_come_together():
    (finding,) = findings(made_up_run(*LINES, late_ms={1: 24.0, 2: 50.0, 3: 26.0}, noise=0.05))
    assert kinds([finding]) == [("late_rank", (2,))]


@pytest.mark.parametrize("late", [{0: 0, 1: 20, 2: 40, 3: 60}, {0: 0, 1: 50, 2: 50, 3: 50}])
def test_uneven_work(late):
    """What counts is what an even distribution would save: the last one against the mean."""
    (finding,) = findings(made_up_run(*LINES, late_ms=late))
    assert finding.kind == "uneven_work"
    assert finding.ms_per_step == pytest.approx(max(late.values()) - np.mean(list(late.values())), rel=0.2)


def test_a_rank_whose_lateness_is_hidden_is_no_finding():
    """The others post early and compute on: they do not stand for it."""
    run = made_up_run(late_ms={2: 50.0})
    for rank in run:
        for call in calls_of(rank):
            call.waited = min(call.waited, 1e-3)
    assert findings(run) == []
    for rank in run:  # no wait was seen at all: then it counts
        for call in calls_of(rank):
            call.waited = 0.0
    assert kinds(findings(run)) == [("late_rank", (2,))]


@settings(max_examples=15)
@given(seed=st.integers(0, 100), apart=st.lists(st.floats(-5, 5), min_size=4, max_size=4))
def test_clocks_that_are_seconds_apart_change_nothing(seed, apart):
    def told(clocks):
        return [
            (f.kind, f.ranks, f.site, f.text)
            for f in findings(made_up_run(*LINES, late_ms={1: 50.0}, seed=seed, clocks=clocks))
        ]

    assert told([0.0] * 4) == told([5.0 * number for number in range(4)]) == told(apart) != []


def test_a_few_steps_may_be_chance():
    """That one of 4 ranks is the last one at one of 3 lines in each of 6 steps."""
    assert findings(made_up_run(*LINES, late_ms={2: 50.0}, steps=6)) == []
    assert kinds(findings(made_up_run(*LINES, late_ms={2: 50.0}, steps=12))) == [("late_rank", (2,))]


GROUPS = {"left": (0, 1), "right": (2, 3), "third": (4, 5)}


def test_a_group_that_is_slow_alike_on_all_its_ranks_is_suspected():
    run = made_up_run(ranks=6, groups=GROUPS, slow={"right": 5.0}, steps=40)
    (finding,) = findings(run)
    assert kinds([finding]) == [("slow_link", (2, 3))]
    assert finding.collective == "all_reduce 25 MB"
    assert finding.ms_per_step == pytest.approx(8 * 4, rel=0.1)
    assert "kernel-pytorch profile links" in finding.text
    assert findings(made_up_run(ranks=6, groups=GROUPS, steps=40, noise=0.4)) == []


def test_measured_links_name_the_slow_pair():
    """Records alone cannot: all ranks are slowed down alike."""
    hosts = tuple((rank,) for rank in range(4))
    rates = {(a, b): 0.19 for a in range(4) for b in range(4) if a != b} | {(1, 2): 0.02, (2, 1): 0.02}
    run = made_up_run(Line(moving_ms=100.0))
    assert findings(run) == []
    (finding,) = findings(run, with_round_trips(made_up(hosts, rates)))
    assert kinds([finding]) == [("slow_link", (1, 2))]
    assert finding.text.startswith(
        "from rank 1 to rank 2 and from rank 2 to rank 1: 20 Mbit/s, other links 190 Mbit/s (measured): "
    )
    # A ring of equal links at 0.19 would take 2/19 of the time.
    assert finding.ms_per_step == pytest.approx(100 * (1 - 2 / 19), rel=0.05)
    assert findings(run, made_up(hosts, 0.19)) == []


def test_what_comes_before_the_first_step_is_in_no_figure_of_a_step():
    rates = {(a, b): 0.19 for a in range(3) for b in range(3) if a != b} | {(1, 2): 0.02}
    slow = with_round_trips(made_up(((0,), (1,), (2,)), rates))
    run = made_up_run(Line(moving_ms=100.0), ranks=3, noise=0)
    for rank in run:
        for call in calls_of(rank)[:10]:
            call.step = 0
    (finding,) = findings(run, slow)
    assert finding.ms_per_step == pytest.approx(100 * (1 - 2 / 19), rel=0.05)
    (advice,) = recommendations(join(run), slow)
    assert advice.gain_ms_per_step == pytest.approx(
        100 * (1 - advice.expected_ms / advice.expected_now_ms), rel=0.01
    )


def test_measured_links_name_a_slow_host():
    hosts = ((0, 1), (2, 3), (4, 5), (6, 7))
    rates = {(a, b): 0.01 if 2 in (a, b) else 0.19 for a in range(4) for b in range(4) if a != b}
    (finding,) = findings(made_up_run(ranks=8, steps=12), made_up(hosts, rates))
    assert finding.text.startswith("the host of ranks 4 and 5: 10 Mbit/s, other links 190 Mbit/s")


def test_one_direction_of_two_hosts():
    links = made_up(((0, 2), (1, 3)), {(0, 1): 0.02, (1, 0): 0.19})
    (finding,) = findings(made_up_run(), links)
    assert finding.text.startswith("from ranks 0 and 2 to ranks 1 and 3: 20 Mbit/s")


def with_changes(**changes):
    def change(calls):
        for field, value in changes.items():
            setattr(calls[17], field, value)

    return change


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"reduce": "max"}, "another reduce operation in {}: rank 3 max, the others sum"),
        ({"dtype": "int32"}, "another dtype in {}: rank 3 int32, the others float32"),
        (
            {"shape": [5], "nbytes": 20},
            "another shape in all_reduce 20 B (train.py:88) of step 18: rank 3 [5], ",
        ),
        (
            {"operation": "all_gather"},
            "another operation in all_gather 25 MB (train.py:88) of step 18: rank 3 a",
        ),
    ],
)
def test_a_rank_that_disagrees(changes, text):
    run = changed(made_up_run(), 3, with_changes(**changes))
    (finding,) = findings(run)
    assert kinds([finding]) == [("disagreement", (3,))]
    assert finding.text.startswith(text.format("all_reduce 25 MB (train.py:88) of step 18"))
    assert (finding.site, finding.step) == ("/home/me/train.py:88", 18)
    assert finding.evidence.state is HealthState.FAILED


def test_the_rank_that_aborts_of_another_shape_is_not_the_culprit():
    """The innocent one dies with its records; that of rank 3 differs from the two that are left."""
    run = killed(changed(made_up_run(), 3, with_changes(shape=[5], nbytes=20)), 1, 17)
    assert kinds(findings(run)) == [("disagreement", (3,)), ("missing_rank", (1,))]


def test_of_two_ranks_that_disagree_both_are_named():
    (finding,) = findings(changed(made_up_run(ranks=2), 1, with_changes(reduce="max")))
    assert finding.ranks == (0, 1)
    assert finding.text.endswith("rank 0 sum, rank 1 max")


def test_a_disagreement_in_each_step_is_one_finding():
    def change(calls):
        for call in calls:
            call.reduce = "avg"

    (finding,) = findings(changed(made_up_run(), 0, change))
    assert finding.text.endswith("rank 0 avg, the others sum; 30 times in all")


def test_uneven_parts_are_no_disagreement():
    line = Line(operation="all_gather", nbytes=4096)
    run = made_up_run(line)
    for rank in run:
        for call in calls_of(rank):
            call.shape = [256 + rank.header.rank]
    assert findings(run) == []
    for call in calls_of(run[2]):
        call.nbytes = 8192
    assert kinds(findings(run)) == [("disagreement", (2,))]


@settings(max_examples=40)
@given(ranks=st.integers(2, 5), data=st.data())
def test_a_skipped_call_is_told_by_site_and_step(ranks, data):
    rank = data.draw(st.integers(0, ranks - 1))
    number = data.draw(st.integers(0, 3 * 12 - 2))  # with the last one it does not differ from leaving early
    run = with_skip(made_up_run(*LINES, ranks=ranks, steps=12), rank, number)
    (finding,) = [each for each in findings(run) if each.evidence.state is HealthState.FAILED]
    assert kinds([finding]) == [("skipped_call", (rank,))]
    assert (finding.site, finding.step) == (LINES[number % 3].site, number // 3 + 1)
    assert finding.text.startswith(f"rank {rank} skipped {LINES[number % 3].operation}")


def test_of_equal_calls_in_a_loop_it_is_one_of_these():
    lines = Line(times=4), Line(site="b.py:1", operation="barrier", nbytes=0)
    run = with_skip(made_up_run(*lines, steps=6), 1, 12)
    (finding,) = findings(run)
    assert finding.text == "rank 1 skipped one of these 4: all_reduce 25 MB (train.py:88) of step 3"


def test_calls_are_told_apart_by_their_order_where_no_step_is_marked():
    """13 calls of alternating lines: what is missing is told, but not in which turn."""
    lines = Line(), Line(site="b.py:1", operation="barrier", nbytes=0)
    run = with_skip(made_up_run(*lines, steps=6, marked=False), 1, 4)
    (finding,) = findings(run)
    assert finding.text == "rank 1 skipped all_reduce 25 MB (train.py:88)"


def test_equal_calls_without_steps():
    run = with_skip(made_up_run(steps=10, marked=False), 1, 4)
    (finding,) = findings(run)
    assert finding.text == "rank 1 skipped one of these 10: all_reduce 25 MB (train.py:88)"


def test_ranks_may_make_the_same_call_on_different_lines():
    """As in ``if rank == 0: broadcast(mine) else: broadcast(theirs)``."""

    def change(calls):
        for call in calls:
            call.site = "/me/other.py:3"

    run = changed(made_up_run(*LINES, steps=12), 0, change)
    assert findings(run) == []
    assert kinds(findings(with_skip(run, 0, 12))) == [("skipped_call", (0,))]


def test_a_skip_after_which_the_next_call_cannot_be_carried_out():
    """Rank 1 stands in the barrier, the others in the all_reduce before it: all hang at once."""
    run = made_up_run(*LINES, steps=12)
    for rank in run:
        last = 3 * 8 + (2 if rank.header.rank == 1 else 1)
        rank.records = [r for r in rank.records if not isinstance(r, CallRecord) or r.number <= last]
        calls = calls_of(rank)
        if rank.header.rank == 1:
            rank.records.remove(calls[-2])
            calls[-1].number -= 1
        calls[-1].done, calls[-1].error = None, "Timed out"
    (finding,) = findings(run)
    assert finding.text == "rank 1 skipped all_reduce 25 MB (train.py:88) of step 9"


def hanging_at(run, number):
    """All ranks hang in their call of a number, as they do where calls cannot be carried out as one."""
    for rank in run:
        rank.records = [r for r in rank.records if not isinstance(r, CallRecord) or r.number <= number]
        calls_of(rank)[-1].done, calls_of(rank)[-1].error = None, "Timed out"
    return run


@pytest.mark.parametrize("marked", [True, False], ids=["steps", "no steps"])
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_a_skip_after_which_all_have_equally_many_calls(ranks, rank, marked):
    """Four equal calls and a small one in each step; the small one meets the last of the four."""
    lines = Line(times=4), Line(site="b.py:1", nbytes=4)
    run = made_up_run(*lines, ranks=ranks, steps=8, marked=marked)
    (finding,) = findings(hanging_at(with_skip(run, rank, 5 * 4 + 2), 5 * 4 + 3))
    if ranks == 2 and not marked:  # nothing tells who is right
        assert kinds([finding]) == [("disagreement", (0, 1))]
    else:
        step = " of step 5" if marked else ""
        told = f"rank {rank} skipped one of these 4: all_reduce 25 MB (train.py:88){step}"
        assert finding.text == told


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_a_skip_long_before_all_hang(ranks):
    """Of equal calls, until the rank comes to a barrier at the end, and the others to their last one."""
    lines = Line(times=4), Line(site="end.py:1", operation="barrier", nbytes=0)
    run = made_up_run(*lines, ranks=ranks, steps=8)
    for each in run:  # the barrier only at the end
        calls = calls_of(each)
        for call in calls[4:-1:5]:
            each.records.remove(call)
        for number, call in enumerate(calls_of(each)):
            call.number = number
    (finding,) = findings(hanging_at(with_skip(run, 1, 4 * 4 + 2), 31))
    assert finding.text == "rank 1 skipped one of these 4: all_reduce 25 MB (train.py:88) of step 5"


@settings(max_examples=15)
@given(ranks=st.integers(2, 5), data=st.data())
def test_a_rank_that_died_is_named(ranks, data):
    rank = data.draw(st.integers(0, ranks - 1))
    number = data.draw(st.integers(0, 3 * 12 - 1))
    run = killed(made_up_run(*LINES, ranks=ranks, steps=12), rank, number)
    (finding,) = findings(run)
    assert kinds([finding]) == [("missing_rank", (rank,))]
    assert (finding.site, finding.step) == (LINES[number % 3].site, number // 3 + 1)
    without = [each for each in run if each.header.rank != rank]
    (finding,) = findings(without)
    assert kinds([finding]) == [("missing_rank", (rank,))]
    assert "there are no records of it" in finding.text


@pytest.mark.parametrize("error", [None, "ValueError: no more data"])
def test_a_rank_that_died_among_equal_calls(error):
    """Its calls are those that the others began with; nothing says that it went on after a skipped one."""
    run = killed(made_up_run(steps=10, marked=False), 2, 6)
    if error:
        run[2].records.append(EndRecord(at=0.0, error=error))
    (finding,) = findings(run)
    assert kinds([finding]) == [("missing_rank", (2,))]
    assert finding.text.endswith("; or it skipped one of the 6 equal calls before")


def test_a_rank_that_stopped_within_a_step():
    """After the second of three calls on different lines, of which the last is the same but for its line."""
    lines = Line(site="a.py:1"), Line(site="b.py:2", nbytes=64), Line(site="c.py:3")
    run = killed(made_up_run(*lines, steps=10), 2, 3 * 8 + 2)
    (finding,) = findings(run)
    assert kinds([finding]) == [("missing_rank", (2,))]
    assert finding.text.startswith(
        "rank 2 never came to all_reduce 25 MB (c.py:3) of step 9; its last call was "
    )
    assert finding.text.endswith("all_reduce 64 B (b.py:2) of step 9")


def test_what_a_rank_ended_with_is_told():
    run = killed(made_up_run(steps=4), 2, 3)
    run[2].records.append(EndRecord(at=0.0, error="ValueError: no more data"))
    (finding,) = findings(run)
    assert finding.text == (
        "rank 2 never came to all_reduce 25 MB (train.py:88) of step 4; its last call was all_reduce 25 MB "
        "(train.py:88) of step 3, and it ended with: ValueError: no more data"
    )


def test_where_a_missing_rank_stood_is_told():
    """The job was found hanging, and then killed as a whole."""
    run = made_up_run(steps=4)
    for rank in run:
        rank.records.pop()
        calls_of(rank)[-1].done = None
    run[2].records.pop()
    assert findings(run) == []
    (finding,) = find(join(run, standing={0: "/me/train.py:88", 2: "/me/train.py:120"}))
    assert kinds([finding]) == [("missing_rank", (2,))]
    assert finding.text.endswith("(train.py:88) of step 3, and it stood at train.py:120")


def test_a_call_of_one_rank_alone():
    """As in ``if rank == 0: barrier()``: the others are not to blame."""
    run = made_up_run(steps=4)
    extra = msgspec.structs.replace(
        calls_of(run[0])[-1],
        number=4,
        operation="barrier",
        nbytes=0,
        site="x.py:9",
        done=None,
        error="Timed out",
    )
    run[0].records.append(extra)
    (finding,) = findings(run)
    assert kinds([finding]) == [("disagreement", (0,))]
    assert finding.text == "only rank 0 called barrier (x.py:9) of step 4; ranks 1, 2 and 3 never came"


def test_who_hangs_elsewhere_is_not_the_missing_rank():
    """Rank 3 is dead, so rank 2 hangs in the group of the two, so rank 0 waits for rank 2 in another one."""
    run = made_up_run(groups={"rows": (0, 2), "columns": (2, 3)}, steps=5)

    def cut(rank, group, number, hangs):
        calls = [c for c in calls_of(run[rank], group) if c.number >= number]
        run[rank].records = [r for r in run[rank].records if r not in calls[int(hangs) :]]
        if hangs:
            calls[0].done, calls[0].error = None, "Timed out"

    cut(3, "columns", 3, hangs=False)
    cut(2, "columns", 3, hangs=True)
    cut(2, "rows", 4, hangs=False)
    cut(0, "rows", 4, hangs=True)
    run[3].records = [r for r in run[3].records if not isinstance(r, EndRecord)]
    assert kinds(findings(run)) == [("missing_rank", (3,))]


def test_a_job_that_was_killed_as_a_whole_is_healthy():
    """Some ranks had not yet called, and nobody had waited for long."""
    run = made_up_run(steps=12)
    for rank in run:
        rank.records = [r for r in rank.records if not isinstance(r, EndRecord)]
        last = calls_of(rank)[-1]
        last.done, last.waited = None, 0.0
    run[2].records = run[2].records[:-1]
    assert findings(run) == []


def test_a_lost_record_is_no_missing_call():
    run = made_up_run(steps=12)
    run[1].records = [r for r in run[1].records if not isinstance(r, CallRecord) or r.number not in (5, 11)]
    assert findings(run) == []
    run = made_up_run(steps=12, marked=False)
    del run[1].records[-2]  # nor is the last one of equal calls, which the others are done with
    assert findings(run) == []


def test_what_makes_a_job_wrong_comes_before_what_makes_it_slow():
    late = made_up_run(*LINES, late_ms={1: 50.0})
    run = changed(late, 3, with_changes(reduce="max", operation="all_reduce"))
    found = findings(run)
    assert [each.kind for each in found] == ["disagreement", "late_rank"]


def test_findings_are_in_the_order_of_what_they_cost():
    lines = LINES[1], Line(site="b.py:5", nbytes=1 << 16)
    groups = {"left": (0, 1), "right": (2, 3)}
    run = made_up_run(*lines, groups=groups, late_ms={1: 20.0, 3: 50.0}, noise=0.05)
    assert [each.ranks for each in findings(run)] == [(3,), (1,)]


def test_recommendations_are_those_of_the_cost_model():
    """Two hosts, ranks interleaved, 4 ranks: a ring crosses the link four times, a hierarchical one twice."""
    links = made_up(((0, 2), (1, 3)), {(0, 0): 10.0, (1, 1): 10.0, (0, 1): 0.19, (1, 0): 0.19})
    links = with_round_trips(links)
    run = join(made_up_run(Line(nbytes=16 << 20, moving_ms=2000.0), noise=0))
    (advice,) = recommendations(run, links)
    assert advice.gain_ms_per_step == pytest.approx(
        2000 * (1 - advice.expected_ms / advice.expected_now_ms), rel=0.01
    )
    assert 700 < advice.expected_ms < 800
    assert 2000 < advice.expected_now_ms < 2200
    assert advice.text.startswith(f"all_reduce 16 MB: {advice.pattern.value}")
    best = min(
        pattern_s(Operation.ALL_REDUCE, 16 << 20, links, pattern, order)
        for pattern in CommunicationPattern
        if pattern is not CommunicationPattern.ADAPTIVE
        for order in permutations(range(4))
    )
    assert advice.expected_ms == pytest.approx(1e3 * best)
    slow = join(made_up_run(Line(nbytes=16 << 20, moving_ms=9000.0), noise=0))  # for another reason
    (advice,) = recommendations(slow, links)
    assert advice.gain_ms_per_step == pytest.approx(advice.expected_now_ms - advice.expected_ms)
    one_host = with_round_trips(made_up(((0, 1, 2, 3),), {(0, 0): 10.0}))
    assert recommendations(run, one_host) == []
    assert recommendations(join(made_up_run(Line(operation="broadcast"))), links) == []


def with_round_trips(links):
    trip = Figure(value=100.0, low=100.0, high=100.0, samples=1)
    pairs = tuple(
        RankPair(a=a, b=b, round_trip_us=trip) for a in range(links.size) for b in range(a + 1, links.size)
    )
    return replace(links, pairs=pairs)
