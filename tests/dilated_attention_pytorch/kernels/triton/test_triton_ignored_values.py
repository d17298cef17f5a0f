"""Nothing that an ignored key holds reaches a result of the Triton kernels."""

from __future__ import annotations

import pytest
import torch
from garbage import check_padding_is_not_read
from problems import Problem

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


# NumPy, under the interpreter, warns of the padded queries' own scores.
_NOISE = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.mark.parametrize("queries_too", [False, pytest.param(True, marks=_NOISE)])
@pytest.mark.parametrize("ranked", ["none", "one row"])
def test_what_padded_tokens_hold_is_not_read(ranked: str, queries_too: bool):
    is_causal = ranked == "none"
    problem = Problem(2, 24, 2, 1, 16, ((8, 1), (24, 2)), is_causal, True, ranked, "contiguous", 3)
    check_padding_is_not_read(
        problem, torch.float32, "triton", "all of them", queries_too=queries_too, device=DEVICE
    )
