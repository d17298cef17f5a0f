"""Rates and round trips by rank, and what is left of links that carry something else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from .facts import Figure, MeasuredLinks

LEAST_LEFT = 0.01
"""Share of a link's rate that is counted on however busy it is."""

Matrix = npt.NDArray[np.float64]


def bandwidth_matrix(links: MeasuredLinks) -> Matrix:
    """[P, P]: Gbit/s from the rank of the row to that of the column; NaN: not measured, or the same rank."""
    rates = np.full((len(links.hosts), len(links.hosts)), np.nan)
    for link in links.links:
        rates[link.source, link.target] = link.gbit_s.value
    hosts = np.array(links.host_of, dtype=np.int64)
    found: Matrix = rates[np.ix_(hosts, hosts)]
    np.fill_diagonal(found, np.nan)
    return found


def latency_matrix(links: MeasuredLinks) -> Matrix:
    """[P, P]: microseconds of a small message and its answer; NaN: not measured, or the same rank."""
    found: Matrix = np.full((links.size, links.size), np.nan)
    for pair in links.pairs:
        found[pair.a, pair.b] = found[pair.b, pair.a] = pair.round_trip_us.value
    return found


def checked_utilisation(
    utilisation: Mapping[tuple[int, int], float], size: int
) -> dict[tuple[int, int], float]:
    """By pair of ranks.

    Raises:
        ValueError: a rank does not exist, or a utilisation is not between 0 and 1.
    """
    for pair, used in utilisation.items():
        if len(pair) != 2 or not all(0 <= rank < size for rank in pair):
            raise ValueError(f"a link must be a pair of ranks from 0 to {size - 1}, got {pair}")
        if not 0 <= used <= 1:
            raise ValueError(f"the utilisation of link {pair} must be from 0 to 1, got {used}")
    return dict(utilisation)


def left(links: MeasuredLinks, utilisation: Mapping[tuple[int, int], float]) -> MeasuredLinks:
    """Links with the rates that others leave.

    Args:
        links: as they are when nothing else is sent.
        utilisation: share of the link from the host of one rank to that of another that is used, by pair of
            ranks. Of several pairs of the same hosts the busiest counts.
    """
    used: dict[tuple[int, int], float] = {}
    for (source, target), share in utilisation.items():
        hosts = links.host_of[source], links.host_of[target]
        used[hosts] = max(used.get(hosts, 0.0), share)
    return replace(
        links,
        links=tuple(
            replace(
                link,
                gbit_s=_scaled(link.gbit_s, max(1 - used.get((link.source, link.target), 0.0), LEAST_LEFT)),
            )
            for link in links.links
        ),
    )


def _scaled(figure: Figure, share: float) -> Figure:
    return replace(figure, value=figure.value * share, low=figure.low * share, high=figure.high * share)
