from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import nn

from kernel_pytorch.advice.analysis.places import place_of_class, place_of_forward, raised


class Wrong(nn.Linear):
    def forward(self, x):
        return super().forward(x.view(7))


def test_the_users_line_and_not_torchs(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(Path(__file__).parent)
    with pytest.raises(RuntimeError) as caught:
        Wrong(2, 2)(torch.zeros(3))
    line = Wrong.forward.__code__.co_firstlineno + 1
    text = raised(caught.value)
    assert text.startswith("RuntimeError: shape '[7]' is invalid")
    assert text.endswith(f"({Path(__file__).name}:{line})")
    assert "\n" not in raised(ValueError("two\nlines"))
    assert raised(KeyError()) == "KeyError"


def test_places(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(Path(__file__).parent)
    forward = Wrong.forward.__code__.co_firstlineno
    assert place_of_class(Wrong) == f"{Path(__file__).name}:{forward - 1}"
    assert place_of_forward(Wrong) == f"{Path(__file__).name}:{forward}"
    assert place_of_forward(nn.Linear).startswith(os.path.dirname(torch.__file__))
    assert place_of_class(type("Typed", (), {})) == ""
    assert place_of_forward(nn.Module) != ""
    assert place_of_forward(int) == ""
