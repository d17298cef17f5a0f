"""A run in one process: the report, the copy that it returns, and what it leaves as it was."""

import math
import random
from dataclasses import replace

import made_up_strategies as made_up
import numpy
import pytest
import torch
from advice_facts import facts as recorded_facts
from made_up_strategies import FalseClock, MadeUp, Model

from kernel_pytorch import advice
from kernel_pytorch.advice.facts import Expectation, Fact, Finding, Options, Structure
from kernel_pytorch.advice.prove import run as run_module
from kernel_pytorch.advice.prove.run import another_like, device_of, optimise, run
from kernel_pytorch.advice.prove.task import Task
from kernel_pytorch.advice.sample import Sample

FACTS = recorded_facts(
    call=Fact(value=0.01, basis="measured"),
    noise=Fact(value=0.01, basis="measured"),
    bound=Fact(value=5e-5, basis="predicted"),
    attention_share=Fact(value=0.0, basis="counted"),
    peak=Fact(value=1e6, basis="measured"),
)


def hoping(change, gain=2.0, seconds=1.0, **attributes):
    strategy = MadeUp(change, **attributes)
    strategy.applies = lambda facts: Expectation(gain=gain, reason="made up", seconds=seconds)
    return strategy


@pytest.fixture(autouse=True)
def without_findings(monkeypatch):
    monkeypatch.setattr(run_module, "look", lambda task, facts, limit_s: ((), ("no time",)))


def run_of(strategies, *, model=None, facts=FACTS, **options):
    torch.manual_seed(0)
    model = model or Model(FalseClock())
    sample = Sample.of(torch.randn(2, 6, 8))
    task = Task(model=model, sample=sample, options=Options(**options))
    report, best = run(task, strategies, facts=facts, clock=model.clock)
    return report, best, model


def test_right_changes_are_kept_wrong_ones_reverted_and_the_result_confirmed():
    strategies = [
        hoping(made_up.ten_percent_off, 4.0),
        hoping(made_up.twice_as_fast, 3.0),
        hoping(made_up.raises_when_called, 2.5),
        hoping(made_up.three_times_slower, 2.0),
        hoping(made_up.in_half_precision, 1.5, level="aggressive", lossless=False),
    ]
    report, best, model = run_of(strategies)
    assert [(trial.strategy, trial.verdict) for trial in report.trials] == [
        ("ten_percent_off", "reverted"),
        ("twice_as_fast", "kept"),
        ("raises_when_called", "failed"),
        ("three_times_slower", "reverted"),
        ("in_half_precision", "not tried"),
    ]
    assert [trial.expected for trial in report.trials] == [4.0, 3.0, 2.5, 2.0, None]
    assert report.result.verdict == "kept"
    assert report.result.gain == pytest.approx(2.0)
    assert [trial.strategy for trial in report.kept] == ["twice_as_fast"]
    assert report.reference == "the original in float64"
    assert report.facts.remarks == ("no time",)
    assert not report.confirmed  # it is not a process of its own
    assert best is not model
    assert (best.seconds, model.seconds) == (0.005, 0.01)
    x = torch.randn(2, 6, 8)
    assert torch.equal(best(x), model(x))
    assert not best.training


def test_without_anything_kept_the_model_given_is_returned():
    report, best, model = run_of([hoping(made_up.ten_percent_off)])
    assert best is model
    assert report.result is None
    assert report.kept == ()


def test_what_does_not_hold_in_the_end_is_reverted():
    """A gain in the trial that is gone afterwards."""
    built = []

    def fast_once(model):
        built.append(model)
        if len(built) == 1:
            model.seconds /= 2

    report, best, model = run_of([hoping(fast_once)])
    assert [trial.verdict for trial in report.trials] == ["kept"]
    assert report.result.verdict == "reverted"
    assert report.kept == ()
    assert best is model


def test_a_run_keeps_to_its_budget():
    strategies = [hoping(made_up.takes_an_hour, 9.0), hoping(made_up.twice_as_fast, 1.1, seconds=30.0)]
    report, _, _ = run_of(strategies, budget_s=20.0)
    assert [trial.verdict for trial in report.trials] == ["out of time", "not tried"]
    assert "--budget" in report.trials[1].reason


@pytest.mark.parametrize("kind", ["meta", "compiled", "uncopyable"])
def test_a_model_that_cannot_be_changed_is_only_analysed(kind):
    facts = replace(FACTS, structure=Structure(unusual=(kind,)))
    report, best, model = run_of([hoping(made_up.twice_as_fast)], facts=facts)
    assert [trial.verdict for trial in report.trials] == ["not tried"]
    assert best is model


def test_defects_are_not_looked_for_where_there_is_no_code_of_the_users(monkeypatch):
    monkeypatch.undo()
    facts = replace(FACTS, structure=Structure(unusual=("meta",)))
    report, _, _ = run_of([Offer(None)], facts=facts)
    assert report.findings == ()
    assert report.facts.remarks[-1] == "defects were not looked for: the model is on meta: it has no numbers"


class Offer(MadeUp):
    offers = True

    def __init__(self, finding):
        super().__init__(None, "another function")
        self.finding = finding

    def offer(self, model, sample, facts):
        if self.finding is None:
            raise RuntimeError("no rope")
        return self.finding


def test_offers_are_shown_and_never_applied():
    finding = Finding(kind="dilated attention", place="", cost="3 times the FLOPs", remedy="another function")
    report, best, model = run_of([Offer(finding)])
    assert report.offers == (finding,)
    assert (report.trials, best) == ((), model)


