"""Whether a proved candidate is kept. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from ..facts import ModelFacts


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What was measured of a candidate that gives equal results."""

    gain: float
    low: float
    """Lower end of the 99 % interval."""
    base_s: float
    """Median seconds of a call of the best so far."""
    candidate_s: float
    """The same of the candidate."""
    stopped: str = ""
    """Why the timing was ended early, or is not to be trusted; ""."""
    slow: str = ""
    """Why it does not count as faster; "": it does."""
    peak_ratio: float | None = None
    """Peak memory over the original's."""


def reason_against(
    measured: Measured,
    facts: ModelFacts,
    *,
    base_ratio: float | None = None,
    least_s: float | None = None,
    final: bool = False,
) -> str:
    """Why a candidate is reverted; "": it is kept.

    Where the best so far does not fit in the memory limit, a candidate that fits is kept at any speed. Where
    it fits, one that does not is reverted at any speed.

    Args:
        base_ratio: peak memory of the best so far over the original's; None: unknown.
        least_s: seconds below which no call can be; None: unknown. If the best so far is below it too, it
            was measured on a busier machine, and says nothing.
        final: whether it is the confirmation, which any gain passes whose interval does not reach 1.
    """
    if least_s is not None and measured.candidate_s < least_s <= measured.base_s:
        return (
            f"a fault of the measurement: {1e3 * measured.candidate_s:.3g} ms a call is below the "
            f"{1e3 * least_s:.3g} ms that the roofline allows"
        )
    peak, limit = facts.peak.value, facts.memory_limit
    if peak is not None and limit is not None and measured.peak_ratio is not None:
        needed = peak * measured.peak_ratio
        base_fits = peak * (base_ratio if base_ratio is not None else 1.0) <= limit
        if needed > limit and base_fits:
            return f"it needs {needed / 1e9:.3g} GB, more than the {limit / 1e9:.3g} GB allowed"
        if needed <= limit and not base_fits:
            return ""
    if final and not measured.stopped and measured.low > 1:
        return ""
    return measured.slow
