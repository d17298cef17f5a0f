"""What a device may send how fast, as commands of ``tc``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

_UNSHAPED_BITS_PER_S = 100e9
_FIRST_CLASS = 10
"""Of a host's number: 1 is the class of all."""


@dataclass(frozen=True, kw_only=True)
class Rate:
    """Of what is sent, with headers."""

    bits_per_s: float
    burst_bytes: int
    """What goes through at once after a pause."""


def rate(bits_per_s: float, burst_bytes: int | None = None) -> Rate:
    """A rate with a burst of 10 ms, at least 64 KiB, which is a packet, and at most 256 KiB.

    A burst goes through unshaped: it should be little beside the messages that are timed.
    """
    burst = burst_bytes or max(1 << 16, min(1 << 18, int(bits_per_s / 8 / 100)))
    return Rate(bits_per_s=bits_per_s, burst_bytes=burst)


def one_rate(device: str, whole: Rate) -> list[str]:
    """A token bucket for all."""
    return [*_qdisc(device), "tbf", *_words(whole), "latency", "2s"]


def no_rate(device: str) -> list[str]:
    """Fails where there is none."""
    return ["qdisc", "del", "dev", device, "root"]


def classes(device: str, addresses: Mapping[int, str]) -> Iterator[list[str]]:
    """A class for what goes to each of some hosts, by number; :func:`class_rates` must follow."""
    yield [*_qdisc(device), "handle", "1:", "htb"]
    yield from class_rates(device, None, dict.fromkeys(addresses))
    for host, address in addresses.items():
        chosen = f"1:{_FIRST_CLASS + host}"
        yield ["filter", "add", "dev", device, "parent", "1:", "protocol", "ip", "prio", "1",
               "u32", "match", "ip", "dst", f"{address}/32", "flowid", chosen]  # fmt: skip


def class_rates(device: str, whole: Rate | None, targets: Mapping[int, Rate | None]) -> Iterator[list[str]]:
    """Rates of all that is sent and of what goes to each host; None: no limit of its own."""
    whole = whole or rate(_UNSHAPED_BITS_PER_S)
    yield _class(device, "1:", "1:1", whole, whole)
    for host, limit in targets.items():
        most = min(whole, limit or whole, key=lambda each: each.bits_per_s)
        share = rate(most.bits_per_s / len(targets))
        yield _class(device, "1:1", f"1:{_FIRST_CLASS + host}", share, most)


def _class(device: str, parent: str, name: str, own: Rate, most: Rate) -> list[str]:
    ceiling = ("ceil", f"{int(most.bits_per_s)}bit", "cburst", str(most.burst_bytes))
    return ["class", "replace", "dev", device, "parent", parent, "classid", name,
            "htb", *_words(own), *ceiling, "quantum", "60000"]  # fmt: skip


def _qdisc(device: str) -> Iterable[str]:
    return ("qdisc", "replace", "dev", device, "root")


def _words(limit: Rate) -> Iterable[str]:
    return ("rate", f"{int(limit.bits_per_s)}bit", "burst", str(limit.burst_bytes))
