import io
import json
import math
import os
import resource
import shutil
import sys
from pathlib import Path

import pytest
import torch
from tiny import TINY

from dilated_attention_pytorch.models import LongNetConfig, LongNetLM
from dilated_attention_pytorch.train import setup
from dilated_attention_pytorch.train.checkpoint import load_checkpoint, save_checkpoint
from dilated_attention_pytorch.train.contexts import Contexts, batch_of_step, evenly_spaced
from dilated_attention_pytorch.train.data import read_corpus
from dilated_attention_pytorch.train.loop import evaluate, make_optimizer
from dilated_attention_pytorch.train.metrics import append_row, complete_rows, lock_metrics
from dilated_attention_pytorch.train.options import TrainOptions
from dilated_attention_pytorch.train.progress import say


def rows_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def without_speed(rows):
    return [{name: value for name, value in row.items() if name != "tokens_per_s"} for row in rows]


def weights_of(folder):
    return load_checkpoint(folder / "checkpoint.pt")["model"]


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_run_folder(text, longnet):
    options = ("--steps", 7, "--eval-every", 3, "--prompt", "def é", "--sample-bytes", 20)
    status, out, err = longnet("train", "--data", text, "--run", "x", *TINY, *options)
    folder = Path("runs/x")
    assert (status, err) == (0, "")
    assert sorted(os.listdir(folder)) == [
        "best.pt",
        "checkpoint.pt",
        "config.json",
        "loss.png",
        "metrics.jsonl",
        "sample.txt",
    ]
    rows = rows_of(folder)
    always = {"step", "bytes", "train_bits_per_byte", "tokens_per_s", "learning_rate"}
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6, 7]
    for row in rows:
        evaluated = {"val_bits_per_byte"} if row["step"] in (3, 6, 7) else set()
        assert set(row) == always | evaluated
        assert all(math.isfinite(value) and value > 0 for value in row.values())
    assert f"held out: {rows[-1]['val_bits_per_byte']:.3f} bits per byte" in out
    assert "longnet generate runs/x --prompt" in out

    config = json.loads((folder / "config.json").read_text())
    checkpoint = load_checkpoint(folder / "checkpoint.pt")
    assert checkpoint["step"] == 7
    for name in ("options", "model_config", "data"):
        assert config[name] == json.loads(json.dumps(checkpoint[name]))
    assert config["options"]["data"] == str(text)
    assert LongNetConfig(**config["model_config"]) == LongNetConfig(**checkpoint["model_config"])

    png = (folder / "loss.png").read_bytes()
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = (int.from_bytes(png[at : at + 4], "big") for at in (16, 20))
    assert width >= 800
    assert height >= 500

    model = LongNetLM(LongNetConfig(**checkpoint["model_config"]))
    model.load_state_dict(checkpoint["model"])
    prompt = "def é".encode()
    generated = model.generate(torch.tensor([list(prompt)]), 20, temperature=0.8, seed=0)
    sample = bytes(generated[0].tolist()).decode(errors="replace")
    assert (folder / "sample.txt").read_bytes().decode() == sample
    assert sample.startswith("def é")


def test_bits_per_byte_are_those_of_the_definition(text, longnet):
    options = ("--steps", 2, "--batch-size", 3, "--eval-windows", 4, "--eval-every", 1, "--seed", 5)
    status, _, _ = longnet("train", "--data", text, "--run", "x", *TINY, *options)
    assert status == 0
    first, last = rows_of(Path("runs/x"))
    checkpoint = load_checkpoint(Path("runs/x/checkpoint.pt"))
    corpus = read_corpus(str(text), 64)

    def bits(model, tokens):
        with torch.no_grad():
            probabilities = model.double()(tokens[:, :-1]).softmax(-1)
        return -probabilities.gather(-1, tokens[:, 1:, None]).log2().mean().item()

    torch.manual_seed(5)
    model = LongNetLM(LongNetConfig(**checkpoint["model_config"]))
    batch = batch_of_step(corpus.train, 1, 5, 3, 64).tokens.long()
    assert first["train_bits_per_byte"] == pytest.approx(bits(model, batch), rel=1e-6)
    model.load_state_dict(checkpoint["model"])
    windows = evenly_spaced(corpus.held_out, 4, 64).tokens.long()
    assert last["val_bits_per_byte"] == pytest.approx(bits(model, windows), rel=1e-6)


