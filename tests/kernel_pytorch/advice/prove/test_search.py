"""Which changes are tried, in which order, and why others are not: recorded facts and a false clock."""

from dataclasses import replace

import pytest
from advice_facts import facts as recorded_facts

from kernel_pytorch.advice.facts import Expectation, Fact, Options, Structure, Trial
from kernel_pytorch.advice.prove.search import search
from kernel_pytorch.advice.strategy.protocol import Base


class Made(Base):
    """A strategy that hopes for a gain in some seconds."""

    def __init__(self, name, gain=1.5, seconds=5.0, level="conservative", needs=(), lossless=True):
        self.name, self.gain, self.seconds = name, gain, seconds
        self.level, self.needs, self.lossless = level, needs, lossless

    def applies(self, facts):
        return Expectation(gain=self.gain, reason="hoped", seconds=self.seconds)


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


class Lab:
    """Makes trials that take as long as they were told to, and keeps those that it is told to keep."""

    def __init__(self, clock, keeps=(), takes=5.0, **fields):
        self.clock, self.keeps, self.takes, self.fields = clock, keeps, takes, fields
        self.made = []

    def __call__(self, kept, strategy, deadline):
        assert deadline > self.clock.now
        self.made.append(([one.name for one in kept], strategy.name))
        self.clock.now += self.takes
        if strategy.name in self.keeps:
            return Trial(strategy=strategy.name, verdict="kept", gain=1.5, low=1.4, **self.fields)
        return Trial(strategy=strategy.name, verdict="reverted", reason="slower")


def run(strategies, *, facts=None, budget_s=1000.0, keeps=(), takes=5.0, fields=None, **options):
    clock = Clock()
    lab = Lab(clock, keeps, takes, **(fields or {}))
    extra = {name: options.pop(name) for name in ("has", "done", "reserve_s") if name in options}
    trials = list(
        search(
            strategies,
            facts or recorded_facts(),
            Options(budget_s=budget_s, **options),
            deadline=clock.now + budget_s,
            clock=clock,
            trial=lab,
            **extra,
        )
    )
    return trials, lab.made


def test_the_order_is_by_expected_gain_per_second():
    slow, quick, poor = Made("slow", 2.0, 20), Made("quick", 1.5, 5), Made("poor", 1.01, 5)
    _, made = run([slow, poor, quick])
    assert [name for _, name in made] == ["quick", "slow", "poor"]  # 0.1, 0.05 and 0.002 per second


def test_each_kept_change_is_the_base_of_the_next():
    _, made = run([Made("a", 1.9), Made("b", 1.8), Made("c", 1.7), Made("d", 1.6)], keeps=("a", "c"))
    assert made == [([], "a"), (["a"], "b"), (["a"], "c"), (["a", "c"], "d")]


def test_the_estimate_is_recorded_with_the_trial():
    (trial,), _ = run([Made("a", 1.9)])
    assert trial.expected == 1.9


@pytest.mark.parametrize(
    ("strategy", "facts", "reason"),
    [
        (Made("int8", level="aggressive"), {}, "--level aggressive"),
        (Made("graphs", needs=("gpu",)), {}, "no GPU"),
        (Made("liger", needs=("package:liger_kernel",)), {}, "liger_kernel is not installed"),
        (
            Made("compile", needs=("compiler",)),
            {"structure": Structure(compiler_missing="no C++ compiler")},
            "no C++ compiler",
        ),
        (
            Made("any"),
            {"failed": "ValueError: 3 (model.py:4)"},
            "failed on its inputs: ValueError: 3 (model.py:4)",
        ),
        (Made("any"), {"structure": Structure(unusual=("compiled",))}, "compiled already"),
        (Made("any"), {"structure": Structure(unusual=("random",))}, "differs from itself"),
        (Made("any"), {"call": Fact(why="it is on meta")}, "it is on meta"),
    ],
    ids=lambda value: value.name if isinstance(value, Made) else None,
)
def test_what_is_not_tried_has_a_reason(strategy, facts, reason):
    (trial,), made = run([strategy], facts=recorded_facts(**facts), has=lambda package: False)
    assert made == []
    assert trial.verdict == "not tried"
    assert reason in trial.reason


def test_a_model_without_parameters_is_changed_too():
    _, made = run([Made("a")], facts=recorded_facts(structure=Structure(unusual=("no parameters",))))
    assert made == [([], "a")]


def test_those_not_tried_come_last():
    trials, _ = run([Made("int8", level="aggressive"), Made("a")])
    assert [trial.strategy for trial in trials] == ["a", "int8"]


