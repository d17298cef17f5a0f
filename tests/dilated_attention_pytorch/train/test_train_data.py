import os
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import tracemalloc
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dilated_attention_pytorch.train import data as data_module
from dilated_attention_pytorch.train.contexts import batch_of_step, evenly_spaced
from dilated_attention_pytorch.train.data import Corpus, read_corpus, read_text
from dilated_attention_pytorch.train.errors import CommandError
from dilated_attention_pytorch.train.text_files import FileText, Piece


def parts(corpus: Corpus) -> tuple[bytes, bytes]:
    return bytes(corpus.train[:].tolist()), bytes(corpus.held_out[:].tolist())


def write(folder: Path, contents: list[bytes]) -> None:
    for index, content in enumerate(contents):
        (folder / f"{index:04}").write_bytes(content)


def read(contents: list[bytes], seq_len: int, held_out: float | str | None = None) -> Corpus:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), contents)
        return read_corpus(folder, seq_len, held_out)


@settings(max_examples=50)
@given(
    st.lists(st.integers(0, 400), min_size=1, max_size=60),
    st.integers(1, 40),
    st.none() | st.sampled_from([0.01, "0.1", 0.29, 0.5]),
)
def test_the_end_of_every_file_is_held_out(lengths, seq_len, held_out):
    # Each file is its own byte repeated, so that a part tells how much it has of each file.
    contents = [bytes([index + 1]) * length for index, length in enumerate(lengths)]
    total = sum(lengths)
    size = max(seq_len + 1, round(total / 20)) if held_out is None else int(total * float(held_out) + 1e-6)
    if total < 2 * (seq_len + 1) or size < seq_len + 1:
        with pytest.raises(CommandError, match="seq-len" if total else "no text in "):
            read(contents, seq_len, held_out)
        return
    corpus = read(contents, seq_len, held_out)
    train, end = parts(corpus)
    assert (len(train), len(end)) == (total - size, size)
    assert len(train) > seq_len
    for byte, length in enumerate(lengths, 1):
        assert train.count(byte) + end.count(byte) == length
        assert abs(end.count(byte) - length * size / total) < 1
    assert train == bytes(sorted(train))
    assert end == bytes(sorted(end))
    assert parts(read(contents, seq_len, held_out)) == (train, end)


def test_what_is_held_out_of_two_files_is_of_both(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"a" * 150_000)
    (tmp_path / "z.csv").write_bytes(b"1,2\n" * 20_000)
    corpus = read_corpus(str(tmp_path), 8192)
    assert parts(corpus)[1] == b"a" * 7500 + b"1,2\n" * 1000
    assert corpus.held_out_in_words() == "the last 5% of each of 2 files, 11,500 bytes"


def test_a_single_file_is_cut_at_its_end(tmp_path):
    content = bytes(1000) + os.urandom(1000)
    file = tmp_path / "one"
    file.write_bytes(content)
    assert parts(read_corpus(str(file), 8)) == (content[:1900], content[1900:])
    assert parts(read_corpus(str(file), 299)) == (content[:1700], content[1700:])
    corpus = read_corpus(str(file), 8, "0.25")
    assert parts(corpus) == (content[:1500], content[1500:])
    assert corpus.held_out_in_words() == "the last 25% of the file, 500 bytes"


@pytest.mark.parametrize("held_out", [0, 1, -0.1, 0.51, "0", "nan", "1.5", "1e400"])
def test_a_fraction_outside_of_its_range_is_refused(tmp_path, held_out):
    with pytest.raises(CommandError) as refused:
        read_corpus(str(tmp_path), 8, held_out)
    assert str(refused.value) == (
        "--held-out must be a fraction above 0 and at most 0.5, or a file or folder "
        f"(./{held_out} for one of that name), got {held_out}"
    )