def test_evaluation_in_uneven_batches_is_the_mean_over_all(text):
    torch.manual_seed(0)
    model = LongNetLM(LongNetConfig(embed_dim=16, num_layers=1, num_heads=2))
    windows = evenly_spaced(read_corpus(str(text), 64).held_out, 5, 64)
    each = [
        evaluate(model, Contexts(*(part[i : i + 1] for part in windows)), TrainOptions()) for i in range(5)
    ]
    together = evaluate(model, windows, TrainOptions(batch_size=2))
    assert together == pytest.approx(sum(each) / 5, rel=1e-6)
    assert model.training


def test_loss_falls_on_real_text(text, longnet):
    shape = ("--embed-dim", 64, "--num-layers", 1, "--num-heads", 4, "--seq-len", 128, "--batch-size", 4)
    others = ("--threads", 1, "--device", "cpu", "--sample-bytes", 0, "--lr", "1e-2", "--steps", 150)
    status, _, err = longnet("train", "--data", text, "--run", "x", *shape, *others, "--eval-every", 75)
    assert (status, err) == (0, "")
    corpus = read_corpus(str(text), 128)
    frequency = torch.bincount(corpus.train.int(), minlength=256).double() + 1
    targets = evenly_spaced(corpus.held_out, 16, 128).tokens[:, 1:].long()
    by_frequency = -(frequency / frequency.sum()).log2()[targets].mean().item()
    rows = rows_of(Path("runs/x"))
    assert 7 < rows[0]["train_bits_per_byte"] < 10
    assert rows[-1]["val_bits_per_byte"] < rows[74]["val_bits_per_byte"] < by_frequency
    assert rows[-1]["val_bits_per_byte"] < by_frequency - 0.5
    assert not Path("runs/x/sample.txt").exists()


def test_only_matrices_decay():
    model = LongNetLM(LongNetConfig(embed_dim=16, num_layers=1, num_heads=2))
    decayed, kept = make_optimizer(model, TrainOptions(weight_decay=0.5)).param_groups
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.5, 0.0)
    assert {p.dim() for p in decayed["params"]} == {2}
    assert {p.dim() for p in kept["params"]} == {1}


def test_bfloat16_trains(text, longnet):
    options = ("--dtype", "bfloat16", "--steps", 3)
    status, _, err = longnet("train", "--data", text, "--run", "x", *TINY, *options)
    assert (status, err) == (0, "")
    assert {weight.dtype for weight in weights_of(Path("runs/x")).values()} == {torch.float32}


def test_recomputed_in_parts_and_shown_on_tensorboard(text, longnet):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    options = ("--data", text, *TINY, "--steps", 4, "--batch-size", 4, "--eval-every", 2)
    assert longnet("train", *options, "--run", "plain")[0] == 0
    ways = ("--recompute", "--grad-accumulation", 2, "--tensorboard")
    status, _, err = longnet("train", *options, "--run", "x", *ways)
    assert (status, err) == (0, "")
    rows, expected = rows_of(Path("runs/x")), rows_of(Path("runs/plain"))
    for name in ("train_bits_per_byte", "val_bits_per_byte"):
        values = [row[name] for row in rows if name in row]
        assert values == pytest.approx([row[name] for row in expected if name in row], rel=1e-5)
    shown = EventAccumulator("runs/x/tensorboard").Reload()
    assert [x.step for x in shown.Scalars("val_bits_per_byte")] == [2, 4]
    assert [x.value for x in shown.Scalars("train_bits_per_byte")] == pytest.approx(
        [row["train_bits_per_byte"] for row in rows], rel=1e-6
    )


def test_float16_on_a_cpu_is_one_line_and_makes_no_run(text, longnet):
    status, out, err = longnet("train", "--data", text, *TINY, "--run", "x", "--dtype", "float16")
    assert (status, out) == (2, "")
    assert err.startswith("longnet train: error: --dtype float16 needs CUDA: ")
    assert err.count("\n") == 1
    assert not Path("runs").exists()


