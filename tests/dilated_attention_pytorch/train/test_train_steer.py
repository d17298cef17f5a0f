"""A run that is continued with other options, from another checkpoint, or as the start of another run."""

import dataclasses
import json
import os
import re
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import TINY

from dilated_attention_pytorch.models import LongNetLM
from dilated_attention_pytorch.train import run as run_module
from dilated_attention_pytorch.train.checkpoint import load_checkpoint
from dilated_attention_pytorch.train.checkpoint_files import find_checkpoint, keep_as
from dilated_attention_pytorch.train.errors import CommandError
from dilated_attention_pytorch.train.metrics import (
    abandon_rows,
    append_row,
    common_steps,
    complete_rows,
    lock_metrics,
)
from dilated_attention_pytorch.train.options import SHAPE, TrainOptions
from dilated_attention_pytorch.train.weights import read_weights

TEXT = "".join(f"{number} bottles of beer on the wall, {number} bottles of beer. " for number in range(300))


def rows_of(folder):
    return [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]


def history_of(folder):
    return json.loads((Path(folder) / "config.json").read_text())["history"]


def weights_of(path):
    return load_checkpoint(Path(path))["model"]


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_every_option_but_the_shape_may_change(tiny_run, longnet, tmp_path):
    """Each is taken, printed and noted; the numbers are those of a run that always had the new values."""
    given = {
        "--steps": 9, "--lr": 0.001, "--schedule": "linear", "--final-lr-fraction": 0.5, "--warmup-steps": 1,
        "--beta2": 0.9, "--weight-decay": 0.0, "--grad-clip": 0.5, "--batch-size": 2, "--eval-every": 4,
        "--checkpoint-every": 2, "--eval-windows": 1, "--seed": 7,
    }  # fmt: skip
    status, out, err = longnet("train", "--resume", "tiny", *(x for pair in given.items() for x in pair))
    assert (status, err) == (0, "")
    [noted] = history_of(tiny_run)
    assert noted["step"] == 6
    assert set(noted["changed"]) == {name[2:].replace("-", "_") for name in given}
    assert noted["changed"]["lr"] == [0.004, 0.001]
    [line] = [line for line in out.splitlines() if line.startswith("from step 7: ")]
    assert "lr 0.004 -> 0.001" in line
    assert "batch-size 1 -> 2" in line
    rows = rows_of(tiny_run)
    assert [row["step"] for row in rows if "val_bits_per_byte" in row] == [6, 8, 9]
    # Linear from 0.001 after step 1 to half of it at step 9.
    assert [row["learning_rate"] for row in rows[6:]] == pytest.approx(
        [0.001 * (1 - 0.5 * (step - 1) / 8) for step in (7, 8, 9)]
    )
    groups = load_checkpoint(tiny_run / "checkpoint.pt")["optimizer"]["param_groups"]
    assert {tuple(group["betas"]) for group in groups} == {(0.9, 0.9)}
    assert {group["weight_decay"] for group in groups} == {0.0}


def test_resume_without_a_change_changes_no_number(text, longnet, tiny_run):
    options = ("--data", text, *TINY, "--steps", 6, "--checkpoint-every", 2, "--keep", 3)
    assert longnet("train", "--run", "kept", *options)[0] == 0
    status, out, err = longnet("train", "--resume", "kept", "--checkpoint", 4, "--lr", 0.004)
    assert (status, err) == (0, "")
    assert "resumed after step 4" in out
    assert "from step" not in out
    assert history_of("runs/kept") == [{"step": 4, "attempt": 1, "changed": {}}]
    assert same(weights_of("runs/kept/checkpoint.pt"), weights_of(tiny_run / "checkpoint.pt"))
    assert [row["train_bits_per_byte"] for row in rows_of("runs/kept")] == [
        row["train_bits_per_byte"] for row in rows_of(tiny_run)
    ]


@pytest.mark.parametrize("name", SHAPE)
def test_resume_keeps_the_shape(tiny_run, longnet, name):
    files = {path: path.read_bytes() for path in tiny_run.iterdir()}
    value = {"segment_lengths": "32", "dilation_rates": "2"}.get(name, "4")
    status, _, err = longnet("train", "--resume", "tiny", "--" + name.replace("_", "-"), value)
    assert status == 2
    assert err.startswith(f"longnet train: error: --{name.replace('_', '-')} {value} contradicts runs/tiny, ")
    assert err.endswith("leave it out, or start a new run\n")
    assert files == {path: path.read_bytes() for path in tiny_run.iterdir()}


