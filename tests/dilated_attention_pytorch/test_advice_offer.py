"""What the advisor is told of dilated attention."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path

import pytest
import torch
from advice_facts import facts
from strategy_models import stack
from torch import nn
from torch.nn import functional as F

from dilated_attention_pytorch import DilatedPattern, MultiheadDilatedAttention
from dilated_attention_pytorch.integrations.advice import RATES, DilatedOffer, segments
from kernel_pytorch.advice.facts import AttentionSite
from kernel_pytorch.advice.sample import Sample
from kernel_pytorch.advice.strategy.protocol import Strategy

pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning")  # on import of Dynamo


def tokens(length: int, width: int = 16) -> Sample:
    return Sample.of(torch.randn(2, length, width, generator=torch.Generator().manual_seed(1)))


def offered(model, sample, **changes):
    return DilatedOffer().offer(model, sample, facts(**changes))


def numbers(finding) -> list[float]:
    return [
        float(number) for number in re.findall(r"(?<![\w.])\d[\d.e+-]*(?= (?:GFLOP|if|\())", finding.cost)
    ]


class ByHand(nn.Module):
    """Softmax attention of x with itself, one head."""

    def forward(self, x):
        scores = x @ x.transpose(-1, -2) / 4
        return F.softmax(scores, -1) @ x


def dense_flops(batch, length, heads, width, *, causal):
    pairs = length * (length + 1) // 2 if causal else length * length
    return 4 * batch * heads * width * pairs / 1e9


@pytest.mark.parametrize("length", [64, 111])
def test_fused_attention(length):
    site = AttentionSite(place="model.py:9", paths=("a", "b"), fused=True, scores_bytes=1, call="")
    model = stack().eval()
    before = model(tokens(length).args[0])
    finding = offered(model, tokens(length), attention=(site,))
    assert (finding.kind, finding.place) == ("dense attention", "model.py:9")
    dense, dilated, difference = numbers(finding)
    assert dense == pytest.approx(2 * dense_flops(2, length, 2, 8, causal=True), rel=1e-2)
    pattern = DilatedPattern(segments(length), RATES, 2)
    assert dilated == pytest.approx(2 * pattern.flops(2, length, 8, True) / 1e9, rel=1e-2)
    assert dilated < dense / 3
    assert 1e-3 < difference < 10
    assert "2 calls" in finding.cost
    assert torch.equal(model(tokens(length).args[0]), before)


def test_attention_by_hand():
    finding = offered(ByHand(), Sample.of(torch.randn(2, 3, 64, 16)))
    assert numbers(finding)[0] == pytest.approx(dense_flops(2, 64, 3, 16, causal=False), rel=1e-2)


def test_modules_of_torch():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, dropout=0.0).eval()
    finding = offered(layer, tokens(64))
    dense, dilated, difference = numbers(finding)
    assert dense == pytest.approx(dense_flops(2, 64, 4, 4, causal=False), rel=1e-2)
    assert dilated == pytest.approx(DilatedPattern(segments(64), RATES, 4).flops(2, 64, 4) / 1e9, rel=1e-2)
    assert 1e-3 < difference < 1


def test_the_difference_is_of_the_loss_where_the_model_has_one():
    class Outputs(dict):
        loss = property(lambda self: self["loss"])

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.stack = stack()

        def forward(self, x):
            return Outputs(loss=self.stack(x).square().mean())

    model = Model().eval()
    right = model(tokens(64).args[0]).loss.item()
    assert f"the loss is {right:.4g}, and " in offered(model, tokens(64)).cost


@pytest.mark.parametrize(
    ("model", "sample"),
    [
        (lambda: nn.Linear(16, 4), tokens(64)),
        (stack, tokens(63)),
        (lambda: MultiheadDilatedAttention(16, 4, segment_lengths=(64,), dilation_rates=(1,)), tokens(64)),
    ],
    ids=["no attention", "short", "dilated already"],
)
def test_nothing_to_offer(model, sample):
    assert offered(model().eval(), sample) is None


def test_it_is_never_applied():
    offer = DilatedOffer()
    assert isinstance(offer, Strategy)
    assert isinstance(offer.applies(facts()), str)
    with pytest.raises(ValueError, match="not applied"):
        offer.apply(stack(), tokens(64))


def test_it_is_registered():
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    value = re.search(r'\[project.entry-points."kernel_pytorch.strategies"\]\ndilated = "(.*)"', text)[1]
    point = importlib.metadata.EntryPoint("dilated", value, "kernel_pytorch.strategies")
    assert point.load() is DilatedOffer
    assert point.load().offers
