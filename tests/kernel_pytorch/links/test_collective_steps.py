"""The steps of each pattern, carried out on numbers in one process."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel_pytorch.links.collectives.steps import Steps, butterfly, hierarchical, ring, split, tree

Pattern = Callable[[list[int], int], Steps]
FLAT: list[Pattern] = [ring, tree, butterfly]


def carried_out(steps: Steps, inputs: np.ndarray) -> np.ndarray:
    held = inputs.copy()
    for step in steps:
        before = held.copy()
        for transfer in step:
            part = slice(transfer.begin, transfer.end)
            sent = before[transfer.source, part]
            held[transfer.target, part] = held[transfer.target, part] + sent if transfer.add else sent
    return held


def sent(steps: Steps, source: int) -> int:
    return sum(t.end - t.begin for step in steps for t in step if t.source == source)


@st.composite
def inputs(draw: st.DrawFn) -> np.ndarray:
    size, count = draw(st.integers(1, 9)), draw(st.integers(0, 40))
    return np.random.default_rng(draw(st.integers(0, 9))).normal(size=(size, count))


@pytest.mark.parametrize("pattern", FLAT)
@given(inputs=inputs(), seed=st.integers(0, 9))
def test_flat_patterns_sum_to_the_same_bits_everywhere(pattern: Pattern, inputs: np.ndarray, seed: int):
    order = np.random.default_rng(seed).permutation(len(inputs)).tolist()
    found = carried_out(pattern(order, inputs.shape[1]), inputs)
    np.testing.assert_allclose(found[0], inputs.sum(axis=0), atol=1e-12)
    assert (found == found[0]).all()


@given(inputs=inputs(), seed=st.integers(0, 9), count=st.integers(1, 4))
def test_hierarchical_sums_to_the_same_bits_everywhere(inputs: np.ndarray, seed: int, count: int):
    where = np.random.default_rng(seed).integers(0, count, size=len(inputs))
    hosts = [np.flatnonzero(where == host).tolist() for host in range(count) if (where == host).any()]
    found = carried_out(hierarchical(hosts, inputs.shape[1]), inputs)
    np.testing.assert_allclose(found[0], inputs.sum(axis=0), atol=1e-12)
    assert (found == found[0]).all()


@pytest.mark.parametrize("size", [2, 4, 8])
def test_what_each_place_sends(size: int):
    count = 64 * size
    least = 2 * (size - 1) * count // size
    for pattern in (ring, butterfly):
        steps = pattern(list(range(size)), count)
        assert [sent(steps, place) for place in range(size)] == [least] * size
    assert len(ring(list(range(size)), count)) == 2 * (size - 1)
    assert (
        len(butterfly(list(range(size)), count)) == len(tree(list(range(size)), count)) == 2 * math.log2(size)
    )


@pytest.mark.parametrize("hosts", [[[0, 1], [2, 3]], [[0, 2], [1, 3]], [[0, 1, 2], [3, 4], [5, 6]]])
def test_hierarchical_sends_the_least_between_hosts(hosts: list[list[int]]):
    count, num_hosts = 6 * 7 * 8, len(hosts)
    steps = hierarchical(hosts, count)
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
