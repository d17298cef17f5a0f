"""Which pattern is chosen, on made-up times: without a group, without a clock."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel_pytorch.links.choose import COMPARED_EVERY, FAR, LAG, NEAR, TURNS, Chooser
from kernel_pytorch.links.methods import CommunicationPattern as Pattern

RING, TREE, BUTTERFLY, HIERARCHICAL = (
    Pattern(name) for name in ("ring", "tree", "butterfly", "hierarchical")
)
FOUR = (RING, TREE, BUTTERFLY, HIERARCHICAL)


class Ranks:
    """Choosers of several ranks, and the agreements between them."""

    def __init__(self, size: int, expected: dict[Pattern, float | None]) -> None:
        self.choosers = [Chooser(expected) for _ in range(size)]
        self.waiting: list[float] | None = None
        self.agreements = 0

    def call(self, seconds) -> Pattern:
        """One call, ``seconds(rank, pattern)`` on each rank."""
        due = {chooser.due for chooser in self.choosers}
        assert len(due) == 1
        if due == {True}:
            assert self.waiting is not None
            for chooser in self.choosers:
                chooser.agreed(self.waiting)
            self.waiting = None
        (pattern,) = {chooser.next().pattern for chooser in self.choosers}
        told = [chooser.took(seconds(rank, pattern)) for rank, chooser in enumerate(self.choosers)]
        if told[0] is not None:
            assert self.waiting is None
            self.waiting = [max(values) for values in zip(*told, strict=True)]
            self.agreements += 1
        else:
            assert told == [None] * len(told)
        return pattern

    def calls(self, count: int, seconds) -> list[Pattern]:
        return [self.call(seconds) for _ in range(count)]


def test_only_what_is_expected_to_be_near_the_best_is_tried():
    ranks = Ranks(2, {RING: 3.0, TREE: 1.2, BUTTERFLY: 1.0, HIERARCHICAL: 1.26})
    true = {TREE: 1.0, BUTTERFLY: 1.1}
    found = ranks.calls(40, lambda rank, pattern: true[pattern])
    assert set(found) == {TREE, BUTTERFLY}
    assert found[:2] == [BUTTERFLY, TREE]
    assert found[-20:] == [TREE] * 20
    assert found.count(BUTTERFLY) == TURNS + LAG, "the first also while times are agreed on"


def test_one_slow_call_does_not_rule_out_a_pattern():
    calls: list[Pattern] = []

    def seconds(rank: int, pattern: Pattern) -> float:
        calls.append(pattern)
        return 0.99 * FAR if calls.count(pattern) == 1 and pattern is TREE else {TREE: 0.9}.get(pattern, 1.0)

    assert Ranks(1, {BUTTERFLY: 1.0, TREE: 1.0}).calls(40, seconds)[-1] is TREE


def test_one_fast_call_does_not_decide():
    fast = iter([0.8])
    found = Ranks(1, {BUTTERFLY: 1.0, TREE: 1.0}).calls(
        40, lambda rank, pattern: next(fast, 1.1) if pattern is TREE else 1.0
    )
    assert found[-1] is BUTTERFLY


def test_times_that_spread_have_more_trials():
    """Most calls of one take half of what those of the other do, and some of each three times as long."""
    usual, noise, right = {TREE: 1.0, BUTTERFLY: 2.0}, random.Random(0), 0
    for _ in range(200):
        found = Ranks(1, {BUTTERFLY: 1.0, TREE: 1.0}).calls(
            COMPARED_EVERY, lambda rank, pattern: usual[pattern] * noise.choice([1.0, 1.1, 1.2, 3.0])
        )
        right += found[-1] is TREE
    assert right >= 190


def test_what_alone_is_near_is_chosen_without_a_trial():
    ranks = Ranks(2, {RING: 2.0, HIERARCHICAL: 1.0})
    assert set(ranks.calls(COMPARED_EVERY, lambda *_: 1.0)) == {HIERARCHICAL}
    assert ranks.agreements == 1
    assert "expected" in ranks.choosers[0].next().reason


def test_all_are_tried_where_nothing_is_known():
    true = {RING: 3.0, TREE: 2.0, BUTTERFLY: 1.5, HIERARCHICAL: 1.0}
    ranks = Ranks(2, {**dict.fromkeys(FOUR), RING: 0.1})
    found = ranks.calls(50, lambda rank, pattern: true[pattern])
    turn = [HIERARCHICAL, BUTTERFLY, *[HIERARCHICAL] * LAG]  # without what is far away
    expected = [*FOUR, *[RING] * LAG, *turn * (TURNS - 1)]
    assert found == expected + [HIERARCHICAL] * (50 - len(expected))


def test_the_slowest_rank_counts():
    ranks = Ranks(3, {RING: 1.0, TREE: 1.0})
    slow = {(0, RING): 5.0, (2, TREE): 4.0}
    found = ranks.calls(30, lambda rank, pattern: slow.get((rank, pattern), 1.0))
    assert found[-10:] == [TREE] * 10


def test_a_link_that_changes_reopens_the_choice():
    ranks = Ranks(2, {RING: 1.0, HIERARCHICAL: 1.0})
    before = {RING: 2.0, HIERARCHICAL: 1.0}
    after = {RING: 2.0, HIERARCHICAL: 4.0}
    assert ranks.calls(3 * COMPARED_EVERY, lambda rank, pattern: before[pattern])[-1] is HIERARCHICAL
    found = ranks.calls(3 * COMPARED_EVERY, lambda rank, pattern: after[pattern])
    assert found[-COMPARED_EVERY:] == [RING] * COMPARED_EVERY


def test_times_that_stay_change_nothing():
    ranks = Ranks(2, dict.fromkeys(FOUR, 1.0))
    true = dict(zip(FOUR, (1.0, 1.1, 1.2, 1.3), strict=True))
    noise = random.Random(0)
    found = ranks.calls(500, lambda rank, pattern: true[pattern] * noise.uniform(1.0, 1.1))
    assert set(found[30:]) == {found[30]}
    assert true[found[30]] <= 1.1


def test_a_choice_from_lucky_trials_does_not_last():
    ranks = Ranks(1, {RING: 1.0, TREE: 1.0})
    calls = {RING: 0, TREE: 0}

    def seconds(rank: int, pattern: Pattern) -> float:
        calls[pattern] += 1
        return 1.0 if pattern is TREE else 0.5 if calls[RING] <= 2 else 3.0

    assert ranks.calls(4 * COMPARED_EVERY, seconds)[-1] is TREE


@given(
    st.dictionaries(st.sampled_from(FOUR), st.one_of(st.none(), st.floats(0.01, 10)), min_size=1, max_size=4),
    st.integers(1, 4),
    st.integers(0, 999),
)
def test_ranks_choose_alike_at_every_call(expected, size, seed):
    """Whatever the times are; the asserts are in :class:`Ranks`."""
    draw = random.Random(seed)
    ranks = Ranks(size, expected)
    found = ranks.calls(300, lambda rank, pattern: draw.choice((0.1, 1.0, 5.0)) * draw.random())
    assert set(found) <= set(expected)


def test_choosing_costs_less_than_three_in_a_hundred():
    """100 calls, choosing included, against the best: the model is right within what it calls near."""
    true = {RING: 2.9, TREE: NEAR * 0.99, BUTTERFLY: 1.1, HIERARCHICAL: 1.0}
    ranks = Ranks(4, true)
    taken = sum(true[pattern] for pattern in ranks.calls(100, lambda rank, pattern: true[pattern]))
    assert 100 / taken >= 0.97


def test_there_must_be_something_to_choose():
    with pytest.raises(ValueError, match="must be a pattern"):
        Chooser({})
