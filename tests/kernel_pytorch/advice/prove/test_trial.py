"""Strategies made to be wrong: each is reverted, with the right reason."""

import re

import made_up_strategies as made_up
import pytest
import torch
from advice_facts import facts as recorded_facts
from made_up_strategies import FalseClock, MadeUp, Model
from torch import nn
from torch.nn import functional as F

from kernel_pytorch.advice.facts import Fact, Options
from kernel_pytorch.advice.prove.session import Session
from kernel_pytorch.advice.prove.task import Task
from kernel_pytorch.advice.sample import Sample

FACTS = recorded_facts(
    call=Fact(value=0.01, basis="measured"),
    noise=Fact(value=0.01, basis="measured"),
    bound=Fact(value=5e-5, basis="predicted"),
    attention_share=Fact(value=0.0, basis="counted"),
)


def session_of(model=None, sample=None, *, facts=FACTS, task=None, **options):
    torch.manual_seed(1)
    clock = FalseClock() if model is None else model.clock
    task = Task(
        model=model or Model(clock),
        sample=Sample.of(torch.randn(2, 6, 8) if sample is None else sample),
        options=Options(**options),
        **(task or {}),
    )
    return Session(task, facts, clock=clock)


def trial_of(change, *, kept=(), deadline=1e6, session=None, attributes=None, **options):
    session = session or session_of(**options)
    strategies = [MadeUp(one) for one in kept]
    return session.trial(strategies, MadeUp(change, **(attributes or {})), deadline)


@pytest.mark.parametrize("training", [False, True])
def test_a_right_change_is_kept_with_its_evidence(training):
    trial = trial_of(made_up.twice_as_fast, training=training)
    assert (trial.verdict, trial.reason) == ("kept", "")
    assert trial.gain == pytest.approx(2.0)
    assert trial.low == pytest.approx(2.0)
    assert trial.error <= 1e-5
    assert trial.error == trial.original_error  # it is the same model
    assert len(trial.pairs) >= 11
    assert all(first == pytest.approx(2 * second) for first, second in trial.pairs)
    assert trial.peak_ratio == pytest.approx(1.0, abs=0.01)
    assert trial.compile_s is None
    assert trial.source == ("model = twice_as_fast(model)",)


