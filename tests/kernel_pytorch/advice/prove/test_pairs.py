import numpy as np
import pytest

from kernel_pytorch.advice.prove.ratio import median_ratio
from kernel_pytorch.advice.prove.timing import planned_pairs, time_pairs
from kernel_pytorch.advice.prove.verdict import Timing, fading, verdict


class FalseClock:
    """Calls that take as long as they are told to, on a machine of its own."""

    def __init__(self, slowdown=lambda: 1.0):
        self.now = 0.0
        self.calls = ""
        self._slowdown = slowdown

    def __call__(self):
        return self.now

    def call(self, name, seconds):
        """A call that takes ``seconds``, or as many as a function of the number of calls before says."""
        made = 0

        def run(inputs):
            nonlocal made
            self.calls += name
            self.now += (seconds(made) if callable(seconds) else seconds) * self._slowdown()
            made += 1

        return run


class Disturbed:
    """Slowdowns as on a shared machine: jitter, slow drift, and bursts that last several calls."""

    def __init__(self, seed, *, jitter, drift, bursts):
        self._random = np.random.default_rng(seed)
        self._jitter, self._drift, self._bursts = jitter, drift, bursts
        self._level, self._left, self._burst = 0.0, 0, 1.0

    def __call__(self):
        self._level = 0.97 * self._level + self._drift * self._random.normal()
        self._left -= 1
        if self._left < 0 and self._random.random() < self._bursts:
            self._left, self._burst = int(self._random.integers(1, 8)), 1 + self._random.exponential()
        busy = self._burst if self._left >= 0 else 1.0
        return float(np.exp(self._level + self._jitter * self._random.normal()) * busy)


MACHINES = {
    "idle": {"jitter": 0.01, "drift": 0.0, "bursts": 0.02},
    "shared": {"jitter": 0.05, "drift": 0.02, "bursts": 0.1},
    "busy": {"jitter": 0.1, "drift": 0.05, "bursts": 0.1},
    "drifting": {"jitter": 0.02, "drift": 0.1, "bursts": 0.05},
}


def timed(base, candidate, *, clock=None, budget_s=1e6, **options):
    clock = clock or FalseClock()
    return time_pairs(
        clock.call("a", base),
        clock.call("b", candidate),
        lambda: None,
        budget_s=budget_s,
        clock=clock,
        **options,
    )


def test_pairs_have_the_seconds_of_a_call_in_the_order_of_the_arguments():
    timing = timed(0.3, 0.2, pairs=5)
    assert timing.pairs == pytest.approx(np.array([(0.3, 0.2)] * 5))
    assert (timing.gain, timing.low, timing.high) == pytest.approx((1.5, 1.5, 1.5))
    assert timing.stopped == ""


def test_order_alternates():
    clock = FalseClock()
    timed(0.3, 0.2, pairs=4, clock=clock)
    assert clock.calls == "abab" + "abbaabba"


def test_short_calls_are_repeated_until_a_sample_lasts_two_milliseconds():
    clock = FalseClock()
    timing = timed(0.0005, 0.001, pairs=1, clock=clock)
    assert clock.calls == "abab" + "aaaa" + "bb"
    assert timing.pairs == pytest.approx(np.array([(0.0005, 0.001)]))


def test_every_call_gets_fresh_inputs_that_are_drawn_outside_the_clock():
    clock, calls = FalseClock(), 0

    def draw():
        clock.now += 7.0
        return ["fresh"]

    def call(inputs):
        nonlocal calls
        calls += 1
        assert inputs.pop() == "fresh"  # a model that changes its inputs
        clock.now += 0.00045

    timing = time_pairs(call, call, draw, pairs=2, budget_s=1e6, clock=clock)
    assert calls == 4 + 2 * 2 * 5
    assert timing.pairs == pytest.approx(np.array([(0.00045, 0.00045)] * 2))


def test_the_device_is_waited_for_before_and_within_the_clock():
    clock, queued = FalseClock(), []

    def synchronize():
        clock.now += sum(queued)
        queued.clear()

    def launch(inputs):
        clock.now += 1e-6
        queued.append(0.25)

    timing = time_pairs(
        launch, launch, lambda: None, pairs=3, budget_s=100, clock=clock, synchronize=synchronize
    )
    assert timing.pairs == pytest.approx(np.array([(0.250001, 0.250001)] * 3))


@pytest.mark.parametrize(
    ("seconds", "budget_s", "pairs"), [(0.0001, 100, 31), (0.075, 100, 19), (1.0, 100, 11), (0.075, 2.0, 11)]
)
def test_the_number_of_pairs_is_fixed_by_the_first_calls(seconds, budget_s, pairs):
    assert len(timed(seconds, seconds, budget_s=budget_s).pairs) == pairs


def test_planned_pairs_are_odd_so_that_a_median_is_a_measurement():
    assert {planned_pairs(3.0 / n, 100) % 2 for n in range(1, 40)} == {1}


def test_no_pair_is_added_where_one_more_would_be_lucky():
    base = timed(0.075, 0.075)
    lucky = timed(0.075, lambda made: 0.075 if made < 10 else 0.0075)
    assert len(base.pairs) == len(lucky.pairs)


