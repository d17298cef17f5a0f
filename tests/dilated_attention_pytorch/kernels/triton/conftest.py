from __future__ import annotations

import importlib.util
from dataclasses import replace

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if importlib.util.find_spec("triton") is None:
        for item in items:
            if "kernels/triton" in str(item.path):
                item.add_marker(pytest.mark.skip(reason="needs Triton (Linux)"))


@pytest.fixture(autouse=True)
def unchecked_integers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter can look for overflow in every addition, in twice the time: where marked it does."""
    from triton.runtime.interpreter import interpreter_builder

    checked = "overflow" in request.keywords
    options = replace(interpreter_builder.options, sanitize_overflow=checked, debug=checked)
    monkeypatch.setattr(interpreter_builder, "options", options)


@pytest.fixture
def once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Score keys once for all branches however short their segments are."""
    from dilated_attention_pytorch.kernels.triton import tuning

    monkeypatch.setattr(tuning, "scores_once", lambda visits, columns: any(visits.absorbed))