def test_other_text_is_taken_when_given_and_then_the_best_starts_anew(tiny_run, text, longnet, tmp_path):
    Path("beer.txt").write_text(TEXT)
    status, out, err = longnet("train", "--resume", "tiny", "--data", "beer.txt", "--steps", 7)
    assert (status, err) == (0, "")
    assert f"from step 7: data {text} -> {tmp_path}/beer.txt, steps 6 -> 7\n" in out
    changed = history_of(tiny_run)[0]["changed"]
    assert changed["data"][1] == str(tmp_path / "beer.txt")
    assert changed["text"][0] != changed["text"][1]
    assert load_checkpoint(tiny_run / "best.pt")["best"]["step"] == 7


def test_the_best_and_the_last_are_kept(text, longnet):
    # It learns with a small rate, then spoils what it learnt with a large one.
    options = ("--data", text, *TINY, "--steps", 4, "--eval-every", 1, "--warmup-steps", 0)
    assert longnet("train", "--run", "x", *options, "--schedule", "constant")[0] == 0
    more = ("--lr", 3, "--weight-decay", 0, "--steps", 9, "--checkpoint-every", 2, "--keep", 2)
    assert longnet("train", "--resume", "x", *more)[0] == 0
    losses = {row["step"]: row["val_bits_per_byte"] for row in rows_of("runs/x")}
    step = min(losses, key=losses.get)
    assert step <= 4
    best = load_checkpoint(Path("runs/x/best.pt"))
    assert best["step"] == step
    assert best["best"] == {"step": step, "val_bits_per_byte": losses[step]}
    kept = sorted(name for name in os.listdir("runs/x") if name.endswith(".pt"))
    assert kept == ["best.pt", "checkpoint-8.pt", "checkpoint-9.pt", "checkpoint.pt"]

    # Back to the best, which stays until it is beaten; the metrics of what came after it are moved.
    status, out, _ = longnet(
        "train", "--resume", "x", "--checkpoint", "best", "--lr", 1e-9, "--steps", step + 1
    )
    assert status == 0
    assert f"resumed after step {step}" in out
    assert [row["step"] for row in rows_of("runs/x")] == list(range(1, step + 2))
    assert load_checkpoint(Path("runs/x/checkpoint.pt"))["step"] == step + 1
    kept = sorted(name for name in os.listdir("runs/x") if name.endswith(".pt"))
    # Those after it stay, as what it was left for.
    numbered = sorted({step, step + 1, 8, 9})
    assert kept == ["best.pt", *(f"checkpoint-{number}.pt" for number in numbered), "checkpoint.pt"]


def test_the_best_stays_when_the_run_goes_back_to_before_it(text, longnet):
    options = ("--data", text, *TINY, "--steps", 6, "--eval-every", 3, "--checkpoint-every", 1, "--keep", 6)
    assert longnet("train", "--run", "x", *options)[0] == 0
    best = load_checkpoint(Path("runs/x/best.pt"))
    assert best["step"] == 6
    # Nothing is learnt again, so the losses at steps 3 and 6 are higher now.
    assert longnet("train", "--resume", "x", "--checkpoint", 2, "--lr", 1e-9)[0] == 0
    assert rows_of("runs/x")[-1]["val_bits_per_byte"] > best["best"]["val_bits_per_byte"]
    assert same(load_checkpoint(Path("runs/x/best.pt"))["model"], best["model"])


def test_a_run_that_cannot_go_back_loses_nothing(text, longnet, monkeypatch):
    options = ("--data", text, *TINY, "--steps", 4, "--checkpoint-every", 1, "--keep", 4)
    assert longnet("train", "--run", "x", *options)[0] == 0
    before = Path("runs/x/metrics.jsonl").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "save_checkpoint", full)
        status, _, err = longnet("train", "--resume", "x", "--checkpoint", 2)
    assert (status, "No space left on device; the checkpoint of step 4 is whole" in err) == (2, True)
    assert load_checkpoint(Path("runs/x/checkpoint.pt"))["step"] == 4
    assert longnet("train", "--resume", "x")[0] == 0
    assert Path("runs/x/metrics.jsonl").read_bytes() == before


