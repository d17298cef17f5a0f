"""Intervals and time limits of a job, each with the reason for its value."""

from __future__ import annotations

import math
from dataclasses import dataclass

MTBF_H = 6300.0
"""Hours between unplanned stops of one node: 54 days x 2,048 nodes / 419 stops, rounded.

Source: "The Llama 3 Herd of Models", section 3.3.4.
"""
DEFAULT_INTERVAL_S = 1800.0
ASSUMED_LEAD_S = 60.0
SAVES_IN_LEAD = 3
STEPS_TO_HANG = 10
MIN_HANG_S = 60.0
SLOW_PHASE_S = 1800.0


@dataclass(frozen=True)
class Figure:
    """A number of seconds and where it comes from, to be shown to the user."""

    value: float
    why: str


def checkpoint_interval(
    asked_s: float | None, save_s: float | None, nodes: int, mtbf_h: float = MTBF_H
) -> Figure:
    """Seconds from one checkpoint to the next: the smaller of that asked for and the best one.

    The best loses the least to saving and to repeating steps: ``sqrt(2 x save x MTBF / nodes)`` (Young, 1974;
    Daly, 2006).

    Args:
        asked_s: by the user; None: 30 minutes.
        save_s: measured duration of a save; None or 0: not known, so there is no best one.
        nodes: of the job; a fault of any of them stops it.
        mtbf_h: hours between faults of one node.

    Raises:
        ValueError: a value is out of range.
    """
    _check_positive(asked_s=asked_s, nodes=nodes, mtbf_h=mtbf_h)
    _check_duration(save_s=save_s)
    limit = DEFAULT_INTERVAL_S if asked_s is None else asked_s
    source = "the default" if limit == DEFAULT_INTERVAL_S else "as asked"
    if not save_s:
        return Figure(limit, f"{limit:g} s: {source}; no save was measured yet")
    best = math.sqrt(2 * save_s * mtbf_h * 3600 / nodes)
    young = (
        f"sqrt(2 x {save_s:.3g} s save x {mtbf_h:g} h MTBF / {nodes} node{'s' * (nodes > 1)}) = {best:.4g} s"
    )
    if best < limit:
        return Figure(best, f"{best:.4g} s: {young}, less than {limit:g} s ({source})")
    return Figure(limit, f"{limit:g} s: {source}, not more than {young}")


def lead_time(save_s: float | None, median_step_s: float | None = None) -> Figure:
    """Seconds before the end at which ranks are asked to stop: 3 saves and, if known, 2 steps.

    Ranks end the step they are in and agree in the next one, so where steps take longer than saves, saves
    alone would be too little.

    Args:
        save_s: measured duration of a save; None: not known, 60 s are assumed.
        median_step_s: measured duration of a step; None: not counted.

    Raises:
        ValueError: a value is negative.
    """
    _check_duration(save_s=save_s, median_step_s=median_step_s)
    if save_s is None:
        value, why = ASSUMED_LEAD_S, "assumed, as no save was measured yet"
    else:
        value, why = SAVES_IN_LEAD * save_s, f"{SAVES_IN_LEAD} x {save_s:.3g} s, the measured save"
    if median_step_s is not None:
        value, why = value + 2 * median_step_s, f"{why}, and 2 steps of {median_step_s:.3g} s"
    return Figure(value, f"{value:.4g} s: {why}")


_HANG = {
    "starting": "loading and compiling have no steps to measure",
    "evaluating": "an evaluation has no steps to measure",
    "saving": "a shared disk may be slow for a while",
    "left": "the process has yet to end",
}


def hang_limit(phase: str, median_step_s: float | None = None, min_s: float | None = None) -> Figure:
    """Seconds without a beat after which a rank counts as hanging.

    Args:
        phase: starting, training, evaluating, saving or left.
        median_step_s: measured duration of a step; None: not known.
        min_s: the shortest limit; None: 60 s.

    Raises:
        ValueError: the phase is not one of those, or a value is negative.
    """
    _check_duration(median_step_s=median_step_s)
    _check_positive(min_s=min_s)
    least, source = (MIN_HANG_S, "") if min_s is None else (min_s, " as set")
    if phase != "training" and phase not in _HANG:
        raise ValueError(f"phase must be one of {', '.join(('training', *_HANG))}, got {phase!r}")
    if phase in _HANG or median_step_s is None:
        slow, why = SLOW_PHASE_S, _HANG.get(phase, "no step was measured yet")
        if least > slow:
            slow, why = least, "as set"
        return Figure(slow, f"{slow:g} s while {phase}: {why}")
    value = max(least, STEPS_TO_HANG * median_step_s)
    steps = f"{STEPS_TO_HANG} x {median_step_s:.3g} s, the median step, at least {least:g} s{source}"
    return Figure(value, f"{value:g} s while training: {steps}")


def torchrun_timeouts(save_s: float | None = None, median_step_s: float | None = None) -> dict[str, Figure]:
    """torchrun's time limits, by name; ``shutdown_timeout`` is an option, the others go to ``--rdzv-conf``.

    Args:
        save_s: as in :func:`lead_time`.
        median_step_s: as in :func:`lead_time`.
    """
    lead = lead_time(save_s, median_step_s)
    return {
        "shutdown_timeout": Figure(
            max(30.0, math.ceil(lead.value)),
            f"time to save after a signal: the lead, {lead.why}; at least torchrun's 30 s",
        ),
        "join_timeout": Figure(
            120.0,
            "nodes have met before torchrun starts, so agents differ only by the time to import torch; "
            "with torchrun's 600 s a survivor waits that long for a node that is gone",
        ),
        "last_call_timeout": Figure(
            3.0,
            "time for late agents once enough are there: 1 s made two worlds of agents 2.5 s apart, "
            "30 s (torchrun's) delay each restart of a smaller world",
        ),
        "keep_alive_interval": Figure(
            1.0,
            "a node counts as lost after 3 missed signs of life: 3 s, by default 15 s",
        ),
    }


def _check_positive(**values: float | None) -> None:
    for name, value in values.items():
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name} must be positive, got {value}")


def _check_duration(**values: float | None) -> None:
    for name, value in values.items():
        if value is not None and not (value >= 0 and math.isfinite(value)):
            raise ValueError(f"{name} must not be negative, got {value}")
