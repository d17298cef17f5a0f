from __future__ import annotations

import pytest
import torch
from torch import nn

from kernel_pytorch.advice.analysis.profile import profile
from kernel_pytorch.advice.sample import Sample


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Work(nn.Module):
    """Takes the seconds that it is told, on a clock."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        super().__init__()
        self.clock, self.seconds, self.layer = clock, seconds, nn.Linear(3, 3)

    def forward(self, x):
        self.clock.now += self.seconds
        if self.seconds < 0:
            raise ValueError("negative")
        return self.layer(x)


class Twice(nn.Module):
    def __init__(self, inner: nn.Module, clock: Clock) -> None:
        super().__init__()
        self.inner, self.clock = inner, clock

    def forward(self, x):
        self.clock.now += 0.5
        return self.inner(self.inner(x))


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize("training", [False, True])
def test_seconds_by_submodule_with_what_it_contains(training: bool):
    clock = Clock()
    model = Twice(Work(clock, 2.0), clock)
    found = profile(model, Sample.of(torch.randn(2, 3)), training=training, clock=clock)
    assert {path: (each.calls, each.seconds) for path, each in found.modules.items()} == {
        "": (1, pytest.approx(4.5)),
        "inner": (2, pytest.approx(4.0)),
        "inner.layer": (2, 0),
    }
    assert list(found.modules)[:2] == ["", "inner"]
    assert hooks(model) == 0


def test_seconds_by_operator(capfd: pytest.CaptureFixture[str]):
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU())
    found = profile(model, Sample.of(torch.randn(2, 3)), training=True)
    assert found.operators["aten::addmm"].calls == 1
    assert found.operators["aten::mm"].calls == 1  # of the weight; the input has no gradient
    assert all(each.seconds > 0 for each in found.operators.values())
    times = [each.seconds for each in found.operators.values()]
    assert times == sorted(times, reverse=True)
    assert capfd.readouterr() == ("", "")


def test_an_exception_leaves_no_hook_behind():
    clock = Clock()
    model = Twice(Work(clock, -1.0), clock)
    with pytest.raises(ValueError, match="negative"):
        profile(model, Sample.of(torch.randn(2, 3)), clock=clock)
    assert hooks(model) == 0