def test_an_offer_that_fails_is_a_remark():
    report, _, _ = run_of([Offer(None)])
    assert report.offers == ()
    assert "another function could not be offered: RuntimeError: no rope" in report.facts.remarks[-1]


def state_of(model, optimizer):
    return {
        "weights": {name: value.tolist() for name, value in model.state_dict().items()},
        "gradients": {
            name: None if p.grad is None else p.grad.tolist() for name, p in model.named_parameters()
        },
        "modes": {name: module.training for name, module in model.named_modules()},
        "hooks": {name: tuple(module._forward_hooks) for name, module in model.named_modules()},
        "optimizer": [
            {**group, "params": list(map(id, group["params"]))} for group in optimizer.param_groups
        ],
        "moments": len(optimizer.state),
        "generators": (torch.get_rng_state().tolist(), random.getstate()),
        "dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "grad": torch.is_grad_enabled(),
    }


def changes_everything(model):
    """And works, but for that."""
    model.seconds /= 2
    torch.manual_seed(77)
    random.seed(77)
    torch.set_num_threads(torch.get_num_threads() + 1)


def breaks_off(model):
    changes_everything(model)
    torch.set_default_dtype(torch.float64)
    raise KeyboardInterrupt


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("change", [changes_everything, breaks_off])
def test_the_caller_s_model_and_process_are_as_before(monkeypatch, change, training):
    clock = FalseClock()
    monkeypatch.setattr(run_module, "strategies", lambda: [hoping(change)])
    monkeypatch.setattr("kernel_pytorch.advice.prove.session.analyse", lambda *_, **__: FACTS)
    model = Model(clock)
    model.second.eval()
    model.register_forward_hook(lambda *_: None)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.randn(2, 6, 8)).sum().backward()
    sample = torch.randn(2, 6, 8)
    before, inputs = state_of(model, optimizer), sample.clone()
    try:
        report, _ = optimise(model, sample, training=training, optimizer=optimizer if training else None)
    except KeyboardInterrupt:
        assert change is breaks_off
    else:
        assert change is changes_everything
        assert report.trials[0].pairs
    assert state_of(model, optimizer) == before
    assert torch.equal(sample, inputs)


def test_an_optimizer_is_made_anew_with_the_defaults_of_the_one_given():
    given = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))], lr=0.5, weight_decay=0.25)
    parameter = torch.nn.Parameter(torch.ones(3))
    made = another_like(given)([parameter])
    assert type(made) is torch.optim.AdamW
    assert (made.defaults["lr"], made.defaults["weight_decay"]) == (0.5, 0.25)
    assert made.param_groups[0]["params"] == [parameter]


def test_a_model_on_meta_or_without_parameters_is_asked_on_the_cpu():
    assert device_of(torch.nn.Linear(2, 2, device="meta")).type == "cpu"
    assert device_of(torch.nn.ReLU()).type == "cpu"


@pytest.mark.parametrize(
    "options",
    [
        {"budget_s": 0.0},
        {"max_error": -1.0},
        {"memory_gb": 0.0},
        {"memory_gb": math.inf},
        {"memory_gb": math.nan},
        {"lengths": [0]},
    ],
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=f"^{next(iter(options))} must be positive"):
        optimise(torch.nn.ReLU(), torch.ones(2), **options)


def test_numbers_of_numpy_get_the_dtype_of_the_model():
    report, _ = optimise(torch.nn.Linear(4, 3), numpy.ones((2, 4)), "conservative", budget_s=0.1)
    assert report.facts.failed == ""
    assert [(one.dtype, one.shape) for one in report.facts.inputs] == [("float32", (2, 4))]
    assert any("was made a tensor: float32 on cpu" in remark for remark in report.facts.remarks)


def test_inputs_in_a_dict_need_names():
    with pytest.raises(ValueError, match="passed by keyword: 1 is no name"):
        optimise(torch.nn.ReLU(), {1: torch.ones(2)})


@pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning")  # on import of Dynamo
@pytest.mark.parametrize("part", [False, True], ids=["whole", "a part"])
def test_a_model_that_its_user_compiled_is_only_analysed(part):
    model = torch.nn.Sequential(torch.nn.Linear(4, 3))
    (model[0] if part else model).compile(backend="eager")
    report, best = optimise(model, torch.ones(2, 4), budget_s=20)
    assert report.facts.structure.unusual == ("compiled",)
    assert {trial.verdict for trial in report.trials} == {"not tried"}
    assert {trial.reason for trial in report.trials} == {"the model is compiled already"}
    assert "what is shown is of a copy that is not" in report.facts.remarks[0]
    assert best is model


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"loss": lambda outputs, inputs: "low"}, "the loss must be a tensor of one element, got 'low'"),
        (
            {"loss": lambda outputs, inputs: outputs},
            "the loss must be a tensor of one element, got one of shape [2, 3]",
        ),
        (
            {"optimizer": lambda parameters: 3},
            "the optimizer's factory must return a torch.optim.Optimizer, got 3",
        ),
    ],
    ids=["text", "not one number", "no optimizer"],
)
def test_a_wrong_loss_or_optimizer_is_named(given, reason):
    report, _ = optimise(torch.nn.Linear(4, 3), torch.ones(2, 4), training=True, budget_s=20, **given)
    assert report.facts.failed == f"ValueError: {reason}"


def test_an_unknown_level_is_refused_with_the_three_named():
    with pytest.raises(ValueError, match="conservative, balanced, aggressive, got 'fast'"):
        optimise(torch.nn.ReLU(), torch.ones(2), "fast")


def test_the_names_of_the_package_are_there():
    for name in advice.__all__:
        assert getattr(advice, name).__name__ == name
