from __future__ import annotations

import itertools
import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kernel_pytorch.watch.health.windows import Increases, Sustained

STEPS = st.lists(
    st.tuples(st.integers(0, 40), st.none() | st.integers(0, 5), st.sampled_from(["up", "reset"])),
    max_size=60,
)


def play(steps: list[tuple[int, int | None, str]]) -> tuple[list[float], list[float], list[int]]:
    """Times, what a counter shows (NaN: unread), and how much it truly grew up to each reading."""
    time_s, shown, true, now = [], [], [], 0.0
    counter = grown = 0
    for elapsed, events, what in steps:
        now += elapsed
        if what == "reset" and events is not None and events < counter:
            counter = 0
        counter += events or 0
        grown += events or 0
        time_s.append(now)
        shown.append(math.nan if events is None else float(counter))
        true.append(grown)
    return time_s, shown, true


@given(steps=STEPS, window_s=st.sampled_from([30.0, 60.0, 3600.0]))
def test_increases_are_what_was_added(steps: list[tuple[int, int | None, str]], window_s: float):
    times, shown, true = play(steps)
    counter = Increases(1, window_s)
    known: list[tuple[float, int]] = []
    longest = max((elapsed for elapsed, _, _ in steps), default=0)
    for now, value, grown in zip(times, shown, true, strict=True):
        counter.update(now, np.array([value]))
        if not math.isnan(value):
            known.append((now, grown))
        assert counter.known[0] == bool(known)
        if not known:
            assert counter.since_baseline()[0] == counter.in_window()[0] == 0
            continue
        assert counter.since_baseline()[0] == known[-1][1] - known[0][1]
        in_window = counter.in_window()[0]

        def at(second: float) -> int:
            """What had been added when the counter was last read up to ``second``, or first."""
            return next((grown for t, grown in reversed(known) if t <= second), known[0][1])

        most = known[-1][1] - at(now - window_s - window_s / 60 - longest)
        assert known[-1][1] - at(now - window_s) <= in_window <= most


@given(
    steps=st.lists(
        st.tuples(st.integers(1, 5), st.tuples(*[st.sampled_from([True, False, None])] * 3)), max_size=40
    )
)
def test_sustained_counts_the_seconds_between_readings_that_hold(
    steps: list[tuple[int, tuple[bool | None, ...]]],
):
    sustained, now = Sustained(3), 0.0
    history: list[tuple[float, tuple[bool | None, ...]]] = []
    for elapsed, truths in steps:
        now += elapsed
        history.append((now, truths))
        sustained.update(
            now, np.array([t is not False for t in truths]), np.array([t is not None for t in truths])
        )
        for device in range(3):
            told = [(t, row[device]) for t, row in history]
            last_no = max((i for i, (_, told_) in enumerate(told) if told_ is False), default=-1)
            run = told[last_no + 1 :]
            begun = next((t for t, value in run if value), math.nan)
            seconds = sum(b[0] - a[0] for a, b in itertools.pairwise(run) if a[1] and b[1])
            np.testing.assert_equal(sustained.since_s[device], begun)
            assert sustained.seconds[device] == seconds
            assert sustained.holds[device] == (not math.isnan(begun))
            assert sustained.seen[device] == any(value is not None for _, value in told)


def test_a_reset_forgets_one_device():
    counter, sustained = Increases(2, 60), Sustained(2)
    always = np.ones(2, dtype=bool)
    for now in range(5):
        counter.update(now, np.array([2.0 * now, 3.0 * now]))
        sustained.update(now, always, always)
    counter.reset(0)
    sustained.reset(0)
    assert counter.since_baseline().tolist() == counter.in_window().tolist() == [0, 12]
    assert sustained.seconds.tolist() == [0, 4]
    counter.update(5, np.array([11.0, 15.0]))
    sustained.update(5, always, always)
    assert counter.since_baseline().tolist() == counter.in_window().tolist() == [3, 15]
    assert sustained.seconds.tolist() == [0, 5]
    assert sustained.since_s.tolist() == [5, 0]


def test_growth_leaves_the_window_when_it_is_as_old_as_the_window_is_long():
    def grown(*times: float) -> list[float]:
        counter, found = Increases(1, 60.0), []
        for number, now in enumerate(times):
            counter.update(now, np.array([float(number)]))
            found.append(counter.in_window()[0])
        return found

    assert grown(0, 60, 119.5, 120) == [0, 1, 2, 2]
    assert grown(0, 1, 2, 61, 61.5, 62) == [0, 1, 2, 2, 3, 3]  # readings are told apart by a second