def test_too_small_a_fraction_names_one_that_is_enough(tmp_path):
    write(tmp_path, [b"x" * 700, b"y" * 300])
    with pytest.raises(CommandError) as refused:
        read_corpus(str(tmp_path), 200, 0.1)
    assert str(refused.value) == (
        f"--held-out 0.1 of {tmp_path} is 100 bytes, --seq-len 200 needs 201: give --held-out 0.201 or more, "
        "or more text, or --seq-len 99 or less"
    )
    assert len(read_corpus(str(tmp_path), 200, 0.201).held_out) == 201
    assert len(read_corpus(str(tmp_path), 99, 0.1).held_out) == 100


def test_a_text_of_its_own_is_held_out(tmp_path):
    text, other = tmp_path / "text", tmp_path / "other"
    text.mkdir(), other.mkdir()
    write(text, [b"a" * 50, b"b" * 50])
    write(other, [b"c" * 20, b"d" * 10])
    (other / "binary").write_bytes(bytes(4))
    corpus = read_corpus(str(text), 8, str(other))
    assert parts(corpus) == (b"a" * 50 + b"b" * 50, b"c" * 20 + b"d" * 10)
    assert (corpus.num_files, corpus.num_held_out_files) == (2, 2)
    assert corpus.held_out_in_words() == f"{other}, 2 files, 30 bytes"
    assert corpus.skipped_in_words() == f"1 skipped: {other}/binary (binary)"
    # The same bytes cut elsewhere are another text.
    assert corpus.digest != read([b"a" * 50, b"b" * 50, b"c" * 20, b"d" * 10], 8, 0.3).digest

    # Part of the data: what is held out is not trained on, by whatever name.
    (text / "0002").symlink_to(other)
    assert parts(read_corpus(str(text), 8, str(other))) == parts(corpus)
    shutil.copytree(other, text / "0003")
    assert parts(read_corpus(str(text), 8, str(text / "0003"))) == (
        b"a" * 50 + b"b" * 50 + b"c" * 20 + b"d" * 10,
        b"c" * 20 + b"d" * 10,
    )


@pytest.mark.parametrize(
    ("held_out", "seq_len", "message"),
    [
        ("", 8, "--held-out must name a file or a folder, got ''"),
        ("{}/nothing", 8, "cannot read {}/nothing: No such file or directory"),
        ("/dev/null", 8, "--held-out must be a file or a folder, /dev/null is neither"),
        ("{}/empty", 8, "no text in {}/empty: give --held-out a text file or a folder of them"),
        (
            "{}/0001",
            30,
            "{}/0001 has 30 bytes to hold out, --seq-len 30 needs 31: give more text or --seq-len 29 or less",
        ),
        (
            "{}/0001",
            80,
            "{}/0001 has 30 bytes to hold out, --seq-len 80 needs 81: give more text or --seq-len 29 or less",
        ),
        (
            "{}/0000",
            40,
            "{} has 30 bytes to train on, --seq-len 40 needs 41: give more text or --seq-len 29 or less",
        ),
        (
            "{}",
            8,
            "no text in {} that is not held out: give --data a text file or a folder of them",
        ),
    ],
)
def test_bad_text_to_hold_out_is_named(tmp_path, held_out, seq_len, message):
    write(tmp_path, [b"a" * 100, b"b" * 30])
    (tmp_path / "empty").mkdir()
    with pytest.raises(CommandError) as refused:
        read_corpus(str(tmp_path), seq_len, held_out.format(tmp_path))
    assert str(refused.value) == message.format(tmp_path)


def test_data_without_a_name_is_refused():
    with pytest.raises(CommandError, match=r"^--data must name a file or a folder, got ''$"):
        read_corpus("", 8)


def test_folder_order_hidden_and_binary_files(tmp_path):
    names = ["b/x", "a", "b/a", ".hidden", ".git/config", "c", "b-"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode() * 10)
    (tmp_path / "b" / "binary").write_bytes(b"text" + bytes(4))
    (tmp_path / "late-binary").write_bytes(b"x" * 3_500_000 + bytes(1))
    (tmp_path / "empty").touch()
    os.mkfifo(tmp_path / "pipe")
    text, source = read_text(str(tmp_path), 8)
    assert bytes(text[:].tolist()) == b"a" * 10 + b"b/a" * 10 + b"b/x" * 10 + b"b-" * 10 + b"c" * 10
    assert source == str(tmp_path)
    assert read_corpus(str(tmp_path), 1).num_files == 6