def test_not_finite_loss_stops_with_the_last_checkpoint(text, longnet):
    options = ("--steps", 50, "--lr", "1e30", "--warmup-steps", 0)
    status, _, err = longnet("train", "--data", text, "--run", "x", *TINY, *options)
    assert status == 1
    assert err.startswith("longnet train: error: not finite at step 2: loss nan, ")
    assert "the last good checkpoint is of step 0, runs/x/checkpoint.pt" in err
    assert err.count("\n") == 1
    assert [row["step"] for row in rows_of(Path("runs/x"))] == [1]
    assert load_checkpoint(Path("runs/x/checkpoint.pt"))["step"] == 0


def test_out_of_memory_is_one_line(text, longnet):
    options = ("--embed-dim", 10**9, "--num-heads", 1, "--ffn-dim", 1)
    status, _, err = longnet("train", "--data", text, "--run", "x", "--device", "cpu", *options)
    assert status == 1
    assert err.startswith("longnet train: error: out of memory with --seq-len 8192 ")
    assert err.count("\n") == 1


def test_full_disk_keeps_the_last_checkpoint_and_the_run_goes_on_later(text, longnet):
    options = ("--steps", 6, "--checkpoint-every", 3)
    longnet("train", "--data", text, "--run", "whole", *TINY, *options)
    first = Path("runs/whole/checkpoint.pt").stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The optimizer's state triples a checkpoint, so the first one fits and the second does not.
    resource.setrlimit(resource.RLIMIT_FSIZE, (first * 2 // 3, hard))
    try:
        status, _, err = longnet("train", "--data", text, "--run", "x", *TINY, *options)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert status == 2
    assert err == (
        "longnet train: error: cannot write to runs/x: File too large; the checkpoint of step 0 is whole: "
        "longnet train --resume runs/x\n"
    )
    assert sorted(os.listdir("runs/x")) == ["checkpoint.pt", "config.json", "metrics.jsonl"]
    assert load_checkpoint(Path("runs/x/checkpoint.pt"))["step"] == 0
    status, _, err = longnet("train", "--resume", "runs/x")
    assert (status, err) == (0, "")
    assert same(weights_of(Path("runs/x")), weights_of(Path("runs/whole")))
    assert without_speed(rows_of(Path("runs/x"))) == without_speed(rows_of(Path("runs/whole")))


def missing(folder):
    return folder / "nothing"


def empty_folder(folder):
    (folder / "empty").mkdir()
    return folder / "empty"


def only_binary(folder):
    (folder / "binary").mkdir()
    (folder / "binary" / "a.bin").write_bytes(bytes(1000))
    return folder / "binary"


def device(folder):
    return "/dev/zero"


def short(folder):
    (folder / "short.txt").write_text("x" * 129)
    return folder / "short.txt"


def one_byte(folder):
    (folder / "short.txt").write_text("x")
    return folder / "short.txt"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (missing, "cannot read {}: No such file or directory"),
        (empty_folder, "no text in {}: give --data a text file or a folder of them"),
        (
            only_binary,
            "no text in {} (1 skipped: a.bin (binary)): give --data a text file or a folder of them",
        ),
        (device, "--data must be a file or a folder, {} is neither"),
        (
            short,
            "{} has 129 bytes of text, --seq-len 64 needs 130 (a context and the byte after it, twice: "
            "to train on and held out): give more text or --seq-len 63 or less",
        ),
        (
            one_byte,
            "{} has 1 bytes of text, --seq-len 64 needs 130 (a context and the byte after it, twice: "
            "to train on and held out): give more text",
        ),
    ],
)
def test_bad_data_is_one_line_and_status_2(longnet, tmp_path, make, message):
    data = make(tmp_path)
    status, out, err = longnet("train", "--data", data, *TINY)
    assert (status, out) == (2, "")
    assert err == f"longnet train: error: {message.format(data)}\n"
    assert not (tmp_path / "runs").exists()


