"""Where a model computes attention, and the strategy that fuses it."""

from __future__ import annotations

import copy
import inspect
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from advice_facts import facts
from advice_forms import FORMS, LOOK_ALIKES, TriangleBuffer, Written, error, inputs
from torch import Tensor, nn

from kernel_pytorch.advice.facts import AttentionSite, Expectation, Fact, OperatorCost, Roofline, Structure
from kernel_pytorch.advice.sample import Sample
from kernel_pytorch.advice.strategy.attention import AttentionToSDPA, find_attention
from kernel_pytorch.advice.strategy.attention_rewrite import rewrite_attention
from kernel_pytorch.advice.strategy.graph_passes import passes_of
from kernel_pytorch.advice.strategy.protocol import Strategy


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(16, 48)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(2, -1, 3, 2, 8).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-2, -1) / 8
        hidden = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        return (self.dropout(weights) @ v).transpose(1, 2).flatten(2)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.last = nn.ModuleDict({"only": Block()})

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.last["only"](x)


def line_of(function, text):
    lines, first = inspect.getsourcelines(function)
    return first + next(i for i, line in enumerate(lines) if text in line)


def test_sites_by_hand():
    """Three modules with the same lines are one site, with the equal call."""
    model = Model().eval()
    state = {name: t.clone() for name, t in model.state_dict().items()}
    (site,) = find_attention(model, Sample((torch.randn(2, 5, 16),)))
    first, last = line_of(Block.forward, "scores = q @ k"), line_of(Block.forward, "@ v)")
    assert site.place.endswith(f"test_attention_strategy.py:{first}-{last}")
    assert site.paths == ("blocks.0", "blocks.1", "last.only")
    assert site.scores_bytes == 2 * 2 * 5 * 5 * 4
    assert site.call == "F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.125)"
    assert not site.fused
    assert not site.why
    assert model._compiled_call_impl is None
    assert all(torch.equal(t, state[name]) for name, t in model.state_dict().items())


def test_blocks_that_share_a_graph_are_all_sites():
    """Of nn.Sequential, which Dynamo leaves out, it compiles one block for all."""
    model = nn.Sequential(*(Block() for _ in range(3))).eval()
    (site,) = find_attention(model, Sample((torch.randn(2, 5, 16),)))
    assert site.paths == ("0", "1", "2")


def test_what_must_stay_says_why():
    (site,) = find_attention(Model().train(), Sample((torch.randn(2, 5, 16),)))
    assert site.why == "dropout 0.1 in training"
    assert len(site.paths) == 3


def test_random_numbers_are_left_as_they_were():
    model = Model().train()
    torch.manual_seed(0)
    wanted = torch.rand(3)
    torch.manual_seed(0)
    find_attention(model, Sample((torch.ones(2, 5, 16),)))
    assert torch.equal(torch.rand(3), wanted)


