"""Stragglers: devices whose clock is below that of their equals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .windows import Numbers, Truths

_LEAST = 3
"""With two nobody can tell which one is wrong."""


def clock_losses(
    names: Sequence[str], clocks_mhz: Numbers, utilization: Numbers, *, loss: float, load: float
) -> tuple[Numbers, Truths]:
    """Compare each device with the median of the loaded devices of its name.

    There is no verdict on a device that idles, nor where fewer than three are loaded, nor where no more than
    half of these lie within ``loss / 2`` of their median.

    Args:
        names: of the devices; equal ones are compared.
        clocks_mhz: ``[devices]``, NaN where unknown.
        utilization: ``[devices]``, shares of 1, NaN where unknown.
        loss: share of the median that counts as lost.
        load: utilization from which a device is loaded.

    Returns:
        ``[devices]``: the share of the median that is missing; and whether there is a verdict.
    """
    losses = np.full(len(names), np.nan)
    loaded = (utilization >= load) & ~np.isnan(clocks_mhz)
    of_name = np.asarray(names, dtype=object)
    for name in set(names):
        group = loaded & (of_name == name)
        if group.sum() < _LEAST:
            continue
        median = np.median(clocks_mhz[group])
        if median > 0:
            shares = 1 - clocks_mhz[group] / median
            if 2 * np.sum(np.abs(shares) <= loss / 2) > len(shares):
                losses[group] = shares
    return losses, ~np.isnan(losses)
