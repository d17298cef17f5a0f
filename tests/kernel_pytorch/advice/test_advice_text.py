"""The report for a terminal: every figure is the report's."""

from __future__ import annotations

from dataclasses import replace

import pytest
from advice_facts import facts
from advice_reports import RESULT, SDPA, TRIALS, failed, nothing_kept, report

from kernel_pytorch.advice.facts import Fact, Trial
from kernel_pytorch.advice.text import result, summary, text
from kernel_pytorch.advice.units import count, error, fact, interval, percent, printable, seconds, size

EXPECTED = """\
model.py:make_model   3.16 M parameters, float32; 206 ms a call on 2 threads, 17 % of this machine's roofline;
    noise 4 %
memory    beyond parameters and inputs: 40 MB (measured), 40 MB (predicted); 8 GB allowed; the greatest length
    that fits is 16,384 (predicted)
length    512: 12 MB (predicted), fits, 25 % of the FLOPs are attention
length    1,024: 40 MB (predicted), fits, 41 % of the FLOPs are attention
length    32,768: 35 GB (predicted), does not fit, 96 % of the FLOPs are attention
finding   attention by hand   model.py:31-33, 4 modules, 16.8 MB of scores each, 58 % of the time:
    F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.125)
trials                  gain (99 %)           error (original)   peak   compile
  attention to SDPA     1.80 (1.71 to 1.92)   6.4e-7 (6.4e-7)    0.70         -   kept
  + fused projections   1.02 (1.01 to 1.03)   6.5e-7 (6.4e-7)    1.01         -   reverted
      a gain of 1.02 is not worth a change
  + torch.compile       1.17 (1.12 to 1.22)   6.7e-7 (6.4e-7)    0.62      21 s   kept
not tried
  bfloat16: a 256 x 256 product takes 50 times as long as in float32
  CUDA graphs: no GPU
  int8: --level aggressive
offered   dilated attention   blocks.0.attention, another function: 0.3 of the FLOPs, the loss grows by 0.02:
    dilated_attention_pytorch.replace_attention
result: 2.10 times as fast (2.02 to 2.17), confirmed in a fresh process, error within 4 times the original's
    own rounding; --write FILE saves it"""


def test_a_report():
    assert text(report(), 110, hint="--write FILE saves it") == EXPECTED


def test_the_hint_is_left_out_where_there_is_nothing_to_save():
    assert text(report()).endswith("own rounding")
    assert text(nothing_kept(), hint="--write FILE saves it").endswith("result: nothing was kept")


@pytest.mark.parametrize("width", [80, 110, 200])
@pytest.mark.parametrize("shown", [report(), nothing_kept(), failed()], ids=["kept", "nothing", "failed"])
def test_only_the_table_may_be_wider_than_asked(shown, width):
    table = ("trials", *(f"  {plus}{trial.strategy}" for trial in TRIALS for plus in ("", "+ ")))
    lines = [line for line in text(shown, width).splitlines() if not line.startswith(table)]
    assert max(map(len, lines)) <= width


def test_what_was_tried_on_nothing_kept_has_no_plus():
    lines = text(nothing_kept()).splitlines()
    assert [line for line in lines if line.startswith("  + ")] == []
    assert lines[-1] == "result: nothing was kept"


def test_equal_reasons_share_a_line():
    left = [Trial(strategy=name, verdict="not tried", reason="no GPU") for name in ("CUDA graphs", "Liger")]
    assert "  CUDA graphs, Liger: no GPU" in text(report(trials=(*TRIALS[:2], *left))).splitlines()


def test_a_model_that_failed():
    lines = text(failed(), 110).splitlines()
    assert "failed    model.py:31: ValueError: 3 is not 4" in lines
    assert "a call was not timed: the model did not run on its inputs" in " ".join(lines[:2])
    assert lines[-1] == "result: nothing was kept: the model failed"


def test_nobody_elses_terminal_is_moved():
    evil = "model\x1b[2J\nresult: 9 times as fast"
    shown = text(report(target=evil, facts=replace(report().facts, remarks=(evil,))))
    assert "\x1b" not in shown
    assert [line for line in shown.splitlines() if line.startswith("result: 9")] == []