def test_what_is_skipped_is_named_and_stops_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = tmp_path / "text"
    (text / "sub").mkdir(parents=True)
    (text / "a.txt").write_bytes(b"a" * 100)
    corpus = read_corpus("text", 8)
    assert (corpus.skipped, corpus.skipped_in_words()) == ((), None)
    (text / "b.bin").write_bytes(bytes(9))
    (text / "sub" / "c").symlink_to("nowhere")
    assert read_corpus("text", 8).skipped_in_words() == "2 skipped: b.bin (binary), sub/c (dangling link)"
    os.mkfifo(text / "d")
    with socket.socket(socket.AF_UNIX) as made:
        made.bind("text/e")
    (text / "loop").symlink_to("loop")
    corpus = read_corpus("text", 8)
    assert parts(corpus) == (b"a" * 91, b"a" * 9)
    assert [(str(entry.path.relative_to(text)), entry.reason) for entry in corpus.skipped] == [
        ("b.bin", "binary"),
        ("d", "not a regular file"),
        ("e", "not a regular file"),
        ("loop", "Too many levels of symbolic links"),
        ("sub/c", "dangling link"),
    ]
    assert corpus.skipped_in_words() == (
        "5 skipped: b.bin (binary), d (not a regular file), e (not a regular file), ..."
    )
    (text / "a.txt").unlink()
    with pytest.raises(CommandError) as refused:
        read_corpus("text", 8)
    assert str(refused.value).startswith(f"no text in {text} (5 skipped: b.bin (binary), d ")


def test_unreadable_files_and_folders_are_skipped(tmp_path):
    """In a process of another user, because root may read everything."""
    if os.getuid() != 0:
        pytest.skip("needs root, to become another user")
    (tmp_path / "a.txt").write_bytes(b"a" * 100)
    (tmp_path / "b.txt").write_bytes(b"b" * 100)
    (tmp_path / "c").mkdir()
    for name in ("b.txt", "c"):
        (tmp_path / name).chmod(0)
    for folder in (tmp_path, *tmp_path.parents[:-2]):
        folder.chmod(folder.stat().st_mode | 0o055)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setuid(65534)
            corpus = read_corpus(str(tmp_path), 8)
            os.write(writer, f"{len(corpus.train)} {corpus.skipped_in_words()}".encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader, "rb") as answers:
        assert answers.read().decode() == "91 2 skipped: b.txt (Permission denied), c (Permission denied)"


def test_a_file_with_several_names_is_read_once(tmp_path):
    text, elsewhere = tmp_path / "text", tmp_path / "elsewhere"
    text.mkdir(), elsewhere.mkdir()
    write(text, [b"a" * 60])
    (text / "hard").hardlink_to(text / "0000")
    (text / "soft").symlink_to("0000")
    write(elsewhere, [b"b" * 60])
    (text / "folder").symlink_to(elsewhere)
    (text / "folder-again").symlink_to(elsewhere)
    (text / "outside").symlink_to(elsewhere / "0000")
    corpus = read_corpus(str(text), 8)
    assert corpus.num_files == 2
    assert corpus.skipped == ()
    assert sorted(b"".join(parts(corpus))) == sorted(b"a" * 60 + b"b" * 60)


def test_links_to_folders_are_followed_and_do_not_loop(tmp_path):
    text, elsewhere = tmp_path / "text", tmp_path / "elsewhere"
    (text / "sub").mkdir(parents=True), elsewhere.mkdir()
    write(text, [b"a" * 60])
    write(elsewhere, [b"b" * 60])
    (tmp_path / "private").write_bytes(b"c" * 60)
    (text / "sub" / "here").symlink_to(text)
    (text / "sub" / "linked").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(text / "sub")
    (text / "up").symlink_to("..")
    (text / "top").symlink_to(tmp_path.parent)
    corpus = read_corpus(str(text), 8)
    assert sorted(b"".join(parts(corpus))) == sorted(b"a" * 60 + b"b" * 60)
    assert corpus.skipped_in_words() == "2 skipped: top (link to a folder above), up (link to a folder above)"


