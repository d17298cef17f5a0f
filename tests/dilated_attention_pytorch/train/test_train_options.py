import argparse
import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dilated_attention_pytorch.models import LongNetConfig
from dilated_attention_pytorch.train.loop import learning_rate
from dilated_attention_pytorch.train.options import (
    TrainOptions,
    add_arguments,
    default_pattern,
    flag,
    given_options,
)


def falls(schedule, optimizer, steps, warmup, final):
    """torch's scheduler of the steps after the warmup, the index of the first being 0."""
    schedulers = torch.optim.lr_scheduler
    after = steps - warmup
    if schedule == "cosine":
        return schedulers.CosineAnnealingLR(optimizer, T_max=after, eta_min=0.5 * final)
    if schedule == "constant":
        return schedulers.ConstantLR(optimizer, factor=1.0, total_iters=after)
    decay = min(after, steps // 4) if schedule == "wsd" else after
    stable = schedulers.ConstantLR(optimizer, factor=1.0, total_iters=after - decay)
    down = schedulers.LinearLR(optimizer, start_factor=1.0, end_factor=final, total_iters=decay)
    return schedulers.SequentialLR(optimizer, [stable, down], milestones=[after - decay])


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant", "wsd"])
@pytest.mark.parametrize(("steps", "warmup", "final"), [(100, 10, 0.1), (7, 1, 0.0), (30, 29, 1.0)])
@pytest.mark.filterwarnings("ignore:The epoch parameter:UserWarning")
def test_learning_rate_is_torchs(schedule, steps, warmup, final):
    options = TrainOptions(
        steps=steps,
        warmup_steps=warmup,
        final_lr_fraction=final,
        lr=0.5,
        schedule=schedule,
        decay_steps=steps // 4,
    )
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.5)
    schedulers = torch.optim.lr_scheduler
    before = schedulers.LambdaLR(optimizer, lambda index: (index + 1) / warmup)
    ours = [learning_rate(step, options) for step in range(1, steps + 1)]
    theirs = []
    for _ in range(warmup):
        theirs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        before.step()
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.5)
    after = falls(schedule, optimizer, steps, warmup, final)
    for _ in range(steps - warmup):
        optimizer.step()
        after.step()
        theirs.append(optimizer.param_groups[0]["lr"])
    assert ours == pytest.approx(theirs, rel=1e-9, abs=1e-12)
    assert ours[warmup - 1] == 0.5
    assert ours[-1] == pytest.approx(0.5 if schedule == "constant" else 0.5 * final)


def test_wsd_that_decays_from_the_warmup_on_does_not_jump():
    options = TrainOptions(steps=10, warmup_steps=4, decay_steps=9, lr=1.0, schedule="wsd")
    rates = [learning_rate(step, options) for step in range(4, 11)]
    assert rates == pytest.approx([1.0, 0.85, 0.7, 0.55, 0.4, 0.25, 0.1])
    flat = TrainOptions(steps=10, warmup_steps=4, decay_steps=0, lr=1.0, schedule="wsd")
    assert learning_rate(10, flat) == 1.0


def test_learning_rate_without_warmup_and_with_nothing_else():
    assert learning_rate(1, TrainOptions(steps=1, lr=1.0, final_lr_fraction=0.25)) == 0.25
    assert learning_rate(1, TrainOptions(steps=2, lr=1.0, warmup_steps=2)) == 0.5
    assert learning_rate(2, TrainOptions(steps=2, lr=1.0, warmup_steps=2)) == 1.0
    options = TrainOptions(steps=200)
    assert (options.num_warmup_steps, options.num_decay_steps) == (10, 40)
    # What is left to its default follows the steps.
    options = dataclasses.replace(options, steps=400)
    assert (options.num_warmup_steps, options.num_decay_steps) == (20, 80)


def test_default_pattern_of_8192_is_the_documented_one():
    options = TrainOptions()
    assert (options.segment_lengths, options.dilation_rates) == ((256, 2048, 8192), (1, 4, 16))
    assert default_pattern(100) == ((100,), (1,))
    assert default_pattern(65536) == ((256, 2048, 16384, 65536), (1, 4, 16, 64))


@given(st.integers(1, 10**9))
def test_default_pattern_reaches_the_whole_context(seq_len):
    segments, rates = default_pattern(seq_len)
    assert segments[-1] == seq_len
    assert rates[0] == 1
    assert list(segments) == sorted(set(segments))
    assert LongNetConfig(segment_lengths=segments, dilation_rates=rates).segment_lengths == segments


