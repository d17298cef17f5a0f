"""Strategies of other packages, and kernels of other packages."""

from __future__ import annotations

import importlib.metadata
import sys
import types

import pytest
import torch
from strategy_models import assert_equal_calls, assert_equal_gradients, stack
from torch.nn import functional as F

from kernel_pytorch.advice.facts import Expectation
from kernel_pytorch.advice.sample import Sample
from kernel_pytorch.advice.strategy import registry
from kernel_pytorch.advice.strategy.liger import Liger
from kernel_pytorch.advice.strategy.protocol import Base
from kernel_pytorch.advice.strategy.quantize import WeightInt8

TOKENS = torch.randn(2, 7, 16, generator=torch.Generator().manual_seed(1))


class Mine(Base):
    name = "mine"

    def applies(self, facts):
        return Expectation(gain=2.0, reason="it is mine")

    def apply(self, model, sample):
        return model

    def source(self):
        return []


class Raises(Mine):
    def __init__(self):
        raise RuntimeError("no luck\nin two lines")


class Taken(Mine):
    name = "torch.compile"


@pytest.fixture
def registered(monkeypatch):
    def register(**classes):
        module = types.ModuleType("other_package")
        vars(module).update(classes)
        monkeypatch.setitem(sys.modules, "other_package", module)
        points = [
            importlib.metadata.EntryPoint(name, f"other_package:{name}", registry.GROUP)
            for name in (*classes, "missing")
        ]
        monkeypatch.setattr(registry, "entry_points", lambda group: points if group == registry.GROUP else [])

    return register


def test_a_strategy_from_an_entry_point(registered):
    registered(mine=Mine)
    found = registry.strategies()
    assert [one.name for one in found] == [*[one.name for one in registry.built_in()], "mine"]
    assert registry.strategies()[-1] is not found[-1]


def test_broken_ones_are_one_line_each(registered):
    registered(mine=Mine, raises=Raises, taken=Taken, other=dict)
    assert registry.strategies()[-1].name == "mine"
    assert registry.broken == [
        "strategy missing (other_package:missing): AttributeError: module 'other_package' has no attribute "
        "'missing'",
        "strategy other (other_package:other): TypeError: it is no Strategy: name, level, lossless, needs, "
        "applies, apply, source",
        "strategy raises (other_package:raises): RuntimeError: no luck",
        "strategy taken (other_package:taken): ValueError: there is another strategy named 'torch.compile'",
    ]
    registered()
    registry.strategies()
    assert len(registry.broken) == 1


@pytest.fixture
def fake_liger(monkeypatch):
    """Liger's functions as its 0.6 has them, by torch."""
    calls = []

    def liger_layer_norm(x, weight, bias, eps):
        calls.append("layer norm")
        return F.layer_norm(x, weight.shape, weight, bias, eps)

    def liger_rms_norm(x, weight, eps, offset=0.0, casting_mode="llama", in_place=True):
        calls.append("rms norm")
        assert not in_place
        return F.rms_norm(x, weight.shape, weight, eps)

    functional = types.ModuleType("liger_kernel.transformers.functional")
    functional.liger_layer_norm, functional.liger_rms_norm = liger_layer_norm, liger_rms_norm
    for name in ("liger_kernel", "liger_kernel.transformers"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, functional.__name__, functional)
    return calls


@pytest.mark.parametrize("by_lines", [False, True])
def test_liger_computes_the_norms(fake_liger, by_lines):
    model, strategy = stack().train(), Liger()
    other = strategy.apply(stack().train(), Sample.of(TOKENS))
    if by_lines:
        space = {"model": stack().train()}
        exec("\n".join(strategy.source()), space)
        other = space["model"]
    assert_equal_calls(model, other, TOKENS)
    assert fake_liger == ["layer norm", "rms norm"] * 2
    assert_equal_gradients(model, other, TOKENS)
    assert other.state_dict().keys() == model.state_dict().keys()


def test_liger_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "liger_kernel", None)
    with pytest.raises(ImportError):
        Liger().apply(stack(), Sample.of(TOKENS))


@pytest.mark.parametrize("by_lines", [False, True])
def test_torchao_is_loaded_silently_and_only_when_it_is_applied(monkeypatch, capsys, by_lines):
    class Quantization(types.ModuleType):
        def __getattr__(self, name):
            if name.startswith("__"):
                raise AttributeError(name)
            print("torchao: noise", file=sys.stderr)
            return {"Int8WeightOnlyConfig": lambda: "int8", "quantize_": lambda m, c: done.append((m, c))}[
                name
            ]

    done: list = []
    monkeypatch.setitem(sys.modules, "torchao", types.ModuleType("torchao"))
    monkeypatch.setitem(sys.modules, "torchao.quantization", Quantization("torchao.quantization"))
    model, strategy = stack(), WeightInt8()
    if by_lines:
        exec("\n".join(strategy.source()), {"model": model})
    else:
        assert strategy.apply(model, Sample.of(TOKENS)) is model
    assert done == [(model, "int8")]
    assert capsys.readouterr().err == ""
