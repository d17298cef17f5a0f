"""Hooks, wrappers and quantisers see every module; models can be copied, and initialised late."""

import copy
import gc
import math
import pickle
import warnings
import weakref

import pytest
import torch
from small_models import SMALL, initial
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing
from torch.optim.swa_utils import AveragedModel

from dilated_attention_pytorch.models import LongNetEncoder, LongNetLM
from dilated_attention_pytorch.multihead_dilated_attention import MultiheadDilatedAttention

MODELS = [LongNetLM, LongNetEncoder]
TOKENS = torch.arange(22).view(2, 11) % 11


def gradients(model: nn.Module) -> list[Tensor]:
    model.zero_grad()
    out = model(TOKENS)
    out.square().sum().backward()
    return [out, *(parameter.grad.clone() for parameter in model.parameters())]


@pytest.mark.parametrize("model_class", MODELS)
def test_every_module_is_called_once_in_a_forward(model_class):
    model, calls, called = initial(model_class), [], []
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList):
            called.append(name)
            module.register_forward_hook(lambda *_, name=name: calls.append(name))
    model(TOKENS)
    assert sorted(calls) == sorted(called)


def test_generation_calls_the_attention_of_every_layer_at_every_step():
    model, calls = initial(LongNetLM), []
    for block in model.blocks:
        block.attention.register_forward_hook(lambda _module, inputs, _out: calls.append(inputs[0].shape[1]))
    model.generate(TOKENS, 3, temperature=0)
    assert calls == 2 * [11] + 2 * 2 * [1]


@pytest.mark.parametrize("model_class", MODELS)
def test_a_hook_may_replace_what_attention_gives(model_class):
    model = initial(model_class)
    before = model(TOKENS)
    for block in model.blocks:
        block.attention.register_forward_hook(lambda _module, _inputs, out: (out[0] * 0, None))
    assert not torch.equal(model(TOKENS), before)
    model.blocks[0].attention.q_proj.weight.data.zero_()  # it no longer matters
    after = model(TOKENS)
    model.blocks[0].attention.out_proj.weight.data.zero_()
    assert torch.equal(model(TOKENS), after)


@pytest.mark.parametrize("model_class", MODELS)
def test_checkpointed_attention_is_recomputed_with_the_same_gradients(model_class):
    model = initial(model_class)
    expected = gradients(model)
    calls = []
    for block in model.blocks:  # before it: a recomputation ends as soon as nothing is missing
        block.attention.register_forward_pre_hook(lambda *_: calls.append(None))
    apply_activation_checkpointing(
        model, check_fn=lambda module: isinstance(module, MultiheadDilatedAttention)
    )
    for got, value in zip(gradients(model), expected, strict=True):
        assert torch.equal(got, value)
    assert len(calls) == 2 * SMALL.num_layers


@pytest.mark.parametrize("model_class", MODELS)
def test_linear_layers_are_quantised(model_class):
    model = initial(model_class)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated, but what people have
        quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, torch.qint8)
        assert not any(type(module) is nn.Linear for module in quantised.modules())
        out, expected = quantised(TOKENS), model(TOKENS)
    assert (out - expected).norm() < 0.1 * expected.norm()
    assert not torch.equal(out, expected)


@pytest.mark.parametrize("model_class", MODELS)
@pytest.mark.parametrize(
    "copied",
    [
        copy.deepcopy,
        lambda model: pickle.loads(pickle.dumps(model)),
        lambda model: AveragedModel(model).module,
    ],
    ids=["deepcopy", "pickle", "AveragedModel"],
)
def test_a_copy_is_equal_and_independent(model_class, copied):
    model = initial(model_class)
    other = copied(model)
    before = model(TOKENS)
    assert torch.equal(other(TOKENS), before)
    for module in other.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    assert torch.equal(model(TOKENS), before)
    assert not torch.equal(other(TOKENS), before)


@pytest.mark.parametrize("model_class", MODELS)
def test_a_pickle_of_the_time_when_all_classes_were_in_one_module(model_class):
    model = initial(model_class)
    stream = pickle.dumps(model, protocol=2)  # names in plain text
    for module in (b"config", b"blocks", b"encoder", b"language_model"):
        stream = stream.replace(b".models.%s\n" % module, b".models.long_net\n")
    assert b".models.long_net\n_Block\n" in stream
    assert torch.equal(pickle.loads(stream)(TOKENS), model(TOKENS))


@pytest.mark.parametrize("model_class", MODELS)
def test_deferred_initialisation_gives_the_distribution_of_a_new_model(model_class):
    large = {"vocab_size": 300, "embed_dim": 128, "num_layers": 3, "num_heads": 8, "ffn_dim": 512}
    with torch.device("meta"):
        model = initial(model_class, **large)
    model.to_empty(device="cpu")
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    gamma = math.sqrt(math.log(2 * large["num_layers"]))
    gains = {"q_proj": 1, "k_proj": 1, "v_proj": gamma, "out_proj": gamma, "up": gamma, "down": gamma}
    assert list(model.state_dict()) == list(initial(model_class, **large).state_dict())
    for name, parameter in model.named_parameters():
        module, kind = name.split(".")[-2:]
        if parameter.dim() == 1:
            is_scale = "norm" in module and kind == "weight"
            assert torch.equal(parameter, torch.full_like(parameter, float(is_scale))), name
            continue
        if module == "embedding":
            std = 1.0
        elif module == "head":
            std = large["embed_dim"] ** -0.5
        else:
            std = gains[module] * math.sqrt(2 / sum(parameter.shape))
        draws = (parameter / std).flatten().double()
        # The mean of n draws, and their mean square, within 5 standard deviations.
        assert draws.mean().abs() < 5 * len(draws) ** -0.5, name
        assert (draws.square().mean() - 1).abs() < 5 * (2 / len(draws)) ** 0.5, name
        assert draws.abs().max() > 3, name  # a uniform distribution ends at 1.73


def test_a_deleted_model_is_freed_at_once():
    model = initial(LongNetLM)
    weights = [weakref.ref(parameter) for parameter in model.parameters()]
    gc.disable()
    try:
        del model
        assert all(weight() is None for weight in weights)
    finally:
        gc.enable()
