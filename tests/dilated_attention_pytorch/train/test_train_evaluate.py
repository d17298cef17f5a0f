import json

import pytest
import torch

from dilated_attention_pytorch.models import LongNetConfig, LongNetLM
from dilated_attention_pytorch.train.checkpoint import load_checkpoint, save_checkpoint
from dilated_attention_pytorch.train.evaluate import bits_by_position, intervals
from dilated_attention_pytorch.train.weights import read_weights


def test_bits_by_position_are_those_of_the_definition():
    torch.manual_seed(0)
    model = LongNetLM(LongNetConfig(embed_dim=16, num_layers=1, num_heads=2))
    windows = torch.randint(256, (3, 21), dtype=torch.uint8)
    bits = bits_by_position(model, windows) / 3
    with torch.no_grad():
        probability = model(windows[:, :-1].long()).double().softmax(-1)
    expected = -probability.gather(-1, windows[:, 1:, None].long()).log2()[..., 0].mean(0)
    torch.testing.assert_close(bits, expected, rtol=1e-6, atol=1e-6)


def test_intervals_cover_each_position_once():
    assert intervals(64) == [(0, 64)]
    assert intervals(10) == [(0, 10)]
    assert intervals(1000) == [(0, 64), (64, 256), (256, 1000)]
    assert intervals(8192) == [(0, 64), (64, 256), (256, 1024), (1024, 4096), (4096, 8192)]


def test_evaluate_prints_what_training_measured(tiny_run, longnet):
    rows = [json.loads(line) for line in (tiny_run / "metrics.jsonl").read_text().splitlines()]
    for which in ("last", "best", "6"):
        status, out, err = longnet("evaluate", "tiny", "--checkpoint", which, "--windows", 2, "--json")
        assert (status, err) == (0, "")
        result = json.loads(out)
        assert result["step"] == 6
        assert result["contexts"] == 2
        assert result["bits_per_byte"] == pytest.approx(rows[-1]["val_bits_per_byte"], rel=1e-6)
    status, out, _ = longnet("evaluate", "tiny", "--windows", 2)
    assert status == 0
    assert f"{rows[-1]['val_bits_per_byte']:.3f} bits per byte" in out.splitlines()[-1]


def test_evaluate_on_other_text_and_context(tiny_run, longnet, tmp_path):
    (tmp_path / "a.txt").write_bytes(bytes(range(97, 123)) * 20)
    status, out, err = longnet("evaluate", "tiny", "--data", "a.txt", "--seq-len", 100, "--json")
    assert (status, err) == (0, "")
    result = json.loads(out)
    assert (result["contexts"], result["seq_len"]) == (5, 100)
    assert [(row["from"], row["to"]) for row in result["by_position"]] == [(0, 64), (64, 100)]
    checkpoint, weights = read_weights("tiny")
    model = LongNetLM(LongNetConfig(**checkpoint["model_config"]))
    model.load_state_dict(weights)
    text = torch.tensor(list((tmp_path / "a.txt").read_bytes()))
    windows = torch.stack([text[start : start + 101] for start in (0, 104, 209, 314, 419)])
    with torch.no_grad():
        probability = model(windows[:, :-1]).double().softmax(-1)
    bits = -probability.gather(-1, windows[:, 1:, None]).log2()[..., 0]
    assert result["bits_per_byte"] == pytest.approx(bits.mean().item(), rel=1e-6)
    assert result["by_position"][1]["bits_per_byte"] == pytest.approx(bits[:, 64:].mean().item(), rel=1e-6)


def test_the_text_must_be_the_one_that_was_held_out(tiny_run, text, longnet):
    status, out, _ = longnet("evaluate", "tiny", "--seq-len", 2000)
    assert (status, " contexts of 2,000 bytes of " in out) == (0, True)
    before = sum(path.stat().st_size for path in text.iterdir())
    (text / "json.py").unlink()
    now = sum(path.stat().st_size for path in text.iterdir())
    status, out, err = longnet("evaluate", "tiny")
    assert (status, out) == (2, "")
    assert err == (
        f"longnet evaluate: error: the text in {text} is not the one that runs/tiny was trained on ({now:,} "
        f"bytes now, {before:,} bytes then): to evaluate on all of it as it is now, give --data {text}\n"
    )
    assert longnet("evaluate", "tiny", "--data", text)[0] == 0


def test_weights_that_are_not_finite_are_a_failure(tiny_run, longnet):
    checkpoint = load_checkpoint(tiny_run / "checkpoint.pt")
    checkpoint["model"]["head.weight"][0, 0] = torch.nan
    save_checkpoint(tiny_run / "checkpoint.pt", checkpoint)
    status, out, err = longnet("evaluate", "tiny")
    assert (status, out) == (1, "")
    assert err == "longnet evaluate: error: the losses of runs/tiny/checkpoint.pt are not finite\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "no run nothing"),
        (["tiny", "--checkpoint", "7"], "runs/tiny has no checkpoint 7: it has last (step 6), best (step 6)"),
        (["tiny", "--windows", "0"], "--windows must be at least 1, got 0"),
        (["tiny", "--seq-len", "0"], "--seq-len must be at least 1, got 0"),
        (["tiny", "--data", "none.txt"], "cannot read "),
        (["tiny", "--device", "abacus"], "--device abacus cannot be used: "),
    ],
)
def test_evaluate_refuses(tiny_run, longnet, arguments, message):
    status, out, err = longnet("evaluate", *arguments)
    assert (status, out) == (2, "")
    assert err.startswith(f"longnet evaluate: error: {message}")
    assert err.count("\n") == 1
