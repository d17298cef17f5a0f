from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kernel_pytorch.jobs import rank
from kernel_pytorch.jobs.folder import JobFolder
from kernel_pytorch.jobs.rank.gate import allow_restart


@pytest.fixture
def folder(tmp_path: Path) -> JobFolder:
    """The folder of a job whose command is left to the test."""
    job = {"name": "books", "argv": [], "environment": {}, "secrets": {}, "cwd": "/"}
    return JobFolder.create(tmp_path / "jobs", job)


@pytest.fixture
def in_job(folder: JobFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Make this process, and those it starts, rank 3 of the first attempt; gives the folder of the beats."""
    folder.claim_attempt({"nodes": ["here"]})
    beats = tmp_path / "beats"
    beats.mkdir()
    allow_restart(beats, 2)
    environment = {
        "KERNEL_PYTORCH_JOB": folder.path,
        "KERNEL_PYTORCH_ATTEMPT": 1,
        "KERNEL_PYTORCH_BEATS": beats,
        "KERNEL_PYTORCH_CHECKPOINT_EVERY": 600,
        "RANK": 3,
        "LOCAL_RANK": 1,
        "TORCHELASTIC_RESTART_COUNT": 2,
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # restored afterwards
    rank.current.cache_clear()
    yield beats
    rank.current.cache_clear()
