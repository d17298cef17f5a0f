"""Strategies without a compiler: equal outputs and gradients, against float64."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from strategy_models import assert_equal_calls, assert_equal_gradients, error, images, stack
from torch import nn

from kernel_pytorch.advice.sample import Sample
from kernel_pytorch.advice.strategy.channels_last import ChannelsLast
from kernel_pytorch.advice.strategy.checkpointing import Checkpointing
from kernel_pytorch.advice.strategy.conv_batch_norm import FoldedBatchNorms
from kernel_pytorch.advice.strategy.fused_optimizer import FusedOptimizer
from kernel_pytorch.advice.strategy.fused_projections import FusedProjections, LaterLinear
from kernel_pytorch.advice.strategy.inference_mode import InferenceMode
from kernel_pytorch.advice.strategy.precision import Autocast, Bfloat16Weights
from kernel_pytorch.advice.strategy.quantize import DynamicInt8
from kernel_pytorch.advice.strategy.threads import Threads, usable_threads


def tokens(length: int = 7, seed: int = 1) -> torch.Tensor:
    return torch.randn(2, length, 16, generator=torch.Generator().manual_seed(seed))


def pixels() -> torch.Tensor:
    return torch.randn(2, 3, 9, 7, generator=torch.Generator().manual_seed(1))


def changed(strategy, model, x):
    return strategy.apply(copy.deepcopy(model), Sample.of(x))


@pytest.mark.parametrize("length", [1, 63])
def test_fused_projections_in_inference(length):
    model = stack().eval()
    fused = changed(FusedProjections(), model, tokens())
    assert_equal_calls(model, fused, tokens(length))
    assert sum(isinstance(module, LaterLinear) for module in fused.modules()) == 2 * 3
    first = fused.blocks[0].attention.query
    assert first.joined.weight.shape == (48, 16)
    assert sum(p.numel() for p in fused.parameters()) == sum(p.numel() for p in model.parameters())


def test_fused_projections_in_training_keep_their_parameters():
    model = stack().train()
    fused = changed(FusedProjections(), model, tokens())
    assert fused.state_dict().keys() == model.state_dict().keys()
    assert_equal_gradients(model, fused, tokens(63))
    with torch.no_grad():
        for left, right in zip(model.parameters(), fused.parameters(), strict=True):
            left.mul_(1.5), right.mul_(1.5)
    assert_equal_gradients(model, fused, tokens(5, seed=2))


@pytest.mark.parametrize("training", [True, False])
def test_a_copy_of_fused_projections_has_weights_of_its_own(training):
    fused = changed(FusedProjections(), stack().train(training), tokens())
    twin = copy.deepcopy(fused)
    with torch.no_grad():
        for parameter in fused.parameters():
            parameter.zero_()
    assert_equal_calls(stack().train(training), twin, tokens())


class Crossed(nn.Module):
    """Given the same tensor twice, unless it is asked to cross."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.mode = nn.Linear(16, 4), nn.Linear(16, 4), "same"

    def forward(self, x):
        y = self.a(x)
        if self.mode == "alone":
            return y
        if self.mode == "written to":
            x += 1
        if self.mode == "without gradients":
            with torch.no_grad():
                z = self.b(x)
            return y + z
        return y + self.b(x * 2 if self.mode == "other" else x)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("mode", ["same", "other", "written to", "alone", "without gradients"])
def test_what_is_remembered_of_a_projection_is_used_for_the_same_tensor_alone(training, mode):
    torch.manual_seed(0)
    model = Crossed().train(training)
    fused = changed(FusedProjections(), model, tokens())
    for twin in (model, fused):
        twin.mode = "alone"
        twin(tokens(seed=9))
        twin.mode = mode
    right, found = model(tokens()), fused(tokens())
    torch.testing.assert_close(found, right)
    if training and mode != "written to":  # autograd forbids it
        for out in (right, found):
            out.sum().backward()
        expected = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
        for gradient, parameter in zip(expected, fused.parameters(), strict=True):
            got = parameter.grad
            if gradient is None:
                assert got is None or not got.any()
            else:
                torch.testing.assert_close(got, gradient)


@pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning")  # on import of Dynamo
@pytest.mark.parametrize("training", [True, False])
def test_fused_projections_are_one_graph(training):
    torch._dynamo.reset()
    model = stack().train(training)
    fused = changed(FusedProjections(), model, tokens())
    fused.compile(backend="eager", fullgraph=True)
    if training:
        assert_equal_gradients(model, fused, tokens())
    with torch.set_grad_enabled(training):
        assert_equal_calls(model, fused, tokens())
        assert_equal_calls(model, fused, tokens(seed=2))
    torch._dynamo.reset()


def test_channels_last():
    model = images().eval()
    other = changed(ChannelsLast(), model, pixels())
    assert_equal_calls(model, other, pixels())
    assert other.conv1(pixels()).is_contiguous(memory_format=torch.channels_last)
    assert_equal_gradients(model, other, pixels())


def test_folded_batch_norms():
    model = images().eval()
    folded = changed(FoldedBatchNorms(), model, pixels())
    assert_equal_calls(model, folded, pixels())
    assert isinstance(folded.norm1, nn.Identity)
    assert isinstance(folded.norm2, nn.BatchNorm2d)
    assert error(folded.conv1(pixels()), model.conv1(pixels())) > 0.01


