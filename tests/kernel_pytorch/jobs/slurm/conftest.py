from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.cluster.slurm.cluster import SlurmCluster

import kernel_pytorch
from kernel_pytorch.jobs.folder import JobFolder
from kernel_pytorch.jobs.manage import Jobs, Submitted
from kernel_pytorch.jobs.read import spec_of
from kernel_pytorch.jobs.slurm import script
from kernel_pytorch.jobs.slurm.target import SlurmTarget

Submit = Callable[..., list[JobFolder]]


@pytest.fixture
def on_slurm(slurm_cluster: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> SlurmCluster:
    """A cluster that this process's commands talk to, where ``stand_in.py`` is the node program."""
    for name in os.environ.keys() - slurm_cluster.environment().keys():
        monkeypatch.delenv(name)
    for name, value in slurm_cluster.environment().items():
        monkeypatch.setenv(name, value)
    here = Path(__file__).parent
    sources = Path(kernel_pytorch.__file__).parents[1]
    monkeypatch.setenv("PYTHONPATH", f"{here}:{sources}")
    monkeypatch.setattr(script, "NODE_MODULE", "stand_in")
    return slurm_cluster


@pytest.fixture
def submit(on_slurm: SlurmCluster, tmp_path: Path) -> Iterator[Submit]:
    """Submit a job of the given fields to the cluster, and cancel it in the end."""
    jobs, found = Jobs(tmp_path / "jobs"), []

    def start(fields: dict[str, Any] | None = None, **arguments: Any) -> list[JobFolder]:
        spec = spec_of({"name": "books", "command": ["true"], **(fields or {})})
        submitted: list[Submitted] = jobs.submit(spec, SlurmTarget(), **arguments)
        found.extend(JobFolder(one.folder) for one in submitted)
        return found[-len(submitted) :]

    yield start
    for folder in found:
        SlurmTarget().cancel(folder)
