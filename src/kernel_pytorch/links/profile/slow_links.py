"""Links that slow down all ranks alike.

The records can only raise the suspicion, where other groups do the same faster; measured links name the link.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from ...watch.health.evidence import Evidence, HealthState
from ..facts import Figure, HostLink, MeasuredLinks
from ..methods import CommunicationPattern
from .advice import kinds, pattern_s
from .finding import LEAST_MS, SHARE, Finding, at, consistent
from .join import Collective, Run, named, named_ranks

_SLOW = 0.5
"""Of the rate of other links: a link is slow if its interval lies below."""


def slow_groups(run: Run) -> Iterator[Finding]:
    """Groups in which data move slower than in others that do the same."""
    alike: dict[tuple[str, int | None, int], dict[str, list[Collective]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for each in run.collectives:
        if each.moving_s is not None and each.first.nbytes:
            key = each.first.operation, each.first.nbytes, len(each.ranks)
            alike[key][each.group].append(each)
    comparisons = sum(len(groups) for groups in alike.values())
    for (operation, nbytes, _), groups in alike.items():
        count = min(map(len, groups.values()))
        moving = {g: np.array([1e3 * (e.moving_s or 0.0) for e in es[:count]]) for g, es in groups.items()}
        for group, own in moving.items():
            others = [other for name, other in moving.items() if name != group]
            if not others or not count:
                continue
            usual = np.median(others, axis=0)
            found = groups[group][:count]
            first = found[0].first
            period = 1e3 * (found[-1].calls[min(found[-1].calls)].posted - first.posted) / max(count - 1, 1)
            if not consistent(own - usual, float(np.median(usual)) * (1 / _SLOW - 1), comparisons):
                continue
            cost = float(np.median(own - usual))
            if cost < max(LEAST_MS * _steps(found) / count, SHARE * period):
                continue
            in_all = cost * count
            text = (
                f"{named(operation, nbytes)} takes {np.median(own):.3g} ms in the group of "
                f"{named_ranks(found[0].ranks)}, {np.median(usual):.3g} ms in others: a slow link? "
                "kernel-pytorch profile links measures"
            )
            yield _finding(
                run,
                text,
                ranks=found[0].ranks,
                value=float(np.median(own)),
                threshold=float(np.median(usual) / _SLOW),
                collective=named(operation, nbytes),
                site=first.site,
                in_all=in_all,
                steps=_steps(found),
            )


def slow_links(run: Run, links: MeasuredLinks) -> list[Finding]:
    """Hosts, and pairs of hosts, whose links are slower than those of others."""
    between = [link for link in links.links if link.source != link.target]
    best = {
        host: max((link.gbit_s.high for link in between if host in (link.source, link.target)), default=0.0)
        for host in range(len(links.hosts))
    }
    hosts = {
        host
        for host, rate in best.items()
        if len(best) > 2 and rate < _SLOW * float(np.median([best[other] for other in best if other != host]))
    }
    found = []
    for host in sorted(hosts):
        own = [link for link in between if host in (link.source, link.target)]
        rest = [link for link in between if host not in (link.source, link.target)]
        if own and rest:
            found.append(_slow(run, links, own, rest, f"the host of {named_ranks(links.hosts[host])}"))
    pairs = [link for link in between if not hosts & {link.source, link.target}]
    slow: dict[frozenset[int], list[HostLink]] = defaultdict(list)
    for link in pairs:
        others = [other.gbit_s.value for other in pairs if other is not link]
        if others and link.gbit_s.high < _SLOW * float(np.median(others)):
            slow[frozenset((link.source, link.target))].append(link)
    for own in slow.values():
        rest = [link for link in pairs if all(link not in each for each in slow.values())]
        ways = [f"{named_ranks(links.hosts[x.source])} to {named_ranks(links.hosts[x.target])}" for x in own]
        found.append(_slow(run, links, own, rest, f"from {' and from '.join(ways)}"))
    return found


def _slow(
    run: Run, links: MeasuredLinks, own: Sequence[HostLink], rest: Sequence[HostLink], where: str
) -> Finding:
    usual = float(np.median([link.gbit_s.value for link in rest]))
    rate = max(link.gbit_s.value for link in own)
    as_usual = Figure(value=usual, low=usual, high=usual, samples=1)
    mended = replace(
        links, links=tuple(replace(link, gbit_s=as_usual) if link in own else link for link in links.links)
    )
    in_all, steps = 0.0, set()
    marked = any(each.first.step for each in run.collectives)  # then what comes before the first is left out
    for (operation, nbytes), collectives in kinds(run, links.size).items():
        now, then = (pattern_s(operation, nbytes, x, CommunicationPattern.RING) for x in (links, mended))
        if now and then is not None:
            share = max(1 - then / now, 0.0)
            counted = [each for each in collectives if each.first.step or not marked]
            in_all += 1e3 * share * sum(each.moving_s or 0.0 for each in counted)
            steps |= {each.first.step for each in counted} - {0}
    ranks = sorted(
        {rank for link in own for host in (link.source, link.target) for rank in links.hosts[host]}
    )
    cost = f": {in_all / len(steps):.3g} ms of each step" if steps and in_all else ""
    text = f"{where}: {_rate(rate)}, other links {_rate(usual)} ({links.basis}){cost}"
    return _finding(
        run,
        text,
        ranks=tuple(ranks),
        value=rate,
        threshold=_SLOW * usual,
        in_all=in_all or None,
        steps=len(steps),
    )


def _finding(
    run: Run,
    text: str,
    *,
    ranks: tuple[int, ...],
    value: float,
    threshold: float,
    in_all: float | None,
    steps: int,
    collective: str | None = None,
    site: str = "",
) -> Finding:
    begun = [at(run, rank, header.started) for rank, header in run.headers.items()]
    return Finding(
        evidence=Evidence(
            kind="slow_link",
            state=HealthState.DEGRADED,
            value=value,
            threshold=threshold,
            since_s=min(begun, default=0.0),
            text=text,
        ),
        ranks=ranks,
        collective=collective,
        site=site,
        step=None,
        ms_per_step=in_all / steps if steps and in_all is not None else None,
        ms_in_all=in_all,
    )


def _steps(collectives: Sequence[Collective]) -> int:
    return len({each.first.step for each in collectives} - {0})


def _rate(gbit_s: float) -> str:
    return f"{gbit_s:.3g} Gbit/s" if gbit_s >= 1 else f"{1e3 * gbit_s:.3g} Mbit/s"