def test_a_checkpoint_that_is_not_there(tiny_run, longnet):
    for which, message in (
        ("5", "runs/tiny has no checkpoint 5: it has last (step 6), best (step 6)"),
        ("first", "--checkpoint must be last, best or a step, got 'first'"),
    ):
        status, _, err = longnet("train", "--resume", "tiny", "--checkpoint", which)
        assert (status, err) == (2, f"longnet train: error: {message}\n")
    status, _, err = longnet("train", "--checkpoint", "best")
    assert status == 2
    assert "--checkpoint needs --resume or --init-from" in err
    assert find_checkpoint(tiny_run, "6") == tiny_run / "checkpoint.pt"


def test_a_checkpoint_is_kept_without_hard_links_too(tiny_run, monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    for _ in range(2):
        keep_as(tiny_run, "checkpoint-6.pt")
    assert not list(tiny_run.glob("*.tmp"))
    monkeypatch.setattr(os, "link", refuse)
    keep_as(tiny_run, "checkpoint-6.pt")
    assert (tiny_run / "checkpoint-6.pt").read_bytes() == (tiny_run / "checkpoint.pt").read_bytes()
    assert not list(tiny_run.glob("*.tmp"))


def test_divergence_names_the_way_back_and_it_works(text, longnet):
    options = ("--data", text, *TINY, "--steps", 4, "--eval-every", 2, "--schedule", "constant")
    assert longnet("train", "--run", "x", *options)[0] == 0
    status, _, err = longnet("train", "--resume", "x", "--lr", "1e30", "--steps", 9, "--weight-decay", 0)
    assert status == 1
    assert "the last good checkpoint is of step 4, runs/x/checkpoint.pt" in err
    command = err.strip().split("go back to the best with a lower rate: ")[1]
    assert command == "longnet train --resume runs/x --checkpoint best --lr 5e+29"
    arguments = command.replace("5e+29", "1e-3").split()[1:]
    status, _, err = longnet(*arguments)
    assert (status, err) == (0, "")
    assert rows_of("runs/x")[-1]["step"] == 9


def test_scores_too_large_for_a_gradient_are_divergence(text, longnet):
    options = ("--data", text, *TINY, "--steps", 9, "--warmup-steps", 0, "--lr", 10, "--weight-decay", 0)
    status, _, err = longnet("train", "--run", "x", *options)
    assert status == 1
    assert err.startswith("longnet train: error: the loss diverged at step ")
    assert ": query and key have scores of " in err
    assert err.endswith("go back to it with a lower rate: longnet train --resume runs/x --lr 5\n")


def test_init_from_takes_the_weights_and_nothing_else(tiny_run, longnet):
    Path("beer.txt").write_text(TEXT)
    other = ("--data", "beer.txt", "--seq-len", 32, "--segment-lengths", "8,32", "--dilation-rates", "1,2")
    status, out, err = longnet(
        "train", "--init-from", "tiny", "--run", "y", *other, "--lr", 1e-9, "--steps", 1
    )
    assert (status, err) == (0, "")
    old, new = weights_of(tiny_run / "checkpoint.pt"), weights_of("runs/y/checkpoint.pt")
    assert old.keys() == new.keys()
    for name in old:
        torch.testing.assert_close(new[name], old[name], rtol=1e-5, atol=1e-7)
    options = json.loads(Path("runs/y/config.json").read_text())["options"]
    assert options["segment_lengths"] == [8, 32]
    assert (options["embed_dim"], options["weight_decay"]) == (16, TrainOptions().weight_decay)
    config = json.loads(Path("runs/y/config.json").read_text())
    assert config["init_from"] == {"run": str(tiny_run.absolute()), "step": 6}
    assert f"with the weights of {tiny_run.absolute()} after step 6\n" in out
    assert longnet("train", "--resume", "y", "--steps", 2)[0] == 0
    assert json.loads(Path("runs/y/config.json").read_text())["init_from"] == config["init_from"]
    status, _, err = longnet("train", "--init-from", "tiny", "--embed-dim", 32)
    assert status == 2
    assert "--embed-dim 32 contradicts tiny, whose model has --embed-dim 16" in err


def test_init_from_keeps_the_context_where_none_is_given(tiny_run, text, longnet):
    assert longnet("train", "--init-from", "tiny", "--data", text, "--run", "y", "--steps", 1)[0] == 0
    old, new = (json.loads((Path(run) / "config.json").read_text()) for run in (tiny_run, "runs/y"))
    assert old["model_config"] == new["model_config"]
    assert old["options"]["seq_len"] == new["options"]["seq_len"]


def test_time_limit_saves_and_ends_well(text, longnet):
    options = ("--data", text, *TINY, "--steps", 100000)
    status, out, err = longnet("train", "--run", "x", *options, "--time-limit", "0s")
    assert (status, err) == (0, "")
    assert "time limit reached after step 1 of 100000; continue with: longnet train --resume runs/x" in out
    assert load_checkpoint(Path("runs/x/checkpoint.pt"))["step"] == 1
    for wrong in ("", "2", "2d", "h"):
        status, _, err = longnet("train", "--time-limit", wrong)
        assert status == 2
        assert "argument --time-limit: expected a time such as 90m, 2h, 1h30m or 45s, got" in err


def test_weights_are_read_by_name_of_the_run_or_its_folder(tiny_run):
    for run in ("tiny", str(tiny_run), tiny_run):
        checkpoint, weights = read_weights(run, "best")
        assert checkpoint["step"] == 6
        assert "optimizer" not in checkpoint
        assert same(weights, weights_of(tiny_run / "best.pt"))
    with pytest.raises(CommandError, match="no run nothing"):
        read_weights("nothing")


def test_options_of_a_checkpoint_make_the_same_options():
    options = TrainOptions(steps=200, schedule="wsd")
    assert TrainOptions(**dataclasses.asdict(options)) == options


def test_a_run_is_loaded_in_python(tiny_run):
    for run in ("tiny", tiny_run):
        for which in ("last", "best", 6):
            model = LongNetLM.load(run, checkpoint=which)
            assert same(model.state_dict(), weights_of(tiny_run / "checkpoint.pt"))
    with pytest.raises(TypeError, match=r"^run_or_folder must be the folder of a run or its name, got 5$"):
        LongNetLM.load(5)
    for arguments, message in (
        (("nothing",), "no run nothing"),
        (("",), "the run must be a folder or its name below runs, got ''"),
        ((tiny_run / "checkpoint.pt",), "checkpoint.pt is a file: give the folder of the run"),
        (("tiny", None), 'checkpoint must be "last", "best" or a step, got None'),
        (("tiny", "first"), """checkpoint must be "last", "best" or a step, got 'first'"""),
        (("tiny", -1), 'checkpoint must be "last", "best" or a step, got -1'),
        (("tiny", 7), "runs/tiny has no checkpoint 7: it has last (step 6), best (step 6)"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            LongNetLM.load(*arguments)


def test_a_run_returns_to_a_line_of_steps_that_it_left(text, longnet):
    """Metrics, history and weights are those of the line, wherever the run was meanwhile."""
    every = ("--checkpoint-every", 1, "--eval-every", 1, "--keep", 50, "--schedule", "constant")
    assert longnet("train", "--run", "x", "--data", text, *TINY, *every, "--steps", 4)[0] == 0
    assert longnet("train", "--resume", "x", "--steps", 6, "--lr", 1e-3)[0] == 0
    first, weights = rows_of("runs/x"), weights_of("runs/x/checkpoint.pt")
    status, out, err = longnet("train", "--resume", "x", "--checkpoint", 2, "--lr", 2e-3, "--steps", 5)
    assert (status, err) == (0, "")
    assert "leaving step 6, which is kept: --checkpoint 6 goes back to it\n" in out
    # Since step 2 the rate was that of the start: nothing of the other line is in this one's history.
    assert "from step 3: steps 4 -> 5, lr 0.004 -> 0.002\n" in out
    assert history_of("runs/x") == [
        {"step": 2, "attempt": 2, "changed": {"steps": [4, 5], "lr": [0.004, 0.002]}}
    ]
    second = rows_of("runs/x")
    assert second[:2] == first[:2]
    assert [row["learning_rate"] for row in second] == [0.004, 0.004, 0.002, 0.002, 0.002]

    status, out, err = longnet("train", "--resume", "x", "--checkpoint", 6, "--steps", 7, "--lr", 1e-3)
    assert (status, err) == (0, "")
    assert rows_of("runs/x")[:6] == first
    assert [(entry["step"], entry["attempt"]) for entry in history_of("runs/x")] == [(4, 1), (6, 3)]
    assert same(weights_of("runs/x/checkpoint-6.pt"), weights)
    assert longnet("train", "--resume", "x", "--checkpoint", 5, "--steps", 8)[0] == 0
    # Two lines have a step 5: the file is that of the one that was left last.
    assert [row["learning_rate"] for row in rows_of("runs/x")[:5]] == [0.004, 0.004, 0.002, 0.002, 0.002]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 100), st.integers(1, 5)), min_size=1, max_size=8), st.randoms())
