import os
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dilated_attention_pytorch.train.data import (
    Corpus,
    batch_of_step,
    held_out_windows,
    read_corpus,
)
from dilated_attention_pytorch.train.errors import CommandError


def parts(corpus: Corpus) -> tuple[bytes, bytes]:
    return bytes(corpus.train.tolist()), bytes(corpus.held_out.tolist())


def read(contents: list[bytes], seq_len: int) -> Corpus:
    with tempfile.TemporaryDirectory() as folder:
        for index, content in enumerate(contents):
            Path(folder, f"{index:04}").write_bytes(content)
        return read_corpus(folder, seq_len)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 400), min_size=1, max_size=60), st.integers(1, 40))
def test_split_loses_and_repeats_nothing(lengths, seq_len):
    # Each file is its own byte repeated, so that a part tells which files it holds.
    contents = [bytes([index + 1]) * length for index, length in enumerate(lengths)]
    total = sum(map(len, contents))
    if total < 2 * (seq_len + 1):
        with pytest.raises(CommandError):
            read(contents, seq_len)
        return
    corpus = read(contents, seq_len)
    train, held_out = parts(corpus)
    assert min(len(train), len(held_out)) >= seq_len + 1
    assert sorted(train + held_out) == sorted(b"".join(contents))
    if set(train) & set(held_out):
        assert train + held_out == b"".join(contents)
        assert len(held_out) == max(seq_len + 1, round(total / 20))
    elif len(held_out) > total / 5:
        assert len(held_out) == seq_len + 1
    assert parts(read(contents, seq_len)) == (train, held_out)


def test_held_out_files_are_interleaved():
    contents = [bytes([index + 1]) * 10 for index in range(60)]
    train, held_out = parts(read(contents, 9))
    chosen = [held_out[start] - 1 for start in range(0, len(held_out), 10)]
    assert chosen == [10, 30, 50]
    assert train == b"".join(content for index, content in enumerate(contents) if index not in chosen)


def test_single_file_is_cut_at_its_end(tmp_path):
    content = os.urandom(2000)
    (tmp_path / "one").write_bytes(content)
    assert parts(read_corpus(str(tmp_path / "one"), 8)) == (content[:1900], content[1900:])
    assert parts(read_corpus(str(tmp_path / "one"), 299)) == (content[:1700], content[1700:])


def test_folder_order_hidden_and_binary_files(tmp_path):
    names = ["b/x", "a", "b/a", ".hidden", ".git/config", "c"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode() * 10)
    (tmp_path / "b" / "binary").write_bytes(b"text" + bytes(4))
    (tmp_path / "late-binary").write_bytes(b"x" * 3_500_000 + bytes(1))
    (tmp_path / "empty").touch()
    os.mkfifo(tmp_path / "pipe")
    corpus = read_corpus(str(tmp_path), 1)
    train, held_out = parts(corpus)
    # Five files would give one of them: more than a fifth of the text, so it is the last twentieth.
    assert train + held_out == b"a" * 10 + b"b/a" * 10 + b"b/x" * 10 + b"c" * 10
    assert len(held_out) == 4
    assert (corpus.num_files, corpus.num_skipped) == (5, 2)


def test_digest_tells_the_text_and_its_cut():
    contents = [bytes([index + 1]) * 50 for index in range(20)]
    digests = {
        read(contents, 8).digest,
        read([*contents[:-1], bytes([99]) * 50], 8).digest,
        read(contents, 60).digest,
    }
    assert len(digests) == 3
    assert read(contents, 8).digest == read(contents, 9).digest


def test_default_data_is_the_standard_library():
    corpus = read_corpus(None, 8192)
    train, _ = parts(corpus)
    assert corpus.num_files > 100
    assert Path(os.__file__).read_bytes() in train + bytes(corpus.held_out.tolist())
    assert 0.03 < len(corpus.held_out) / (len(train) + len(corpus.held_out)) < 0.1


@settings(max_examples=50, deadline=None)
@given(
    st.integers(0, 2**63 - 1), st.integers(0, 10**9), st.integers(1, 5), st.integers(1, 50), st.integers(1, 9)
)
def test_batch_is_a_function_of_seed_and_step(seed, step, batch_size, extra, seq_len):
    text = torch.arange(seq_len + extra, dtype=torch.uint8)
    batch = batch_of_step(text, step, seed, batch_size, seq_len)
    torch.rand(3)
    batch_of_step(text, step + 1, seed, batch_size, seq_len)
    assert torch.equal(batch, batch_of_step(text, step, seed, batch_size, seq_len))
    assert batch.shape == (batch_size, seq_len + 1)
    assert batch.dtype == torch.int64
    # In this text a byte is its own place, so each row must be consecutive and inside.
    assert torch.equal(batch, batch[:, :1] + torch.arange(seq_len + 1))
    assert int(batch.max()) < len(text)


def test_batches_differ_by_seed_and_step_and_reach_both_ends():
    text = torch.arange(20, dtype=torch.uint8)
    starts = [batch_of_step(text, step, 0, 4, 9)[:, 0].tolist() for step in range(200)]
    assert {start for row in starts for start in row} == set(range(11))
    assert starts != [batch_of_step(text, step, 1, 4, 9)[:, 0].tolist() for step in range(200)]
    assert len({tuple(row) for row in starts}) > 150


@given(st.integers(2, 300), st.integers(1, 20), st.integers(1, 299))
def test_held_out_windows_do_not_overlap(length, count, seq_len):
    seq_len = min(seq_len, length - 1)
    windows = held_out_windows(torch.arange(length), count, seq_len)
    assert windows.shape == (min(count, (length - 1) // seq_len), seq_len + 1)
    predicted = windows[:, 1:].flatten().tolist()
    assert len(set(predicted)) == len(predicted)
    assert torch.equal(windows, windows[:, :1] + torch.arange(seq_len + 1))
    if len(windows) > 1:
        assert (windows[0, 0], windows[-1, -1]) == (0, length - 1)
