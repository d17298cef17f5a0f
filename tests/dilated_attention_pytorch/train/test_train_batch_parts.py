import argparse
import itertools
from types import SimpleNamespace

import pytest
import torch

from dilated_attention_pytorch.train.batch_parts import IGNORED, BatchPart, part_of_batch
from dilated_attention_pytorch.train.errors import CommandError
from dilated_attention_pytorch.train.options import TrainOptions, add_split_arguments
from dilated_attention_pytorch.train.ranks import Ranks, launched
from dilated_attention_pytorch.train.setup import check_same_on_all_ranks


@pytest.mark.parametrize("sharding", ["contiguous", "zigzag"])
@pytest.mark.parametrize(("num_data", "num_context"), [(1, 1), (1, 2), (2, 1), (3, 2), (2, 4)])
def test_every_token_is_predicted_once(num_data, num_context, sharding):
    tokens = torch.randperm(5 * 17).view(5, 17)
    seen = {}
    for data_rank, context_rank in itertools.product(range(num_data), range(num_context)):
        part = BatchPart(
            data_rank=data_rank,
            num_data=num_data,
            context_rank=context_rank,
            num_context=num_context,
            sharding=sharding,
        )
        inputs, targets, positions = part.take(tokens)
        assert inputs.shape == targets.shape == (-(-5 // num_data), 16 // num_context)
        for row, column in (targets != IGNORED).nonzero().tolist():
            token = inputs[row, column].item()
            assert token not in seen
            seen[token] = (targets[row, column].item(), positions[column].item())
    expected = {
        tokens[row, column].item(): (tokens[row, column + 1].item(), column)
        for row in range(5)
        for column in range(16)
    }
    assert seen == expected


def test_neighbours_share_a_context():
    options = TrainOptions(seq_len=64, batch_size=4)
    splits = [part_of_batch(Ranks(rank, 4), options, 2, "contiguous") for rank in range(4)]
    assert [(s.data_rank, s.context_rank) for s in splits] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert {(s.num_data, s.num_context) for s in splits} == {(2, 2)}


@pytest.mark.parametrize(
    ("size", "num_context", "sharding", "message"),
    [
        (4, 0, "contiguous", "--context-parallel must be at least 1, got 0"),
        (
            *(4, 3, "contiguous"),
            "--context-parallel 3 needs 3 processes or a multiple of that, got 4: torchrun "
            "--nproc-per-node 3 -m dilated_attention_pytorch.train --context-parallel 3 ...",
        ),
        (
            *(4, 2, "contiguous"),
            "--batch-size must be a multiple of 2, the 4 processes by --context-parallel 2, got 3",
        ),
        (
            *(4, 4, "contiguous"),
            "--seq-len must be a multiple of 4 with --context-parallel 4 --sharding contiguous, got 66",
        ),
        (
            *(2, 2, "zigzag"),
            "--seq-len must be a multiple of 4 with --context-parallel 2 --sharding zigzag, got 66",
        ),
    ],
)
def test_what_cannot_be_cut(size, num_context, sharding, message):
    with pytest.raises(CommandError) as caught:
        part_of_batch(Ranks(0, size), TrainOptions(seq_len=66, batch_size=3), num_context, sharding)
    assert str(caught.value) == message
    assert caught.value.status == 2


def test_parts_that_accumulate_are_cut_too():
    options = TrainOptions(seq_len=64, batch_size=4, grad_accumulation=4)
    with pytest.raises(CommandError) as caught:
        part_of_batch(Ranks(0, 4), options, 2, "contiguous")
    assert str(caught.value) == (
        "--batch-size must be a multiple of 8, the 4 processes by --context-parallel 2 "
        "times --grad-accumulation 4, got 4"
    )
    assert part_of_batch(Ranks(0, 4), options, 4, "contiguous").num_data == 1


@pytest.mark.parametrize(
    ("size", "seq_len", "asked", "sharding", "num_context"),
    [
        (8, 64, 4, "contiguous", 4),
        (6, 64, 4, "contiguous", 2),  # 3 divides the ranks, but not the context
        (6, 96, 4, "contiguous", 3),
        (7, 64, 4, "contiguous", 1),
        (7, 7 * 64, 8, "contiguous", 7),
        (1, 64, 4, "zigzag", 1),
        (4, 36, 4, "contiguous", 4),
        (4, 36, 4, "zigzag", 2),
        (4, 33, 4, "zigzag", 1),
    ],
)
def test_a_ring_fits_any_number_of_ranks(size, seq_len, asked, sharding, num_context):
    options = TrainOptions(seq_len=seq_len, batch_size=3)
    for rank in range(size):
        part = part_of_batch(Ranks(rank, size), options, asked, sharding, any_size=True)
        assert (part.num_data, part.num_context) == (size // num_context, num_context)
        tokens, targets, _ = part.take(torch.ones(3, seq_len + 1).long())
        assert tokens.shape == (-(-3 // part.num_data), seq_len // num_context)
        assert (targets == IGNORED).all() == (part.data_rank >= 3)
    with pytest.raises(CommandError, match="--context-parallel must be at least 1, got 0"):
        part_of_batch(Ranks(0, size), options, 0, sharding, any_size=True)


def test_zigzag_asks_nothing_of_a_context_in_one_piece():
    options = TrainOptions(seq_len=65, batch_size=2)
    assert part_of_batch(Ranks(1, 2), options, 1, "zigzag").take(torch.zeros(2, 66).long())[0].shape == (
        1,
        65,
    )


def test_context_parallel_without_torchrun_says_how(text, longnet):
    status, out, err = longnet("train", "--data", text, "--context-parallel", 2)
    assert (status, out) == (2, "")
    assert err == (
        "longnet train: error: --context-parallel 2 needs 2 processes or a multiple of that, got 1: "
        "torchrun --nproc-per-node 2 -m dilated_attention_pytorch.train --context-parallel 2 ...\n"
    )


def test_options_of_the_split():
    parser = argparse.ArgumentParser()
    add_split_arguments(parser)
    assert vars(parser.parse_args([])) == {"context_parallel": 1, "sharding": "contiguous"}


def test_launcher_on_one_machine_and_on_several():
    module = "-m dilated_attention_pytorch.train"
    assert Ranks(0, 8, 0, 8).launcher() == f"torchrun --nproc-per-node 8 {module}"
    assert Ranks(5, 8, 1, 4).launcher() == f"torchrun --nnodes 2 --nproc-per-node 4 {module}"


def test_launched_is_read_from_the_environment(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    assert not launched()
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        assert not launched()
        monkeypatch.setenv(name, "2")
    assert launched()
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert not launched()


@pytest.mark.parametrize(
    ("seen", "message"),
    [
        ({"seed": 1}, "the ranks differ in seed: 0 on rank 0, 1 on rank 2"),
        ({"text": "b"}, "the ranks differ in text: a on rank 0, b on rank 2"),
        ({"sharding": "zigzag"}, "the ranks differ in sharding: contiguous on rank 0, zigzag on rank 2"),
    ],
)
def test_ranks_that_were_started_differently(seen, message):
    class Three(Ranks):
        def gather(self, value):
            return [value, value, {**value, **seen}]

    part, corpus = BatchPart(num_data=3), SimpleNamespace(digest="a")
    run = SimpleNamespace(options=TrainOptions(), part=part, corpus=corpus, ranks=Three(0, 3))
    with pytest.raises(CommandError) as caught:
        check_same_on_all_ranks(run)
    assert str(caught.value) == message