def test_help_shows_every_option_with_its_default_and_an_example(longnet):
    status, out, err = longnet("train", "--help")
    assert (status, err) == (0, "")
    for field in dataclasses.fields(TrainOptions):
        assert flag(field.name) in out
        if field.default is not None:
            default = "off" if field.default is False else field.default
            assert f"(default: {default})" in " ".join(out.split())
    assert "examples:" in out
    assert "--resume" in out
    status, out, err = longnet("generate", "--help")
    assert (status, err) == (0, "")
    assert "examples:" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0"], "--steps must be at least 1, got 0"),
        (["--lr", "0"], "--lr must be above 0, got 0.0"),
        (["--lr", "nan"], "--lr must be finite and at least 0, got nan"),
        (["--grad-clip", "inf"], "--grad-clip must be finite and at least 0, got inf"),
        (["--final-lr-fraction", "1.5"], "--final-lr-fraction must be at most 1, got 1.5"),
        (["--device", "meta"], "--device meta cannot be used: train on cpu or cuda"),
        (["--run", ".."], "--run must name a folder of its own, got '..'"),
        (["--seed", "-1"], "--seed must be at least 0, got -1"),
        (["--seed", str(2**63)], f"--seed must be below 2**63, got {2**63}"),
        (["--prompt", ""], "--prompt must have at least one byte"),
        (["--segment-lengths", "64"], "--segment-lengths and --dilation-rates must be given together"),
        (["--segment-lengths", "64,x"], "argument --segment-lengths: expected an integer, with K, M or G"),
        (["--segment-lengths", "64,128", "--dilation-rates", "1"], "must be of equal length"),
        (["--segment-lengths", "64", "--dilation-rates", "0"], "--dilation-rates must all be at least 1"),
        (["--embed-dim", "30", "--num-heads", "4"], "--embed-dim=30, --num-heads=4"),
        (["--num-kv-heads", "3"], "--num-kv-heads=3"),
        (["--num-layers", "0"], "--num-layers must be at least 1, got 0"),
        (["--dtype", "float8"], "argument --dtype: invalid choice: 'float8'"),
        (["--seq-len", "32Q"], "argument --seq-len: expected an integer, with K, M or G"),
        (
            ["--checkpoint-every", "10x"],
            "argument --checkpoint-every: expected a number of steps, or a time such as 10m, 2h, 1h30m",
        ),
        (["--checkpoint-every", "0"], "--checkpoint-every must be at least 1 (or 1s), got 0"),
        (["--checkpoint-every", "0s"], "--checkpoint-every must be at least 1 (or 1s), got 0s"),
        (["--dropout", "0.1"], "--dropout must be 0.0, got 0.1: "),
        (["--beta2", "1"], "--beta2 must be below 1, got 1.0"),
        (
            ["--batch-size", "6", "--grad-accumulation", "4"],
            "--grad-accumulation must divide --batch-size, got --grad-accumulation=4, --batch-size=6",
        ),
        (["--device", "abacus"], "--device abacus cannot be used: "),
        (["--step", "5"], "unrecognized arguments: --step 5"),
        (["--run", "x", "--resume", "y"], "--resume: not allowed with argument --run"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_option_is_one_line_and_status_2(longnet, text, tmp_path, arguments, message):
    status, out, err = longnet("train", "--data", text, *arguments)
    assert (status, out) == (2, "")
    assert err.startswith("longnet")
    assert "error: " in err
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_checkpoints_are_counted_in_steps_or_seconds():
    by_step, by_time = TrainOptions(checkpoint_every=20), TrainOptions(checkpoint_every="1h30m")
    assert [step for step in range(50) if by_step.saves_after(step)] == [0, 20, 40]
    assert not any(map(by_time.saves_after, range(9000)))
    assert (by_step.checkpoint_every_s, by_time.checkpoint_every_s) == (float("inf"), 5400)


def test_options_are_checked_when_made_in_python_too():
    with pytest.raises(ValueError, match=r"^batch_size must be at least 1, got 0$"):
        TrainOptions(batch_size=0)


def test_lengths_take_suffixes():
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    line = ["--seq-len", "32K", "--segment-lengths", "512,1m", "--dilation-rates", "1,4", "--recompute"]
    given = given_options(parser.parse_args(line))
    assert given == {
        "seq_len": 32768,
        "segment_lengths": (512, 1 << 20),
        "dilation_rates": (1, 4),
        "recompute": True,
    }
