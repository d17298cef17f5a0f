"""Real processes: stopped, killed, on a terminal."""

import ctypes
import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import TINY

from dilated_attention_pytorch.train.checkpoint import load_checkpoint

TRAIN = [sys.executable, "-m", "dilated_attention_pytorch.train"]
# The leader of a session takes the first terminal that it opens, and Ctrl-C there reaches it.
ON_TERMINAL = """
import os, sys
from dilated_attention_pytorch.cli import main
os.close(os.open(os.ttyname(0), os.O_RDWR))
sys.exit(main(["train", *sys.argv[1:]]))
"""
STOP = """
import sys
from dilated_attention_pytorch.train.stop import StopRequest
with StopRequest() as stop:
    print("ready", flush=True)
    for line in sys.stdin:
        print(stop.received, flush=True)
"""

FAULTS = """
import resource
from dilated_attention_pytorch.train.device import keep_freed_memory, return_freed_memory
def faults():
    start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        bytes(64 << 20).count(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - start
before = faults()
keep_freed_memory()
faults()
kept = faults()
return_freed_memory()
print(before, kept, faults())
"""


def read_terminal(descriptor):
    try:
        return os.read(descriptor, 1 << 16).decode(errors="replace")
    except OSError:
        # How Linux says that the other end is closed.
        return ""


def result_of(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        row.pop("tokens_per_s")
    checkpoint = load_checkpoint(folder / "checkpoint.pt")
    optimizer = checkpoint["optimizer"]["state"]
    tensors = [*checkpoint["model"].values(), *(t for state in optimizer.values() for t in state.values())]
    return rows, checkpoint["step"], tensors


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_stopped_and_resumed_equals_uninterrupted_bit_for_bit(text, longnet, number):
    options = ["--data", str(text), *TINY, "--steps", "150", "--eval-every", "1", "--checkpoint-every", "20"]
    assert longnet("train", *options, "--run", "whole")[0] == 0
    # Its lines fill a pipe of one page long before the last step, so it cannot finish unread.
    child = subprocess.Popen(
        [*TRAIN, *options, "--run", "parted"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        pipesize=4096,
    )
    with child:
        while not child.stdout.readline().startswith("step 25/"):
            pass
        child.send_signal(number)
        out, err = child.communicate()
    parted = Path("runs/parted")
    rows, step, _ = result_of(parted)
    if number == signal.SIGTERM:
        assert child.returncode == 143
        assert out.endswith(
            f"stopped after step {step} of 150; continue with: longnet train --resume runs/parted\n"
        )
        assert err == "\nstopping after this step\n"
        assert len(rows) == step
        assert (parted / "loss.png").exists()
    else:
        assert child.returncode == -9
        assert 20 <= step <= len(rows)
        assert len(rows) >= step
    assert 20 <= step < 150
    assert longnet("train", "--resume", "runs/parted")[0] == 0
    rows, step, tensors = result_of(parted)
    whole_rows, whole_step, whole_tensors = result_of(Path("runs/whole"))
    assert rows == whole_rows
    assert step == whole_step == 150
    assert len(tensors) == len(whole_tensors)
    assert all(map(torch.equal, tensors, whole_tensors))


def test_ctrl_c_on_a_terminal(text):
    terminal, end = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-c", ON_TERMINAL, "--data", str(text), *TINY, "--steps", "1000000", "--run", "x"],
        stdin=end,
        stdout=end,
        stderr=end,
        start_new_session=True,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
    )
    os.close(end)
    shown, pressed = "", False
    with child:
        while chunk := read_terminal(terminal):
            shown += chunk
            if "tokens/s" in shown and not pressed:
                pressed = True
                os.write(terminal, b"\x03")
    os.close(terminal)
    assert child.returncode == 130
    for name in ("step", "loss", "bits per byte", "tokens/s", "left"):
        assert name in shown
    assert "stopping after this step" in shown
    assert "continue with: longnet train --resume runs/x" in shown
    assert "Traceback" not in shown
    # The cursor was hidden and is shown again.
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")
    step = load_checkpoint(Path("runs/x/checkpoint.pt"))["step"]
    assert step == len(Path("runs/x/metrics.jsonl").read_text().splitlines()) > 0


def test_only_a_second_ctrl_c_ends_the_process_at_once():
    """Slurm and torchrun both deliver a request to stop, and so it comes twice or more."""
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen([sys.executable, "-c", STOP], text=True, **pipes) as child:
        try:
            assert child.stdout.readline() == "ready\n"
            for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGTERM, signal.SIGUSR1):
                child.send_signal(number)
                print(file=child.stdin, flush=True)
                assert child.stdout.readline() == f"{signal.SIGTERM!s}\n"
            child.send_signal(signal.SIGINT)
            said = [child.stderr.readline() for _ in range(4)]
            assert said == [
                "\n",
                "stopping after this step\n",
                "\n",
                f"{said[1][:-1]}; once more quits at once\n",
            ]
            child.send_signal(signal.SIGINT)
            child.wait(timeout=60)
        finally:
            child.kill()
    assert child.returncode == -signal.SIGINT


def test_error_has_no_traceback_and_a_reader_that_goes_away_does_not_end_the_run(text):
    failed = subprocess.run([*TRAIN, "--data", "nothing"], capture_output=True, text=True)
    assert (failed.returncode, failed.stdout) == (2, "")
    expected = f"longnet train: error: cannot read {Path('nothing').absolute()}: No such file or directory\n"
    assert failed.stderr == expected
    child = subprocess.Popen(
        [*TRAIN, "--data", str(text), *TINY, "--steps", "20", "--run", "x"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with child:
        child.stdout.readline()
        child.stdout.close()
        assert child.stderr.read() == ""
    assert child.returncode == 0
    assert load_checkpoint(Path("runs/x/checkpoint.pt"))["step"] == 20


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library is not glibc")
def test_freed_memory_is_kept_and_returned():
    shown = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True).stdout
    before, kept, returned = map(int, shown.split())
    # At least one fault for each 2 MiB of what was returned, however large the pages.
    assert min(before, returned) >= 20 * 32
    assert kept < before / 10
