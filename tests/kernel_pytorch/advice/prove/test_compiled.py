"""Candidates that are compiled: code of their own must have run, and it can be wrong."""

import time

import pytest
import torch
from advice_facts import facts as recorded_facts
from made_up_strategies import FalseClock, MadeUp
from torch import nn

from kernel_pytorch.advice.facts import Fact, Options
from kernel_pytorch.advice.prove.own_code import give_own_code
from kernel_pytorch.advice.prove.session import Session
from kernel_pytorch.advice.prove.task import Task
from kernel_pytorch.advice.sample import Sample

FACTS = recorded_facts(
    call=Fact(value=0.01, basis="measured"), bound=Fact(why="not counted"), noise=Fact(why="not measured")
)


class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.tag = nn.Linear(8, 8), ""

    def forward(self, x):
        assert self.tag != "never"  # so that compiled code holds for one tag alone
        return self.linear(x).relu()


class Outer(nn.Module):
    """[b, n, 8] -> [b, n, 8] by a module of one's own, in 10 ms by a false clock that is not compiled."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.clock, self.seconds = inner, FalseClock(), 0.01

    def forward(self, x):
        self.clock.now += self.seconds
        return self.inner(x)


class Backend:
    """Runs graphs as they are, and counts how many it got and how often they ran."""

    def __init__(self):
        self.graphs = self.calls = 0

    def __call__(self, graph, inputs):
        self.graphs += 1

        def run(*args):
            self.calls += 1
            return graph.forward(*args)

        return run


def compiling(name, backend="eager", seconds=0.005):
    def change(model):
        model.inner.compile(backend=backend)
        model.seconds = seconds

    return MadeUp(change, name)


def session_of(model, **options):
    torch.manual_seed(0)
    sample = Sample.of(torch.randn(2, 6, 8))
    task = Task(model=model, sample=sample, options=Options(**options))
    return Session(task, FACTS, clock=model.clock)


@pytest.mark.parametrize("training", [False, True])
def test_compiled_code_is_proved_to_have_run(training):
    backend = Backend()
    trial = session_of(Outer(Inner()), training=training).trial([], compiling("compile", backend))
    assert trial.verdict == "kept", trial.reason
    assert trial.compile_s is not None
    assert backend.graphs >= 2  # its own length, and another
    assert backend.calls > 20


def test_what_is_not_compiled_in_spite_of_its_mark_is_reverted():
    """Dynamo does not compile torch's own containers where they are called themselves."""
    inner = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
    trial = session_of(Outer(inner)).trial([], compiling("compile"))
    assert trial.verdict == "reverted"
    assert "nothing was compiled" in trial.reason


def test_candidates_that_differ_in_their_backend_alone_run_different_code():
    session, first, second = session_of(Outer(Inner())), Backend(), Backend()
    kept = compiling("first", first)
    assert session.trial([], kept).verdict == "kept"
    before = first.calls
    trial = session.trial([kept], compiling("second", second, 0.002))
    assert trial.verdict == "kept", trial.reason
    assert second.calls > 20
    assert first.calls - before >= len(trial.pairs)  # it is what the second was timed against


class Setting:
    """A setting of a compiler, which nothing but the code that it makes depends on."""

    on = False

    def __init__(self):
        self.graphs, self.calls = {False: 0, True: 0}, {False: 0, True: 0}

    def __call__(self, graph, inputs):
        on = self.on
        self.graphs[on] += 1

        def run(*args):
            self.calls[on] += 1
            return graph.forward(*args)

        return run


def test_candidates_that_differ_in_a_setting_alone_run_different_code():
    compiler = Setting()

    def turn_on(model):
        compiling("", compiler, 0.002).apply(model, None)
        call = model.forward

        def forward(x):
            compiler.on = True
            outputs = call(x)
            compiler.on = False
            return outputs

        model.forward = forward

    session, kept = session_of(Outer(Inner())), compiling("compile", compiler)
    assert session.trial([], kept).verdict == "kept"
    before = compiler.calls[False]
    trial = session.trial([kept], MadeUp(turn_on))
    assert trial.verdict == "kept", trial.reason
    assert compiler.graphs[True] >= 1
    assert compiler.calls[True] > len(trial.pairs)
    assert compiler.calls[False] - before >= len(trial.pairs)


def test_copies_of_code_are_shared_by_submodules_of_one_class():
    backend = Backend()
    inner = nn.ModuleList([Inner() for _ in range(3)])
    for module in inner:
        module.compile(backend=backend)
    give_own_code(inner)
    assert inner[0](torch.ones(2, 8)).shape == (2, 8)
    assert inner[1](torch.ones(2, 8)).shape == (2, 8)
    assert (backend.graphs, backend.calls) == (1, 2)
    assert isinstance(inner[0], Inner)
    assert list(inner.state_dict()) == list(nn.ModuleList([Inner() for _ in range(3)]).state_dict())


def test_a_model_that_compiles_for_ever_is_not_timed_as_if_it_were_compiled():
    class Changing(Outer):
        def forward(self, x):
            self.inner.tag = str(self.clock.now)
            return super().forward(x)

    trial = session_of(Changing(Inner())).trial([], compiling("compile"))
    assert trial.verdict == "failed"
    assert "recompile_limit" in trial.reason


class WrongSoftmax(nn.Module):
    """Softmax over the queries between two products: inductor takes it for attention (pytorch#196468)."""

    def __init__(self):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(32, 32) for _ in range(3))

    def forward(self, x):
        q, k, v = (f(x).unflatten(-1, (2, 16)).transpose(1, 2) for f in (self.query, self.key, self.value))
        weights = (q @ k.transpose(-2, -1) / 4.0).softmax(-2)
        return (weights @ v).transpose(1, 2).flatten(2)


def test_wrong_code_of_the_compiler_is_reverted():
    def compile_all(model):
        model.compile()

    torch.manual_seed(0)
    task = Task(model=WrongSoftmax(), sample=Sample.of(torch.randn(2, 12, 32)))
    session = Session(task, FACTS)
    trial = session.trial(
        [], MadeUp(compile_all, "torch.compile", needs=("compiler",)), time.monotonic() + 300
    )
    assert trial.verdict == "reverted"
    assert trial.reason.startswith("outputs differ: ")
    assert trial.error > 0.1
    assert trial.original_error < 1e-5
    assert trial.compile_s > 0
