"""Stragglers: devices with a lower clock than others of the same model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .windows import Numbers

_MIN_DEVICES = 3
"""If only two differ, either may be the faulty one."""


def clock_losses(
    names: Sequence[str], clocks_mhz: Numbers, utilization: Numbers, *, loss: float, load: float
) -> Numbers:
    """Compare each device with the median of the loaded devices of its name.

    An idle device gets no verdict. Loaded ones get one only if there are at least three of them and more than
    half lie within ``loss / 2`` of their median.

    Args:
        names: of the devices; those with equal names are compared.
        clocks_mhz: ``[devices]``, NaN where unknown.
        utilization: ``[devices]``, shares of 1, NaN where unknown.
        loss: share of the median that counts as lost.
        load: utilization at or above which a device is loaded.

    Returns:
        ``[devices]``: the share of the median that is missing; NaN where there is no verdict.
    """
    losses = np.full(len(names), np.nan)
    loaded = (utilization >= load) & ~np.isnan(clocks_mhz)
    of_name = np.asarray(names, dtype=object)
    for name in set(names):
        group = loaded & (of_name == name)
        if group.sum() < _MIN_DEVICES:
            continue
        median = np.median(clocks_mhz[group])
        if median > 0:
            shares = 1 - clocks_mhz[group] / median
            if 2 * np.sum(np.abs(shares) <= loss / 2) > len(shares):
                losses[group] = shares
    return losses
