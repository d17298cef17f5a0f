from __future__ import annotations

import pickle

import pytest

from kernel_pytorch.cli.errors import CommandError
from kernel_pytorch.errors import KernelPytorchError, Unavailable
from kernel_pytorch.machine.worker import NoAnswerError
from kernel_pytorch.power.limits import PowerLimitError


@pytest.mark.parametrize(
    "error",
    [
        KernelPytorchError("the reason"),
        Unavailable("the reason", "the way out"),
        NoAnswerError("NVML", 3.0),
        PowerLimitError("the reason", "the way out"),
        CommandError("the reason", status=1),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_is_the_same_in_another_process(error: KernelPytorchError):
    back = pickle.loads(pickle.dumps(error))
    assert (type(back), str(back), vars(back)) == (type(error), str(error), vars(error))
    assert str(error).startswith(error.why)