def fused(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def three_dimensions(q, k, v):
    return F.scaled_dot_product_attention(q[0], k[0], v[0])


def mask_with_gradient(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, attn_mask=q @ k.mT)


def dropped(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, dropout_p=0.1)


@pytest.mark.parametrize(
    ("function", "why", "size"),
    [
        (fused, "", 0),
        (three_dimensions, "its inputs have 3 dimensions instead of 4", 4 * 7 * 7 * 4),
        (mask_with_gradient, "its mask needs a gradient", 2 * 4 * 7 * 7 * 4),
        (dropped, "dropout 0.1 in training", 2 * 4 * 7 * 7 * 4),
    ],
)
def test_fused_calls_say_why_they_are_not(function, why, size):
    (site,) = find_attention(Written(function), Sample(tuple(inputs(7))), training=True)
    assert site.fused
    assert (site.why, site.scores_bytes) == (why, size)
    assert site.place.endswith(f"test_attention_strategy.py:{line_of(function, 'return')}")


def test_an_error_of_the_model_is_raised():
    def fails(q, k, v):
        raise RuntimeError("no such shape")

    with pytest.raises(RuntimeError, match="no such shape"):
        find_attention(Written(fails), Sample(tuple(inputs(7))))


def test_look_alikes_are_no_sites():
    """But for scores that are used again, which are attention that must stay."""
    found = {form.name: find_attention(form.make(), Sample(tuple(inputs(7)))) for form in LOOK_ALIKES}
    assert {name: [site.why for site in sites] for name, sites in found.items() if sites} == {
        "scores_used_again": ["the scores or weights are used elsewhere"],
        "multiplied_mask": ["each score has a scale of its own"],
    }


def site(**changes):
    known = {"place": "m.py:1", "paths": ("a", "b"), "fused": False, "scores_bytes": 16_800_000, "call": "F"}
    return AttentionSite(**(known | changes))


def with_sites(*sites, **changes):
    return facts(structure=Structure(attention=sites, **changes))


def test_expected_gain():
    """8 passes over two modules' 16.8 MB of scores at 12 GB/s are 22 ms of 100 ms."""
    model = facts(
        call=Fact(value=0.1, basis="measured"),
        roofline=Roofline(flops={}, memory_gb_s=12.0),
        structure=Structure(attention=(site(),)),
    )
    expected = AttentionToSDPA().applies(model)
    assert isinstance(expected, Expectation)
    assert expected.gain == pytest.approx(0.1 / (0.1 - 8 * 2 * 16.8e6 / 12e9))
    assert expected.reason == "attention by hand in 2 modules, up to 16.8 MB of scores each"


@pytest.mark.parametrize(
    ("call", "spared_s"), [("F(q, k, v)", 0.03), ("F(q, k, v, is_causal=True)", 0.04)], ids=["full", "causal"]
)
def test_expected_gain_where_the_profile_shows_more_than_traffic(call, spared_s):
    """Of 100 ms 10 and 20 are on the scores, 20 in their products, of which a causal call needs half."""
    seconds = {"aten::masked_fill": 0.01, "aten::_softmax": 0.02, "aten::bmm": 0.02, "aten::addmm": 0.04}
    model = facts(
        call=Fact(value=0.1, basis="measured"),
        roofline=Roofline(flops={}, memory_gb_s=12.0),
        structure=Structure(attention=(site(call=call),)),
        operators=tuple(
            OperatorCost(name=name, calls=1, seconds=spent, flops=None, bytes=None)
            for name, spent in seconds.items()
        ),
    )
    assert AttentionToSDPA().applies(model).gain == pytest.approx(0.1 / (0.1 - spared_s))


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (with_sites(), "no attention by hand was found"),
        (with_sites(site(fused=True, scores_bytes=0)), "attention is fused already"),
        (
            with_sites(site(why="dropout 0.1 in training")),
            "attention must stay as it is: dropout 0.1 in training",
        ),
    ],
    ids=["none", "fused", "unlike"],
)
def test_reasons_not_to_try(model, reason):
    assert AttentionToSDPA().applies(model) == reason


def test_applies_without_measurements_and_with_the_switch():
    unmeasured = Fact(why="not measured")
    model = facts(call=unmeasured, attention_share=unmeasured, structure=Structure(attention=(site(),)))
    assert AttentionToSDPA().applies(model).gain > 1
    assert AttentionToSDPA().applies(with_sites(attention_switch=True)).gain > 1


def test_apply_by_the_pass():
    strategy = AttentionToSDPA()
    assert isinstance(strategy, Strategy)
    model = TriangleBuffer().eval()
    original = copy.deepcopy(model)
    tensors = inputs(9)
    changed = strategy.apply(model, Sample(tuple(tensors)))
    assert passes_of(changed) == (rewrite_attention,)
    assert error(changed(*tensors), original(*tensors).double()) < 1e-6
    assert strategy.source() == ['model.compile(backend=attention_backend("eager"))']
    assert changed.state_dict().keys() == original.state_dict().keys()


class Switched(nn.Module):
    """A model with Hugging Face's switch."""

    def __init__(self, takes: bool = True) -> None:
        super().__init__()
        self.config, self.takes = SimpleNamespace(_attn_implementation="eager"), takes

    def set_attn_implementation(self, name: str) -> None:
        self.config._attn_implementation = name if self.takes else "eager"


def test_apply_by_the_switch():
    strategy, model = AttentionToSDPA(), Switched()
    assert strategy.apply(model, Sample()) is model
    assert model.config._attn_implementation == "sdpa"
    assert not passes_of(model)
    assert strategy.source() == ['model.set_attn_implementation("sdpa")']


def test_a_switch_without_effect_leaves_the_pass():
    model = AttentionToSDPA().apply(Switched(takes=False), Sample())
    assert passes_of(model) == (rewrite_attention,)


@pytest.mark.parametrize("name", ["split_mask", "transposed_scores", "manual_softmax"])
def test_forms_are_sites(name):
    form = next(form for form in FORMS if form.name == name)
    (found,) = find_attention(form.make(), Sample(tuple(inputs(7))), training=True)
    assert not found.why
    assert found.scores_bytes == 2 * 4 * 7 * 7 * 4
    assert "tests/support/advice_forms.py:" in found.place