def test_the_metrics_are_those_of_the_line(tmp_path, moves, random):
    """Whatever a run goes back to, and wherever a process is killed on the way."""
    folder = Path(tempfile.mkdtemp(dir=tmp_path))
    checkpoints = [(0, [], [])]  # step, history, rows
    last = checkpoints[0]
    for attempt, (choice, steps) in enumerate(moves):
        step, history, rows = target = checkpoints[choice % len(checkpoints)]
        if attempt > 0:
            history = [*history, {"step": step, "attempt": attempt}]
        with lock_metrics(folder / "metrics.jsonl") as file:
            if target is not last:
                common = common_steps(last[1], last[0], target[1], step)
                abandon_rows(file, folder, last[1], last[0], common)
                if random.random() < 0.3:  # killed before the checkpoint was replaced
                    assert complete_rows(file, folder, last[1], last[0]) == last[2]
                    abandon_rows(file, folder, last[1], last[0], common)
            assert complete_rows(file, folder, history, step) == rows
            rows = [*rows, *({"step": step + i, "of": attempt} for i in range(1, steps + 1))]
            for row in rows[step:]:
                append_row(file, row)
            append_row(file, {"step": step + steps + 1, "of": "a step that no checkpoint has"})
        last = (step + steps, history, rows)
        checkpoints.append(last)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--steps", 5],
            "--steps 5 is less than the 6 that runs/tiny has taken: give more, or go ",
        ),
        (
            ["--lr", 1e-4, "--recompute"],
            "runs/tiny has taken all of its 6 steps, so that lr 0.004 -> 0.0001, recompute off -> on has no "
            "effect: give --steps a higher number",
        ),
        (["--seq-len", 32], "runs/tiny has taken all of its 6 steps, so that seq-len 64 -> 32 has no effect"),
        (
            ["--init-from", "tiny"],
            "--init-from starts a new run, --resume goes on with one: give one",
        ),
    ],
)
def test_what_would_have_no_effect_is_refused(tiny_run, longnet, arguments, message):
    files = {path: path.read_bytes() for path in tiny_run.iterdir()}
    status, out, err = longnet("train", "--resume", "tiny", *arguments)
    assert (status, out) == (2, "")
    assert err.startswith(f"longnet train: error: {message}")
    assert files == {path: path.read_bytes() for path in tiny_run.iterdir()}


