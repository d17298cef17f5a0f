import threading

import pytest
from worlds import World

from dilated_attention_pytorch.train.errors import CommandError, RankError
from dilated_attention_pytorch.train.ranks import Ranks

pytestmark = pytest.mark.xdist_group("worlds")


@pytest.fixture(scope="module")
def world():
    with World(3) as world:
        yield world


def of(group):
    return Ranks(group.rank(), group.size(), group=group)


def failing_rank(group, error):
    ranks = of(group)

    def action():
        if ranks.rank == 1:
            raise error

    ranks.together(action)


@pytest.mark.parametrize(
    ("error", "own", "of_others"),
    [
        (CommandError("no text"), (CommandError, "no text"), (CommandError, "no text")),
        (RankError("full", status=1), (RankError, "full"), (RankError, "full")),
        (
            OSError(28, "No space left on device", "loss.png"),
            (OSError, "[Errno 28] No space left on device: 'loss.png'"),
            (OSError, "[Errno 28] No space left on device: 'loss.png'"),
        ),
        (
            KeyError("step"),
            (KeyError, "'step'"),
            (CommandError, "rank 1 of 3 cannot go on: KeyError: 'step'"),
        ),
    ],
    ids=["the user's", "a rank's", "the system's", "ours"],
)
def test_what_one_rank_raises_ends_all(world, error, own, of_others):
    answers = world.run(failing_rank, error)
    assert [(type(x), str(x)) for x in answers] == [of_others, own, of_others]
    expected = None if isinstance(error, OSError) else getattr(error, "status", 1)
    assert getattr(answers[0], "status", None) == getattr(answers[2], "status", None) == expected


def unpicklable_rank(group):
    """What each rank raises if rank 1 has an error that does not travel; then if it has such a value."""
    ranks = of(group)

    def action():
        if ranks.rank == 1:
            error = OSError("no driver")
            error.lock = threading.Lock()
            raise error

    said = []
    for call in (
        lambda: ranks.together(action),
        lambda: ranks.gather(threading.Lock() if ranks.rank == 1 else None),
    ):
        try:
            call()
        except Exception as error:
            said.append(f"{type(error).__name__}: {error}")
    return said


def test_what_cannot_be_pickled_keeps_none_waiting(world):
    first, second, third = world.results(unpicklable_rank)
    pickling = "TypeError: cannot pickle '_thread.lock' object"
    assert second == ["OSError: no driver", pickling]
    assert first[0] == third[0] == "CommandError: rank 1 of 3 cannot go on: OSError: no driver"
    assert first[1] == third[1] == f"RankFailed: rank 1 of 3 cannot go on: {pickling}"


def results_of(group):
    ranks = of(group)
    return (
        ranks.together(lambda: ranks.rank * 10),
        ranks.on_first(lambda: "made"),
        ranks.gather((ranks.rank, None)),
        ranks.highest(ranks.rank),
    )


def test_each_rank_has_its_own_result_and_all_values(world):
    everything = [(0, None), (1, None), (2, None)]
    assert world.results(results_of) == [
        (0, "made", everything, 2),
        (10, None, everything, 2),
        (20, None, everything, 2),
    ]
    alone = Ranks()
    assert (alone.together(lambda: 7), alone.gather("x"), alone.highest(3)) == (7, ["x"], 3)


def test_a_process_alone_raises_its_error_as_it_is():
    error = OSError("no driver")
    error.lock = threading.Lock()

    def action():
        raise error

    with pytest.raises(OSError, match="no driver") as caught:
        Ranks().together(action)
    assert caught.value is error
