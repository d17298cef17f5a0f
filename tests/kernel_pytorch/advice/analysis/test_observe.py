"""What runs of a model show, and what they leave behind."""

from __future__ import annotations

import copy
import logging
from dataclasses import replace

import pytest
import torch
from advice_defects import CLEAN, DEFECTS, WIDTH, Counter, Experts, Item, Linear, Perceptron
from torch import nn

from kernel_pytorch.advice.analysis import blame, source
from kernel_pytorch.advice.analysis.observe import observe
from kernel_pytorch.advice.facts import Options
from kernel_pytorch.advice.prove.task import Task
from kernel_pytorch.advice.sample import Sample


def task(model: nn.Module, *shape: int, **options) -> Task:
    sample = Sample.of(torch.randn(*(shape or (2, 24, WIDTH))))
    return Task(model=model.eval(), sample=sample, options=Options(**options))


def loggers():
    found = {"torch.__trace": logging.getLogger("torch.__trace")}
    found |= {n: v for n, v in logging.root.manager.loggerDict.items() if isinstance(v, logging.Logger)}
    return {
        name: (logger.level, list(logger.handlers), [list(handler.filters) for handler in logger.handlers])
        for name, logger in found.items()
        if name.split(".")[0] == "torch"
    }


def test_models_loggers_and_streams_are_left_alone(capfd):
    import torch._dynamo
    from torch._logging.structured import INTERN_TABLE

    model = Item()
    observe(task(Perceptron()))  # what loads at the first use
    before, state, interned = loggers(), copy.deepcopy(model.state_dict()), dict(INTERN_TABLE)
    seen = observe(task(model))
    assert [found.cause for found in seen.breaks] == ["item"]
    after = loggers()
    assert {name: after[name] for name in before} == before
    assert interned == INTERN_TABLE
    assert model._compiled_call_impl is None
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert capfd.readouterr() == ("", "")


def test_counters_of_the_callers_model_do_not_move():
    model = Counter()
    observe(task(model))
    assert model.calls == 0


class Raises(Linear):
    def forward(self, x):
        raise ValueError("no mask")


class Exits(Linear):
    def forward(self, x):
        raise SystemExit(3)


class OnlyPositive(Linear):
    def forward(self, x):
        if x.min() < 0:
            raise ValueError("negative")
        return self.linear(x)


class Uncopyable(Linear):
    def __init__(self) -> None:
        super().__init__()
        self.numbers = (number for number in range(3))


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Raises, "ValueError: no mask"),
        (Exits, "SystemExit: 3"),
        (Uncopyable, "cannot pickle"),
    ],
)
def test_an_exception_of_the_model_is_a_reason(model, reason):
    seen = observe(task(model()))
    assert len(seen.unobserved) == 1
    assert reason in seen.unobserved[0]


def test_other_inputs_that_a_model_refuses_are_a_reason():
    refuses = task(OnlyPositive())
    inputs = [Sample.of(torch.rand(2, 24, WIDTH)), Sample.of(torch.randn(2, 24, WIDTH))]
    seen = observe(replace(refuses, sample=inputs[0], redraw=lambda length, seed: inputs[1]))
    assert [found.cause for found in seen.breaks] == ["branch"]
    assert seen.unobserved[0].startswith("the model could not be run on other inputs: ValueError: negative")


def test_time_that_is_over_is_a_reason():
    ticks = iter(range(0, 1000, 20))
    seen = observe(task(Item()), clock=lambda: next(ticks))
    assert seen.breaks == ()
    assert any("no time" in reason or "too slow" in reason for reason in seen.unobserved)


def _unwanted(graph_module, inputs):
    raise AssertionError("a compiler ran")


class CompiledInside(Linear):
    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.compile(self.linear.forward, backend=_unwanted)

    def forward(self, x):
        print(end="")
        return self.inner(x)


@pytest.mark.parametrize("outside", [False, True])
def test_what_the_user_compiled_is_not_compiled(outside):
    model = torch.compile(Item(), backend=_unwanted) if outside else CompiledInside()
    seen = observe(task(model))
    assert seen.unobserved == ()
    assert [found.cause for found in seen.breaks] == ["item" if outside else "print"]


