"""All facts together: each part on its own, the model untouched."""

from __future__ import annotations

import itertools
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kernel_pytorch.advice.analysis import analyse as module
from kernel_pytorch.advice.analysis import others
from kernel_pytorch.advice.analysis.analyse import analyse, tensor_infos
from kernel_pytorch.advice.analysis.runs import inference_step, training_step
from kernel_pytorch.advice.facts import Fact, Options, Roofline, Structure
from kernel_pytorch.advice.sample import Sample


@dataclass
class Task:
    model: nn.Module
    sample: Sample
    options: Options = field(default_factory=Options)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    optimizer: Any = None
    loss: Any = None

    def loss_text(self, outputs: Any) -> str:
        return f"the mean square of a {type(outputs).__name__}"

    def make_optimizer(self, model: nn.Module) -> Any:
        return self.optimizer(model.parameters())

    def step(self, model: nn.Module, sample: Sample, optimizer: Any = None) -> Any:
        outputs = (training_step if self.options.training else inference_step)(model, sample)
        if optimizer is not None:
            optimizer.step()
        return outputs


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A recorded roofline, and stand-ins for the parts with tests of their own."""
    peaks = Roofline(flops={"float32": 1e15}, memory_gb_s=1e6)
    monkeypatch.setattr(module, "roofline", lambda device, dtypes, again=False: peaks)
    monkeypatch.setattr(
        module.time_calls, "__kwdefaults__", module.time_calls.__kwdefaults__ | {"limit_s": 0.2}
    )
    monkeypatch.setattr(others, "peak", lambda attempt: Fact(value=1.0, basis="measured"))
    monkeypatch.setattr(others, "predicted_peak", lambda attempt: Fact(value=1.0, basis="predicted"))
    monkeypatch.setattr(others, "structure_of", lambda attempt: (Structure(), ()))
    monkeypatch.setattr(others, "lengths", lambda attempt, limit: ((), Fact(value=7.0, basis="predicted")))


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 2))


def test_inference():
    model = mlp().eval()
    facts = analyse(Task(model, Sample.of(torch.randn(5, 4)), Options(memory_bytes=12345)))
    assert (facts.model, facts.device, facts.training, facts.loss) == ("Sequential", "cpu", False, "")
    assert (facts.parameters, facts.trainable, facts.buffers) == (56, 56, 13)
    assert facts.bytes_by_dtype == {"float32": 4 * 68, "int64": 8}
    assert facts.flops == Fact(value=2 * 5 * (24 + 12), basis="counted")
    assert facts.traffic.at_least
    assert facts.call.value > 0
    assert facts.noise.value >= 0
    assert facts.bound.value == pytest.approx(360 / 1e15)
    assert facts.attained.value == pytest.approx(facts.bound.value / facts.call.value)
    assert facts.attention_share.value == 0
    assert facts.memory_limit == 12345
    assert facts.greatest_length.value == 7
    linear = facts.modules[1]
    assert (linear.path, linear.kind, linear.calls, linear.flops) == ("0", "Linear", 1, 240)
    assert [cost.path for cost in facts.modules] == ["", "0", "1", "2", "3"]
    (products,) = (cost for cost in facts.operators if cost.name == "aten::addmm")
    assert (products.calls, products.flops) == (2, 360)
    assert products.bytes == 4 * (6 + 20 + 24 + 30 + 2 + 30 + 12 + 10)
    assert facts.remarks == ()
    assert facts.failed == ""


def test_a_training_step_leaves_the_model_as_it_is():
    model, sample = mlp(), Sample.of(torch.randn(5, 4))
    seed = torch.get_rng_state()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    steps: list[int] = []

    class Counted(torch.optim.SGD):
        def step(self, closure=None):
            steps.append(len(self.param_groups[0]["params"]))
            return super().step(closure)

    task = Task(model, sample, Options(training=True), optimizer=Counted)
    facts = analyse(task)
    assert facts.loss == "the mean square of a Tensor"
    assert facts.flops.value == 2 * 5 * (2 * 24 + 3 * 12)
    assert set(steps) == {6}
    assert torch.equal(torch.get_rng_state(), seed)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


class Failing(nn.Module):
    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.layer, self.error = nn.Linear(3, 3), error

    def forward(self, x):
        raise self.error


@pytest.mark.parametrize("error", [ValueError("no\nmask"), SystemExit(3)], ids=["exception", "exit"])
def test_a_model_that_fails_is_described(error: BaseException, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(Path(__file__).parent)
    facts = analyse(Task(Failing(error), Sample.of(torch.randn(2, 3)), Options(training=True)))
    line = Failing.forward.__code__.co_firstlineno + 1
    text = "ValueError: no mask" if isinstance(error, ValueError) else "SystemExit: 3"
    assert facts.failed == f"{text} ({Path(__file__).name}:{line})"
    assert facts.parameters == 12
    for fact in (facts.call, facts.noise, facts.flops, facts.traffic, facts.bound, facts.attained):
        assert fact == Fact(why=f"the model failed on its inputs: {facts.failed}")
    assert (facts.operators, facts.loss) == ((), "")
    assert [cost.path for cost in facts.modules] == ["", "layer"]


class Holding(nn.Module):
    def __init__(self, held) -> None:
        super().__init__()
        self.layer, self.held = nn.Linear(3, 3), held

    def forward(self, x):
        return self.layer(x)


def test_a_model_with_a_lock_is_like_any_other():
    facts = analyse(Task(Holding(threading.Lock()), Sample.of(torch.randn(2, 3)), Options(training=True)))
    assert facts.call.value > 0
    assert facts.remarks == ()


def test_a_model_that_cannot_be_copied_runs_itself_in_inference_only():
    sample = Sample.of(torch.randn(2, 3))
    facts = analyse(Task(Holding(number for number in range(3)), sample))
    assert facts.call.value > 0
    assert "cannot be copied" in facts.remarks[0]
    assert facts.flops.value == 2 * 2 * 9
    model = Holding(number for number in range(3))
    facts = analyse(Task(model, sample, Options(training=True)))
    assert facts.call.value is None
    assert "cannot be copied" in facts.call.why
    assert model.layer.weight.grad is None


def test_a_model_on_meta_is_counted_and_not_run():
    with torch.device("meta"):
        model = nn.Linear(3, 4)
    facts = analyse(Task(model, Sample.of(torch.randn(2, 3))))
    assert facts.flops.value == 2 * 2 * 3 * 4
    assert facts.call.why == "the model is on meta: it has no numbers"
    assert facts.parameters == 16
    assert facts.failed == ""


def test_after_the_deadline_no_costly_part_begins():
    ticks = itertools.count(100)
    facts = analyse(Task(mlp().eval(), Sample.of(torch.randn(5, 4))), deadline=50, clock=lambda: next(ticks))
    assert facts.call.value > 0
    assert facts.flops.value == 360
    assert "no profile: no time was left" in facts.remarks
    assert {cost.seconds for cost in facts.modules} == {None}


def test_one_part_that_fails_spoils_no_other(monkeypatch: pytest.MonkeyPatch):
    def fails(*args: object, **kwargs: object) -> None:
        raise RuntimeError("broken")

    for name in ("survey", "profile", "time_calls", "roofline"):
        monkeypatch.setattr(module, name, fails)
        facts = analyse(Task(mlp().eval(), Sample.of(torch.randn(5, 4))))
    assert facts.call.why.startswith("timing failed: RuntimeError: broken")
    assert facts.flops.why.startswith("counting failed")
    assert facts.bound.why.startswith("measuring the device failed")
    assert any(remark.startswith("no profile: the profile failed") for remark in facts.remarks)
    assert facts.parameters == 56
    assert facts.greatest_length.value == 7


def test_inputs_are_named_by_their_path():
    sample = Sample((torch.zeros(2), [torch.zeros(1, dtype=torch.long)]), {"mask": {"keys": torch.ones(3)}})
    assert [(info.name, info.shape, info.dtype) for info in tensor_infos(sample)] == [
        ("0", (2,), "float32"),
        ("1.0", (1,), "int64"),
        ("mask.keys", (3,), "float32"),
    ]


def test_lengths_are_left_out_when_time_is_over(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.undo()
    monkeypatch.setattr(module, "roofline", lambda *_: Roofline(flops={}, memory_gb_s=None))
    ticks = itertools.count(100)
    task = Task(mlp().eval(), Sample.of(torch.randn(5, 4)), Options(lengths=(7, 9)))
    facts = analyse(task, deadline=50, clock=lambda: next(ticks))
    assert [(at.length, at.peak.why, at.fits) for at in facts.lengths] == [
        (7, "no time was left", None),
        (9, "no time was left", None),
    ]
    assert facts.greatest_length == Fact(why="no time was left")


@pytest.mark.parametrize("second", [1e15, 2.0], ids=["higher", "too low again"])
def test_a_call_faster_than_the_peak_has_it_measured_again(monkeypatch: pytest.MonkeyPatch, second: float):
    def measured(device: torch.device, dtypes: list[str], *, again: bool = False) -> Roofline:
        return Roofline(flops={"float32": second if again else 1.0}, memory_gb_s=None)

    monkeypatch.setattr(module, "roofline", measured)
    facts = analyse(Task(mlp().eval(), Sample.of(torch.randn(5, 4))))
    assert facts.bound.value == pytest.approx(360 / second)
    if second == 2.0:
        assert facts.attained.value is None
        assert "disturbed" in facts.attained.why
    else:
        assert 0 < facts.attained.value < 1
