"""What a target is, and finding one by name."""

from __future__ import annotations

import pickle

import pytest

from kernel_pytorch.errors import Unavailable
from kernel_pytorch.jobs.target import ClusterUnavailableError, target_named


def test_a_target_by_its_name():
    assert target_named("local").name == "local"
    with pytest.raises(ValueError, match="target must be local or slurm, got 'moon'"):
        target_named("moon")


def test_a_cluster_that_does_not_answer():
    error = ClusterUnavailableError("squeue was not found", "install Slurm's commands")
    assert isinstance(error, Unavailable)
    assert isinstance(error, OSError)
    assert str(error) == "squeue was not found: install Slurm's commands"
    assert (error.why, error.fix) == ("squeue was not found", "install Slurm's commands")
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.why, again.fix) == (str(error), error.why, error.fix)