class Patches(nn.Module):
    """Cuts an image as a vision transformer does."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.cut = nn.Conv2d(3, WIDTH, 4, stride=stride)

    def forward(self, x):
        return self.cut(x)


@pytest.mark.parametrize(("stride", "wrong"), [(4, False), (2, True)])
def test_an_image_cut_into_patches_may_have_any_layout(stride, wrong):
    assert (observe(task(Patches(stride), 2, 3, 16, 16)).layout is not None) == wrong


class OneLength(Linear):
    def forward(self, x):
        return self.linear(x) + torch.ones(1, 24, 1)


def test_a_guessed_length_that_fails_is_no_graph_break():
    seen = observe(task(OneLength()))
    assert (seen.breaks, seen.lengths, seen.unobserved) == ((), (), ())


def test_a_length_asked_for_that_fails_is_a_reason():
    seen = observe(task(OneLength(), lengths=(12,)))
    assert len(seen.unobserved) == 1
    assert seen.unobserved[0].startswith("the model could not be run on length 12: RuntimeError: The size")


def test_one_recompile_at_the_second_length_is_no_defect():
    seen = observe(task(Perceptron(), lengths=(20, 28)))
    assert seen.lengths == (20, 12)
    assert seen.recompiles == ()


def test_fewer_experts_than_a_loop_needs():
    model = Experts()
    model.experts = model.experts[:16]
    model.gate = nn.Linear(WIDTH, 16)
    assert observe(task(model)).loops == ()


def test_large_operators_are_no_loop():
    assert observe(task(Experts(), 2, 12_000, WIDTH)).loops == ()


def test_counts_and_bytes_of_a_loop_and_a_copy():
    cases = {case.name: case for case in DEFECTS}
    (loop,) = observe(cases["Experts"].task()).loops
    assert (loop.operator, loop.calls, loop.shape, loop.over) == ("linear", 20, (2, 24, WIDTH), "weights")
    (copied,) = observe(cases["TransposedWeight"].task()).copies
    assert (copied.name, copied.cause, copied.calls, copied.bytes) == ("weight", "stored", 1, 4 * WIDTH**2)
    (twice,) = observe(cases["CopiedTwice"].task()).copies
    assert (twice.cause, twice.calls, twice.bytes) == ("repeated", 2, 2 * 4 * 2 * 24 * WIDTH)
    (built,) = observe(cases["RebuiltMask"].task()).rebuilt
    assert (built.shape, built.operators, built.bytes) == ((24, 24), 3, 3 * 24 * 24)  # ones, tril, not
    (wide,) = observe(cases["DoubleSoftmax"].task()).float64
    assert (wide.operators, wide.bytes) == (2, 2 * 8 * 2 * 24 * WIDTH)


def test_names_of_cases_are_distinct_and_marked():
    for cases in (DEFECTS, CLEAN):
        names = [(case.name, case.kind, case.training) for case in cases]
        assert len(set(names)) == len(names)
    for case in DEFECTS:
        assert case.expected() or case.kind in ("too many threads", "no C++ compiler")


def test_whose_code_it_is():
    assert blame.is_users(__file__)
    assert blame.is_users("/x/lib/python3.11/site-packages/transformers/models/bert.py")
    assert not blame.is_users(nn.Linear.forward.__code__.co_filename)
    assert not blame.is_users(logging.__file__)
    assert not blame.is_users(source.__file__)
    assert not blame.is_users("<eval_with_key>.3")
    assert blame.is_users("<stdin>")


def test_the_innermost_line_of_the_user_in_a_traceback():
    text = f'File "/u/a.py", line 3, in f\nFile "/u/b.py", line 9, in g\nFile "{nn.__file__}", line 1, in h\n'
    assert blame.in_traceback(text) == ("/u/b.py", 9)
    assert blame.in_traceback(f'File "{nn.__file__}", line 1, in h\n') is None


SOURCE = """\
def f(xs):
    for x in [g(y)
              for y in xs]:
        if (x >
                0):
            h(x,
              1)
    return [
        g(x) for x in xs
    ]
"""


@pytest.mark.parametrize(
    ("line", "loop", "text"),
    [
        (1, None, "def f(xs):"),
        (3, (2, 3), "for x in [g(y) for y in xs]:"),
        (5, (2, 7), "if (x > 0):"),
        (7, (2, 7), "h(x, 1)"),
        (9, (8, 10), "return [g(x) for x in xs]"),
    ],
)
def test_statements_and_loops_by_line(tmp_path, line, loop, text):
    file = tmp_path / "m.py"
    file.write_text(SOURCE)
    assert source.loop(str(file), line) == loop
    assert source.text(str(file), line) == text


def test_files_without_source_have_no_statements(tmp_path):
    broken = tmp_path / "broken.py"
    broken.write_text("def (:\n")
    for file in (str(broken), str(tmp_path / "none.py")):
        assert source.loop(file, 1) is None
    assert source.text(str(tmp_path / "none.py"), 1) == ""
