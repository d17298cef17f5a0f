import itertools
import json
import sys

import numpy as np
import pytest
import torch

from dilated_attention_pytorch.cli import main
from dilated_attention_pytorch.models import LongNetConfig, LongNetLM
from dilated_attention_pytorch.train.checkpoint import save_checkpoint
from dilated_attention_pytorch.train.data import (
    batch_of_step,
    bytes_of_step,
    bytes_of_windows,
    held_out_windows,
    num_bytes,
    read_corpus,
    read_text,
)
from dilated_attention_pytorch.train.errors import CommandError
from dilated_attention_pytorch.train.generate import continue_bytes, draw_bytes
from dilated_attention_pytorch.train.text_files import decoded
from dilated_attention_pytorch.train.tokenizer import Tokenizer, load_tokenizer, tokenizer_of_run

tokenizers = pytest.importorskip("tokenizers")

TEXT = "naïve café „quoted“ 𝄞 clef\n" * 3 + "the cat sat on the mat, the dog on the log\n" * 40


def json_of(rules, trainer, text):
    rules.train_from_iterator([text], trainer)
    # As saved by those who used them to train a model: the text of a run is neither cut nor filled up.
    rules.enable_truncation(8)
    rules.enable_padding(length=50)
    return rules.to_str().encode()


@pytest.fixture(scope="module")
def byte_level():
    """Byte-level BPE, as GPT-2's; of the characters beyond ASCII it has the bytes only."""
    rules = tokenizers.Tokenizer(tokenizers.models.BPE())
    rules.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    rules.decoder = tokenizers.decoders.ByteLevel()
    rules.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<s>"],
        show_progress=False,
    )
    return Tokenizer(json_of(rules, trainer, TEXT[100:]), "bytes.json")


@pytest.fixture(scope="module")
def words():
    """Parts of lower-case words, without spaces; what is unknown is one token."""
    rules = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    rules.normalizer = tokenizers.normalizers.Lowercase()
    rules.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    rules.decoder = tokenizers.decoders.WordPiece()
    trainer = tokenizers.trainers.WordPieceTrainer(
        vocab_size=90, special_tokens=["[UNK]"], show_progress=False
    )
    return Tokenizer(json_of(rules, trainer, TEXT), "words.json")


def pieces_by_offsets(rules, text):
    """Ids, and for each the text from the end of the token before."""
    encoding = rules.encode(text, add_special_tokens=False)
    ends = list(itertools.accumulate((end for _, end in encoding.offsets), max))
    ends[-1] = len(text)
    return encoding.ids, [text[start:end] for start, end in itertools.pairwise([0, *ends])]


@pytest.mark.parametrize("text", ["", "a", TEXT, "  ", "𝄞", "Große Straße „\u4f60\u597d“ \n\n x"])
def test_ids_and_the_bytes_they_stand_for(byte_level, words, text):
    for tokenizer in (byte_level, words):
        rules = tokenizers.Tokenizer.from_str(tokenizer.content.decode())
        rules.no_truncation()
        rules.no_padding()
        ids, sizes = tokenizer.encode(text)
        if not text.strip():
            assert len(ids) == len(sizes) == (len(text) if tokenizer is byte_level else 0)
            continue
        expected, pieces = pieces_by_offsets(rules, text)
        assert ids.tolist() == expected
        assert sizes.tolist() == [len(piece.encode()) for piece in pieces]
        assert sizes.sum() == len(text.encode())
        assert max(ids) < tokenizer.vocab_size == rules.get_vocab_size()
        if tokenizer is byte_level:
            # A letter of its alphabet is a byte; a character of several bytes counts with its first token.
            difference = sizes.cumsum() - np.cumsum([len(rules.id_to_token(id)) for id in ids])
            assert ((difference >= 0) & (difference <= 3)).all()


def test_what_is_decoded_is_the_text_in_whole_characters(byte_level):
    ids, _ = byte_level.encode(TEXT)
    before = byte_level.encode("é")[0].tolist()
    pieces = list(byte_level.decode(before, ids.tolist()))
    assert len(pieces) == len(ids)
    assert "".join(pieces) == TEXT
    assert {"", "é", "𝄞", "the"} < set(pieces)


