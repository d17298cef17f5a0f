from __future__ import annotations

import pytest

from dilated_attention_pytorch.kernels.triton.visits import Visits, visits_of


def chains(visits: Visits) -> dict[int, list[int]]:
    """The rates of each rate's absorbers."""
    return {
        rate: [other for a, other in enumerate(visits.rates) if bits >> a & 1]
        for rate, bits in zip(visits.rates, visits.absorbers, strict=True)
    }


def test_nested_branches_absorb_one_another():
    visits = visits_of(((8192, 4), (2048, 1), (4096, 2)))
    assert (visits.segments, visits.rates) == ((2048, 4096, 8192), (1, 2, 4))
    assert chains(visits) == {1: [], 2: [1], 4: [1, 2]}
    assert visits.phases == (4, 2, 1)
    assert visits.classes == 4


def test_phases_tell_all_absorbed_branches_apart():
    visits = visits_of(((2048, 1), (8192, 4), (16384, 6)))
    assert visits.phases == (12, 1, 1)


def test_absorbers_form_a_chain():
    """Of LongNet's branches 4 does not divide 6, so 12 is absorbed by one of the two only."""
    visits = visits_of(((2048, 1), (4096, 2), (8192, 4), (16384, 6), (32768, 12)))
    assert chains(visits) == {1: [], 2: [1], 4: [1, 2], 6: [1, 2], 12: [1, 2, 4]}
    assert visits.phases == (12, 6, 3, 1, 1)
    assert visits.classes == 12


@pytest.mark.parametrize(
    "branches",
    [((1000, 1), (1500, 2)), ((8, 2), (16, 3)), ((5, 1),)],
    ids=["segments-do-not-nest", "rates-do-not-divide", "alone"],
)
def test_what_does_not_nest_is_visited_apart(branches):
    visits = visits_of(branches)
    assert not any(visits.absorbers)
    assert set(visits.phases) == {1}


def test_a_segment_without_end_holds_every_other():
    visits = visits_of(((7, 1), (10**12, 2)))
    assert visits.segments == (7, 2**30)
    assert chains(visits) == {1: [], 2: [1]}