def changed(**fields):
    return report(result=replace(RESULT, **fields))


def test_result_of_a_run_in_one_process():
    found = result(report(confirmed=False, target="Stack"))
    assert found.startswith(
        "2.10 times as fast (2.02 to 2.17), confirmed in this process, error within 4 times"
    )
    assert "--write" not in found


@pytest.mark.parametrize("verdict", ["reverted", "failed", "killed", "out of time"])
def test_result_that_was_not_confirmed(verdict):
    found = result(changed(verdict=verdict, reason="signal 9"))
    assert found.startswith("all was reverted, attention to SDPA and torch.compile included")
    assert found.endswith(f"in a fresh process ended as {verdict}: signal 9")


def test_result_of_a_run_that_ended_early():
    found = result(report(result=None, confirmed=False))
    assert found == (
        "nothing is kept: attention to SDPA and torch.compile could not be confirmed before the run ended"
    )


def test_equality_in_words():
    assert "error within 4 times the original's own rounding" in result(changed(error=2.5e-6))
    more = "error 2.6e-6 against the original in float64, no more than rounding"
    assert more in result(changed(error=2.6e-6))
    assert more in result(changed(error=2.6e-6, original_error=None))
    lossy = result(changed(error=0.0052, lossless=False))
    assert "relative error 0.0052 against the original in float64, at most 0.01 allowed" in lossy


def test_a_change_that_saves_memory_at_the_price_of_time():
    found = result(changed(gain=0.85, low=0.82, high=0.88, peak_ratio=0.43))
    assert found.startswith("0.85 times as fast (0.82 to 0.88), with 0.43 of the memory, ")


def test_summary():
    train = summary(facts(training=True, loss="the outputs' .loss", threads=1, noise=Fact(why="too slow")))
    assert "100 ms a training step on 1 thread, 45 % of" in train
    assert train.endswith("loss: the outputs' .loss; noise unknown")
    unknown = summary(facts(attained=Fact(why="no peak"), bytes_by_dtype={"float32": 10**6, "int64": 8}))
    assert "parameters, float32; " in unknown
    assert "the share of the roofline is unknown (no peak)" in unknown
    assert "on cuda:0" in summary(facts(device="cuda:0"))


def test_a_trial_of_which_little_is_known():
    trial = Trial(strategy="int8", verdict="failed", reason="it raised")
    (row,) = [line for line in text(report(trials=(trial,))).splitlines() if line.startswith("  int8")]
    assert row.split() == ["int8", "-", "-", "-", "-", "failed:", "it", "raised"]
    assert SDPA.strategy not in text(report(trials=(trial,)))


def test_units():
    assert [count(n) for n in (0, 7, 999, 1000, 3_158_000, 2.5e12)] == [
        "0",
        "7",
        "999",
        "1 k",
        "3.16 M",
        "2.5 T",
    ]
    assert [size(n) for n in (8, 16.8e6, 9e9)] == ["8 B", "16.8 MB", "9 GB"]
    assert [seconds(s) for s in (20.96, 0.206, 3e-5, 2e-9)] == ["21 s", "206 ms", "30 us", "2 ns"]
    assert [error(e) for e in (None, 0.0, 6.4e-7, 0.0123)] == ["-", "0", "6.4e-7", "0.012"]
    assert [error(e) for e in (float("inf"), float("nan"))] == ["inf", "nan"]
    assert [percent(p) for p in (0.0, 0.004, 0.17, 1.2)] == ["0 %", "0.4 %", "17 %", "120 %"]
    assert [interval(None, 1, 2), interval(1.5, None, None)] == ["-", "1.50"]
    assert fact(Fact(value=2e6, basis="predicted", at_least=True), size) == "at least 2 MB (predicted)"
    assert fact(Fact(why="an LSTM")) == "unknown (an LSTM)"
    assert printable("a\tb\x07") == "a b\\x07"
