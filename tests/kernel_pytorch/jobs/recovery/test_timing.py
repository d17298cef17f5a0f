from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel_pytorch.jobs.recovery.timing import (
    MTBF_H,
    checkpoint_interval,
    hang_limit,
    lead_time,
    torchrun_timeouts,
)


def seconds_lost(interval_s: float, save_s: float, mtbf_s: float) -> float:
    """In each second of training: one save an interval, and half an interval a fault."""
    return save_s / interval_s + interval_s / (2 * mtbf_s)


@given(
    save_s=st.floats(0.01, 600),
    nodes=st.integers(1, 4096),
    mtbf_h=st.floats(10, 100_000),
    other=st.floats(0.01, 100),
)
def test_no_other_interval_loses_less(save_s: float, nodes: int, mtbf_h: float, other: float):
    mtbf_s = mtbf_h * 3600 / nodes
    best = checkpoint_interval(1e12, save_s, nodes, mtbf_h).value
    lost = seconds_lost(best, save_s, mtbf_s)
    assert lost <= seconds_lost(best * other, save_s, mtbf_s) * (1 + 1e-9)


@pytest.mark.parametrize(
    ("asked_s", "save_s", "nodes", "value"),
    [
        (None, None, 1, 1800),
        (600, None, 8, 600),
        (None, 0, 8, 1800),
        (None, 30, 1, 1800),
        (None, 10, 2048, 470.6),  # sqrt(2 * 10 * 6300 * 3600 / 2048)
        (600, 10, 2048, 470.6),
        (60, 10, 2048, 60),
    ],
)
def test_interval_is_the_smaller_one(asked_s: float | None, save_s: float | None, nodes: int, value: float):
    assert checkpoint_interval(asked_s, save_s, nodes).value == pytest.approx(value, rel=1e-3)


def test_interval_shows_its_inputs():
    why = checkpoint_interval(600, 10, 2048).why
    assert why == (
        "470.6 s: sqrt(2 x 10 s save x 6300 h MTBF / 2048 nodes) = 470.6 s, less than 600 s (as asked)"
    )
    assert checkpoint_interval(None, None, 2).why == "1800 s: the default; no save was measured yet"
    assert "not more than sqrt(2 x 10 s" in checkpoint_interval(60, 10, 2048).why


def test_mtbf_is_that_of_llama_3():
    assert pytest.approx(54 * 24 * 2048 / 419, rel=0.01) == MTBF_H


@pytest.mark.parametrize(
    ("save_s", "step_s", "value", "word"),
    [
        (None, None, 60, "assumed"),
        (10, None, 30, "3 x 10 s"),
        (0, 2, 4, "2 steps of 2 s"),
        (None, 5, 70, "assumed"),
    ],
)
def test_lead_time(save_s: float | None, step_s: float | None, value: float, word: str):
    figure = lead_time(save_s, step_s)
    assert figure.value == value
    assert word in figure.why


@given(step_s=st.floats(0, 1e4))
def test_hang_limit_in_training(step_s: float):
    value = hang_limit("training", step_s).value
    assert value >= 60
    assert value == 60 or value == pytest.approx(10 * step_s)


@pytest.mark.parametrize("phase", ["starting", "training", "evaluating", "saving", "left"])
def test_every_phase_has_a_limit_and_a_reason(phase: str):
    figure = hang_limit(phase)
    assert figure.value >= 60
    assert f"{figure.value:g} s while {phase}: " in figure.why


@pytest.mark.parametrize(
    ("phase", "step_s", "min_s", "value", "why"),
    [
        ("training", 1, 3, 10, "10 x 1 s, the median step, at least 3 s as set"),
        ("training", 0.1, 3, 3, "10 x 0.1 s, the median step, at least 3 s as set"),
        ("training", None, 3, 1800, "no step was measured yet"),
        ("training", None, 7200, 7200, "as set"),
        ("saving", None, 7200, 7200, "as set"),
    ],
)
def test_the_shortest_hang_limit(phase: str, step_s: float | None, min_s: float, value: float, why: str):
    limit = hang_limit(phase, step_s, min_s)
    assert (limit.value, limit.why) == (value, f"{value} s while {phase}: {why}")


def test_torchrun_has_time_to_save():
    assert torchrun_timeouts()["shutdown_timeout"].value >= lead_time(None).value
    assert torchrun_timeouts(save_s=0.1)["shutdown_timeout"].value == 30
    slow = torchrun_timeouts(save_s=100.3)
    assert slow["shutdown_timeout"].value == 301  # torchrun takes whole seconds
    assert all(figure.value == int(figure.value) and figure.why for figure in slow.values())


def test_torchrun_takes_them():
    from torch.distributed import HashStore
    from torch.distributed.elastic.rendezvous import RendezvousParameters
    from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import C10dRendezvousBackend
    from torch.distributed.elastic.rendezvous.dynamic_rendezvous import create_handler
    from torch.distributed.run import get_args_parser

    values = {name: int(figure.value) for name, figure in torchrun_timeouts().items()}
    shutdown_s = values.pop("shutdown_timeout")
    parsed = get_args_parser().parse_args([f"--shutdown-timeout={shutdown_s}", "train.py"])
    assert parsed.shutdown_timeout == shutdown_s
    store = HashStore()
    parameters = RendezvousParameters("c10d", "n1:1", "books", 1, 2, local_addr="n1", **values)
    settings = create_handler(store, C10dRendezvousBackend(store, "books"), parameters).settings
    assert settings.timeout.join.total_seconds() == values["join_timeout"]
    assert settings.timeout.last_call.total_seconds() == values["last_call_timeout"]
    assert settings.keep_alive_interval.total_seconds() == values["keep_alive_interval"]
    assert settings.keep_alive_max_attempt == 3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: checkpoint_interval(0, 1, 1), "asked_s must be positive, got 0"),
        (lambda: checkpoint_interval(1, 1, 0), "nodes must be positive, got 0"),
        (lambda: checkpoint_interval(1, 1, 1, float("nan")), "mtbf_h must be positive, got nan"),
        (lambda: checkpoint_interval(1, -1, 1), "save_s must not be negative, got -1"),
        (lambda: lead_time(float("inf")), "save_s must not be negative, got inf"),
        (lambda: hang_limit("training", -2), "median_step_s must not be negative, got -2"),
        (lambda: hang_limit("training", 1, 0), "min_s must be positive, got 0"),
        (lambda: hang_limit("sleeping"), "phase must be one of training, starting"),
    ],
)
def test_values_out_of_range(call, message: str):  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
