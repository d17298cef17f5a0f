"""What is seen of a model."""

from __future__ import annotations

import threading

import pytest
import torch
from strategy_models import images, stack
from torch import nn

from kernel_pytorch.advice.analysis import building
from kernel_pytorch.advice.analysis.structure import structure
from kernel_pytorch.advice.sample import Sample

TOKENS = Sample.of(torch.linspace(-1, 1, 2 * 5 * 16).view(2, 5, 16))
IMAGES = Sample.of(torch.linspace(-1, 1, 2 * 3 * 8 * 8).view(2, 3, 8, 8))


def test_a_stack_of_blocks():
    found = structure(stack(3), TOKENS)
    assert found.unusual == ()
    assert found.repeated_blocks == ("blocks.0", "blocks.1", "blocks.2")
    assert found.shared_input_linears == tuple(
        group
        for at in range(3)
        for group in (
            tuple(f"blocks.{at}.attention.{name}" for name in ("query", "key", "value")),
            (f"blocks.{at}.gate", f"blocks.{at}.up"),
        )
    )
    assert found.linears == 3 * 7 + 1
    assert found.liger == ("LayerNorm", "RMSNorm")
    assert not found.gpu
    assert found.bfloat16_ratio.value > 0


def test_the_model_and_generators_stay_as_they_are():
    model = images().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    structure(model, IMAGES)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_batch_norm_folds_where_it_alone_reads_the_convolution():
    found = structure(images().eval(), IMAGES)
    assert found.conv_batch_norms == (("conv1", "norm1"),)
    assert found.convolutions == 2
    assert not found.channels_last
    with_layout = IMAGES.map(lambda image: image.contiguous(memory_format=torch.channels_last))
    model = images().eval().to(memory_format=torch.channels_last)
    assert structure(model, with_layout).channels_last


class Net(nn.Module):
    """A layout of layers, called by a function."""

    def __init__(self, forward, **layers):
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.function = forward

    def forward(self, x):
        return self.function(self, x)


def pair():
    return {"conv": nn.Conv2d(3, 3, 1), "norm": nn.BatchNorm2d(3)}


@pytest.mark.parametrize(
    "forward",
    [
        lambda self, x: (self.norm(y := self.conv(x)), y),
        lambda self, x: self.norm(y := self.conv(x)) * y.mean(),
        lambda self, x: self.norm(y := self.conv(x)) * (2 if y.sum().item() > 1e9 else 1),
        lambda self, x: self.norm(self.conv(x) * 2),
        lambda self, x: self.norm(self.conv(x).add_(1)),
        lambda self, x: self.norm(self.norm(self.conv(x))),
    ],
    ids=[
        "returned",
        "read too",
        "read as a number",
        "changed between",
        "changed in place",
        "norm used twice",
    ],
)
def test_a_batch_norm_does_not_fold_where(forward):
    assert structure(Net(forward, **pair()).eval(), IMAGES).conv_batch_norms == ()


def test_a_shape_is_no_reading():
    def forward(self, x):
        y = self.conv(x)
        assert y.shape[1] == y.size(1) == 3
        return self.norm(y)

    assert structure(Net(forward, **pair()).eval(), IMAGES).conv_batch_norms == (("conv", "norm"),)


@pytest.mark.parametrize(
    "forward",
    [
        lambda self, x: self.a(x) + self.b(x + 0),
        lambda self, x: self.a(x) + self.b(x) + self.a(x),
        lambda self, x: (y := x + 1, self.a(y) + self.b(y.add_(1)))[1],
    ],
    ids=["other tensor", "called twice", "written to between"],
)
def test_linears_with_other_inputs_are_no_group(forward):
    model = Net(forward, a=nn.Linear(16, 16), b=nn.Linear(16, 16))
    assert structure(model, TOKENS).shared_input_linears == ()


def test_a_linear_with_a_hook_is_in_no_group():
    model = Net(lambda self, x: self.a(x) + self.b(x), a=nn.Linear(16, 4), b=nn.Linear(16, 4))
    assert structure(model, TOKENS).shared_input_linears == (("a", "b"),)
    model.b.register_forward_hook(lambda module, args, output: output * 2)
    assert structure(model, TOKENS).shared_input_linears == ()


def test_blocks_of_other_shapes_or_within_each_other_are_no_family():
    widths = nn.Sequential(nn.Sequential(nn.Linear(16, 8)), nn.Sequential(nn.Linear(8, 16)))
    assert structure(widths, TOKENS).repeated_blocks == ()


class Holding(nn.Linear):
    def __init__(self, held):
        super().__init__(16, 4)
        self.held = held


class Noisy(nn.Linear):
    def forward(self, x):
        return super().forward(x) + Noisy.count()

    @staticmethod
    def count(state=[0]):  # noqa: B006
        state[0] += 1
        return state[0]


class NoisyArray(Noisy):
    def forward(self, x):
        return super().forward(x).numpy()


@pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning")  # on import of Dynamo
@pytest.mark.parametrize(
    ("model", "kinds"),
    [
        (lambda: torch.compile(nn.Linear(16, 4)), ("compiled",)),
        (lambda: nn.Linear(16, 4, device="meta"), ("meta",)),
        (lambda: nn.Sequential(nn.ReLU()), ("no parameters",)),
        (lambda: Holding(number for number in range(3)), ("uncopyable",)),
        (lambda: Holding(threading.Lock()), ()),
        (lambda: Noisy(16, 4), ("random",)),
        (lambda: NoisyArray(16, 4), ("random",)),
        (lambda: nn.Sequential(nn.Linear(16, 4), nn.Dropout(0.5)), ()),
    ],
    ids=[
        "compiled",
        "meta",
        "no parameters",
        "uncopyable",
        "with a lock",
        "random",
        "random numbers of NumPy",
        "dropout in training is not random",
    ],
)
def test_unusual_models(model, kinds):
    assert structure(model(), TOKENS).unusual == kinds


@pytest.mark.filterwarnings("ignore")  # it is deprecated, and says so twice
def test_a_quantised_model():
    model = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(16, 4)), {nn.Linear})
    assert "quantised" in structure(model, TOKENS).unusual


def test_a_model_that_fails_still_has_layers():
    found = structure(nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4)), TOKENS)
    assert (found.linears, found.liger, found.repeated_blocks) == (1, ("LayerNorm",), ())


def test_the_optimizers_variant():
    def found(**options):
        return structure(
            nn.Linear(16, 4), TOKENS, training=True, optimizer=lambda p: torch.optim.AdamW(p, **options)
        ).optimizer

    assert (found(), found(foreach=True), found(fused=True)) == ("AdamW", "AdamW foreach", "AdamW fused")
    assert structure(nn.Linear(16, 4), TOKENS, optimizer=torch.optim.SGD).optimizer == ""


def test_a_missing_compiler_is_named(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "no-such-compiler is not there" in building.compiler_missing(torch.device("cpu"))
    monkeypatch.setenv("CXX", "true")
    monkeypatch.setattr(building.sysconfig, "get_path", lambda name: "/nowhere")
    assert "headers of Python" in building.compiler_missing(torch.device("cpu"))


def test_attention_switch():
    class Config:
        _attn_implementation = "eager"

    class Model(nn.Linear):
        config = Config()

        def set_attn_implementation(self, name):
            raise AssertionError

    assert structure(Model(16, 4), TOKENS).attention_switch
    assert not structure(stack(), TOKENS).attention_switch
