"""Trials and requests of the advisor, made up, without torch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from kernel_pytorch.advice.facts import Machine, Options, Trial
from kernel_pytorch.advice.messages import Request

MACHINE = Machine(
    processor="a CPU", device="cpu", threads=2, torch="2.13.0", date="2026-01-01T00:00:00+00:00"
)


def trial(name: str, verdict: Any = "kept", reason: str = "", **changes: Any) -> Trial:
    """A trial; kept ones are twice as fast."""
    kept = Trial(strategy=name, verdict=verdict, reason=reason)
    if verdict == "kept":
        kept = replace(kept, gain=2.0, low=1.9, high=2.1, error=1e-7, original_error=1e-7)
    return replace(kept, **changes)


def request(**changes: Any) -> Request:
    """Of ``model.py:make`` with a budget of 20 s."""
    given = {
        "target": "model.py:make",
        "inputs": ("randn(1, 8, 4)",),
        "options": Options(budget_s=20.0),
        "started": 0.0,
        "analysis_until": 0.0,
        "until": 0.0,
    }
    return Request(**{**given, **changes})