def test_batch_norms_in_training_do_not_fold():
    with pytest.raises(ValueError, match="no batch norm in inference"):
        changed(FoldedBatchNorms(), images().train(), pixels())


def test_inference_mode_of_a_copy_calls_the_copy():
    model = stack().eval()
    other = changed(InferenceMode(), model, tokens())
    assert_equal_calls(model, other, tokens())
    assert other(tokens()).is_inference()
    assert isinstance(other, type(model))
    assert other.state_dict().keys() == model.state_dict().keys()
    twin = copy.deepcopy(other)
    torch.nn.init.zeros_(twin.head.weight)
    assert not torch.equal(twin(tokens()), other(tokens()))
    assert not model(tokens()).is_inference()


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_checkpointing(share):
    model = stack(4).train()
    other = changed(Checkpointing(share), model, tokens())
    assert_equal_calls(model, other, tokens())
    assert_equal_gradients(model, other, tokens(63))
    assert other.state_dict().keys() == model.state_dict().keys()
    calls = []
    for block in other.blocks:
        block.gate.register_forward_hook(lambda *_, block=block: calls.append(block))
    other(tokens()).sum().backward()
    assert len(calls) == 4 + 4 * share
    assert calls.count(other.blocks[0]) == 2


def test_more_checkpointing_leaves_what_is_checkpointed():
    model = stack(4).train()
    other = Checkpointing(1.0).apply(changed(Checkpointing(0.5), model, tokens()), Sample.of(tokens()))
    assert_equal_gradients(model, other, tokens())
    calls = []
    other.blocks[0].gate.register_forward_hook(lambda *_: calls.append(1))
    other(tokens()).sum().backward()
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (torch.optim.AdamW, {"lr": 1e-2, "weight_decay": 0.1}),
        (torch.optim.AdamW, {"foreach": True}),
        (torch.optim.Adam, {"amsgrad": True}),
        (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
        (torch.optim.Adagrad, {"lr": 0.1}),
    ],
)
@pytest.mark.parametrize("steps_before", [0, 2])
def test_a_fused_optimizer_goes_on_where_the_other_was(kind, options, steps_before):
    def begun(model):
        head = {"params": [model.head.weight], "lr": 0.03}
        others = [p for p in model.parameters() if p is not model.head.weight]
        optimizer = kind([{"params": others}, head], **options)
        train(model, optimizer, steps_before)
        return optimizer

    def train(model, optimizer, steps):
        for number in range(steps):
            generator = torch.Generator().manual_seed(number)  # a key bias's own is rounding alone
            for parameter in model.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            optimizer.step()

    model, other = stack(1), stack(1)
    optimizer, fused = begun(model), FusedOptimizer().change_optimizer(begun(other))
    assert type(fused) is kind
    assert all(group["fused"] for group in fused.param_groups)
    assert [group["lr"] for group in fused.param_groups] == [group["lr"] for group in optimizer.param_groups]
    train(model, optimizer, 3)
    train(other, fused, 3)
    for left, right in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(right, left, rtol=1e-4, atol=1e-6)


def test_an_optimizer_without_a_fused_variant():
    class Mine(torch.optim.AdamW):
        pass

    with pytest.raises(ValueError, match="Mine has no fused variant"):
        FusedOptimizer().change_optimizer(Mine(stack().parameters()))


def test_threads(monkeypatch):
    strategy = Threads()
    before = torch.get_num_threads()
    assert strategy.apply(nn.ReLU(), Sample()) is not None
    assert strategy.threads >= 1
    assert torch.get_num_threads() == before
    assert [usable_threads(cpus) for cpus in (0.5, 1.0, 1.9999, 2.5, 64)] == [1, 1, 2, 2, 64]


@pytest.mark.parametrize("kind", [Autocast, Bfloat16Weights])
def test_bfloat16_is_near_and_gives_float32(kind):
    model = stack().eval()
    other = changed(kind(), model, tokens())
    found = other(tokens())
    assert found.dtype == torch.float32
    assert 1e-5 < error(found, model(tokens())) < 0.02
    twin = copy.deepcopy(other)
    assert torch.equal(twin(tokens()), found)


def test_autocast_trains():
    model = stack().train()
    other = changed(Autocast(), model, tokens())
    other(tokens()).square().mean().backward()
    model(tokens()).square().mean().backward()
    assert error(other.head.weight.grad, model.head.weight.grad) < 0.02


def test_dynamic_int8():
    model = stack().eval()
    other = changed(DynamicInt8(), model, tokens())
    assert 1e-4 < error(other(tokens()), model(tokens())) < 0.05
    assert not any(type(module) is nn.Linear for module in other.modules())


def test_int8_after_fused_projections_reaches_them_too():
    fused = changed(FusedProjections(), stack().eval(), tokens())
    other = changed(DynamicInt8(), fused, tokens())
    assert "quantized" in type(other.blocks[0].attention.query.joined).__module__
    assert error(other(tokens()), stack()(tokens())) < 0.05


def test_a_class_of_its_own_is_not_pickled_silently():
    other = changed(InferenceMode(), stack().eval(), tokens())
    with pytest.raises(pickle.PicklingError):
        pickle.dumps(other)
