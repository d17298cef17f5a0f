"""What FILE:NAME may be, and what is said where it is something else."""

from __future__ import annotations

import itertools
import sys

import pytest
import torch

from kernel_pytorch.advice.facts import Options
from kernel_pytorch.advice.inputs import parse_input
from kernel_pytorch.advice.load import load_model, load_task
from kernel_pytorch.advice.target import Named, TargetError

_numbers = itertools.count()


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a file of a name of its own, as a module is loaded once."""
    monkeypatch.setattr(sys, "path", list(sys.path))

    def write(text: str, name: str | None = None):
        path = tmp_path / (name or f"user_model_{next(_numbers)}.py")
        path.write_text("import torch\nfrom torch import nn\n" + text)
        return path

    return write


@pytest.mark.parametrize(
    "text",
    [
        "make = nn.Linear(3, 2)",
        "def make(): return nn.Linear(3, 2)",
        "class make(nn.Linear):\n    def __init__(self): super().__init__(3, 2)",
        "import functools\nmake = functools.partial(nn.Linear, 3, 2)",
    ],
    ids=["a module", "a function", "a class", "a partial"],
)
def test_what_a_target_may_be(text, write):
    assert load_model(Named.of(f"{write(text)}:make")).weight.shape == (2, 3)


def test_a_name_with_dots(write):
    path = write("class Zoo:\n    @staticmethod\n    def make(): return nn.Linear(3, 2)")
    assert load_model(Named.of(f"{path}:Zoo.make")).weight.shape == (2, 3)


def test_a_factory_runs_under_a_seed(write):
    path = write("import random\ndef make(): return nn.Linear(3, int(random.random() * 1000) + 1)")
    torch.manual_seed(5)
    first = load_model(Named.of(f"{path}:make"))
    torch.manual_seed(6)
    assert torch.equal(first.weight, load_model(Named.of(f"{path}:make")).weight)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("make = 3", "FILE:make is an int: a torch.nn.Module or a function that returns one is needed"),
        ("def make(): return [nn.Linear(1, 1)]", "FILE:make returned a list, not a torch.nn.Module"),
        ("def make(): return nn.Linear", "FILE:make returned a type, not a torch.nn.Module"),
        ("def maker(): pass", "FILE has no 'make'; did you mean maker?"),
        ("def make(): pass", "FILE:make returned None, not a torch.nn.Module"),
        ("def other(): pass", "FILE has no 'make'"),
        (
            "def make():\n    return nn.Linear(-1, 1)",
            "FILE:make failed: NAME:4: RuntimeError: Trying to create tensor with negative dimension",
        ),
        ("def make(width): return nn.Linear(width, 1)", "FILE:make failed: TypeError: make() missing 1"),
        ("def make():\n    import sys\n    sys.exit(3)", "FILE:make failed: NAME:5: SystemExit: 3"),
        ("x = 1\n1 / 0", "FILE cannot be imported: NAME:4: ZeroDivisionError: division by zero"),
        ("import missing_module", "FILE cannot be imported: NAME:3: ModuleNotFoundError: No module named"),
        ("import sys\nsys.exit('bye')", "FILE cannot be imported: NAME:4: SystemExit: bye"),
        ("raise KeyboardInterrupt", "FILE cannot be imported: NAME:3: KeyboardInterrupt"),
        ("def make(:\n    pass", "FILE cannot be imported: NAME:3: SyntaxError: "),
        ("raise ValueError('a\\nb')", "FILE cannot be imported: NAME:3: ValueError: a"),
        ("x = '\0'", "FILE cannot be imported: "),
    ],
)
def test_what_is_no_target_is_refused_in_one_line(text, message, write):
    path = write(text)
    with pytest.raises(TargetError) as raised:
        load_model(Named.of(f"{path}:make"))
    said = str(raised.value)
    assert said.startswith(message.replace("FILE", str(path)).replace("NAME", path.name))
    assert "\n" not in said


def test_the_line_is_that_of_the_users_file_not_of_a_library_below_it(write):
    path = write("def make():\n    return torch.ones(2).reshape(3)")
    with pytest.raises(TargetError, match=rf"{path.name}:4: RuntimeError: shape"):
        load_model(Named.of(f"{path}:make"))


def test_a_file_may_import_its_neighbours(write, tmp_path):
    write("WIDTH = 7", "user_neighbour.py")
    path = write("from user_neighbour import WIDTH\nmake = nn.Linear(WIDTH, 1)")
    assert load_model(Named.of(f"{path}:make")).in_features == 7


@pytest.mark.parametrize("name", ["random.py", "torch.py", "my-model.py", "pytest.py"])
def test_a_file_named_like_a_module_hides_none(name, write):
    path = write("make = nn.Linear(3, 2)", name)
    before = {stem: sys.modules.get(stem) for stem in ("random", "torch", "pytest")}
    assert load_model(Named.of(f"{path}:make")).in_features == 3
    assert {stem: sys.modules.get(stem) for stem in before} == before


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(TargetError, match=r"no such file: .*/no.py"):
        Named.of(f"{tmp_path}/no.py:make")
    with pytest.raises(TargetError, match="is a folder"):
        Named.of(f"{tmp_path}:make")


def test_a_whole_task(write):
    path = write(
        "import numpy\n"
        "def make(): return nn.Linear(3, 2)\n"
        "def inputs(): return numpy.ones((5, 3))\n"
        "def loss(outputs, inputs): return outputs.sum()\n"
        "optimizer = torch.optim.SGD\n"
        "number = 4\n"
    )
    inputs = [parse_input(f"{path}:inputs")]
    options = Options(training=True)
    task, remarks = load_task(
        Named.of(f"{path}:make"),
        inputs,
        options,
        loss=Named.of(f"{path}:loss"),
        optimizer=Named.of(f"{path}:optimizer"),
    )
    assert task.sample.args[0].dtype == torch.float32
    assert remarks == ("input 0, an array of NumPy, was made a tensor: float32 on cpu",)
    assert task.loss_of(torch.ones(3), task.sample) == 3
    assert task.optimizer is torch.optim.SGD
    assert task.draw(None, 1).args[0].dtype == torch.float32
    with pytest.raises(TargetError, match="number is an int, which cannot be called"):
        load_task(Named.of(f"{path}:make"), inputs, options, loss=Named.of(f"{path}:number"))
