"""The report of ``profile links``, as data and as text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from ...links.collectives.steps import plan
from ...links.cost import expected
from ...links.facts import Figure, HostLink, MeasuredLinks
from ...links.methods import CommunicationPattern, Operation
from ...links.order import RankOrder, rank_order

_ALL_REDUCE_BYTES = 16 << 20


@dataclass(frozen=True, kw_only=True)
class ExpectedAllReduce:
    """What an all-reduce in a ring is expected to take."""

    nbytes: int
    in_order_s: float | None
    """In the order of :attr:`LinksReport.ring`; None: a link that it needs was not measured."""
    by_number_s: float | None
    """In the order of the ranks' numbers."""


@dataclass(frozen=True, kw_only=True)
class LinksReport:
    """The output of ``profile links --json``; ``profile links --schema`` prints its schema."""

    format: Literal["kernel-pytorch profile links"] = "kernel-pytorch profile links"
    version: Literal[1] = 1
    """Incremented when a field is removed or changes its meaning, but not when one is added."""
    links: MeasuredLinks
    ring: RankOrder
    all_reduce: ExpectedAllReduce


def report_of(links: MeasuredLinks) -> LinksReport:
    """The links, the order of ranks that suits them, and what it gains."""
    ring = rank_order(links)
    by_number = tuple(range(links.size))
    return LinksReport(
        links=links,
        ring=ring,
        all_reduce=ExpectedAllReduce(
            nbytes=_ALL_REDUCE_BYTES,
            in_order_s=_all_reduce_s(links, ring.ranks),
            by_number_s=_all_reduce_s(links, by_number),
        ),
    )


def _all_reduce_s(links: MeasuredLinks, order: tuple[int, ...]) -> float | None:
    edges = [0] * links.size + [_ALL_REDUCE_BYTES // 4]
    (steps,) = plan(Operation.ALL_REDUCE, CommunicationPattern.RING, edges, links.hosts, order)
    return expected(steps, links, 4).seconds


def report_lines(report: LinksReport) -> Iterator[str]:
    """The report for people."""
    links = report.links
    hosts = [f"{name}: ranks {_numbers(ranks)}" for name, ranks in zip(links.names, links.hosts, strict=True)]
    rows = [("hosts", f"{'    '.join(hosts)}    by boot id and network namespace")]
    rows += [(_pair(links, link.source, link.target), _link(links, link)) for link in links.links]
    for shared in links.shared:
        first, second = shared.targets
        pair = _pair(links, shared.source, first)
        what = "two pairs of ranks" if first == second else f"and to {links.names[second]}"
        rows.append((pair, f"{what} at once: each has {_interval(shared.share)} of its rate alone"))
    if links.racks:
        racks = [" ".join(links.names[host] for host in rack) for rack in links.racks]
        rows.append(("racks", "    ".join(racks)))
    rows += [("order", _order(report)), ("basis", _basis(links))]
    width = max(len(label) for label, _ in rows)
    for label, text in rows:
        yield f"  {label.ljust(width)}  {text}"


def _link(links: MeasuredLinks, link: HostLink) -> str:
    parts = [f"{_interval(link.gbit_s)} Gbit/s"]
    trip = links.host_round_trip_us(link.source, link.target)
    if trip is not None:
        parts.append(f"round trip {number(trip.value / 1e3)} ms")
    if link.message_us is not None:
        byte = "" if link.byte_ns is None else f" and {number(link.byte_ns.value)} ns a byte"
        parts.append(f"CPU {number(link.message_us.value)} us a message{byte}")
    return "  ".join(parts)


def _order(report: LinksReport) -> str:
    ring, cost, by_number = report.ring, report.all_reduce, tuple(range(report.links.size))
    given, times = _numbers(by_number), ""
    if len(report.links.hosts) == 1:
        text = "any: nothing is sent between hosts"
    elif ring.ranks == by_number:
        text = f"{given}: {'no' if ring.exact else 'no tried'} other order sends less between hosts in a ring"
    else:
        share = ring.crossing_bytes / ring.before_bytes
        text = f"{_numbers(ring.ranks)} sends {share:.0%} as many bytes between hosts as {given} in a ring"
        times = "" if cost.by_number_s is None else f" instead of {_ms(cost.by_number_s)}"
    if cost.in_order_s is None:
        return text
    return f"{text}; all_reduce of {cost.nbytes >> 20} MB: {_ms(cost.in_order_s)}{times} expected"


def _basis(links: MeasuredLinks) -> str:
    if links.basis == "saved":
        return "saved by an earlier run; a quick round agrees (--fresh measures anew)"
    return f"measured now, one pair of hosts at a time, in {links.seconds or 0.0:.1f} s"


def _pair(links: MeasuredLinks, source: int, target: int) -> str:
    names = links.names
    return f"inside {names[source]}" if source == target else f"{names[source]} -> {names[target]}"


def _interval(figure: Figure) -> str:
    return f"{number(figure.value)} ({number(figure.low)} to {number(figure.high)})"


def number(value: float) -> str:
    """To three digits."""
    return f"{float(f'{value:.3g}'):g}"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.0f} ms"


def _numbers(numbers: tuple[int, ...]) -> str:
    return " ".join(map(str, numbers))
