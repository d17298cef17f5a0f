"""The calls that the benchmark's ranks make, by name, in ``ranks.STATE``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from kernel_pytorch.links.collectives.collectives import Collectives
from kernel_pytorch.links.collectives.settings import Settings
from kernel_pytorch.links.measure import measure_links
from kernel_pytorch.links.methods import CommunicationPattern, CompressionMethod

from .ranks import STATE

PLAIN, PLAIN_AGAIN = "plain", "plain again"
ADAPTIVE, BF16 = "adaptive", "adaptive, bf16"
FIXED = tuple(pattern for pattern in CommunicationPattern if pattern is not CommunicationPattern.ADAPTIVE)


def make(group: ProcessGroup) -> dict[str, Any]:
    """Measure the links and make all calls ready; what :func:`links` says of them."""
    for ops in STATE.get("made", ()):
        ops.close()
    found = measure_links(group)
    fixed, adaptive = Collectives(group, links=found), Collectives(group, links=found)
    cast = Collectives(group, links=found, settings=Settings(compression=CompressionMethod.BF16))
    STATE.update(made=(fixed, adaptive, cast), fixed=fixed, adaptive=adaptive, expected_s={})

    def plain(vector: Tensor) -> None:
        dist.all_reduce(vector, group=group)

    calls: dict[str, Callable[[Tensor], object]] = {
        PLAIN: plain,
        PLAIN_AGAIN: plain,
        ADAPTIVE: lambda vector: adaptive.all_reduce(vector).wait(),
        BF16: lambda vector: cast.all_reduce(vector).wait(),
    }
    STATE["calls"] = calls | {pattern.value: _fixed(fixed, pattern) for pattern in FIXED}
    return _links(found)


def _fixed(ops: Collectives, pattern: CommunicationPattern) -> Callable[[Tensor], None]:
    def call(vector: Tensor) -> None:
        ops.all_reduce(vector, pattern=pattern).wait()
        assert ops.last is not None
        STATE["expected_s"][pattern.value] = ops.last.expected_s

    return call


def told(group: ProcessGroup) -> dict[str, Any]:
    """Seconds that fixed patterns were expected to take, and what ADAPTIVE chose."""
    del group
    return {"expected_s": STATE["expected_s"], "choices": STATE["adaptive"].stats()["choices"]}


def links(group: ProcessGroup) -> dict[str, Any]:
    """Measure the links: seconds, hosts, Gbit/s from host to host."""
    return _links(measure_links(group))


def _links(found: Any) -> dict[str, Any]:
    return {
        "seconds": found.seconds,
        "hosts": found.hosts,
        "gbit_s": [[link.source, link.target, msgspec.to_builtins(link.gbit_s)] for link in found.links],
    }


def sent(group: ProcessGroup, numbers: int, pattern: str, compression: str, calls: int) -> int:
    """Bytes that this rank says it sent to other hosts in some all-reduces."""
    settings = Settings(compression=CompressionMethod(compression))
    ops = Collectives(group, settings=settings)
    vector, total = torch.ones(numbers), 0
    for _ in range(calls):
        ops.all_reduce(vector, "mean", pattern=CommunicationPattern(pattern)).wait()
        assert ops.last is not None
        total += ops.last.sent_between_hosts_bytes
    ops.close()
    return total