def test_a_model_too_slow_for_the_budget_names_the_budget_it_needs():
    clock = FalseClock()
    timing = timed(3.0, 2.0, budget_s=60, clock=clock)
    assert timing.pairs == ()
    assert timing.stopped == "too slow for the budget: 11 pairs of calls need 65 s"
    assert clock.calls == "abab"
    assert verdict(timing, 0.0) == (False, None, timing.stopped)
    assert timed(3.0, 2.0, budget_s=65.1).stopped == ""
    with pytest.raises(ValueError, match="got 0, 0"):
        _ = timing.gain


def test_twice_as_slow_in_three_pairs_stops_it():
    timing = timed(0.1, 0.21)
    assert len(timing.pairs) == 3
    assert timing.stopped == "slower: it takes at least 2.1 times as long in each of the first 3 pairs"
    once = timed(0.1, lambda made: 0.09 if made == 4 else 0.21)
    assert (len(once.pairs) >= 11, once.stopped) == (True, "")


def test_first_calls_are_apart_from_the_pairs():
    timing = timed(0.1, lambda made: 20.0 if made == 0 else 0.05)
    assert timing.high == pytest.approx(2.0)


@pytest.mark.parametrize("fast_calls", [8, 10, 15])
@pytest.mark.parametrize("then", [0.1, 0.12])
def test_what_is_fast_only_in_its_first_calls_is_not_kept(fast_calls, then):
    timing = timed(0.1, lambda made: 0.05 if made < fast_calls else then)
    kept, _, reason = verdict(timing, 0.0)
    assert not kept
    assert "slower after its first calls" in reason or "no gain is proved" in reason


def test_a_gain_that_falls_says_so():
    pairs = [(0.1, 0.05)] * 8 + [(0.1, 0.08)] * 8
    assert fading(pairs) == (
        "slower after its first calls: "
        "the gain falls from 2.00 in the first half of the pairs to 1.25 in the second"
    )
    assert fading(pairs[::-1]) == ""
    assert fading(pairs[:5]) == ""


def test_a_base_that_becomes_faster_is_no_fault_of_the_candidate():
    assert fading([(0.10, 0.045)] * 8 + [(0.075, 0.050)] * 8) == ""


def test_a_gain_that_jitters_does_not_fall():
    random = np.random.default_rng(5)
    pairs = [
        (0.1 * float(random.lognormal(0, 0.1)), 0.05 * float(random.lognormal(0, 0.1))) for _ in range(31)
    ]
    assert fading(pairs) == ""
    assert verdict(Timing(pairs=tuple(pairs)), 0.1)[0]


@pytest.mark.parametrize(
    ("factor", "noise", "reason"),
    [
        (1.5, 0.01, ""),
        (1.04, 0.01, ""),
        (1.5, 0.5, "a gain of 1.50 is within the noise of 50 %"),
        (1.03, 0.0, "a gain of 1.030 is not worth a change"),
        (0.9, 0.0, "no gain is proved: 0.90, and at least 0.90"),
        (1.0, 0.0, "no gain is proved: 1.00, and at least 1.00"),
    ],
)
def test_verdict(factor, noise, reason):
    timing = Timing(pairs=((factor, 1.0),) * 11)
    kept, ratio, why = verdict(timing, noise)
    assert (kept, why) == (not reason, reason)
    assert ratio.value == factor


def test_a_gain_of_half_the_pairs_alone_is_not_proved():
    pairs = ((1.3, 1.0),) * 6 + ((0.9, 1.0),) * 5
    shuffled = tuple(pairs[i] for i in (0, 6, 1, 2, 3, 4, 5, 7, 8, 9, 10))
    assert not verdict(Timing(pairs=shuffled), 0.0)[0]


def trials(factor, trials_of_each, seconds=(0.0004, 0.005, 0.1)):
    """Verdicts on a candidate, on each machine in turn."""
    kept = 0
    for seed in range(trials_of_each):
        for name, machine in MACHINES.items():
            clock = FalseClock(Disturbed([seed, *name.encode()], **machine))
            own = [clock.now]
            run = clock.call("c", 0.01)
            for _ in range(22):
                run(None)
                own.append(clock.now)
            each = np.diff(own)
            noise = abs(np.median(each[::2]) / np.median(each[1::2]) - 1)
            base = seconds[seed % len(seconds)]
            kept += verdict(timed(base, base / factor, clock=clock), noise)[0]
    return kept


def test_a_model_against_its_own_copy_is_never_kept():
    assert trials(1.0, 25) == 0  # of 100


def test_a_real_gain_is_kept_on_a_noisy_machine():
    assert trials(1.6, 10) >= 34  # of 40


@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.99])
def test_more_confidence_is_a_wider_interval_around_the_same_value(confidence):
    first, second = np.random.default_rng(4).lognormal(sigma=0.2, size=(2, 21))
    ratio, wider = (
        median_ratio(first, second, confidence=confidence),
        median_ratio(first, second, confidence=0.995),
    )
    assert wider.low < ratio.low < ratio.value < ratio.high < wider.high
    assert ratio.value == wider.value


@pytest.mark.parametrize("arguments", [(([], [])), ([1.0], [1.0, 2.0])])
def test_times_must_come_in_pairs(arguments):
    with pytest.raises(ValueError, match="as many first times as second ones"):
        median_ratio(*arguments)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95])
def test_confidence_is_a_probability(confidence):
    with pytest.raises(ValueError, match=f"got {confidence}"):
        median_ratio([1.0], [1.0], confidence=confidence)