@pytest.mark.parametrize(
    ("change", "options", "reason"),
    [
        (made_up.ten_percent_off, {}, "outputs differ"),
        (made_up.ten_percent_off, {"training": True}, "outputs differ"),
        (made_up.wrong_gradient, {"training": True}, "gradients differ: "),
        (made_up.wrong_input_gradient, {"training": True}, "gradients differ where inputs need gradients"),
        (made_up.changes_a_buffer, {}, "buffers differ"),
        (made_up.remembers_by_address, {}, "outputs differ"),
        (made_up.remembers_the_weights, {"training": True}, "outputs differ after 1 step of SGD"),
        (made_up.right_at_its_length, {}, "outputs differ at length 3"),
        (made_up.right_at_its_length, {"lengths": (9,)}, "outputs differ at length 9"),
        (made_up.right_at_first, {}, "outputs differ after it was timed"),
        (made_up.loses_a_parameter, {"training": True}, "parameter second.bias is gone"),
        (made_up.three_times_slower, {}, "slow"),
        (made_up.a_little_slower, {}, "no gain is proved: 0.91"),
        (made_up.two_percent_faster, {}, "a gain of 1.020 is not worth a change"),
        (made_up.fast_at_first, {}, "slow"),
        (made_up.impossibly_fast, {}, "a fault of the measurement"),
        (made_up.in_half_precision, {}, "outputs differ"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_wrong_or_slow_change_is_reverted(change, options, reason):
    trial = trial_of(change, **options)
    assert trial.verdict == "reverted"
    assert reason in trial.reason
    assert trial.source == ()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            made_up.raises_when_applied,
            r"RuntimeError: no kernel for this model and a second line \(.*tests/support/made_up_",
        ),
        (made_up.raises_when_called, r"ValueError: not this shape \(.*tests/support/made_up_"),
        (made_up.ends_the_process, "SystemExit: 3"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_a_change_raises_becomes_the_reason(change, reason):
    trial = trial_of(change)
    assert trial.verdict == "failed"
    assert re.match(reason, trial.reason)
    assert "\n" not in trial.reason


def test_a_change_that_outlasts_the_deadline_is_given_up():
    trial = trial_of(made_up.takes_an_hour, deadline=1020.0)
    assert trial.verdict == "out of time"
    assert trial.gain is None


@pytest.mark.parametrize(
    ("max_error", "verdict"), [(0.01, "kept"), (0.0001, "reverted")], ids=["within", "beyond"]
)
def test_precision_may_be_lost_within_the_allowed_error(max_error, verdict):
    """bfloat16 has 8 bits: a relative error of 1e-3."""
    trial = trial_of(made_up.in_half_precision, max_error=max_error, attributes={"lossless": False})
    assert trial.verdict == verdict
    assert 5e-4 < trial.error < 5e-3
    assert not trial.lossless


def test_outputs_that_the_next_call_overwrites_are_compared_as_they_were():
    trial = trial_of(made_up.overwrites_its_outputs)
    assert trial.verdict == "kept", trial.reason


def test_changes_are_applied_in_order_to_a_fresh_copy():
    session, seen = session_of(), []

    def mark(name):
        def change(model):
            model.applied.append(name)
            model.seconds /= 2
            seen.append(tuple(model.applied))

        return MadeUp(change, name)

    a, b, c = mark("a"), mark("b"), mark("c")
    assert session.trial([], a).verdict == "kept"
    assert session.trial([a], b).verdict == "kept"
    assert session.trial([a, b], c).verdict == "kept"
    assert ("a", "b", "c") in seen
    assert session.build([a, b, c]).applied == ["a", "b", "c"]
    assert session.task.model.applied == []


def test_the_best_so_far_is_what_a_change_is_timed_against():
    session = session_of()
    kept = [MadeUp(made_up.twice_as_fast)]
    trial = session.trial(kept, MadeUp(made_up.twice_as_fast, "again"))
    assert trial.pairs[0] == (pytest.approx(0.005), pytest.approx(0.0025))


class Attention(nn.Module):
    """By hand, with a bias of the keys, whose gradient is 0 up to rounding."""

    def __init__(self, clock):
        super().__init__()
        torch.manual_seed(0)
        self.clock, self.seconds, self.fused = clock, 0.01, False
        self.query, self.key, self.value = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, x):
        self.clock.now += self.seconds
        q, k, v = (layer(x) for layer in (self.query, self.key, self.value))
        if self.fused:
            return F.scaled_dot_product_attention(q, k, v)
        return ((q @ k.transpose(-2, -1)) * 8**-0.5).softmax(-1) @ v


def test_the_gradient_of_a_bias_of_keys_reverts_nothing():
    def fuse(model):
        model.fused, model.seconds = True, 0.005

    trial = trial_of(fuse, session=session_of(Attention(FalseClock()), training=True))
    assert trial.verdict == "kept", trial.reason


class InPlace(Model):
    def compute(self, x):
        return super().compute(x.mul_(2))


@pytest.mark.parametrize("training", [False, True])
def test_inputs_that_the_model_changes_are_cloned(training):
    sample = torch.randn(2, 6, 8)
    before = sample.clone()
    session = session_of(InPlace(FalseClock()), sample, training=training)
    assert trial_of(made_up.twice_as_fast, session=session).verdict == "kept"
    assert torch.equal(sample, before)


class Noisy(Model):
    def compute(self, x):
        return super().compute(x + torch.randn_like(x))


def test_random_numbers_are_equal_by_equal_seeds():
    session = session_of(Noisy(FalseClock()))
    assert trial_of(made_up.twice_as_fast, session=session).verdict == "kept"
    assert trial_of(made_up.ten_percent_off, session=session).verdict == "reverted"


class Counting(Model):
    calls = 0

    def compute(self, x):
        self.calls += 1
        return super().compute(x) * self.calls


def test_a_model_that_differs_from_itself_is_never_called_equal():
    session = session_of(Counting(FalseClock()))
    trial = trial_of(made_up.twice_as_fast, session=session)
    assert trial.verdict == "not tried"
    assert "differs from itself" in trial.reason


class Dropping(Model):
    def __init__(self, clock):
        super().__init__(clock)
        self.drop = nn.Dropout(0.5)

    def compute(self, x):
        return super().compute(self.drop(x))


def test_dropout_is_0_while_training_steps_are_compared():
    """Dropout that draws other numbers is as good, and afterwards it is what it was."""

    def other_numbers(model):
        made_up.replace_compute(model, lambda old, x: old(x.flip(0)).flip(0))

    session = session_of(Dropping(FalseClock()), training=True)
    trial = trial_of(other_numbers, session=session)
    assert trial.verdict == "kept", trial.reason
    assert session.build([]).drop.p == 0.5


class Timed(torch.optim.SGD):
    """SGD whose step takes time by the clock."""

    def __init__(self, parameters, clock, seconds=0.01, **options):
        super().__init__(parameters, lr=0.1, **options)
        self.clock, self.seconds = clock, seconds

    def step(self, closure=None):
        self.clock.now += self.seconds
        return super().step(closure)


class Optimizing(MadeUp):
    """Another optimizer, in half of the time."""

    def __init__(self, name, **options):
        super().__init__(lambda model: None, name)
        self.options = options

    def change_optimizer(self, optimizer):
        parameters = optimizer.param_groups[0]["params"]
        return Timed(parameters, optimizer.clock, 0.005, **self.options)


@pytest.mark.parametrize(
    ("options", "verdict", "reason"),
    [({}, "kept", ""), ({"momentum": 0.1}, "reverted", "steps of the optimizer differ")],
    ids=["same steps", "other steps"],
)
def test_an_optimizer_must_make_the_same_steps(options, verdict, reason):
    clock = FalseClock()
    session = session_of(
        Model(clock), training=True, task={"optimizer": lambda parameters: Timed(parameters, clock)}
    )
    trial = session.trial([], Optimizing("other", **options))
    assert trial.verdict == verdict
    assert trial.reason.startswith(reason)
    if verdict == "kept":
        assert trial.gain == pytest.approx(20 / 15)


def test_threads_are_those_of_the_candidate_and_then_as_before():
    seen, before = set(), torch.get_num_threads()

    class Watching(Model):
        def compute(self, x):
            seen.add(torch.get_num_threads())
            return super().compute(x)

    session = session_of(Watching(FalseClock()))
    trial = trial_of(made_up.twice_as_fast, session=session, attributes={"threads": before + 1})
    assert trial.verdict == "kept", trial.reason
    assert seen == {before, before + 1}
    assert torch.get_num_threads() == before


def test_the_confirmation_is_against_the_original():
    kept = [MadeUp(made_up.twice_as_fast), MadeUp(made_up.twice_as_fast, "again")]
    result = session_of().confirm(kept)
    assert (result.verdict, result.gain) == ("kept", pytest.approx(4.0))
    assert result.strategy == "twice_as_fast + again"
    assert result.source == ("model = twice_as_fast(model)", "model = again(model)")


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        (made_up.two_percent_faster, "kept"),
        (lambda model: None, "reverted"),
        (made_up.changes_a_buffer, "reverted"),
        (made_up.raises_when_called, "failed"),
    ],
    ids=["a small gain", "none", "wrong", "failing"],
)
def test_the_confirmation_reverts_all_whose_interval_reaches_1(change, verdict):
    result = session_of().confirm([MadeUp(change, "all")])
    assert result.verdict == verdict
    assert bool(result.reason) == (verdict != "kept")


def test_the_confirmation_ends_in_time():
    result = session_of().confirm([MadeUp(made_up.twice_as_fast)], 1000.05)
    assert result.verdict == "out of time"


def test_a_model_that_cannot_be_copied_is_not_changed():
    class Locked(Model):
        def __deepcopy__(self, memo):
            raise TypeError("cannot pickle a lock")

    trial = trial_of(made_up.twice_as_fast, session=session_of(Locked(FalseClock())))
    assert trial.verdict == "not tried"
    assert "cannot be copied: TypeError: cannot pickle a lock" in trial.reason
