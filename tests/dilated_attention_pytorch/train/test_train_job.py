"""``longnet train`` in a job: the same command, whatever ended it, and only the newest attempt writes."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny import TINY

from dilated_attention_pytorch.train import checkpoint as checkpoint_module
from dilated_attention_pytorch.train import command
from dilated_attention_pytorch.train.checkpoint import load_checkpoint
from dilated_attention_pytorch.train.metrics import append_row, lock_metrics
from kernel_pytorch.jobs import rank
from kernel_pytorch.jobs.folder import JobFolder
from kernel_pytorch.jobs.rank.beats import Beats, BeatWriter
from kernel_pytorch.jobs.recovery.classify import classify
from kernel_pytorch.jobs.recovery.evidence import Evidence, RankError

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Job:
    """A job whose attempts this test starts, as the node program would."""

    def __init__(self, folder, monkeypatch, beats):
        self.folder, self.monkeypatch, self.beats = JobFolder.create(folder, dict(JOB)), monkeypatch, beats

    def begin(self, **more):
        """The environment of the next attempt, here and in what is started from here; its number."""
        attempt = self.folder.claim_attempt({"nodes": ["here"]})
        self.enter(attempt, **more)
        return attempt

    def enter(self, attempt, **more):
        beats = self.beats / str(attempt)
        beats.mkdir(parents=True, exist_ok=True)
        environment = {
            "KERNEL_PYTORCH_JOB": self.folder.path,
            "KERNEL_PYTORCH_ATTEMPT": attempt,
            "KERNEL_PYTORCH_BEATS": beats,
            **{"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "TORCHELASTIC_RESTART_COUNT": 0},
            **more,
        }
        for name, value in environment.items():
            self.monkeypatch.setenv(name, str(value))
        rank.current.cache_clear()

    def stop_file(self, attempt):
        """Where the node program makes the file that asks the ranks of an attempt to stop."""
        return self.beats / str(attempt) / "stop"


JOB = {"name": "books", "argv": [], "environment": {}, "secrets": {}, "cwd": "/"}


@pytest.fixture
def job(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # restored afterwards
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    yield Job(tmp_path / "jobs", monkeypatch, tmp_path / "beats")
    rank.current.cache_clear()
    for number, handler in handlers.items():
        signal.signal(number, handler)


def rows_of(run):
    rows = [json.loads(line) for line in Path("runs", run, "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    return [{name: row[name] for name in row if name != "tokens_per_s"} for row in rows]


def step_of(run):
    return load_checkpoint(Path("runs", run, "checkpoint.pt"))["step"]


def started(*arguments, processes=1):
    """``longnet train``, which cannot go far unread: its lines fill a pipe of one page."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--max-restarts", "1"]
    torchrun += ["--nproc-per-node", str(processes)]
    launcher = torchrun if processes > 1 else []
    return subprocess.Popen(
        [sys.executable, *launcher, "-m", "dilated_attention_pytorch.train"]
        + (["--"] if launcher else [])
        + list(map(str, arguments)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        pipesize=4096,
        # As the node program sets it: with the store of before, ranks that are started again find dead peers.
        env={**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
    )


def read_to(child, step):
    said = ""
    for line in child.stdout:
        said += line
        if line.startswith(f"step {step}/"):
            return said
    raise AssertionError(said + child.stderr.read())


def end_of(child):
    try:
        return child.communicate(timeout=300)
    finally:
        child.kill()


def test_killed_then_asked_to_stop_then_finished_is_bit_for_bit_one_run(job, text, longnet):
    options = ["--data", text, *TINY, "--steps", 150, "--eval-every", 1, "--checkpoint-every", 20]
    assert longnet("train", *options, "--run", "whole")[0] == 0
    options += ["--run", "parted"]

    job.begin()
    with started(*options) as child:
        read_to(child, 25)
        child.kill()
    killed = step_of("parted")
    assert 20 <= killed < 150

    attempt = job.begin()
    with started(*options) as child:
        read_to(child, killed + 5)
        for _ in range(3):
            child.send_signal(signal.SIGUSR1)
            child.send_signal(signal.SIGTERM)
        out, err = end_of(child)
    assert (child.returncode, err) == (0, "")
    stopped = step_of("parted")
    assert out.endswith(f"stopped after step {stopped} of 150; goes on when job {job.folder.id} does\n")
    record = job.folder.record(attempt, 0)
    assert record["left"] == stopped == record["saved"][-1]["step"]
    assert record["saved"][-1]["seconds"] > 0
    assert Beats(job.beats / str(attempt)).read()[0].phase == "left"
    assert killed < stopped < 150

    attempt = job.begin()
    assert longnet("train", *options)[0] == 0
    assert rows_of("parted") == rows_of("whole")
    assert "left" not in job.folder.record(attempt, 0)
    parted, whole = (
        load_checkpoint(Path("runs", run, "checkpoint.pt"))["model"] for run in ("parted", "whole")
    )
    assert all(torch.equal(parted[name], whole[name]) for name in whole)
    assert json.loads(Path("runs/parted/attempt.json").read_text())["attempt"] == attempt == 3


def test_any_number_of_ranks_goes_on_with_the_same_numbers(job, text, longnet):
    """Of 3 ranks one has no row of a batch of 2; of 2 both share each context."""
    branches = ("--segment-lengths", "16,64", "--dilation-rates", "1,2")
    options = ["--data", text, *TINY, *branches, "--batch-size", 2, "--eval-windows", 3, "--lr", "1e-3"]
    options += ["--steps", 40, "--eval-every", 1, "--checkpoint-every", 100]
    assert longnet("train", *options, "--run", "whole")[0] == 0
    options += ["--run", "spread", "--context-parallel", 2]

    attempt = job.begin()
    with started(*options, processes=3) as child:
        begun = read_to(child, 10)
        children = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()
        for _ in range(2):  # as Slurm does, and then torchrun again
            for pid in (*children, child.pid):
                os.kill(int(pid), signal.SIGTERM)
        out, err = end_of(child)
    assert "note   --context-parallel 2 does not fit, 1 does\n" in begun
    assert "note   1 of 3 rows are padding: 3 does not divide 2\n" in begun
    stopped = step_of("spread")
    assert {record["left"] for record in job.folder.records(attempt).values()} == {stopped}, err
    assert len(job.folder.records(attempt)) == 3
    assert 10 <= stopped < 40

    attempt = job.begin()
    with started(*options, processes=2) as child:
        begun = read_to(child, stopped + 5)
        _, second = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()
        os.kill(int(second), signal.SIGKILL)  # torchrun starts both again
        out, err = end_of(child)
    assert child.returncode == 0, err
    assert f"resumed after step {stopped}\n" in begun
    assert "resumed after step" in out
    assert "longnet train: error: rank 0: another rank has failed" in err
    assert [record["restart"] for record in job.folder.records(attempt).values()] == [1, 1]
    assert "ranks  2: 1 data parallel x 2 context parallel" in out
    for row, expected in zip(rows_of("spread"), rows_of("whole"), strict=True):
        for name in ("train_bits_per_byte", "val_bits_per_byte"):
            assert row[name] == pytest.approx(expected[name], abs=1e-4)


def test_usr1_outside_a_job(command_line, longnet, monkeypatch):
    append = command.append_row
    monkeypatch.setattr(
        command, "append_row", lambda *row: (append(*row), signal.raise_signal(signal.SIGUSR1))
    )
    status, out, _ = longnet(*command_line, "--run", "x")
    assert status == 128 + signal.SIGUSR1 == 138
    assert out.endswith("stopped after step 1 of 6; continue with: longnet train --resume runs/x\n")
    assert step_of("x") == 1


@pytest.fixture
def command_line(text):
    return ["train", "--data", text, *TINY, "--steps", 6, "--checkpoint-every", 2]


def test_a_run_without_a_name_has_that_of_the_job(job, command_line, longnet):
    stop = job.stop_file(job.begin())
    stop.touch()
    status, out, err = longnet(*command_line)
    assert (status, err) == (0, "")
    assert out.endswith(f"stopped after step 0 of 6; goes on when job {job.folder.id} does\n")
    assert job.folder.record(1, 0)["left"] == 0
    stop.unlink()
    job.enter(1, TORCHELASTIC_RESTART_COUNT=1)  # torchrun starts it again in the same attempt
    assert longnet(*command_line)[0] == 0
    assert os.listdir("runs") == [job.folder.id]
    assert len(rows_of(job.folder.id)) == 6
    assert job.folder.record(1, 0)["restart"] == 1

    # It goes on with the text it began with, although the command line says which text.
    (Path(command_line[2]) / "json.py").write_text("other text " * 1000)
    job.begin()
    status, _, err = longnet(*command_line)
    assert status == 2
    assert "is not the one that" in err


def test_beats_say_what_is_done_and_saves_come_by_time_too(job, command_line, longnet, monkeypatch):
    beats, write = [], BeatWriter.write
    monkeypatch.setattr(BeatWriter, "write", lambda w, *beat: (beats.append(beat), write(w, *beat)))
    job.begin(KERNEL_PYTORCH_CHECKPOINT_EVERY=1e-6)
    assert longnet(*command_line[:-4], "--steps", 3, "--eval-every", 2, "--checkpoint-every", "100h")[0] == 0
    assert [save["step"] for save in job.folder.record(1, 0)["saved"]] == [0, 1, 2, 3]
    said = [beat for beat, _ in itertools.groupby(beats)]
    saving = [(1, "training"), (1, "saving"), (1, "training")]
    assert said[:4] == [(None, "starting"), (0, "saving"), (0, "training"), (1, "training")]
    assert said[3:6] == saving
    assert (2, "evaluating") in said
    assert said.index((2, "evaluating")) < said.index((2, "training")) < said.index((2, "saving"))
    assert said[-1] == (3, "evaluating")


def test_checkpoints_by_time_outside_a_job(command_line, longnet, monkeypatch):
    clock = itertools.count(0, 20)  # a look at it after each step, and another after each save
    times = SimpleNamespace(monotonic=lambda: next(clock), perf_counter=time.perf_counter)
    monkeypatch.setattr(command, "time", times)
    options = [*command_line[:-4], "--steps", 8, "--checkpoint-every", "1m", "--keep", 9]
    assert longnet(*options, "--run", "x")[0] == 0
    assert sorted(path.name for path in Path("runs/x").glob("checkpoint-*")) == [
        f"checkpoint-{step}.pt" for step in (0, 3, 6, 8)
    ]
    assert json.loads(Path("runs/x/config.json").read_text())["options"]["checkpoint_every"] == "1m"


def test_init_from_and_resume_on_the_command_line_count_once(job, command_line, longnet, text):
    assert longnet(*command_line, "--run", "first", "--keep", 3)[0] == 0
    init = ["train", "--data", text, "--init-from", "first", "--checkpoint", 2, "--run", "second"]
    for _ in range(2):
        stop = job.stop_file(job.begin())
        stop.touch()
        assert longnet(*init)[0] == 0
        assert load_checkpoint(Path("runs/second/checkpoint.pt"))["init_from"]["step"] == 2

    back = ["train", "--resume", "first", "--checkpoint", 4, "--lr", 1e-4, "--steps", 9]
    job.begin()
    append = command.append_row
    job.monkeypatch.setattr(command, "append_row", lambda *row: (append(*row), signal.raise_signal(15)))
    assert longnet(*back)[0] == 0
    assert step_of("first") == 5
    job.monkeypatch.setattr(command, "append_row", append)
    job.begin()
    status, out, _ = longnet(*back)
    assert status == 0
    assert "resumed after step 5\n" in out
    assert [row["learning_rate"] == 0.004 for row in rows_of("first")].count(True) <= 4
    assert len(rows_of("first")) == 9


@pytest.mark.parametrize("in_a_job", [True, False])
def test_a_folder_left_before_its_first_checkpoint_is_taken_over(job, command_line, longnet, in_a_job):
    left = Path("runs/x")
    left.mkdir(parents=True)
    for name in ("metrics.jsonl", "config.json", "checkpoint.pt.0a1b2c3d.tmp", "attempt.json"):
        (left / name).write_text("{}" * (name == "attempt.json"))
    (left / "shards-0").mkdir()
    if in_a_job:
        job.begin()
    status, _, err = longnet("train", "--resume", "x")
    assert (status, err.count("\n")) == (2, 1)
    assert err.endswith("no checkpoint.pt in runs/x: start it again, longnet train --run runs/x\n")
    with lock_metrics(left / "metrics.jsonl"):
        status, _, err = longnet(*command_line, "--run", "x")
        assert (status, err) == (2, "longnet train: error: another process is training in runs/x\n")
    assert longnet(*command_line, "--run", "x")[0] == 0
    assert len(rows_of("x")) == 6
    assert (left / "attempt.json").exists() == in_a_job
    assert not [*left.glob("*.tmp"), *left.glob("shards-*")]


def test_what_the_job_did_not_make_is_left_alone(job, command_line, longnet):
    assert longnet(*command_line, "--run", "x")[0] == 0
    before = Path("runs/x/checkpoint.pt").read_bytes()
    (Path("runs/y")).mkdir()
    Path("runs/y/metrics.jsonl").write_text('{"step": 1}\n')
    job.begin()
    for run, message in (
        ("x", "runs/x exists: continue it with --resume runs/x, or choose another --run"),
        ("y", "runs/y exists: choose another --run"),
    ):
        status, _, err = longnet(*command_line, "--run", run)
        assert (status, err) == (2, f"longnet train: error: {message}\n")
    assert Path("runs/x/checkpoint.pt").read_bytes() == before
    error = job.folder.record(1, 0)
    assert (error["error"], error["step"]) == (message, None)
    evidence = Evidence(exit_codes={0: 2}, errors={0: RankError(text=message, type=error["type"])})
    failure = classify(evidence)
    assert (failure.kind, message in failure.text) == ("user", True)


def outrun(job, longnet, command_line, monkeypatch, module, name, begin):
    """What a run says whose attempt is outrun when it calls the function ``name`` for the third time."""
    real, calls = getattr(module, name), itertools.count(1)

    def call(*arguments, **keywords):
        result = real(*arguments, **keywords)
        if next(calls) == 3:
            begin()
            files.update({path: path.read_bytes() for path in Path("runs/x").iterdir()})
        return result

    files = {}
    monkeypatch.setattr(module, name, call)
    status, _, err = longnet(*command_line, "--run", "x")
    assert (status, err.count("\n")) == (1, 1)
    monkeypatch.setattr(module, name, real)
    kept = {path: content for path, content in files.items() if path.suffix != ".tmp"}
    return err, kept


@pytest.mark.parametrize("moment", ["while saving", "before it saves"])
def test_an_attempt_that_was_outrun_writes_nothing_more(job, command_line, longnet, monkeypatch, moment):
    job.begin()
    module, name = (torch, "save") if moment == "while saving" else (command, "append_row")
    assert checkpoint_module.torch is torch
    err, files = outrun(
        job, longnet, command_line, monkeypatch, module, name, lambda: job.folder.claim_attempt({})
    )
    assert f"a newer attempt of job {job.folder.id} has begun: attempt 1 stops without writing" in err
    metrics = files.pop(Path("runs/x/metrics.jsonl"))
    assert Path("runs/x/metrics.jsonl").read_bytes().startswith(metrics)
    assert files == {path: path.read_bytes() for path in files}
    assert not list(Path("runs/x").glob("*.tmp"))
    assert load_checkpoint(Path("runs/x/checkpoint.pt"))["job"] == {"id": job.folder.id, "attempt": 1}
    assert "stops without writing" in job.folder.record(1, 0)["error"]


def test_a_start_that_was_outrun_within_its_attempt_writes_nothing_more(
    job, command_line, longnet, monkeypatch
):
    """Ranks on a node that was given up: torchrun has started others, in the same attempt."""
    job.begin()

    def others():
        command.claim_folder(Path("runs/x"), rank.current())

    err, _ = outrun(job, longnet, command_line, monkeypatch, command, "append_row", others)
    assert f"runs/x is of attempt 1 of job {job.folder.id} by now: attempt 1 of job" in err
    assert step_of("x") == 2


def test_an_older_attempt_that_lives_on_keeps_nobody_waiting(job, command_line, longnet):
    stop = job.stop_file(job.begin())
    stop.touch()
    assert longnet(*command_line, "--run", "x")[0] == 0
    with lock_metrics(Path("runs/x/metrics.jsonl")) as older:
        job.begin()
        assert longnet(*command_line, "--run", "x")[0] == 0
        append_row(older, {"step": 7})
    assert len(rows_of("x")) == 6
    # Another job, or nobody's process, is no older attempt.
    with lock_metrics(Path("runs/x/metrics.jsonl")):
        Path("runs/x/attempt.json").unlink()
        job.begin()
        status, _, err = longnet(*command_line, "--run", "x")
    assert (status, err) == (2, "longnet train: error: another process is training in runs/x\n")


def test_only_training_imports_the_job():
    script = (
        "import sys, dilated_attention_pytorch as d, dilated_attention_pytorch.train.generate,"
        " dilated_attention_pytorch.train.evaluate, dilated_attention_pytorch.train.weights\n"
        "print([name for name in sys.modules if name.startswith('kernel_pytorch.jobs')])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
