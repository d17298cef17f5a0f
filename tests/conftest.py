from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
import torch
from entry_points import suites_of
from hypothesis import settings

pytest_plugins = ["tests.cluster.slurm.fixtures"]

# Without a GPU Triton's kernels are interpreted. It must be known before Triton is imported.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# Where a shell without job control runs the suite in its background, these are ignored, and would be in all
# that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)

# Parallel workers share the cores, and the tensors here are too small to share between threads.
torch.set_num_threads(1)

settings.register_profile("suite", deadline=None, print_blob=True)
settings.load_profile("suite")


def pytest_configure(config: pytest.Config) -> None:
    """Add the suites that the arguments stand for; pytest collects once what is named twice."""
    config.args += suites_of(config.args, config.invocation_params.dir)


def pytest_xdist_auto_num_workers() -> int:
    """One more than CPUs: some tests wait for a Slurm cluster, or for a timeout."""
    return len(os.sched_getaffinity(0)) + 1


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """Fill every uninitialised tensor with NaN, so that reading one shows."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)
