"""Links that are made up for tests."""

from __future__ import annotations

from collections.abc import Mapping

from kernel_pytorch.links.facts import Figure, HostLink, Hosts, MeasuredLinks


def exactly(value: float) -> Figure:
    return Figure(value=value, low=value, high=value, samples=1)


def made_up(hosts: Hosts, rates: Mapping[tuple[int, int], float] | float) -> MeasuredLinks:
    """Links of known rates in Gbit/s, by pair of hosts or the same for all."""
    pairs = [(a, b) for a in range(len(hosts)) for b in range(len(hosts)) if a != b]
    by_pair = dict.fromkeys(pairs, rates) if isinstance(rates, float) else rates
    links = [HostLink(source=a, target=b, gbit_s=exactly(rate)) for (a, b), rate in by_pair.items()]
    return MeasuredLinks(hosts=hosts, basis="measured", links=tuple(links))