def test_a_strategy_that_does_not_apply_says_why():
    class Never(Made):
        def applies(self, facts):
            return "there is no convolution"

    (trial,), made = run([Never("layout")])
    assert (made, trial.verdict, trial.reason) == ([], "not tried", "there is no convolution")


def test_a_strategy_that_cannot_judge_the_facts_does_not_end_the_search():
    class Broken(Made):
        def applies(self, facts):
            raise KeyError("flops")

    trials, made = run([Broken("broken"), Made("a")])
    assert made == [([], "a")]
    assert "KeyError: 'flops'" in trials[-1].reason


def test_what_cannot_end_in_the_budget_is_not_started_and_the_budget_is_named():
    trials, made = run([Made("compile", 2.0, 40), Made("quick", 1.2, 5)], budget_s=20)
    assert [name for _, name in made] == ["quick"]
    assert trials[-1].strategy == "compile"
    assert "needs about 40 s and 15 s of --budget 20s are left: --budget 50s would do" in trials[-1].reason


def test_a_model_too_slow_for_the_budget_gets_the_budget_it_needs():
    slow = recorded_facts(call=Fact(value=10.0, basis="measured"))
    (trial,), made = run([Made("a")], facts=slow, budget_s=120)
    assert made == []
    assert "--budget 360s would do" in trial.reason  # 36 calls of 10 s


def test_time_for_the_confirmation_is_set_aside():
    """30 s of budget, 5 for the first trial and 20 to confirm what compiled for 16: no second trial of 6."""
    strategies = [Made("first", 2.0, 5), Made("second", 1.5, 6)]
    _, made = run(strategies, budget_s=30, keeps=("first",), fields={"compile_s": 16.0})
    assert [name for _, name in made] == ["first"]
    _, made = run(strategies, budget_s=30, keeps=("first",), fields={"compile_s": 1.0})
    assert [name for _, name in made] == ["first", "second"]
    _, made = run(strategies, budget_s=30, keeps=("first",), fields={"compile_s": 1.0}, reserve_s=20)
    assert [name for _, name in made] == ["first"]


def test_a_slow_compiler_is_remembered():
    """The first compilation takes five times its estimate, so the second, of 20 s, would end after 100."""
    strategies = [Made("whole", 2.0, 10, needs=("compiler",)), Made("blocks", 2.0, 20, needs=("compiler",))]
    trials, made = run(strategies, budget_s=120, takes=50.0)
    assert [name for _, name in made] == ["whole"]
    assert "needs about 100 s" in trials[-1].reason


@pytest.mark.parametrize(("limit", "tried"), [(50_000_000, False), (30_000_000, True)])
def test_memory_is_saved_only_where_it_is_exceeded(limit, tried):
    (trial,), made = run([Made("checkpointing", 0.8)], facts=recorded_facts(memory_limit=limit))
    assert bool(made) == tried
    assert ("only save memory" in trial.reason) != tried


def test_once_the_call_fits_no_more_memory_is_saved():
    facts = recorded_facts(memory_limit=30_000_000)  # the peak is 40 MB
    strategies = [Made("one block", 0.9), Made("two blocks", 0.8)]
    trials, _ = run(strategies, facts=facts, keeps=("one block",), fields={"peak_ratio": 0.7})
    assert [trial.verdict for trial in trials] == ["kept", "not tried"]
    trials, _ = run(strategies, facts=facts)
    assert [trial.verdict for trial in trials] == ["reverted", "reverted"]


def test_a_search_is_resumed_with_what_was_kept():
    done = (
        Trial(strategy="a", verdict="kept", gain=1.5, low=1.4),
        Trial(strategy="b", verdict="killed", reason="killed by signal 11"),
    )
    trials, made = run([Made("a", 1.9), Made("b", 1.8), Made("c", 1.7)], done=done)
    assert made == [(["a"], "c")]
    assert [trial.strategy for trial in trials] == ["c"]


def test_an_offer_is_never_applied():
    class Offer(Made):
        offers = True

    assert run([Offer("dilated")]) == ([], [])


def test_trials_are_handed_on_as_they_are_made():
    clock = Clock()
    lab = Lab(clock)
    found = search(
        [Made("a", 1.9), Made("b", 1.8)],
        recorded_facts(),
        Options(),
        deadline=clock.now + 120,
        clock=clock,
        trial=lab,
    )
    assert next(found) == replace(Trial(strategy="a", verdict="reverted", reason="slower"), expected=1.9)
    assert len(lab.made) == 1