@pytest.mark.parametrize("which", ["last", "best", "6"])
def test_a_finished_run_says_so_and_leaves_nothing(tiny_run, longnet, which):
    rows, files = rows_of(tiny_run), sorted(os.listdir(tiny_run))
    status, out, err = longnet("train", "--resume", "tiny", "--checkpoint", which)
    assert (status, err) == (0, "")
    assert "all 6 steps are taken\n" in out
    assert rows_of(tiny_run) == rows
    assert sorted(os.listdir(tiny_run)) == files


def test_defaults_follow_the_steps_of_a_resumed_run(tiny_run, longnet):
    assert longnet("train", "--resume", "tiny", "--steps", 20, "--schedule", "wsd")[0] == 0
    # The last fifth of 20 steps, not of 6.
    assert [row["learning_rate"] < 0.004 for row in rows_of(tiny_run)[6:]] == [False] * 10 + [True] * 4


def test_nothing_was_learnt_before_a_loss_diverged(text, longnet):
    options = ("--data", text, *TINY, "--steps", 9, "--eval-every", 1, "--weight-decay", 0)
    rates = ("--schedule", "constant", "--warmup-steps", 0, "--lr", 40, "--grad-clip", 1e9)
    status, _, err = longnet("train", "--run", "x", *options, *rates)
    assert status == 1
    assert load_checkpoint(Path("runs/x/best.pt"))["best"]["val_bits_per_byte"] > 8
    assert "best" not in err


def test_names_that_are_no_formulas_are_drawn(text, longnet):
    (text / "p$\\q$").write_bytes(Path(text / "json.py").read_bytes() * 2)
    for name in ("a$b_$c", "./\udcff"):
        options = ("--data", text, *TINY, "--steps", 1)
        status, _, err = longnet("train", "--run", name, *options)
        assert (status, err) == (0, "")
    status, _, err = longnet("train", "--resume", "a$b_$c", "--data", text / "p$\\q$", "--steps", 2)
    assert (status, err) == (0, "")
    assert Path("runs/a$b_$c/loss.png").stat().st_size > 10_000
