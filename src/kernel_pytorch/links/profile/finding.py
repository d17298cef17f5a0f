"""What a finding is, and when a difference is more than the noise of a busy machine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...watch.health.evidence import Evidence, HealthState
from .join import Run

SHARE = 0.05
"""Of the time from call to call: what takes less is no finding."""
LEAST_MS = 1.0
_CHANCE = 0.01
"""That a run without any difference has one by chance, over all comparisons."""
_CLEAR = 4.0
"""How many median deviations a difference has to be."""
_PARTS = (3, 6)
"""Into how many a run is cut, at least and at most: in each of them a difference must be there."""
_PART = 5
"""Values in a part, if there are enough."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something that makes a job slow, wrong or hang, and because of whom."""

    evidence: Evidence
    """Its kind is late_rank, uneven_work, slow_link, disagreement, skipped_call or missing_rank."""
    ranks: tuple[int, ...]
    """Because of whom; of a slow link, those at its ends."""
    collective: str | None
    """Operation and size; None: not one of them."""
    site: str
    """file:line of the call; "": not known, or not one of them."""
    step: int | None
    """In which it happened first; None: steps were not marked."""
    ms_per_step: float | None
    """What each step would take less; None: steps were not marked, or it is not a matter of time."""
    ms_in_all: float | None
    """The same of the whole run."""

    @property
    def kind(self) -> str:
        """The rule."""
        return self.evidence.kind

    @property
    def text(self) -> str:
        """For people."""
        return self.evidence.text

    @property
    def order(self) -> tuple[bool, float]:
        """Sorts the dearest first; what makes a job wrong or hang costs all of it."""
        return self.evidence.state is not HealthState.FAILED, -(self.ms_in_all or 0.0)


def consistent(values: Sequence[float], least: float, comparisons: int) -> bool:
    """Whether values are above ``least`` throughout, by more than their noise.

    * A sign test: values without a difference are above ``least`` half of the time at most.
    * The median is four times the median deviation from it: a machine with more to do than it has CPUs slows
      down one process more than the others for seconds, but not always by the same.
    * It holds in each part of the run: something else on the machine may disturb one part of it.

    Args:
        values: in their order in time.
        comparisons: number of such questions about the run.
    """
    found = np.asarray(values, dtype=np.float64)
    least_parts, most_parts = _PARTS
    if len(found) < 2 * least_parts:
        return False
    parts = min(max(len(found) // _PART, least_parts), most_parts)
    above = int((found > least).sum())
    chance = sum(math.comb(len(found), k) for k in range(above, len(found) + 1)) / 2 ** len(found)
    if chance * comparisons > _CHANCE:
        return False
    middle = float(np.median(found))
    if middle < _CLEAR * float(np.median(np.abs(found - middle))):
        return False
    return all(float(np.median(part)) > least for part in np.array_split(found, parts))


def at(run: Run, rank: int, moment: float) -> float:
    """A moment on a rank's clock in seconds since 1970, by the clock of its host."""
    header = run.headers[rank]
    return header.started_at + moment - header.started
