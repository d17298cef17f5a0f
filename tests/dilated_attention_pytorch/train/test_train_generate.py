import io
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dilated_attention_pytorch.models import LongNetLM
from dilated_attention_pytorch.train.checkpoint import load_checkpoint, save_checkpoint
from dilated_attention_pytorch.train.weights import load_model


def test_generate(tiny_run, longnet):
    def generate(*arguments):
        status, out, err = longnet("generate", "runs/tiny", "--prompt", "def ", *arguments)
        assert (status, err) == (0, "")
        return out

    out = generate("--bytes", 30, "--seed", 3)
    assert out == generate("--bytes", 30, "--seed", 3)
    assert out != generate("--bytes", 30, "--seed", 4)
    result = json.loads(generate("--bytes", 30, "--seed", 3, "--json"))
    assert result == {
        "checkpoint": "runs/tiny/checkpoint.pt",
        "step": 6,
        "prompt": "def ",
        "continuation": out[:-1],
    }
    model, _ = load_model(tiny_run / "checkpoint.pt", torch.device("cpu"))
    tokens = model.generate(torch.tensor([list(b"def ")]), 30, temperature=0.8, seed=3)
    assert out[:-1] == bytes(tokens[0, 4:].tolist()).decode(errors="replace")
    assert generate("--temperature", 0, "--bytes", 5) == generate("--top-k", 1, "--seed", 9, "--bytes", 5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tiny", "--prompt", ""], "--prompt must have at least one byte, got none"),
        (
            ["tiny", "--prompt-file", "/dev/null"],
            "--prompt-file /dev/null must have at least one byte, got none",
        ),
        (
            ["tiny", "--prompt-file", "nothing"],
            "cannot read --prompt-file nothing: No such file or directory",
        ),
        (["tiny", "--prompt-file", "."], "cannot read --prompt-file .: Is a directory"),
        (
            ["tiny", "--prompt", "a", "--prompt-file", "b"],
            "argument --prompt-file: not allowed with argument",
        ),
        (
            ["tiny", "--prompt", "a", "--checkpoint", "3"],
            "runs/tiny has no checkpoint 3: it has last (step 6), best (step 6)",
        ),
        (["tiny", "--prompt", "a", "--bytes", "0"], "--bytes must be at least 1, got 0"),
        (
            ["tiny", "--prompt", "a", "--temperature", "-1"],
            "--temperature must be at least 0 and finite, got -1.0",
        ),
        (["tiny", "--prompt", "a", "--top-k", "0"], "--top-k must be at least 1, got 0"),
        (["tiny", "--prompt", "a", "--seed", "-1"], "--seed must be at least 0 and below 2**63, got -1"),
        (["nothing", "--prompt", "a"], "no run nothing"),
        (["tiny"], "one of the arguments --prompt --prompt-file is required"),
    ],
)
def test_generate_refuses(tiny_run, longnet, arguments, message):
    status, out, err = longnet("generate", *arguments)
    assert (status, out) == (2, "")
    assert err.startswith(f"longnet generate: error: {message}")
    assert err.count("\n") == 1


@pytest.fixture
def drawn(monkeypatch):
    """Make the model draw given bytes; an exception among them is raised."""

    def draw(*pieces):
        def stream(self, tokens, max_new_tokens, **keywords):
            for piece in pieces:
                if isinstance(piece, BaseException):
                    raise piece
                yield torch.tensor([piece])

        monkeypatch.setattr(LongNetLM, "stream", stream)

    return draw


def test_the_prompt_may_be_a_file_or_standard_input(tiny_run, longnet, monkeypatch):
    Path("prompt").write_bytes(b"def \xff\0")
    result = json.loads(longnet("generate", "tiny", "--prompt-file", "prompt", "--bytes", 9, "--json")[1])
    assert result["prompt"] == "def \ufffd\0"
    model, _ = load_model(tiny_run / "checkpoint.pt", torch.device("cpu"))
    tokens = model.generate(torch.tensor([list(b"def \xff\0")]), 9, temperature=0.8, seed=0)
    assert result["continuation"] == bytes(tokens[0, 6:].tolist()).decode(errors="replace")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"def \xff\0")))
    out = longnet("generate", "tiny", "--prompt-file", "-", "--bytes", 9)[1]
    assert out == result["continuation"] + "\n"
    monkeypatch.setattr(sys, "stdin", None)
    assert longnet("generate", "tiny", "--prompt-file", "-") == (
        2,
        "",
        "longnet generate: error: --prompt-file -: standard input is closed\n",
    )


