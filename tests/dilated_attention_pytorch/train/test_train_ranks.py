import pytest
from worlds import World

from dilated_attention_pytorch.train.errors import CommandError
from dilated_attention_pytorch.train.ranks import Ranks


def failing_rank(group, error):
    ranks = Ranks(group.rank(), group.size(), group=group)

    def action():
        if ranks.rank == 1:
            raise error

    ranks.together(action)


@pytest.mark.parametrize(
    ("error", "own", "of_others"),
    [
        (CommandError("no text"), (CommandError, "no text"), (CommandError, "no text")),
        (
            KeyError("step"),
            (KeyError, "'step'"),
            (CommandError, "rank 1 failed: KeyError: 'step'"),
        ),
    ],
    ids=["the user's", "ours"],
)
def test_what_one_rank_raises_ends_all(error, own, of_others):
    with World(3) as world:
        answers = world.run(failing_rank, error)
    assert [(type(x), str(x)) for x in answers] == [of_others, own, of_others]
