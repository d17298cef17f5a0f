"""Ranks that are about to make different calls hear of it, all of them, before."""

from __future__ import annotations

import msgspec
import pytest
import recorded_calls as ranks
from hypothesis import given
from hypothesis import strategies as st
from worlds import World

from kernel_pytorch.links.profile.check import Intent, differences


@pytest.fixture(scope="module")
def world():
    with World(3) as world:
        yield world


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("shape", "rank 1: all_reduce sum of 5 float32"),
        ("dtype", "rank 1: all_reduce sum of 4 int32"),
        ("reduce", "rank 1: all_reduce max of 4 float32"),
        ("root", "rank 1: broadcast of 4 float32 root 1"),
        ("operation", "rank 1: barrier at "),
        ("site", "rank 1: all_reduce sum of 4 float32 at "),
        ("step", "rank 1: all_reduce sum of 4 float32 at "),
    ],
)
def test_all_ranks_hear_who_differs_in_what(world, kind, told):
    found = world.results(ranks.disagreement, kind)
    assert len({each["error"] for each in found}) == 1
    error, first = found[0]["error"], found[0]["first"]
    assert error is not None
    assert told in error
    assert "ranks 0 2: all_reduce sum of 4 float32" in error or kind == "root"
    assert all(each["recorded"] for each in found)
    assert all(each["stood"] for each in found)  # to agree is to wait
    if kind == "site":  # the skipped call, and the one after it
        assert f"recorded_calls.py:{first}" in error
        assert f"recorded_calls.py:{first + 1}" in error
    if kind == "step":
        assert "in step 3" in error
        assert "in step 2" in error


@pytest.mark.parametrize(
    ("kind", "told"),
    [("shape", "sum of 5 float32"), ("dtype", "sum of 4 int32"), ("reduce", "max of 4 float32")],
)
def test_calls_that_are_made_of_messages(world, kind, told):
    """A message of another length would end the process that receives it."""
    for error, line in world.results(ranks.disagreement_of_patterns, kind):
        assert f"rank 1: all_reduce {told} at " in error
        assert f"recorded_calls.py:{line} in step 0; ranks 0 2: all_reduce sum of 4 float32" in error


def test_a_piece_that_its_receiver_does_not_expect(world):
    errors = {each["error"] for each in world.results(ranks.disagreement, "split")}
    assert len(errors) == 1
    assert "rank 0 has 4 elements for rank 0, which expects 4" not in errors
    assert "elements for rank" in errors.pop()


def test_right_calls_pass(world):
    assert world.results(ranks.agreement) == [True] * 3


CALL = Intent(
    operation="all_reduce",
    reduce="sum",
    dtype="float32",
    sizes=[4],
    root=None,
    number=0,
    step=1,
    site="/a/train.py:8",
)
CHANGES = {
    "operation": "broadcast",
    "reduce": "max",
    "dtype": "int32",
    "sizes": [5],
    "root": 1,
    "step": 2,
    "site": "/a/train.py:9",
}


@given(size=st.integers(3, 6), data=st.data())
def test_the_odd_rank_is_named_first(size, data):
    field = data.draw(st.sampled_from(sorted(CHANGES)))
    odd = data.draw(st.integers(0, size - 1))
    calls = [CALL] * size
    calls[odd] = msgspec.structs.replace(CALL, **{field: CHANGES[field]})
    jobs = [10 * place for place in range(size)]
    found = differences(calls, jobs)
    assert found is not None
    assert found.startswith(f"rank {10 * odd}:")
    assert str(CHANGES[field]).strip("[]") in found


@given(size=st.integers(1, 6))
def test_equal_calls_from_different_folders_agree(size):
    calls = [msgspec.structs.replace(CALL, site=f"/{place}/train.py:8") for place in range(size)]
    assert differences(calls, range(size)) is None
    rooted = [msgspec.structs.replace(CALL, root=0, site=f"train.py:{place}") for place in range(size)]
    assert differences(rooted, range(size)) is None