def test_what_is_held_out_and_skipped_is_printed(longnet, text, tmp_path):
    (text / "broken").symlink_to("nowhere")
    (text / "again").symlink_to("json.py")
    size = sum(path.stat().st_size for path in text.glob("*.py"))
    status, out, err = longnet("train", "--data", text, "--run", "x", "--steps", 1, *TINY)
    assert (status, err) == (0, "")
    held_out = round(size / 20)
    assert out.splitlines()[:3] == [
        f"data   {text}: 5 files, {size - held_out:,} bytes to train on",
        f"       held out: the last 5% of each of 5 files, {held_out:,} bytes",
        "       1 skipped: broken (dangling link)",
    ]
    other = text.rename(tmp_path / "other") / "random.py"
    status, out, err = longnet(
        "train", "--data", "other", "--held-out", other, "--run", "y", "--steps", 1, *TINY
    )
    assert (status, err) == (0, "")
    assert f"       held out: {other}, 1 file, {other.stat().st_size:,} bytes\n" in out
    assert f": 4 files, {size - other.stat().st_size:,} bytes to train on\n" in out
    assert longnet("train", "--resume", "runs/y")[0] == 0


def test_proposed_context_is_the_longest_that_works(longnet, tmp_path):
    data = short(tmp_path)
    assert longnet("train", "--data", data, *TINY, "--seq-len", 63, "--steps", 1)[0] == 0
    assert longnet("train", "--data", data, *TINY, "--seq-len", 64, "--steps", 1)[0] == 2


def test_more_threads_than_can_start_are_refused(longnet, text):
    most, cpus = max(256, 16 * os.cpu_count()), os.cpu_count()
    for threads in (most + 1, 100_000, 2**64):
        status, out, err = longnet("train", "--data", text, *TINY, "--threads", threads)
        assert (status, out) == (2, "")
        assert err == (
            f"longnet train: error: --threads must be at most {most} on this machine of {cpus} CPUs, "
            f"got {threads}\n"
        )
    assert longnet("train", "--data", text, *TINY, "--threads", most, "--steps", 1)[0] == 0


def test_existing_folder_is_left_alone(tiny_run, text, longnet):
    before = weights_of(tiny_run)
    status, _, err = longnet("train", "--data", text, "--run", "tiny", *TINY)
    assert status == 2
    assert err == (
        "longnet train: error: runs/tiny exists: continue it with --resume runs/tiny, "
        "or choose another --run\n"
    )
    assert same(weights_of(tiny_run), before)
    status, _, err = longnet("train", "--data", text, "--run", text, *TINY)
    assert (status, err) == (2, f"longnet train: error: {text} exists: choose another --run\n")


def test_run_is_a_name_or_a_folder_and_has_a_default(text, longnet, tmp_path):
    (tmp_path / "made").mkdir()
    for run in (["--run", "./made"], ["--run", tmp_path / "a" / "b"], [], []):
        status, _, err = longnet("train", "--data", text, "--steps", 1, *TINY, *run)
        assert (status, err) == (0, "")
    assert Path("made/checkpoint.pt").exists()
    assert Path("a/b/checkpoint.pt").exists()
    assert len(os.listdir("runs")) == 2


@pytest.mark.parametrize("run", [[], ["--run", "x"]])
def test_run_folder_that_cannot_be_made_is_one_line(text, longnet, run):
    Path("runs").write_text("in the way")
    status, _, err = longnet("train", "--data", text, *TINY, *run)
    assert status == 2
    assert err.startswith("longnet train: error: runs")
    assert err.endswith(("Not a directory\n", "File exists\n"))
    assert err.count("\n") == 1


def test_resume_refuses_other_text_and_accepts_it_elsewhere(tiny_run, text, longnet):
    moved = shutil.move(text, "moved")
    assert longnet("train", "--resume", "runs/tiny")[0] == 2
    status, _, err = longnet("train", "--resume", "runs/tiny", "--data", moved)
    assert (status, err) == (0, "")
    assert longnet("train", "--resume", "runs/tiny")[0] == 0
    with Path("moved/json.py").open("a") as file:
        file.write("#")
    before = (tiny_run / "metrics.jsonl").read_bytes()
    status, _, err = longnet("train", "--resume", "runs/tiny")
    assert status == 2
    assert err.startswith("longnet train: error: the text in ")
    assert "is not the one that runs/tiny was trained on" in err
    assert err.count("\n") == 1
    assert (tiny_run / "metrics.jsonl").read_bytes() == before


