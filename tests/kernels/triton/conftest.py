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
    """The interpreter looks for overflow in every addition, which doubles its time; one test keeps that."""
    if "overflow" not in request.keywords:
        from triton.runtime.interpreter import interpreter_builder

        options = replace(interpreter_builder.options, sanitize_overflow=False)
        monkeypatch.setattr(interpreter_builder, "options", options)


@pytest.fixture
def once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Score keys once for all branches however short their segments are."""
    from dilated_attention_pytorch.kernels.triton import tuning

    monkeypatch.setattr(tuning, "scores_once", lambda visits, columns: any(visits.absorbed))
