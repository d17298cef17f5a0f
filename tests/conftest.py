from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

# Parallel workers share the cores, and the tensors here are too small to share between threads.
torch.set_num_threads(1)

settings.register_profile("suite", deadline=None, print_blob=True)
settings.load_profile("suite")


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """Fill every uninitialised tensor with NaN, so that reading one shows."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)
