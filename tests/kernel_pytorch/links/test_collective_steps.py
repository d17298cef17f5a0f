"""The steps of each pattern, carried out on numbers in one process."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel_pytorch.links.collectives.steps import Steps, plan, split
from kernel_pytorch.links.methods import CommunicationPattern, Operation

PATTERNS = [pattern for pattern in CommunicationPattern if pattern is not CommunicationPattern.ADAPTIVE]
FLAT = [CommunicationPattern.RING, CommunicationPattern.BUTTERFLY]


def carried_out(pieces: list[Steps], inputs: np.ndarray) -> np.ndarray:
    held = inputs.copy()
    for step in (step for steps in pieces for step in steps):
        before = held.copy()
        for transfer in step:
            part = slice(transfer.begin, transfer.end)
            sent = before[transfer.source, part]
            held[transfer.target, part] = held[transfer.target, part] + sent if transfer.add else sent
    return held


def all_reduce(pattern: CommunicationPattern, count: int, hosts: list[list[int]]) -> Steps:
    (steps,) = plan(Operation.ALL_REDUCE, pattern, [count], hosts)
    return steps


@st.composite
def problems(draw: st.DrawFn) -> tuple[np.ndarray, list[int], list[list[int]], list[int], int]:
    """Inputs [P, elements], edges of parts, hosts, an order, chunks."""
    size = draw(st.integers(1, 9))
    edges = np.cumsum([0, *draw(st.lists(st.integers(0, 7), min_size=size, max_size=size))]).tolist()
    random = np.random.default_rng(draw(st.integers(0, 99)))
    where = random.integers(0, draw(st.integers(1, 4)), size=size)
    hosts = [np.flatnonzero(where == host).tolist() for host in np.unique(where)]
    inputs = random.normal(size=(size, edges[-1]))
    return inputs, edges, hosts, random.permutation(size).tolist(), draw(st.integers(1, 3))


@pytest.mark.parametrize("pattern", PATTERNS)
@given(problem=problems())
def test_an_all_reduce_gives_the_same_bits_everywhere(pattern: CommunicationPattern, problem):
    inputs, edges, hosts, order, chunks = problem
    found = carried_out(plan(Operation.ALL_REDUCE, pattern, edges, hosts, order, chunks), inputs)
    np.testing.assert_allclose(found[0], inputs.sum(axis=0), atol=1e-12)
    assert (found == found[0]).all()


@pytest.mark.parametrize("pattern", PATTERNS)
@given(problem=problems())
def test_an_all_gather_collects_all_parts(pattern: CommunicationPattern, problem):
    inputs, edges, hosts, order, chunks = problem
    own = np.full_like(inputs, np.nan)
    for place, (begin, end) in enumerate(pairwise(edges)):
        own[place, begin:end] = inputs[0, begin:end]
    found = carried_out(plan(Operation.ALL_GATHER, pattern, edges, hosts, order, chunks), own)
    assert (found == inputs[0]).all()


@pytest.mark.parametrize("pattern", PATTERNS)
@given(problem=problems())
def test_a_reduce_scatter_sums_each_part_at_its_owner(pattern: CommunicationPattern, problem):
    inputs, edges, hosts, order, chunks = problem
    found = carried_out(plan(Operation.REDUCE_SCATTER, pattern, edges, hosts, order, chunks), inputs)
    for place, (begin, end) in enumerate(pairwise(edges)):
        np.testing.assert_allclose(found[place, begin:end], inputs[:, begin:end].sum(axis=0), atol=1e-12)


@pytest.mark.parametrize("size", [2, 4, 8])
def test_what_each_place_sends(size: int):
    count = 64 * size
    hosts = [[place] for place in range(size)]
    for pattern in FLAT:
        steps = all_reduce(pattern, count, hosts)
        sent = [sum(t.end - t.begin for step in steps for t in step if t.source == p) for p in range(size)]
        assert sent == [2 * (size - 1) * count // size] * size
    assert len(all_reduce(CommunicationPattern.RING, count, hosts)) == 2 * (size - 1)
    for pattern in (CommunicationPattern.BUTTERFLY, CommunicationPattern.TREE):
        steps = all_reduce(pattern, count, hosts)
        assert len(steps) == 2 * math.log2(size)
        assert all(len({(t.source, t.target) for t in step}) == len(step) for step in steps), "one piece each"


@pytest.mark.parametrize("hosts", [[[0, 1], [2, 3]], [[0, 2], [1, 3]], [[0, 1, 2], [3, 4], [5, 6]]])
def test_hierarchical_sends_the_least_between_hosts(hosts: list[list[int]]):
    count, num_hosts = 6 * 7 * 8, len(hosts)
    steps = all_reduce(CommunicationPattern.HIERARCHICAL, count, hosts)
    assert len(steps) == 4
    for places in hosts:
        leaves = sum(
            t.end - t.begin for step in steps for t in step if t.source in places and t.target not in places
        )
        assert leaves == 2 * (num_hosts - 1) * count // num_hosts


@given(st.integers(0, 100), st.integers(1, 9))
def test_parts_cover_all_elements(count: int, parts: int):
    found = split(count, parts)
    assert [number for begin, end in found for number in range(begin, end)] == list(range(count))
    assert max(end - begin for begin, end in found) - min(end - begin for begin, end in found) <= 1