def test_what_is_decoded_goes_on_from_what_was_before(words):
    the, cat = (words.encode(word)[0].tolist() for word in ("the", "cat"))
    assert "".join(words.decode([], [*the, *cat])) == "the cat"
    assert "".join(words.decode(the, cat)) == " cat"


def test_a_corpus_of_tokens_is_cut_where_bytes_are(tmp_path, byte_level):
    (tmp_path / "a").write_text(TEXT)
    (tmp_path / "b").write_text("é" * 301)
    (tmp_path / "c").write_bytes("é".encode("latin-1") * 100)
    of_bytes = read_corpus(str(tmp_path), 8, 0.1)
    corpus = read_corpus(str(tmp_path), 8, 0.1, tokenizer=byte_level)
    assert corpus.skipped_in_words() == "1 skipped: c (not UTF-8)"
    text = (TEXT + "é" * 301).encode()
    whole = {}
    for name in ("train", "held_out"):
        ids = getattr(corpus, name)[:].tolist()
        whole[name] = "".join(byte_level.decode([], ids)).encode()
        assert num_bytes(getattr(corpus, name)) == len(whole[name])
    # Of the é that the cut divides nothing is left.
    held_out = len(text) // 10
    of_a = len(TEXT.encode()) * held_out // len(text)
    of_b = held_out - of_a
    assert of_b % 2 == 1
    assert whole["train"] == TEXT.encode()[:-of_a] + "é".encode() * ((602 - of_b) // 2)
    assert whole["held_out"] == TEXT.encode()[-of_a:] + "é".encode() * (of_b // 2)
    assert corpus.held_out[:].dtype == torch.int32
    assert corpus.digest != of_bytes.digest
    other = Tokenizer(byte_level.content + b" ", "other")
    assert corpus.digest != read_corpus(str(tmp_path), 8, 0.1, tokenizer=other).digest


def test_bytes_of_batches_and_windows_are_those_of_their_targets(tmp_path, byte_level):
    (tmp_path / "a").write_text(TEXT)
    corpus = read_corpus(str(tmp_path / "a"), 8, 0.2, tokenizer=byte_level)

    def in_bytes(ids):
        # In this text no token ends within a character but those of the accents and the clef.
        return len("".join(byte_level.decode([], ids.tolist())).encode())

    windows = held_out_windows(corpus.held_out, 5, 8)
    assert bytes_of_windows(corpus.held_out, 5, 8) == sum(in_bytes(window[1:]) for window in windows)
    tail = read_corpus(str(tmp_path / "a"), 8, 0.5, tokenizer=byte_level).held_out
    for step in range(10):
        batch = batch_of_step(tail, step, 0, 3, 8)
        assert batch.dtype == torch.int64
        assert bytes_of_step(tail, step, 0, 3, 8) == sum(in_bytes(row[1:]) for row in batch)
    text = torch.arange(100, dtype=torch.uint8)
    assert (bytes_of_step(text, 0, 0, 3, 8), bytes_of_windows(text, 5, 8)) == (24, 40)


def test_text_is_read_in_parts_that_end_with_a_line(byte_level):
    line = "é𝄞".encode() * 9_000 + b"\n"
    content = b"\x9d\x84" + line * 40 + b"end" + "𝄞".encode()[:3]
    parts = list(decoded(torch.frombuffer(bytearray(content), dtype=torch.uint8)))
    assert len(parts) > 2
    assert all(part.endswith("\n") for part in parts[:-1])
    assert "".join(parts) == line.decode() * 40 + "end"
    without_lines = torch.full((3 << 20,), ord("x"), dtype=torch.uint8)
    assert [len(part) for part in decoded(without_lines)] == [1 << 20] * 3


def test_too_few_tokens_are_refused(tmp_path, byte_level):
    (tmp_path / "a").write_text("the cat sat on the mat, " * 20)
    with pytest.raises(CommandError) as refused:
        read_corpus(str(tmp_path), 40, 0.2, tokenizer=byte_level)
    held_out = len(byte_level.encode(("the cat sat on the mat, " * 20)[-96:])[0])
    assert str(refused.value) == (
        f"{tmp_path} has {held_out} tokens to hold out, --seq-len 40 needs 41: "
        f"give more text or --seq-len {held_out - 1} or less"
    )
    text, _ = read_text(str(tmp_path), 8, tokenizer=byte_level)
    assert num_bytes(text) == 480
    (tmp_path / "latin").write_bytes("é".encode("latin-1") * 100)
    with pytest.raises(CommandError, match=f"^cannot read {tmp_path}/latin: not UTF-8$"):
        read_corpus(str(tmp_path / "latin"), 8, tokenizer=byte_level)


def test_a_file_that_is_none_and_a_library_that_is_missing(tmp_path, words, monkeypatch):
    with pytest.raises(CommandError, match=r"^cannot read --tokenizer nothing: No such file or directory$"):
        load_tokenizer("nothing")
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(CommandError, match=r"bad.json is not a file of the tokenizers library: "):
        load_tokenizer(str(tmp_path / "bad.json"))
    (tmp_path / "bad.json").write_bytes(b"\xff")
    with pytest.raises(CommandError, match=r"bad.json is not a file of the tokenizers library: "):
        load_tokenizer(str(tmp_path / "bad.json"))
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(CommandError) as refused:
        Tokenizer(words.content, "x.json")
    assert str(refused.value) == "--tokenizer x.json needs tokenizers (pip install tokenizers)"


@pytest.fixture
def token_run(tmp_path, byte_level):
    """The folder of a run on tokens, as it is before the first step."""
    folder = tmp_path / "run"
    folder.mkdir()
    torch.manual_seed(0)
    config = LongNetConfig(vocab_size=byte_level.vocab_size, embed_dim=16, num_layers=1, num_heads=2)
    model = LongNetLM(config)
    checkpoint = {
        "step": 0,
        "options": {"seq_len": 8},
        "model_config": {
            "vocab_size": byte_level.vocab_size,
            "embed_dim": 16,
            "num_layers": 1,
            "num_heads": 2,
        },
        "data": {},
        "rng": {},
        "model": model.state_dict(),
        "optimizer": {},
    }
    save_checkpoint(folder / "checkpoint.pt", checkpoint)
    byte_level.save(folder)
    return folder, model


def test_generation_with_the_tokenizer_of_the_run(token_run, byte_level, capsys):
    folder, model = token_run
    assert tokenizer_of_run(folder).digest == byte_level.digest
    prompt = "the café, ".encode()
    ids = byte_level.encode(prompt.decode())[0].tolist()
    expected = model.generate(torch.tensor([ids]), 60, temperature=0.8, seed=3)[0, len(ids) :].tolist()
    sampling = {"temperature": 0.8, "top_k": None, "seed": 3, "tokenizer": byte_level}
    pieces = list(draw_bytes(model, prompt, 60, **sampling))
    drawn = b"".join(pieces)
    assert len(drawn) - len(pieces[-1]) < 60 <= len(drawn) or len(pieces) == 60
    assert drawn == "".join(byte_level.decode(ids, expected[: len(pieces)])).encode()
    assert continue_bytes(model, prompt, 60, **sampling) == drawn

    arguments = ["generate", str(folder), "--prompt", prompt.decode(), "--bytes", "60", "--seed", "3"]
    assert main([*arguments, "--device", "cpu"]) == 0
    out, err = capsys.readouterr()
    assert out == drawn.decode() + "\n"
    note = f"the prompt has {len(ids)} tokens, the model was trained on contexts of 8\n"
    assert err == (f"longnet generate: note: {note}" if len(ids) > 8 else "")
    assert main([*arguments, "--device", "cpu", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["continuation"] == drawn.decode()


def test_a_prompt_without_tokens_is_refused(words):
    model = LongNetLM(LongNetConfig(vocab_size=words.vocab_size, embed_dim=16, num_layers=1, num_heads=2))
    with pytest.raises(CommandError, match=r"^the prompt must have at least one token, got none$"):
        next(draw_bytes(model, b"  ", 5, temperature=0, top_k=None, seed=0, tokenizer=words))
