import math
import statistics

import pytest

from dilated_attention_pytorch.train.plot import loss_figure, plot_loss


def rows_of(count, warmup=0):
    """Eight bits per byte at first, from the end of the warmup on 2 or 2.5 by turns."""
    return [
        {
            "step": step,
            "bytes": 100,
            "train_bits_per_byte": 8.0 if step <= warmup else 2.0 + step % 2 / 2,
            "learning_rate": min(step / max(warmup, 1), 1.0),
        }
        for step in range(1, count + 1)
    ]


def curve(axes, label):
    (line,) = [line for line in axes.get_lines() if line.get_label().startswith(label)]
    return line.get_xdata().tolist(), line.get_ydata().tolist()


def test_mean_is_that_of_the_steps_that_the_legend_says():
    rows = rows_of(30)
    for row in rows:
        row["train_bits_per_byte"] = math.sin(row["step"])
    loss = loss_figure(rows, "a run").axes[0]
    steps, means = curve(loss, "train, mean of the last 10 steps")
    values = [row["train_bits_per_byte"] for row in rows]
    assert steps == list(range(1, 31))
    assert means == pytest.approx([statistics.fmean(values[max(i - 9, 0) : i + 1]) for i in range(30)])
    assert curve(loss, "train, each step") == (steps, values)
    assert loss.get_title() == "a run"


@pytest.mark.parametrize("warmup", [0, 1, 40])
def test_first_losses_do_not_squash_the_rest(warmup):
    rows = rows_of(200, warmup)
    rows[0]["train_bits_per_byte"] = 8.0
    rows[0]["val_bits_per_byte"] = 8.0
    rows[99]["val_bits_per_byte"] = 2.75
    loss = loss_figure(rows, "").axes[0]
    low, high = loss.get_ylim()
    assert 1.9 < low < 2.0
    assert 2.75 < high < 2.85
    # They are drawn all the same.
    assert curve(loss, "train, each step")[1][0] == 8.0
    assert curve(loss, "held out, 2.750 at step 100") == ([1, 100], [8.0, 2.75])


def test_second_panel_has_the_learning_rate_and_the_bytes_seen():
    rows = rows_of(20, warmup=5)
    for row in rows[10:]:
        row["bytes"] = 300
    loss, rate, seen = loss_figure(rows, "").axes
    assert rate.get_ylabel() == "learning rate"
    assert rate.get_lines()[0].get_ydata().tolist() == [row["learning_rate"] for row in rows]
    assert seen.get_ylabel() == "bytes seen"
    assert seen.get_lines()[0].get_ydata().tolist()[9:12] == [1000, 1300, 1600]
    assert loss.get_xlim() == rate.get_xlim() == seen.get_xlim()


def test_rows_of_older_versions_have_no_bytes():
    rows = rows_of(5)
    del rows[2]["bytes"]
    assert len(loss_figure(rows, "").axes) == 2


def test_resumes_are_marked_on_both_panels():
    resumes = [(3, "lr 0.004 -> 0.001"), (7, "batch-size 1 -> 4")]
    loss, rate, _ = loss_figure(rows_of(10), "", resumes=resumes).axes
    for axes in (loss, rate):
        assert [line.get_xdata()[0] for line in axes.get_lines() if line.get_linestyle() == ":"] == [3, 7]
    assert [(text.get_position()[0], text.get_text().strip()) for text in loss.texts] == resumes


def test_long_words_of_a_resume_are_cut_and_take_no_room(tmp_path):
    words = f"data {'/long' * 50}.txt -> {'/longer' * 50}.txt, lr 0.004 -> 0.001"
    figure = loss_figure(rows_of(10), "", resumes=[(3, f"lr 1 -> 2, {words}")])
    figure.savefig(tmp_path / "x.png")
    loss = figure.axes[0]
    assert loss.texts[0].get_text() == "lr 1 -> 2, data ..."
    assert loss.get_position().height > 0.5


@pytest.mark.parametrize("count", [1, 2, 3, 501])
def test_file_is_a_png(tmp_path, count):
    plot_loss(tmp_path / "loss.png", rows_of(count), "x", resumes=[(1, "lr 1 -> 2")])
    content = (tmp_path / "loss.png").read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    assert [int.from_bytes(content[at : at + 4], "big") for at in (16, 20)] == [960, 720]


def test_single_step_can_be_seen():
    for axes in loss_figure(rows_of(1), "").axes:
        for line in axes.get_lines():
            assert line.get_marker() == "."


def test_long_runs_are_thinned_to_what_can_be_seen():
    rows = rows_of(100_003)
    for row in rows[::10]:
        row["val_bits_per_byte"] = 2.25
    for axes in loss_figure(rows, "").axes:
        for line in axes.get_lines():
            steps = line.get_xdata()
            assert 1000 < len(steps) <= 2000
            assert steps[-1] == (100_001 if line.get_label().startswith("held out") else 100_003)
    labels = loss_figure(rows, "").axes[0].get_legend_handles_labels()[1]
    assert labels == [
        "train, one step of 51",
        "train, mean of the last 1,000 steps",
        "held out, 2.250 at step 100,001",
    ]
