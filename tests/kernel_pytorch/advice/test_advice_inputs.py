from __future__ import annotations

import pytest
import torch

from kernel_pytorch.advice.inputs import Input, check_keywords, parse_input
from kernel_pytorch.advice.redraw import Inputs
from kernel_pytorch.advice.target import Named, TargetError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("randn(1, 1024, 256)", Input(kind="randn", shape=(1, 1024, 256), dtype="float32")),
        ("torch.randn((2, 3))", Input(kind="randn", shape=(2, 3), dtype="float32")),
        ("randn()", Input(kind="randn", shape=(), dtype="float32")),
        ("randint(0, 9, (1, 4))", Input(kind="randint", shape=(1, 4), dtype="int64", high=9)),
        (
            "randint(-3, 9, [5], dtype=torch.int32)",
            Input(kind="randint", shape=(5,), dtype="int32", low=-3, high=9),
        ),
        ("mask=ones(1, 4, dtype=bool)", Input(keyword="mask", kind="ones", shape=(1, 4), dtype="bool")),
        (" x = zeros(2,)", Input(keyword="x", kind="zeros", shape=(2,), dtype="float32")),
        ("use_cache=False", Input(keyword="use_cache", kind="value", value=False)),
        ("-2.5", Input(kind="value", value=-2.5)),
        ("None", Input(kind="value")),
        ("mode='a=b:c'", Input(keyword="mode", kind="value", value="a=b:c")),
    ],
)
def test_the_grammar(text, expected):
    assert parse_input(text) == expected


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "does not parse"),
        ("randn(1, 2", "does not parse"),
        ("\0", "does not parse"),
        ("(" * 100_000, "does not parse"),
        ("x==1", "is no number"),
        ("__import__('os').system('touch hacked')", "is none of randn"),
        ("open('x')", "is none of randn"),
        ("randn(__import__('os'))", "is no number"),
        ("randn(*[1])", "is no number"),
        ("randn(1, device='cuda')", "only option is dtype="),
        ("randn(1, dtype=int64)", "dtype of randn is one of float32"),
        ("ones(1, dtype=float8)", "dtype of ones is one of"),
        ("randn(1.5)", "whole numbers"),
        ("randn(-1)", "whole numbers"),
        ("randn(True)", "whole numbers"),
        ("randint(5, (1,))", "randint takes"),
        ("randint(5, 5, (1,))", "greater than"),
        ("eye(3)", "is none of"),
        ("[1, 2]", "a value is"),
        ("x=missing.py:make", "no such file: missing.py"),
    ],
)
def test_what_does_not_parse_is_refused_in_one_line(text, why, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TargetError) as raised:
        parse_input(text)
    assert why in str(raised.value)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 400
    assert list(tmp_path.iterdir()) == []


def test_a_keyword_twice():
    with pytest.raises(TargetError, match="x= is given twice"):
        check_keywords((parse_input("x=1"), parse_input("x=2")))


def made(*texts: str) -> Inputs:
    return Inputs([parse_input(text) for text in texts])


def test_values_by_position_and_keyword():
    sample = made("randn(2, 3)", "n=4", "rand(9, dtype=bool)", "mask=ones(1, dtype=bool)").make(None, 0)
    assert [tuple(value.shape) for value in sample.args] == [(2, 3), (9,)]
    assert sample.kwargs["n"] == 4
    assert sample.args[1].dtype == sample.kwargs["mask"].dtype == torch.bool


def test_equal_seeds_give_equal_values():
    inputs = made("randn(8)", "randn(8)")
    first, again, other = inputs.make(None, 1), inputs.make(None, 1), inputs.make(None, 2)
    assert torch.equal(first.args[0], again.args[0])
    assert not torch.equal(first.args[0], other.args[0])
    assert not torch.equal(first.args[0], first.args[1])


def test_redrawn_ids_stay_in_their_range():
    fresh = made("randint(5, 8, (1000,))").redraw(None, 3).args[0]
    assert set(fresh.tolist()) == {5, 6, 7}


def test_inputs_that_cannot_be_made():
    with pytest.raises(TargetError, match="cannot be made"):
        made(f"randn({2**62})").make(None, 0)
    with pytest.raises(TargetError, match="cannot be made"):
        made(f"randn({10**23}, 4)").make(None, 0)


FUNCTIONS = """
import torch

def pair(): return torch.randn(1, 4, 2), torch.arange(4)[None]
def named(length=4): return {"x": torch.randn(1, length, 2), "mask": torch.ones(1, length, dtype=torch.bool)}
def fixed(): return torch.arange(6.0).reshape(1, 6)
def unnamed(): return {1: torch.ones(2)}
def broken(): raise KeyError("no data")
"""


@pytest.fixture
def functions(tmp_path):
    path = tmp_path / "functions.py"
    path.write_text(FUNCTIONS)
    return path


def test_functions_of_inputs(functions):
    sample = made(f"{functions}:pair").make(None, 0)
    assert [tuple(value.shape) for value in sample.args] == [(1, 4, 2), (1, 4)]
    assert made(f"x={functions}:fixed").make(None, 0).kwargs["x"].shape == (1, 6)


def test_a_function_that_takes_a_length_gets_it(functions):
    fresh = made(f"{functions}:named").redraw(7, 1)
    assert {name: tuple(value.shape) for name, value in fresh.kwargs.items()} == {
        "x": (1, 7, 2),
        "mask": (1, 7),
    }
    assert fresh.kwargs["mask"].all()
    assert made(f"{functions}:named").redraw(None, 1).kwargs["x"].shape == (1, 4, 2)


def test_other_inputs_follow_the_length_of_a_function(functions):
    fresh = made(f"{functions}:named", "ids=randint(0, 9, (1, 4))").redraw(7, 1)
    assert fresh.kwargs["ids"].shape == (1, 7)
    assert fresh.kwargs["ids"].max() < 9


def test_a_function_that_repeats_itself_has_its_values_drawn(functions):
    inputs = made(f"{functions}:fixed")
    first, fresh = inputs.make(None, 0).args[0], inputs.redraw(None, 1).args[0]
    assert fresh.shape == first.shape
    assert not torch.equal(fresh, first)
    assert not torch.equal(fresh, inputs.redraw(None, 2).args[0])


def test_a_function_that_raises_is_named_with_its_line(functions):
    with pytest.raises(TargetError, match=r"functions.py:broken failed: functions.py:8: KeyError: 'no data'"):
        made(f"{functions}:broken").make(None, 0)


def test_a_dict_is_by_keyword(functions):
    with pytest.raises(TargetError, match="a dict is passed by keyword, and 1 is no name"):
        made(f"{functions}:unnamed").make(None, 0)


def test_a_keyword_that_a_function_and_an_option_give(functions):
    with pytest.raises(TargetError, match="'x' is given twice"):
        made(f"{functions}:named", "x=1").make(None, 0)


def test_the_form_of_names(functions):
    assert Named.of(f"{functions}:a.b").name == "a.b"
    for text in ("model.py", "model.py:", ":name", "model.py:1x", "model.py:a b"):
        with pytest.raises(TargetError, match="FILE:NAME is needed"):
            Named.of(text)
