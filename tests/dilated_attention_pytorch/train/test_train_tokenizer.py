import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import TINY

from dilated_attention_pytorch.cli import main
from dilated_attention_pytorch.models import LongNetConfig, LongNetLM
from dilated_attention_pytorch.train.checkpoint import load_checkpoint, save_checkpoint
from dilated_attention_pytorch.train.contexts import Contexts, batch_of_step, evenly_spaced
from dilated_attention_pytorch.train.data import beginning, num_bytes, read_corpus, read_text
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

    def of_targets(tokens):
        return [[in_bytes(token[None]) for token in row[1:]] for row in tokens]

    windows = evenly_spaced(corpus.held_out, 5, 8)
    assert windows.target_bytes.tolist() == of_targets(windows.tokens)
    tail = read_corpus(str(tmp_path / "a"), 8, 0.5, tokenizer=byte_level).held_out
    for step in range(10):
        batch = batch_of_step(tail, step, 0, 3, 8)
        assert batch.target_bytes.tolist() == of_targets(batch.tokens)
        assert batch.num_bytes == sum(map(sum, of_targets(batch.tokens)))
    text = torch.arange(100, dtype=torch.uint8)
    assert (batch_of_step(text, 0, 0, 3, 8).num_bytes, evenly_spaced(text, 5, 8).num_bytes) == (24, 40)
    # Of a character whose bytes are tokens, the later ones stand for none.
    assert Contexts(torch.ones(1, 3), torch.zeros(1, 2, dtype=torch.int32)).num_bytes == 1


def test_the_beginning_of_a_text_is_whole_characters(tmp_path, byte_level):
    content = "xé" * 20 + "𝄞" * 20
    (tmp_path / "a").write_text(content)
    text, _ = read_text(str(tmp_path / "a"), 8, tokenizer=byte_level)
    assert beginning(text).decode() == "xé" * 20 + "𝄞" * 10
    assert beginning(read_text(str(tmp_path / "a"), 8)[0]) == content.encode()[:100]


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
    assert str(refused.value) == "x.json needs tokenizers (pip install tokenizers)"


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
        "options": {"seq_len": 8, "tokenizer": "/elsewhere/bytes.json"},
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
    checkpoint = load_checkpoint(folder / "checkpoint.pt")
    assert tokenizer_of_run(folder, checkpoint).digest == byte_level.digest
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


@pytest.fixture
def trained(tmp_path, byte_level, longnet):
    """A finished run on tokens, which saw no more than its text; the first file is gone."""
    (tmp_path / "prose").write_text(TEXT * 2)
    (tmp_path / "bytes.json").write_bytes(byte_level.content)
    text = ["--data", "prose", "--held-out", 0.3, "--tokenizer", "bytes.json"]
    steps = ["--steps", 4, "--batch-size", 2, "--eval-every", 2, "--checkpoint-every", 2, "--keep", 2]
    status, out, err = longnet("train", *text, "--run", "tokens", *steps, *TINY)
    assert (status, err) == (0, "")
    (tmp_path / "bytes.json").rename(tmp_path / "moved.json")
    return tmp_path / "runs" / "tokens", out


def bits_per_byte(model, contexts):
    """Total bits of the targets over their bytes, from probabilities in float64."""
    with torch.no_grad():
        probability = model(contexts.tokens[:, :-1].long()).double().softmax(-1)
    bits = -probability.gather(-1, contexts.tokens[:, 1:, None].long()).log2()
    return bits.sum().item() / contexts.target_bytes.sum().item()