def test_digest_tells_the_text_and_its_cut():
    contents = [bytes([index + 1]) * 50 for index in range(20)]
    digests = {
        read(contents, 8).digest,
        read([*contents[:-1], bytes([99]) * 50], 8).digest,
        read([*contents[:-2], contents[-2] + contents[-1]], 8).digest,
        read(contents, 60).digest,
        read(contents, 8, 0.2).digest,
    }
    assert len(digests) == 5
    assert read(contents, 8).digest == read(contents, 9).digest == read(contents, 9, 0.05).digest


def test_default_data_is_the_standard_library():
    corpus = read_corpus(None, 8192)
    train, held_out = parts(corpus)
    assert corpus.num_files > 100
    assert corpus.skipped == ()
    own = Path(os.__file__).read_bytes()
    start = train.index(own[: len(own) * 9 // 10])
    cut = next(at for at, byte in enumerate(own) if byte != train[start + at])
    assert own[cut:] in held_out
    assert abs(len(own) - cut - len(own) / 20) < 2
    assert len(held_out) == round((len(train) + len(held_out)) / 20)


@settings(max_examples=50)
@given(st.data(), st.lists(st.binary(max_size=50), min_size=1, max_size=12))
def test_text_that_stays_in_its_files_is_the_same(data, contents):
    text = b"".join(contents)
    start = data.draw(st.integers(0, len(text)))
    stop = data.draw(st.integers(start, len(text) + 3))
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), [b"<<" + content + b">" for content in contents])
        pieces = [
            Piece(Path(folder, f"{index:04}"), 2, 2 + len(content)) for index, content in enumerate(contents)
        ]
        files = FileText(pieces)
        assert len(files) == len(text)
        for window in (slice(start, stop), slice(None), slice(-3, None), slice(stop, start)):
            assert bytes(files[window].tolist()) == text[window]


def test_a_large_corpus_stays_in_its_files(tmp_path, monkeypatch):
    write(tmp_path, [os.urandom(3000).replace(b"\0", b"\1") for _ in range(9)])
    kept = read_corpus(str(tmp_path), 64, 0.2)
    monkeypatch.setattr(data_module, "_KEPT_IN_MEMORY", 10_000)
    left = read_corpus(str(tmp_path), 64, 0.2)
    assert isinstance(kept.train, torch.Tensor)
    assert isinstance(left.train, FileText)
    assert parts(left) == parts(kept)
    assert left.facts() == kept.facts()
    for step in range(20):
        batches = [batch_of_step(corpus.train, step, 3, 4, 64).tokens for corpus in (left, kept)]
        assert torch.equal(*batches)
        assert batches[0].dtype == torch.uint8
    windows = [evenly_spaced(corpus.held_out, 16, 64).tokens for corpus in (left, kept)]
    assert torch.equal(*windows)
    # Held out by its own, either may be the large one.
    (tmp_path / "0000").rename(tmp_path.parent / "small")
    corpus = read_corpus(str(tmp_path), 64, str(tmp_path.parent / "small"))
    assert isinstance(corpus.train, FileText)
    assert isinstance(corpus.held_out, torch.Tensor)


def test_a_file_that_changes_under_training_is_one_error(tmp_path, monkeypatch):
    monkeypatch.setattr(data_module, "_KEPT_IN_MEMORY", 0)
    file = tmp_path / "text"
    file.write_bytes(b"x" * 1000)
    corpus = read_corpus(str(file), 8)
    os.truncate(file, 500)
    assert batch_of_step(corpus.train[:500], 1, 0, 2, 8).tokens.shape == (2, 9)
    with pytest.raises(
        CommandError, match=f"^{file} has become shorter since it was read: start again$"
    ) as error:
        corpus.train[490:501]
    assert (error.value.of_one, error.value.status) == (True, 1)
    file.unlink()
    with pytest.raises(CommandError, match=f"^cannot read {file} any more: No such file or directory$"):
        corpus.train[:3]


