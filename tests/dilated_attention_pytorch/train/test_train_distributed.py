"""Training on several processes that torchrun starts: the numbers of one process, and no more words."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import TINY

from dilated_attention_pytorch.models import LongNetLM
from dilated_attention_pytorch.train import command
from dilated_attention_pytorch.train.checkpoint import load_checkpoint

BRANCHES = ["--segment-lengths", "16,64", "--dilation-rates", "1,2"]
# Three windows, which two parts of a batch do not divide.
OPTIONS = [
    *(*TINY, *BRANCHES, "--batch-size", "2", "--eval-windows", "3"),
    *("--lr", "1e-3", "--steps", "50", "--eval-every", "20", "--checkpoint-every", "20"),
]


# Rank 0 has torchrun stopped after step 23, and goes no further before the signal has come.
STOPPED = """
import os, signal, sys, time
from dilated_attention_pytorch.cli import main
from dilated_attention_pytorch.train import command
append_row = command.append_row
class StopRequest(command.StopRequest):
    def __enter__(self):
        requests.append(self)
        return super().__enter__()
requests, command.StopRequest = [], StopRequest
def append_and_stop(file, row):
    append_row(file, row)
    if row["step"] == 23:
        os.kill(os.getppid(), signal.SIGTERM)
        while requests[0].received is None:
            time.sleep(0.01)
command.append_row = append_and_stop
sys.exit(main(["train", *sys.argv[1:]]))
"""


def torchrun(processes, *arguments, program=("-m", "dilated_attention_pytorch.train")):
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"),
            *(str(processes), *program, "--", *map(str, arguments)),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def end_of(child):
    try:
        return child.communicate(timeout=300)
    finally:
        # It ends the ranks as well, if they are still there.
        child.terminate()


def finished(child):
    with child:
        out, err = end_of(child)
    assert child.returncode == 0, err
    assert err == ""
    return out


def curves(run):
    rows = [json.loads(line) for line in Path("runs", run, "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    return [(row["train_bits_per_byte"], row.get("val_bits_per_byte", 0.0)) for row in rows]


def assert_same_curves(run, other):
    mine, others = curves(run), curves(other)
    assert len(mine) == len(others) == 50
    for step, (values, expected) in enumerate(zip(mine, others, strict=True), 1):
        assert values == pytest.approx(expected, rel=1e-5), f"step {step}"


@pytest.fixture
def whole(text, longnet):
    """The folder name of a run of one process."""
    assert longnet("train", "--data", text, *OPTIONS, "--run", "whole")[0] == 0
    return "whole"


@pytest.mark.parametrize(
    ("processes", "context_parallel", "sharding"),
    [(2, 1, "contiguous"), (2, 2, "zigzag"), (4, 4, "contiguous")],
    ids=["data", "context", "context-of-4"],
)
def test_loss_is_that_of_one_process(text, whole, processes, context_parallel, sharding):
    layout = ["--context-parallel", context_parallel, "--sharding", sharding]
    out = finished(torchrun(processes, "--data", text, *OPTIONS, *layout, "--run", "spread"))
    assert_same_curves("spread", whole)
    assert len(re.findall("^step 50/50 ", out, re.MULTILINE)) == 1
    assert sorted(os.listdir("runs/spread")) == [
        *("best.pt", "checkpoint.pt", "config.json", "loss.png", "metrics.jsonl", "sample.txt", "shards-50"),
    ]
    loaded, single = (LongNetLM.load(run, "best").state_dict() for run in ("spread", "whole"))
    assert loaded.keys() == single.keys()
    for name, weight in single.items():
        torch.testing.assert_close(loaded[name], weight, rtol=1e-3, atol=1e-5)
    for name in ("sample.txt", "config.json"):
        assert Path("runs/spread", name).read_bytes() == Path("runs/whole", name).read_bytes()


def test_stopped_on_four_and_resumed_on_two_and_on_one(text, whole, longnet):
    layout = ["--context-parallel", 2, "--sharding", "zigzag"]
    Path("stopped.py").write_text(STOPPED)
    child = torchrun(4, "--data", text, *OPTIONS, *layout, "--run", "on-two", program=["stopped.py"])
    with child:
        out, err = end_of(child)
    assert load_checkpoint(Path("runs/on-two/checkpoint.pt"))["step"] == 23, err
    assert len(curves("on-two")) == 23
    assert out.splitlines()[-1] == (
        "stopped after step 23 of 50; continue with: torchrun --nproc-per-node 4 "
        "-m dilated_attention_pytorch.train --context-parallel 2 --sharding zigzag --resume runs/on-two"
    )
    assert err.count("stopping after this step") == 1

    shutil.copytree("runs/on-two", "runs/on-one")
    for prompt in ("def ", "x"):
        status, out, err = longnet("generate", "runs/on-two", "--prompt", prompt, "--bytes", 5)
        assert (status, err) == (0, "")
    assert longnet("train", "--resume", "on-one")[0] == 0
    assert_same_curves("on-one", whole)
    assert not list(Path("runs/on-one").glob("shards-*"))
    finished(torchrun(2, "--resume", "on-two", "--context-parallel", 2))
    assert_same_curves("on-two", whole)


def test_stopped_on_one_and_resumed_on_two(text, whole, longnet, monkeypatch):
    append_row = command.append_row

    def append_and_stop(file, row):
        append_row(file, row)
        if row["step"] == 40:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(command, "append_row", append_and_stop)
    assert longnet("train", "--data", text, *OPTIONS, "--run", "parted")[0] == 143
    assert len(curves("parted")) == 40
    finished(torchrun(2, "--resume", "parted", "--keep", 2))
    assert_same_curves("parted", whole)

    # Back to where two ranks began, in one process; what no checkpoint names any more is removed.
    folder = Path("runs/parted")
    assert sorted(path.name for path in folder.glob("shards-*")) == ["shards-40", "shards-50"]
    status, out, err = longnet("train", "--resume", "parted", "--checkpoint", 40, "--keep", 1)
    assert (status, err) == (0, "")
    assert "resumed after step 40" in out
    assert_same_curves("parted", whole)
    assert sorted(path.name for path in folder.glob("checkpoint*")) == ["checkpoint.pt"]
    named = load_checkpoint(folder / "best.pt").get("shards", {}).get("folder")
    assert [path.name for path in folder.glob("shards-*")] == ([] if named is None else [named])


def test_mistakes_are_one_line_of_all_ranks(text):
    with torchrun(2, "--data", "nothing", *TINY, "--context-parallel", 2, "--run", "x") as child:
        out, err = end_of(child)
    said = [line for line in err.splitlines() if "longnet" in line]
    assert said == [
        f"longnet train: error: cannot read {Path('nothing').absolute()}: No such file or directory"
    ]
    assert out == ""
    # torchrun ends with SIGTERM whoever is not as quick to exit as the first.
    statuses = re.findall(r"exitcode +: (\S+) ", err)
    assert len(statuses) == 2
    assert "2" in statuses
    assert set(statuses) <= {"2", "-15"}
    assert not Path("runs").exists()
