"""Bytes that collectives say that they send, against the counters of the interfaces of two hosts."""

from __future__ import annotations

import pytest
import torch
from benchmarks.links import Links, why_no_links
from tests.support.worlds import HostWorld

from kernel_pytorch.links.collectives.collectives import Collectives
from kernel_pytorch.links.collectives.settings import Settings
from kernel_pytorch.links.methods import CommunicationPattern, CompressionMethod

NBYTES = 4 << 20
ELEMENTS = NBYTES // 4
CALLS = [(pattern.value, "none") for pattern in CommunicationPattern if pattern.value != "adaptive"]
CALLS += [("hierarchical", "bf16"), ("hierarchical", "quantized_8bit"), ("ring", "fp16")]

_made: dict[str, Collectives] = {}


def make(group, compression):
    _made[compression] = Collectives(settings=Settings(compression=CompressionMethod(compression)))
    found = _made[compression].group
    return found.links.hosts, found.order


def carry_out(group, call, pattern, compression):
    """Bytes that this rank says that it sent to the other host."""
    collectives = _made[compression]
    before = collectives.stats()["bytes_between_hosts"]
    {
        "all_reduce": lambda: collectives.all_reduce(torch.ones(ELEMENTS), pattern=pattern),
        "all_gather": lambda: collectives.all_gather(torch.ones(ELEMENTS // 4), pattern=pattern),
        "reduce_scatter": lambda: collectives.reduce_scatter(torch.ones(ELEMENTS), pattern=pattern),
        "all_to_all": lambda: collectives.all_to_all(torch.ones(ELEMENTS)),
    }[call]().result()
    return collectives.stats()["bytes_between_hosts"] - before


def test_what_is_counted_is_what_leaves_a_host():
    if (why := why_no_links()) is not None:
        pytest.skip(why)
    wrong = []
    with Links(2) as links, HostWorld(links, [0, 1, 0, 1]) as world:
        for compression in {compression for _, compression in CALLS}:
            found = world.results(make, compression)
            assert found == [(((0, 2), (1, 3)), (0, 2, 1, 3))] * 4
        calls = [("all_reduce", *call) for call in CALLS]
        calls += [("all_gather", *call) for call in CALLS[:4]]
        calls += [("reduce_scatter", *call) for call in CALLS[:4]]
        calls += [("all_to_all", "hierarchical", "none")]
        for call, pattern, compression in calls:
            for _ in range(3):  # what TCP sends again is counted again
                before = [each.sent_data for each in links.traffic()]
                told = world.results(carry_out, call, CommunicationPattern(pattern), compression)
                sent = [each.sent_data - old for each, old in zip(links.traffic(), before, strict=True)]
                said = [told[0] + told[2], told[1] + told[3]]
                if sent == pytest.approx(said, rel=0.02):
                    break
            else:
                wrong.append((call, pattern, compression, said, sent))
            if (call, pattern) == ("reduce_scatter", "hierarchical"):
                assert sent[0] < NBYTES * 0.52, "torch's own sends twice that on gloo"
    assert wrong == []
