"""What a queue carries out next, and what rank 0 answers to what ranks tell it: without a group."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from kernel_pytorch.links.methods import CommunicationPattern, Operation
from kernel_pytorch.links.schedule.negotiate import Answer, Coordinator, Message, Submission
from kernel_pytorch.links.schedule.order import Waiting, next_cycle

MOST = 1000


def waiting(
    number: int, ranks: tuple[int, ...] = (0, 1), nbytes: int = 400, priority: float = 1.0
) -> Waiting:
    return Waiting(number=number, priority=priority, ranks=ranks, hosts=set(ranks), nbytes=nbytes)


def numbers(cycle: list[Waiting]) -> list[int]:
    return [each.number for each in cycle]


def test_the_most_urgent_first_then_the_oldest():
    assert numbers(next_cycle([waiting(2), waiting(1), waiting(3, priority=2.0)], MOST)) == [3, 1]


def test_among_equals_idle_links_before_busy_ones():
    each = [waiting(0, (0, 1)), waiting(1, (0, 1)), waiting(2, (2, 3))]
    assert numbers(next_cycle(each, MOST)) == [0, 2, 1]
    assert numbers(next_cycle(each, MOST, {0: 0.9})) == [2, 0, 1]


def test_what_is_larger_than_a_chunk_goes_alone():
    assert numbers(next_cycle([waiting(0, nbytes=5000), waiting(1, nbytes=1), waiting(2, (2, 3))], MOST)) == [
        0,
        2,
    ]


def test_nothing_overtakes_what_does_not_fit():
    each = [
        waiting(0, nbytes=10, priority=2.0),
        waiting(1, nbytes=1000),
        waiting(2, nbytes=10),
        waiting(3, (2,)),
    ]
    assert numbers(next_cycle(each, MOST)) == [0, 3]


@given(
    st.lists(
        st.builds(
            waiting,
            number=st.integers(),
            ranks=st.sets(st.integers(0, 4), min_size=1).map(tuple),
            nbytes=st.integers(0, 1500),
            priority=st.sampled_from([0.5, 1.0, 3.0]),
        ),
        unique_by=lambda each: each.number,
        max_size=12,
    )
)
def test_no_rank_is_busy_for_longer_than_a_chunk(each: list[Waiting]):
    cycle = next_cycle(each, MOST)
    assert len(cycle) >= min(len(each), 1)
    for rank in range(5):
        carried = [one.nbytes for one in cycle if rank in one.ranks]
        assert len([one for one in carried if one]) <= 1 or sum(carried) <= MOST
    assert [one.priority for one in cycle] == sorted((one.priority for one in cycle), reverse=True)
    if each:
        assert cycle[0].priority == max(one.priority for one in each)


def submission(serial: int, name: str, ranks: tuple[int, ...] = (0, 1, 2), **other) -> Submission:
    fields = {
        "operation": Operation.ALL_REDUCE,
        "op": "sum",
        "dtype": "float32",
        "shape": (10,),
        "priority": 1.0,
    }
    return Submission(serial=serial, name=name, ranks=ranks, **(fields | {"nbytes": 40} | other))


def coordinator(size: int = 3, chunk_bytes: int = 100, patience_s: float = 10.0) -> Coordinator:
    return Coordinator(tuple(range(size)), chunk_bytes, patience_s, lambda _: CommunicationPattern.RING)


def submit(to: Coordinator, rank: int, what: Submission, now: float = 0.0) -> None:
    to.hear(Message(rank=rank, submitted=what), now)


def test_an_operation_begins_when_all_of_its_ranks_have_submitted_it():
    rank_0 = coordinator()
    for rank in (2, 0):
        submit(rank_0, rank, submission(rank + 5, "a"))
        assert rank_0.answer(0.0) is None
    submit(rank_0, 1, submission(6, "a"))
    answer = rank_0.answer(0.0)
    (piece,) = answer.run
    assert (piece.start.serials, piece.start.chunks, piece.chunk) == ({0: 5, 1: 6, 2: 7}, 1, 0)
    assert answer.concerns(3) == [0, 1, 2]


def test_the_next_cycle_waits_for_the_one_before():
    rank_0 = coordinator(2)
    for rank in (0, 1):
        submit(rank_0, rank, submission(0, "a", (0, 1), nbytes=250))
    cycles = []
    for _ in range(3):
        answer = rank_0.answer(0.0)
        cycles.append([(piece.chunk, piece.start is not None) for piece in answer.run])
        assert rank_0.answer(0.0) is None
        for rank in (0, 1):
            rank_0.hear(Message(rank=rank, done=answer.cycle), 0.0)
    assert cycles == [[(0, True)], [(1, False)], [(2, False)]]
    assert rank_0.answer(0.0) is None
    assert rank_0.deadline() is None


def test_names_may_be_used_again():
    rank_0 = coordinator(2)
    for rank, serial in ((0, 0), (0, 1), (1, 7), (1, 8)):
        submit(rank_0, rank, submission(serial, "a", (0, 1)))
    assert [piece.start.serials for piece in rank_0.answer(0.0).run] == [{0: 0, 1: 7}, {0: 1, 1: 8}]


def test_what_is_not_submitted_in_time_fails_for_all_also_later():
    rank_0 = coordinator()
    submit(rank_0, 0, submission(0, "a"), now=5.0)
    submit(rank_0, 2, submission(3, "a"), now=9.0)
    assert rank_0.answer(14.9) is None
    assert rank_0.deadline() == 15.0
    (failure,) = rank_0.answer(15.0).failed
    assert failure.serials == {0: 0, 2: 3}
    assert failure.reason == "all_reduce 'a' among ranks 0, 1, 2: rank 1 did not submit it within 10 s"
    submit(rank_0, 1, submission(4, "a"), now=20.0)
    (late,) = rank_0.answer(20.0).failed
    assert (late.serials, late.reason) == ({1: 4}, failure.reason)
    submit(rank_0, 1, submission(5, "a"), now=21.0)  # the next of this name
    assert (rank_0.answer(21.0), rank_0.deadline()) == (None, 31.0)


def test_ranks_that_disagree_fail_and_the_rest_goes_on():
    rank_0 = coordinator(2)
    submit(rank_0, 0, submission(0, "a", (0, 1)))
    submit(rank_0, 0, submission(1, "b", (0, 1)))
    submit(rank_0, 1, submission(0, "a", (0, 1), shape=(11,), op="max"))
    submit(rank_0, 1, submission(1, "b", (0, 1)))
    answer = rank_0.answer(0.0)
    (failure,) = answer.failed
    assert failure.serials == {0: 0, 1: 0}
    assert failure.reason.endswith(
        "op is sum on rank 0 and max on rank 1; shape is (10,) on rank 0 and (11,) on rank 1"
    )
    assert [piece.start.serials for piece in answer.run] == [{0: 1, 1: 1}]


def test_who_leaves_is_waited_for_until_its_own_are_done():
    rank_0 = coordinator(2)
    for rank in (0, 1):
        submit(rank_0, rank, submission(0, "a", (0, 1)))
    rank_0.hear(Message(rank=1, leaving=True), 0.0)
    submit(rank_0, 0, submission(1, "b", (0, 1)))
    answer = rank_0.answer(0.0)
    assert (len(answer.run), answer.left) == (1, [])
    (failure,) = answer.failed
    assert failure.reason.endswith("rank 1 shut the queue down and did not submit it")
    rank_0.hear(Message(rank=1, done=answer.cycle), 0.0)
    rank_0.hear(Message(rank=0, done=answer.cycle), 0.0)
    assert rank_0.answer(0.0).left == [1]
    rank_0.hear(Message(rank=0, leaving=True), 0.0)
    assert (rank_0.over, rank_0.answer(0.0).left, rank_0.over) == (False, [0], True)


def test_what_was_under_way_breaks_the_queue():
    rank_0 = coordinator()
    for rank in range(3):
        submit(rank_0, rank, submission(0, "a"))
    submit(rank_0, 1, submission(1, "b"))
    cycle = rank_0.answer(0.0).cycle
    rank_0.hear(Message(rank=2, error="rank 0 failed"), 0.0)
    answer = rank_0.answer(0.0)
    assert (answer.broken, answer.concerns(3), rank_0.over) == ("rank 0 failed", [0, 1, 2], True)
    silent = coordinator()
    for rank in range(3):
        submit(silent, rank, submission(0, "a"))
    silent.answer(0.0)
    silent.hear(Message(rank=1, done=cycle), 0.0)
    assert silent.deadline() == 20.0
    assert silent.answer(20.0).broken == "ranks 0, 2 did not do their part of a cycle in time"


@given(st.randoms(use_true_random=False))
def test_every_rank_gets_its_operations_in_the_same_order(rng: random.Random):
    """Whatever the orders of submissions and of messages are."""
    size, count = 4, 12
    ranks = [tuple(sorted(rng.sample(range(size), rng.randint(1, size)))) for _ in range(count)]
    sizes = [rng.choice([0, 40, 150]) for _ in range(count)]
    rank_0 = coordinator(size)
    waiting_for: dict[int, list[int]] = {}
    for rank in range(size):
        waiting_for[rank] = [number for number in range(count) if rank in ranks[number]]
        rng.shuffle(waiting_for[rank])
    done: list[tuple[int, int]] = []
    busy: list[Message] = []
    while any(waiting_for.values()) or busy:
        if busy and rng.random() < 0.5:
            rank_0.hear(busy.pop(rng.randrange(len(busy))), 0.0)
        elif rank := rng.choice([None, *(rank for rank in range(size) if waiting_for[rank])]) or 0:
            number = waiting_for[rank].pop()
            submit(rank_0, rank, submission(number, str(number), ranks[number], nbytes=sizes[number]))
        elif waiting_for[0]:
            number = waiting_for[0].pop()
            submit(rank_0, 0, submission(number, str(number), ranks[number], nbytes=sizes[number]))
        answer: Answer | None = rank_0.answer(0.0)
        if answer is not None and answer.run:
            assert not busy  # all parts of the cycle before were done
            concerned = {rank for piece in answer.run for rank in piece.ranks}
            busy = [Message(rank=rank, done=answer.cycle) for rank in sorted(concerned)]
            for piece in answer.run:
                if piece.start is not None:
                    (number,) = set(piece.start.serials.values())
                    assert set(piece.start.serials) == set(ranks[number]) == set(piece.ranks)
                done.append((piece.number, piece.chunk))
    assert rank_0.deadline() is None
    expected = sum(max(1, -(-nbytes // 100)) for nbytes in sizes)
    assert len(done) == len(set(done)) == expected
