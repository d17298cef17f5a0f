"""The example of a training loop, as a job: asked to stop, resumed, and outrun by another attempt."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kernel_pytorch.jobs.folder import JobFolder
from kernel_pytorch.jobs.rank.beats import Beats

EXAMPLE = Path(__file__).parents[3] / "examples" / "job_loop.py"
WORLD, STEPS = 2, 6


def expected() -> dict[str, torch.Tensor]:
    """The same in one process: the mean over the rows of both ranks is the mean of their gradients."""
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 1)
    momentum = [torch.zeros_like(parameter) for parameter in model.parameters()]
    for step in range(1, STEPS + 1):
        rows = []
        for rank in range(WORLD):
            torch.manual_seed(step * WORLD + rank)
            rows.append(torch.randn(8, 4))
        inputs = torch.cat(rows)
        loss = (model(inputs) - inputs.sum(1, keepdim=True)).square().mean()
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for parameter, velocity, gradient in zip(model.parameters(), momentum, gradients, strict=True):
                velocity.mul_(0.9).add_(gradient)
                parameter.sub_(0.1 * velocity)
    return {f"module.{name}": value for name, value in model.state_dict().items()}


def run_attempt(folder: JobFolder, beats: Path, attempt: int, *, stop: bool) -> None:
    beats.mkdir()
    if stop:
        Beats(beats).ask_to_stop()
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={WORLD}"]
    done = subprocess.run(
        [*torchrun, "--no-python", sys.executable, "-m", "kernel_pytorch.jobs.rank", folder.path],
        env={
            **os.environ,
            "KERNEL_PYTORCH_JOB": str(folder.path),
            "KERNEL_PYTORCH_ATTEMPT": str(attempt),
            "KERNEL_PYTORCH_BEATS": str(beats),
            "KERNEL_PYTORCH_NODE_PID": str(os.getpid()),
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_a_loop_that_is_stopped_goes_on_where_it_was(folder: JobFolder, tmp_path: Path):
    out = tmp_path / "line"
    job = folder.job()
    folder.write_job({**job, "argv": [sys.executable, str(EXAMPLE), str(out), str(STEPS)]})

    assert folder.claim_attempt({}) == 1
    run_attempt(folder, tmp_path / "beats-1", 1, stop=True)
    assert {rank: record["left"] for rank, record in folder.records(1).items()} == {0: 1, 1: 1}
    assert {beat.phase for beat in Beats(tmp_path / "beats-1").read().values()} == {"left"}
    stopped = torch.load(out / "checkpoint.pt")
    assert stopped["step"] == 1

    assert folder.claim_attempt({}) == 2
    run_attempt(folder, tmp_path / "beats-2", 2, stop=False)
    for record in folder.records(2).values():
        assert [save["step"] for save in record["saved"]] == [STEPS]
        assert "left" not in record
    finished = torch.load(out / "checkpoint.pt")
    assert finished["step"] == STEPS
    for name, value in expected().items():
        torch.testing.assert_close(finished["model"][name], value)
    assert sorted(os.listdir(out)) == ["checkpoint.pt"]


def test_an_attempt_that_was_outrun_saves_nothing(
    folder: JobFolder, in_job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert folder.claim_attempt({}) == 2  # after in_job's
    world = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    for name, value in world.items():
        monkeypatch.setenv(name, value)
    done = subprocess.run([sys.executable, EXAMPLE, tmp_path / "line", "3"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "another attempt has begun; this one stops without saving" in done.stderr
    assert os.listdir(tmp_path / "line") == []
    assert folder.records(1) == {}
