"""What ranks tell each other, in process groups of real processes: answers, errors, deaths."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from unittest import mock

import pytest
from worlds import World

from kernel_pytorch.errors import KernelPytorchError
from kernel_pytorch.groups import GroupError, Pending, RankFailed, agree, tell_all

pytestmark = pytest.mark.xdist_group("worlds")


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with World(4) as world:
        yield world


def said(call: Callable[[], object]) -> str:
    try:
        return f"answers {call()}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def test_a_process_alone_tells_itself():
    assert tell_all(lambda: b"mine") == [b"mine"]
    assert agree(lambda: {"seed": (1, 2)}) == [{"seed": [1, 2]}]
    with pytest.raises(KeyError, match="own"):
        tell_all(lambda: {}["own"])


def test_torch_is_not_loaded_to_find_out_that_a_process_is_alone():
    script = (
        "import sys; sys.modules['torch'] = None\n"
        "from kernel_pytorch.groups import agree, tell_all\n"
        "print(tell_all(lambda: b'mine'), agree(lambda: {'a': 1}))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[b'mine'] [{'a': 1}]\n", "")


def answers_of_sizes(group, sizes: list[int]) -> list[tuple[int, set[int]]]:
    mine = bytes([group.rank()]) * sizes[group.rank()]
    return [(len(answer), set(answer)) for answer in tell_all(lambda: mine, group)]


@pytest.mark.parametrize(
    "sizes",
    [[0, 1, 2, 3], [1019] * 4, [1019, 1020, 0, 5], [3, 0, 200_000, 1018]],
    ids=["short", "one message", "one byte more", "long"],
)
def test_answers_of_any_length_come_by_rank(world, sizes: list[int]):
    expected = [(size, {rank} if size else set()) for rank, size in enumerate(sizes)]
    assert world.results(answers_of_sizes, sizes) == [expected] * 4


class UnprintableError(Exception):
    def __init__(self) -> None:
        super().__init__(lambda: "what pickle cannot take")

    def __str__(self) -> str:
        raise AttributeError("half made")


TROUBLES = {
    "plain": (lambda: OSError("/proc is gone"), "OSError: /proc is gone"),
    "key": (lambda: KeyError("step"), "KeyError: 'step'"),
    "package": (
        lambda: KernelPytorchError("no driver", "install it"),
        "KernelPytorchError: no driver: install it",
    ),
    "unprintable": (UnprintableError, "UnprintableError, whose message cannot be printed"),
    "not ascii": (lambda: ValueError('\N{SNOWMAN} "\\'), 'ValueError: \N{SNOWMAN} "\\'),
    "not unicode": (lambda: OSError("disk \udcc0"), "OSError: disk \\udcc0"),
    "long": (lambda: ValueError("\N{SNOWMAN}\n" * 5000), "ValueError: " + "\N{SNOWMAN}\n" * 5000),
}


def troubled(group, trouble: str, failing: list[int]) -> tuple[str, str]:
    """What the failing ranks raise themselves, by type; what the others do; then a round that works."""

    def action() -> bytes:
        if group.rank() in failing:
            raise TROUBLES[trouble][0]()
        return b"fine"

    try:
        tell_all(action, group, what="read its disk")
    except RankFailed as error:
        first = str(error)
    except Exception as error:
        first = f"own {type(error).__name__}"
    return first, said(lambda: tell_all(lambda: b"", group))


@pytest.mark.parametrize("trouble", TROUBLES)
def test_what_one_rank_raises_reaches_all(world, trouble: str):
    make, reason = TROUBLES[trouble]
    elsewhere = f"rank 1 of 4 cannot read its disk: {reason}"
    own = f"own {type(make()).__name__}"
    assert world.results(troubled, trouble, [1]) == [
        (first, "answers [b'', b'', b'', b'']") for first in (elsewhere, own, elsewhere, elsewhere)
    ]


def test_the_first_of_several_ranks_that_fail_is_named(world):
    firsts = [first for first, _ in world.results(troubled, "key", [3, 2])]
    assert firsts == ["rank 2 of 4 cannot read its disk: KeyError: 'step'"] * 2 + ["own KeyError"] * 2


def disagreeing(group, fields: list[dict[str, object]]) -> str:
    return said(lambda: agree(lambda: fields[group.rank()], group, fix="start all of them alike"))


def test_ranks_that_disagree_are_named_with_both_values(world):
    same = {"seed": 1, "mesh": [0, 1], "_mine": 5}
    answers = world.results(disagreeing, [same, {**same, "_mine": 6}, {**same, "seed": 2, "new": 3}, same])
    both = "new is None on rank 0 and 3 on rank 2; seed is 1 on rank 0 and 2 on rank 2"
    assert answers == [f"GroupError: the ranks of the group disagree: {both}: start all of them alike"] * 4


def test_fields_with_an_underscore_may_differ(world):
    fields = [{"seed": 1, "_rank": rank} for rank in range(4)]
    assert world.results(disagreeing, fields) == [f"answers {fields}"] * 4


def test_fields_that_are_no_json_are_an_error_of_their_rank(world):
    answers = world.results(disagreeing, [{}, {}, {"seed": b"1"}, {}])
    reason = "TypeError: Object of type bytes is not JSON serializable"
    assert answers[2] == reason
    assert answers[0] == answers[1] == answers[3] == f"RankFailed: rank 2 of 4 cannot go on: {reason}"


def in_subgroup(group) -> tuple[str, str] | None:
    """Ranks 1 and 3 have a group; the second of them fails there."""
    import torch.distributed as dist

    pair = dist.new_group([1, 3], timeout=timedelta(seconds=30))
    if group.rank() not in (1, 3):
        return None

    def action() -> bytes:
        if group.rank() == 3:
            raise OSError("gone")
        return b""

    return said(lambda: tell_all(lambda: b"%d" % group.rank(), pair)), said(lambda: tell_all(action, pair))


def test_ranks_of_a_subgroup_are_named_by_both_numbers(world):
    answers = "answers [b'1', b'3']"
    failed = "RankFailed: rank 1 of 2 (global rank 3) cannot go on: OSError: gone"
    assert world.results(in_subgroup) == [None, (answers, failed), None, (answers, "OSError: gone")]


def through_a_gather(group) -> list[str]:
    """As with a backend that has nothing for the CPU."""
    import torch
    import torch.distributed as dist

    def action() -> bytes:
        if group.rank() == 1:
            raise OSError("gone")
        return b""

    cpu = torch.device("cpu")
    with mock.patch.object(dist, "get_backend_config", return_value="cuda:nccl"):
        long = tell_all(lambda: bytes([group.rank()]) * 2000, group, device=cpu)
        return [str([len(x) for x in long]), said(lambda: tell_all(action, group, device=cpu))]


def test_without_a_backend_for_the_cpu_answers_are_gathered(world):
    failed = "RankFailed: rank 1 of 4 cannot go on: OSError: gone"
    answers = world.results(through_a_gather)
    assert [first for first, _ in answers] == ["[2000, 2000, 2000, 2000]"] * 4
    assert [second for _, second in answers] == [failed, "OSError: gone", failed, failed]


def lost(group, how: str) -> str:
    """Rank 1 is lost where the others wait for its answer, and rank 2 fails; this is what they raise."""

    def action() -> bytes:
        if group.rank() == 1:
            if how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise KeyboardInterrupt
        if group.rank() == 2:
            raise OSError("gone")
        return b"fine"

    tell_all(lambda: b"the connections are up", group)
    return said(lambda: tell_all(action, group))


@pytest.mark.parametrize("how", ["killed", "interrupted"])
def test_a_rank_that_dies_is_named_long_before_the_timeout(how: str):
    """Also by rank 3, which is no neighbour of it. Who has an error of its own raises that."""
    with World(4, timeout_s=3600) as world:
        answers = world.run(lost, how)
    assert isinstance(answers[1], EOFError)
    assert answers[2] == "OSError: gone"
    for rank in (0, 3):
        start = f"GroupError: rank {rank} of 4 waited for rank 1 of 4, which failed or did not answer: "
        assert answers[rank].startswith(start)


def too_late(group) -> str:
    """Rank 1 dies when 2 and 3 have posted their messages, and before rank 0 posts its own."""
    import torch
    import torch.distributed as dist

    tell_all(lambda: b"the connections are up", group)
    store, rank = dist.distributed_c10d._get_default_store(), group.rank()
    mine, theirs = torch.zeros(8), torch.zeros(4, 8)
    peers = [peer for peer in range(4) if peer != rank]

    def post() -> Pending:
        return Pending(group, [(peer, mine) for peer in peers], [(peer, theirs[peer]) for peer in peers])

    if rank == 1:
        store.wait(["2", "3"])
        os.kill(os.getpid(), signal.SIGKILL)
    if rank == 0:
        with suppress(RuntimeError):
            dist.send(torch.zeros(1), 1)  # until it has died
        return said(lambda: post().wait())
    pending = post()
    store.set(str(rank), "")
    return said(pending.wait)


def test_ranks_that_have_posted_hear_of_one_that_cannot():
    with World(4, timeout_s=3600) as world:
        answers = world.run(too_late)
    assert isinstance(answers[1], EOFError)
    for rank, did in ((0, "could not post messages to or from"), (2, "waited for"), (3, "waited for")):
        assert answers[rank].startswith(f"GroupError: rank {rank} of 4 {did} rank 1 of 4, which"), answers


def interrupted_and_alive(group) -> str:
    """Rank 1 does not answer, and does not end."""
    import torch.distributed as dist

    quick = dist.new_group(timeout=timedelta(seconds=1))

    def action() -> bytes:
        if group.rank() == 1:
            raise KeyboardInterrupt
        return b"fine"

    try:
        answer = said(lambda: tell_all(action, quick))
    except KeyboardInterrupt:
        answer = "interrupted"
    tell_all(lambda: b"", group)  # until all are here
    return answer


def test_a_rank_that_is_interrupted_costs_the_others_the_timeout_at_most():
    with World(2) as world:
        first, second = world.results(interrupted_and_alive)
    assert first.startswith(
        "GroupError: rank 0 of 2 waited for rank 1 of 2, which failed or did not answer: "
    )
    assert second == "interrupted"


def test_errors_are_those_of_the_package_and_of_the_runtime():
    assert issubclass(GroupError, (KernelPytorchError, RuntimeError))
    assert issubclass(RankFailed, GroupError)
