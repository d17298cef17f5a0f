"""Strategies on top of each other, and with torch.compile (its graphs run as Dynamo recorded them)."""

from __future__ import annotations

import copy

import pytest
import torch
from strategy_models import assert_equal_calls, assert_equal_gradients, images, stack

from kernel_pytorch.advice.sample import Sample
from kernel_pytorch.advice.strategy.attention import AttentionToSDPA
from kernel_pytorch.advice.strategy.channels_last import ChannelsLast
from kernel_pytorch.advice.strategy.checkpointing import Checkpointing
from kernel_pytorch.advice.strategy.conv_batch_norm import FoldedBatchNorms
from kernel_pytorch.advice.strategy.fused_projections import FusedProjections
from kernel_pytorch.advice.strategy.graph_passes import passes_of
from kernel_pytorch.advice.strategy.inference_mode import InferenceMode

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*is deprecated:DeprecationWarning",  # on import of Dynamo
    "ignore:The .grad attribute of a Tensor that is not a leaf",  # which Dynamo looks at
)
TOKENS = torch.randn(2, 63, 16, generator=torch.Generator().manual_seed(1))
IMAGES = torch.randn(2, 3, 9, 7, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def forget():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def changed(model, x, *strategies):
    model = copy.deepcopy(model)
    for strategy in strategies:
        model = strategy.apply(model, Sample.of(x))
    return model


@pytest.mark.parametrize(
    "order",
    [
        (FusedProjections, InferenceMode, AttentionToSDPA),
        (AttentionToSDPA, InferenceMode, FusedProjections),
        (InferenceMode, FusedProjections),
    ],
)
@pytest.mark.parametrize("compiled", [False, True], ids=["", "compiled"])
def test_in_inference(order, compiled):
    model = stack().eval()
    other = changed(model, TOKENS, *[make() for make in order])
    if compiled:
        other.compile(backend="eager", fullgraph=True)
    with torch.no_grad():
        assert_equal_calls(model, other, TOKENS)
        assert_equal_calls(model, other, TOKENS[:1])
    assert bool(passes_of(other)) == (AttentionToSDPA in order)


@pytest.mark.parametrize("order", [(FoldedBatchNorms, ChannelsLast), (ChannelsLast, FoldedBatchNorms)])
def test_convolutions(order):
    model = images().eval()
    other = changed(model, IMAGES, *[make() for make in order], InferenceMode())
    assert_equal_calls(model, other, IMAGES)
    assert other.conv1.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("share", [0.5, 1.0])
@pytest.mark.parametrize("compiled", [False, True], ids=["", "compiled"])
def test_in_training(share, compiled):
    model = stack().train()
    other = changed(model, TOKENS, FusedProjections(), Checkpointing(share))
    if compiled:  # the graph breaks: Dynamo does not let a checkpoint note what a projection computed
        other.compile(backend="eager")
    assert_equal_gradients(model, other, TOKENS)


def test_checkpoints_alone_are_in_one_graph():
    model = stack().train()
    other = changed(model, TOKENS, Checkpointing(1.0))
    other.compile(backend="eager", fullgraph=True)
    assert_equal_gradients(model, other, TOKENS)