def test_runs_below_the_data_are_not_data(text, longnet, monkeypatch):
    monkeypatch.chdir(text)
    for run in ("one", "two"):
        status, _, err = longnet("train", "--data", ".", "--run", run, "--steps", 1, *TINY)
        assert (status, err) == (0, "")
    assert longnet("train", "--resume", "runs/one")[0] == 0
    one, two = (load_checkpoint(Path("runs", run, "checkpoint.pt"))["data"] for run in ("one", "two"))
    assert one == two


def test_resume_of_a_finished_run_trains_nothing_more(tiny_run, longnet):
    before, rows = weights_of(tiny_run), rows_of(tiny_run)
    (tiny_run / "sample.txt").unlink()
    options = ("--steps", 6, "--prompt", "import ", "--sample-bytes", 3)
    status, out, err = longnet("train", "--resume", "runs/tiny", *options)
    assert (status, err) == (0, "")
    assert f"held out: {rows[-1]['val_bits_per_byte']:.3f} bits per byte" in out
    assert rows_of(tiny_run) == rows
    assert same(weights_of(tiny_run), before)
    assert (tiny_run / "sample.txt").read_text().startswith("import ")


def test_resume_of_what_is_none(tiny_run, longnet, tmp_path):
    def refused(run, message):
        status, out, err = longnet("train", "--resume", run)
        assert (status, out) == (2, "")
        assert err.startswith(f"longnet train: error: {message}")
        assert err.count("\n") == 1

    refused("nothing", "no run nothing")
    refused(tmp_path, f"no checkpoint.pt in {tmp_path}")
    path = tiny_run / "checkpoint.pt"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refused("tiny", "runs/tiny/checkpoint.pt is damaged or not a checkpoint: ")
    assert path.read_bytes() == whole[: len(whole) // 2]
    checkpoint = load_from(whole, tmp_path)
    for lacking in ("model", "optimizer", "rng"):
        save_checkpoint(path, {**checkpoint, lacking: {}})
        refused("tiny", "runs/tiny/checkpoint.pt does not fit its own options: ")
    save_checkpoint(path, {**checkpoint, "options": {**checkpoint["options"], "momentum": 0.5}})
    refused("tiny", "runs/tiny has options of another version of longnet: ")


def load_from(content, folder):
    (folder / "copy.pt").write_bytes(content)
    return load_checkpoint(folder / "copy.pt")


def test_metrics_are_cut_after_the_checkpoint_and_at_a_torn_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step}) + "\n" for step in (1, 2, 3)]
    path.write_text("".join(lines) + '{"step": 4')
    for last, kept in ((9, 3), (2, 2), (0, 0)):
        with lock_metrics(path) as file:
            rows = complete_rows(file, tmp_path, [], last)
        assert rows == [{"step": step} for step in range(1, kept + 1)]
        assert path.read_text() == "".join(lines[:kept])


def test_two_processes_do_not_train_in_one_folder(tiny_run, longnet):
    files = {path: path.read_bytes() for path in tiny_run.iterdir()}
    with lock_metrics(tiny_run / "metrics.jsonl"):
        status, _, err = longnet("train", "--resume", "runs/tiny", "--prompt", "x")
    assert files == {path: path.read_bytes() for path in tiny_run.iterdir()}
    assert (status, err) == (2, "longnet train: error: another process is training in runs/tiny\n")


def test_a_process_that_trained_during_the_start_of_another_loses_nothing(tiny_run, longnet, monkeypatch):
    path = tiny_run / "checkpoint.pt"

    def meanwhile(*arguments, **keywords):
        save_checkpoint(path, {**load_checkpoint(path), "step": 7})
        with lock_metrics(tiny_run / "metrics.jsonl") as file:
            append_row(file, {"step": 7})
        return read_corpus(*arguments, **keywords)

    monkeypatch.setattr(setup, "read_corpus", meanwhile)
    status, _, err = longnet("train", "--resume", "runs/tiny")
    assert status == 2
    assert err.startswith("longnet train: error: another process went on training in runs/tiny meanwhile: ")
    assert load_checkpoint(path)["step"] == rows_of(tiny_run)[-1]["step"] == 7


def test_output_that_the_terminal_cannot_show_is_replaced(monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    say("caf\u00e9 \udcff")
    assert out.buffer.getvalue() == b"caf? ?\n"
