from __future__ import annotations

import numpy as np
import pytest
from made_up_links import exactly, made_up

from kernel_pytorch.links.facts import HostLink, MeasuredLinks
from kernel_pytorch.links.rates import bandwidth_matrix, latency_matrix, left
from kernel_pytorch.links.topology import (
    NetworkTopology,
    default_topology,
    difference,
    links_of,
    regrouped,
    topology_of,
)


def test_ranks_fill_nodes_one_after_the_other():
    topology = NetworkTopology(3, 4, 100.0, 10.0, 5.0)
    links = links_of(topology, 10)
    assert links.hosts == ((0, 1, 2, 3), (4, 5, 6, 7), (8, 9))
    assert (links.basis, links.gbit_s(0, 0), links.gbit_s(2, 0)) == ("given", 100.0, 10.0)
    assert (links.round_trip_us(9, 0), links.round_trip_us(0, 1)) == (10.0, 10.0)
    assert links_of(topology, 3).hosts == ((0, 1, 2),)


def test_racks():
    topology = NetworkTopology(4, 1, nodes_per_rack=2, rack_count=2, rack_bandwidth_gbps=40.0)
    rates = bandwidth_matrix(links_of(topology, 4))
    assert rates[0].tolist()[1:] == [200.0, 40.0, 40.0]
    assert rates[3].tolist()[:3] == [40.0, 40.0, 200.0]


def test_more_ranks_than_places():
    with pytest.raises(
        ValueError, match="world_size 9 is more than the 8 places of the topology: 2 nodes of 4"
    ):
        links_of(NetworkTopology(2, 4), 9)


def test_numbers_are_positive():
    with pytest.raises(ValueError, match="inter_node_bandwidth_gbps must be positive, got 0"):
        NetworkTopology(2, 4, inter_node_bandwidth_gbps=0.0)


def test_defaults_have_room_for_all():
    for size in (1, 2, 7, 8, 9, 1000):
        assert default_topology(size).hosts(size)[-1][-1] == size - 1


def test_what_is_not_known_has_no_figures():
    links = links_of(NetworkTopology(2, 1, inter_node_bandwidth_gbps=None, network_latency_us=None), 2)
    assert (links.links[0].gbit_s.value, len(links.links), links.pairs) == (600.0, 2, ())
    assert np.isnan(bandwidth_matrix(links)).all()
    assert np.isnan(latency_matrix(links)).all()
    assert topology_of(links) == NetworkTopology(2, 1, 600.0, None, None, topology_type="given")


def found_links() -> MeasuredLinks:
    links = made_up(((0, 2), (1, 3)), {(0, 1): 1.0, (1, 0): 2.0})
    own = (
        HostLink(source=0, target=0, gbit_s=exactly(50.0)),
        HostLink(source=1, target=1, gbit_s=exactly(40.0)),
    )
    return MeasuredLinks(hosts=links.hosts, basis="measured", links=links.links + own)


def test_a_grouping_that_is_said_has_the_slowest_rates_that_were_measured():
    """Nodes 0 1 and 2 3 each have one rank on each of two hosts."""
    links = regrouped(found_links(), ((0, 1), (2, 3)))
    rates = {(link.source, link.target): link.gbit_s.value for link in links.links}
    assert rates == {(0, 0): 1.0, (0, 1): 1.0, (1, 0): 1.0, (1, 1): 1.0}
    # Each rank a node: within a host at its rate.
    links = regrouped(found_links(), ((0,), (1,), (2,), (3,)))
    rates = {(link.source, link.target): link.gbit_s.value for link in links.links}
    assert (rates[0, 2], rates[1, 3], rates[0, 1], rates[1, 2]) == (50.0, 40.0, 1.0, 2.0)
    assert (0, 0) not in rates


def test_a_difference_is_told():
    assert difference(((1, 3), (0, 2)), ((0, 2), (1, 3))) is None
    assert difference(((0, 1),), ((0,), (1,))) == (
        "the topology has ranks 0 1 on nodes of their own, found were 0 | 1"
    )
    with pytest.raises(ValueError, match="hosts are of 2 ranks, the links of 4"):
        regrouped(found_links(), ((0, 1),))


def test_matrices_are_by_rank():
    rates = bandwidth_matrix(found_links())
    assert rates[0].tolist()[1:] == [1.0, 50.0, 1.0]
    assert rates[1].tolist()[2:] == [2.0, 40.0]
    assert np.isnan(rates.diagonal()).all()


def test_what_is_used_is_not_left():
    links = left(found_links(), {(0, 1): 0.25, (2, 3): 0.75, (1, 0): 1.0})
    assert links.gbit_s(0, 1) == 0.25
    assert links.gbit_s(1, 0) == pytest.approx(0.02)  # a link always moves a little
    assert (links.gbit_s(0, 0), left(found_links(), {}) == found_links()) == (50.0, True)
