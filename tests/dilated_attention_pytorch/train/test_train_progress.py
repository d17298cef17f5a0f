import io
import math

import pytest
from rich.console import Console
from rich.live import Live

from dilated_attention_pytorch.train.progress import LiveProgress, Progress


def row(step, bits, held_out=None):
    row = {"step": step, "train_bits_per_byte": bits, "tokens_per_s": 1000.0 * step}
    return row if held_out is None else {**row, "val_bits_per_byte": held_out}


def lines_of(capsys, rows, steps):
    progress = Progress(steps, 0)
    for each in rows:
        progress.update(each)
    return capsys.readouterr().out.splitlines()


def test_what_is_printed_is_a_mean_and_says_so(capsys):
    rows = [row(step, 10.0 - step) for step in range(1, 6)] + [row(6, 4.0, held_out=5.125)]
    (line,) = lines_of(capsys, rows, steps=6)
    bits = (9 + 8 + 7 + 6 + 5 + 4) / 6
    assert line == (
        f"step 6/6  mean loss {bits * math.log(2):.4f}  mean bits per byte {bits:.3f}  held out 5.125  "
        "tokens/s 3,500  left 0:00"
    )


def test_mean_is_of_the_last_20_steps(capsys):
    rows = [row(step, 100.0 if step <= 30 else 2.0) for step in range(1, 51)]
    (line,) = lines_of(capsys, rows, steps=50)
    assert "mean bits per byte 2.000  " in line
    rows[29]["train_bits_per_byte"] = 2.0
    rows[30]["train_bits_per_byte"] = 4.0
    assert "mean bits per byte 2.100  " in lines_of(capsys, rows, steps=50)[0]


def test_held_out_is_printed_when_it_is_new(capsys):
    rows = [row(1, 2.0, held_out=3.0), row(2, 2.0), row(3, 2.0, held_out=2.5), row(4, 2.0)]
    printed = lines_of(capsys, rows, steps=4)
    assert [line.split("  ")[0] for line in printed] == ["step 1/4", "step 3/4", "step 4/4"]
    assert ["held out" in line for line in printed] == [True, True, False]
    assert "held out 2.500" in printed[1]


@pytest.mark.parametrize("evaluated", [False, True])
def test_panel_keeps_the_latest_of_held_out_with_its_step(evaluated):
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=120)
    with Live(console=console, auto_refresh=False) as live:
        progress = LiveProgress(9, 0, live)
        progress.update(row(1, 2.0, held_out=3.0 if evaluated else None))
        progress.update(row(2, 2.0))
        progress.show(2)
    shown = file.getvalue()
    assert "mean loss" in shown
    assert "2/9" in shown
    assert ("3.000 at step 1" in shown[shown.index("2/9") :]) == evaluated
