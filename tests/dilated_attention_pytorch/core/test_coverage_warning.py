import itertools
import warnings
from collections.abc import Iterator

import pytest
import torch

from dilated_attention_pytorch import DilatedPattern, MultiheadDilatedAttention, dilated_attention
from dilated_attention_pytorch.core import pattern as pattern_module

MESSAGE = (
    r"^The pattern serves only 50 % of the \(token, head\) pairs \(coverage 0.5\), the output of the others "
    r"is 0: segment_lengths=\[16, 32\], dilation_rates=\[2, 4\], num_heads=1. A branch with dilation rate 1"
)
QKV = torch.ones(1, 32, 1, 4)


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    pattern_module._warn_of_gaps.cache_clear()
    yield
    pattern_module._warn_of_gaps.cache_clear()


@pytest.mark.parametrize("heads", [1, 2, 3])
@pytest.mark.parametrize("branches", [1, 2])
def test_serves_all_means_that_every_pair_is_served(branches, heads):
    sizes = [(w, r) for w in range(1, 6) for r in range(1, 4)]
    for chosen in itertools.product(sizes, repeat=branches):
        made = DilatedPattern([w for w, _ in chosen], [r for _, r in chosen], heads)
        served = all(
            any((p % w) % r == j % r for w, r in chosen)
            for p in range(60)  # a multiple of every period
            for j in range(heads)
        )
        assert made.serves_all == served, chosen


@pytest.mark.parametrize(
    "use",
    [
        lambda: DilatedPattern([16, 32], [2, 4], 1),
        lambda: dilated_attention(QKV, QKV, QKV, [16, 32], [2, 4]),
        lambda: MultiheadDilatedAttention(8, 1, segment_lengths=[16, 32], dilation_rates=[2, 4]),
        lambda: MultiheadDilatedAttention(
            8, 1, segment_lengths=[16, 32], dilation_rates=[2, 4], device=torch.device("meta")
        ),
    ],
    ids=["pattern", "function", "module", "meta"],
)
def test_a_pattern_with_gaps_warns_once(use):
    with pytest.warns(UserWarning, match=MESSAGE) as warned:
        use()
    assert len(warned) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        use()
    with pytest.warns(UserWarning, match="num_heads=2"):  # another pattern
        DilatedPattern([16, 32], [2, 4], 2)


def test_the_coverage_is_the_methods():
    made = DilatedPattern([24, 40], [2, 3], 5)
    pattern_module._warn_of_gaps.cache_clear()
    with pytest.warns(UserWarning, match=rf"coverage {made.coverage(40):.3g}\)"):
        DilatedPattern([24, 40], [2, 3], 5)


@pytest.mark.parametrize("silent", ["compiled", "ignored", "served"])
def test_silence(silent):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if silent == "compiled":
            call = torch.compile(lambda x: dilated_attention(x, x, x, [16, 32], [2, 4]), backend="eager")
            call(QKV)
        elif silent == "ignored":
            warnings.filterwarnings("ignore", "The pattern serves only")
            DilatedPattern([16, 32], [2, 4], 1)
        else:
            DilatedPattern([16, 32], [2, 1], 4)
            DilatedPattern([16, 1], [2, 4], 1)