def test_a_run_on_tokens_is_measured_in_bits_per_byte(trained, byte_level, longnet):
    folder, out = trained
    corpus = read_corpus("prose", 64, 0.3, tokenizer=byte_level)
    assert f"{num_bytes(corpus.train):,} bytes in {len(corpus.train)} tokens to train on" in out
    assert f"context 64 of {byte_level.vocab_size} tokens" in out
    assert f"{folder.relative_to(Path.cwd())}: checkpoint.pt" in out
    assert "config.json, tokenizer.json, metrics.jsonl" in out
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["bytes"] for row in rows] == [
        batch_of_step(corpus.train, step, 0, 2, 64).num_bytes for step in (1, 2, 3, 4)
    ]
    assert rows[0]["bytes"] > 2 * 64
    torch.manual_seed(0)
    config = json.loads((folder / "config.json").read_text())["model_config"]
    assert config["vocab_size"] == byte_level.vocab_size
    untrained = bits_per_byte(LongNetLM(LongNetConfig(**config)), batch_of_step(corpus.train, 1, 0, 2, 64))
    assert rows[0]["train_bits_per_byte"] == pytest.approx(untrained, rel=1e-5)
    held_out = bits_per_byte(LongNetLM.load(folder), evenly_spaced(corpus.held_out, 2, 64))
    assert rows[-1]["val_bits_per_byte"] == pytest.approx(held_out, rel=1e-5)
    sample = (folder / "sample.txt").read_text()
    assert sample.startswith(beginning(corpus.held_out).decode())

    status, evaluated, err = longnet("evaluate", "tokens", "--windows", 2, "--json")
    assert (status, err) == (0, "")
    assert json.loads(evaluated)["bits_per_byte"] == pytest.approx(held_out, rel=1e-5)
    status, evaluated, err = longnet("evaluate", "tokens", "--seq-len", 100, "--data", "prose")
    assert (status, err) == (0, "")
    first, *lines, last = evaluated.splitlines()
    assert first.endswith(f"contexts of 100 tokens of {Path.cwd()}/prose")
    assert [line.split()[:4] for line in lines] == [
        ["tokens", "0", "to", "64"],
        ["tokens", "64", "to", "100"],
    ]
    whole, _ = read_text("prose", 100, tokenizer=byte_level)
    contexts = evenly_spaced(whole, 16, 100)
    model = LongNetLM.load(folder)
    assert last.split()[-4] == f"{bits_per_byte(model, contexts):.3f}"
    with torch.no_grad():
        logits = model(contexts.tokens[:, :-1].long()).transpose(1, 2)
        nats = torch.nn.functional.cross_entropy(logits, contexts.tokens[:, 1:].long(), reduction="none")
    late = nats[:, 64:].sum() / contexts.target_bytes[:, 64:].sum() / np.log(2)
    assert lines[1].split()[-4] == f"{late:.3f}"


@pytest.mark.parametrize("given", [[], ["--tokenizer", "moved.json"]])
def test_a_run_on_tokens_goes_on_with_its_own(trained, longnet, given):
    folder, _ = trained

    def rows():
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        return [{**json.loads(line), "tokens_per_s": None} for line in lines]

    before, weights = rows(), LongNetLM.load(folder).state_dict()
    status, out, err = longnet("train", "--resume", folder, "--checkpoint", 2, *given)
    assert (status, err) == (0, "")
    assert "from step" not in out
    assert rows() == before
    torch.testing.assert_close(LongNetLM.load(folder).state_dict(), weights, rtol=0, atol=0)


def test_another_tokenizer_is_refused(trained, tiny_run, byte_level, words, tmp_path, longnet):
    folder, _ = trained
    (tmp_path / "words.json").write_bytes(words.content)
    own = folder / "tokenizer.json"
    for verb in ("--resume", "--init-from"):
        for named in ("words.json", "bytes"):
            status, out, err = longnet("train", verb, folder, "--tokenizer", named)
            assert (status, out) == (2, "")
            assert err == (
                f"longnet train: error: --tokenizer {named} contradicts {folder}, whose model has "
                f"--tokenizer {own}: leave it out, or start a new run\n"
            )
        status, out, err = longnet("train", verb, "tiny", "--tokenizer", "words.json")
        assert (status, out) == (2, "")
        assert "contradicts runs/tiny, whose model has --tokenizer bytes: leave it out" in err
    own.write_bytes(words.content)
    for command in (["train", "--resume"], ["evaluate"], ["generate", "--prompt", "x"]):
        status, out, err = longnet(*command, folder)
        assert (status, out) == (2, "")
        assert f"{own} has {words.vocab_size} tokens, the model of {folder} {byte_level.vocab_size}: " in err
    own.unlink()
    status, out, err = longnet("generate", folder, "--prompt", "x")
    assert (status, out) == (2, "")
    assert err == f"longnet generate: error: cannot read {own}: No such file or directory\n"


def test_the_weights_of_a_run_on_tokens_start_another(trained, byte_level, tmp_path, longnet):
    folder, _ = trained
    (tmp_path / "other").write_text(TEXT[60:] * 2)
    arguments = ["--init-from", folder, "--data", "other", "--held-out", 0.3, "--run", "tuned", "--steps", 1]
    status, _, err = longnet("train", *arguments, "--device", "cpu", "--threads", 1, "--sample-bytes", 8)
    assert (status, err) == (0, "")
    assert (tmp_path / "runs" / "tuned" / "tokenizer.json").read_bytes() == byte_level.content
    (row,) = map(json.loads, (tmp_path / "runs" / "tuned" / "metrics.jsonl").read_text().splitlines())
    corpus = read_corpus("other", 64, 0.3, tokenizer=byte_level)
    expected = bits_per_byte(LongNetLM.load(folder), batch_of_step(corpus.train, 1, 0, 1, 64))
    assert row["train_bits_per_byte"] == pytest.approx(expected, rel=1e-5)