def test_a_prompt_longer_than_the_trained_context_is_noted(tiny_run, longnet):
    Path("prompt").write_bytes(b"x" * 64)
    assert longnet("generate", "tiny", "--prompt-file", "prompt", "--bytes", 1)[2] == ""
    Path("prompt").write_bytes(b"x" * 300_000)
    status, out, err = longnet("generate", "tiny", "--prompt-file", "prompt", "--bytes", 1)
    assert (status, len(out)) == (0, 2)
    assert err == (
        "longnet generate: note: the prompt has 300,000 bytes, the model was trained on contexts of 64\n"
    )


def test_bytes_are_printed_as_they_are_drawn(tiny_run, longnet, drawn, monkeypatch):
    flushed = []

    class Output(io.StringIO):
        def flush(self):
            if flushed[-1:] != [self.getvalue()]:
                flushed.append(self.getvalue())

    clef = "aé\U0001d11e"
    drawn(*clef.encode(), *b"\xe2\x82b\xc3")
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", Output())
        assert longnet("generate", "tiny", "--prompt", "x")[0] == 0
    assert flushed == ["a", "aé", clef, clef + "\ufffdb", clef + "\ufffdb\ufffd\n"]


def test_ctrl_c_keeps_what_was_printed(tiny_run, longnet, drawn):
    drawn(*b"ab\xc3", KeyboardInterrupt())
    interrupted = "longnet generate: interrupted\n"
    assert longnet("generate", "tiny", "--prompt", "x") == (130, "ab\ufffd\n", interrupted)
    assert longnet("generate", "tiny", "--prompt", "x", "--json") == (130, "", interrupted)


GENERATE = [
    *(sys.executable, "-c", "import sys; from dilated_attention_pytorch.cli import main; sys.exit(main())"),
    *("generate", "tiny", "--prompt", "x", "--device", "cpu", "--bytes", "100K"),
]


def test_a_real_ctrl_c_and_a_reader_that_goes_away(tiny_run):
    started = [subprocess.Popen(GENERATE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)]
    interrupted, piped = started
    try:
        for process in started:
            assert process.stdout.read(1)
        interrupted.send_signal(signal.SIGINT)
        piped.stdout.close()
        out, err = interrupted.communicate(timeout=60)
        assert (interrupted.returncode, out[-1:], err) == (130, b"\n", b"longnet generate: interrupted\n")
        assert piped.wait(timeout=60) == 141
        assert piped.stderr.read() == b""
    finally:
        for process in started:
            process.kill()
            process.communicate()


def test_weights_that_are_not_finite_are_one_line(tiny_run, longnet):
    path = tiny_run / "checkpoint.pt"
    checkpoint = load_checkpoint(path)
    checkpoint["model"]["head.weight"][:] = math.nan
    path.unlink()
    save_checkpoint(
        path, {name: checkpoint[name] for name in checkpoint if name not in ("format", "version")}
    )
    for temperature in (0, 1):
        assert longnet("generate", "tiny", "--prompt", "x", "--temperature", temperature) == (
            1,
            "",
            "longnet generate: error: the logits are not finite\n",
        )


def test_which_checkpoint_is_asked_for(tiny_run, longnet):
    best = load_checkpoint(tiny_run / "best.pt")
    best["model"]["head.weight"][:] = 0
    os.unlink(tiny_run / "best.pt")
    save_checkpoint(tiny_run / "best.pt", {name: best[name] for name in best if name != "format"})
    results = [
        json.loads(
            longnet("generate", "tiny", "--prompt", "x", "--checkpoint", which, "--bytes", 5, "--json")[1]
        )
        for which in ("last", "best")
    ]
    assert [result["checkpoint"] for result in results] == ["runs/tiny/checkpoint.pt", "runs/tiny/best.pt"]
    assert results[0]["continuation"] != results[1]["continuation"]