def test_memory_does_not_grow_with_the_text(tmp_path, monkeypatch):
    monkeypatch.setattr(data_module, "_KEPT_IN_MEMORY", 1 << 20)
    monkeypatch.setattr(data_module, "_REPORT_READING_FROM", 1 << 25)
    said = []
    with (tmp_path / "large").open("wb") as file:
        file.truncate(1 << 26)
    tracemalloc.start()
    corpus = read_corpus(str(tmp_path / "large"), 4096, report=said.append)
    batch_of_step(corpus.train, 1, 0, 4, 4096)
    evenly_spaced(corpus.held_out, 16, 4096)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 22
    assert said == [f"reading 0.1 GB of {tmp_path / 'large'} ..."]


@pytest.mark.slow
def test_a_corpus_may_exceed_memory(tmp_path):
    with (tmp_path / "large").open("wb") as file:
        file.truncate(10**10)
        file.seek(9_990_000_000)
        file.write(b"the end")
    shape = (
        "--seq-len 64 --embed-dim 16 --num-layers 1 --num-heads 2 --device cpu --threads 1 --sample-bytes 8"
    )
    command = [
        *(
            sys.executable,
            "-c",
            "import sys; from dilated_attention_pytorch.cli import main; sys.exit(main())",
        ),
        *("train", "--data", "large", "--run", "x", "--steps", "3", *shape.split()),
    ]
    limit = 5_000_000 << 10
    done = subprocess.run(
        command,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "reading 10.0 GB of " in done.stdout
    assert "9,500,000,000 bytes to train on" in done.stdout


@settings(max_examples=50)
@given(
    st.integers(0, 2**63 - 1), st.integers(0, 10**9), st.integers(1, 5), st.integers(1, 50), st.integers(1, 9)
)
def test_batch_is_a_function_of_seed_and_step(seed, step, batch_size, extra, seq_len):
    text = torch.arange(seq_len + extra, dtype=torch.uint8)
    batch = batch_of_step(text, step, seed, batch_size, seq_len).tokens
    torch.rand(3)
    batch_of_step(text, step + 1, seed, batch_size, seq_len)
    assert torch.equal(batch, batch_of_step(text, step, seed, batch_size, seq_len).tokens)
    assert batch.shape == (batch_size, seq_len + 1)
    # In this text a byte is its own index, so each row must be consecutive and inside.
    assert torch.equal(batch, batch[:, :1] + torch.arange(seq_len + 1))
    assert int(batch.max()) < len(text)


def test_batches_are_those_of_earlier_versions():
    text = torch.arange(250, dtype=torch.uint8)
    assert batch_of_step(text, 7, 3, 4, 9).tokens[:, 0].tolist() == [222, 152, 56, 223]


def test_batches_differ_by_seed_and_step_and_reach_both_ends():
    text = torch.arange(20, dtype=torch.uint8)
    starts = [batch_of_step(text, step, 0, 4, 9).tokens[:, 0].tolist() for step in range(200)]
    assert {start for row in starts for start in row} == set(range(11))
    assert starts != [batch_of_step(text, step, 1, 4, 9).tokens[:, 0].tolist() for step in range(200)]
    assert len({tuple(row) for row in starts}) > 150


@given(st.integers(2, 300), st.integers(1, 20), st.integers(1, 299))
def test_held_out_windows_do_not_overlap(length, count, seq_len):
    seq_len = min(seq_len, length - 1)
    windows = evenly_spaced(torch.arange(length), count, seq_len).tokens
    assert windows.shape == (min(count, (length - 1) // seq_len), seq_len + 1)
    predicted = windows[:, 1:].flatten().tolist()
    assert len(set(predicted)) == len(predicted)
    assert torch.equal(windows, windows[:, :1] + torch.arange(seq_len + 1))
    if len(windows) > 1:
        assert (windows[0, 0], windows[-1, -1]) == (0, length - 1)
