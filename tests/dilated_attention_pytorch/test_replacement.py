import copy
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from dilated_attention_pytorch import MultiheadDilatedAttention, dense_state_dict, replace_attention

N = 9
WHOLE = {"segment_lengths": [N], "dilation_rates": [1]}
CAUSAL = torch.zeros(N, N, dtype=torch.float64).masked_fill(torch.ones(N, N).triu(1) > 0, -math.inf)
PADDING = torch.zeros(2, N, dtype=torch.float64).masked_fill(
    torch.arange(N) >= torch.tensor([[N], [5]]), -math.inf
)
F64 = {"dropout": 0.0, "dtype": torch.float64}


def random_weights(model: nn.Module) -> nn.Module:
    """New biases are 0, and layers of a nn.TransformerEncoder begin as copies of one."""
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def inputs(batch_first: bool, number: int = 1) -> list[torch.Tensor]:
    drawn = torch.randn(number, 2, N, 16, dtype=torch.float64)
    return [(x if batch_first else x.transpose(0, 1)).requires_grad_() for x in drawn]


def results(model: nn.Module, *args, kept, **kwargs):
    """Output and gradients of the inputs; padded queries are left out, their output is nobody's business."""
    out = model(*args, **kwargs)[kept]
    return out, *torch.autograd.grad(out.square().sum(), [x for x in args if x.requires_grad])


def assert_equal_results(ours, expected):
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("norm_first", [True, False], ids=["pre-norm", "post-norm"])
@pytest.mark.parametrize("batch_first", [True, False], ids=["batch-first", "seq-first"])
def test_encoder_computes_what_it_did(batch_first, norm_first, bias):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(
        16, 4, 32, batch_first=batch_first, norm_first=norm_first, bias=bias, **F64
    )
    nested = batch_first and bias and not norm_first
    encoder = random_weights(nn.TransformerEncoder(layer, 2, enable_nested_tensor=nested))
    before = copy.deepcopy(encoder)
    assert replace_attention(encoder, **WHOLE) == ["layers.0.self_attn", "layers.1.self_attn"]
    (x,) = inputs(batch_first)
    kept = PADDING == 0 if batch_first else PADDING.T == 0
    for arguments in (
        {},
        {"src_key_padding_mask": PADDING},
        {"mask": CAUSAL},
        {"mask": CAUSAL, "is_causal": False},
        {"mask": CAUSAL, "is_causal": True, "src_key_padding_mask": PADDING},
    ):
        ours = results(encoder.train(), x, kept=kept, **arguments)
        assert_equal_results(ours, results(before.train(), x, kept=kept, **arguments))
        expected = before.eval()(x, **arguments)[kept]
        with torch.no_grad():  # where torch's own layer would compute dense attention itself
            torch.testing.assert_close(encoder.eval()(x, **arguments)[kept], expected, rtol=0, atol=1e-10)


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")  # nn.Transformer has no other way
@pytest.mark.parametrize("batch_first", [True, False], ids=["batch-first", "seq-first"])
def test_self_attention_of_a_decoder(batch_first):
    torch.manual_seed(1)
    make = {
        "num_encoder_layers": 1,
        "num_decoder_layers": 1,
        "dim_feedforward": 32,
        "batch_first": batch_first,
    }
    model = random_weights(nn.Transformer(16, 4, **make, **F64))
    before = copy.deepcopy(model)
    assert replace_attention(model, **WHOLE) == ["encoder.layers.0.self_attn", "decoder.layers.0.self_attn"]
    assert type(model.decoder.layers[0].multihead_attn) is nn.MultiheadAttention
    arguments = {"tgt_mask": CAUSAL, "tgt_is_causal": True, "src_key_padding_mask": PADDING}
    arguments["memory_key_padding_mask"] = arguments["tgt_key_padding_mask"] = PADDING
    kept = PADDING == 0 if batch_first else PADDING.T == 0
    xs = inputs(batch_first, 2)
    ours = results(model, *xs, kept=kept, **arguments)
    assert_equal_results(ours, results(before, *xs, kept=kept, **arguments))


def test_the_pattern_is_used():
    torch.manual_seed(2)
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, **F64).eval()
    replace_attention(layer, segment_lengths=[3], dilation_rates=[1])
    (x,) = inputs(True)
    changed = x.detach().clone()
    changed[:, 3:] = 0
    with torch.no_grad():
        assert torch.equal(layer(x)[:, :3], layer(changed)[:, :3])
        assert not torch.equal(layer(x)[:, 3:], layer(changed)[:, 3:])


class Model(nn.Module):
    """One attention with a fused weight, under two names, and one with separate weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.MultiheadAttention(16, 4, batch_first=True)
        self.blocks = nn.ModuleDict({"again": self.first})
        self.mixed = nn.MultiheadAttention(16, 2, kdim=8, vdim=4, bias=False, dtype=torch.bfloat16)


def test_weights_flags_and_names_are_kept():
    random = torch.get_rng_state()
    model = random_weights(Model())
    torch.set_rng_state(random)
    model.first.eval()
    model.first.in_proj_weight.requires_grad_(False)
    before = copy.deepcopy(model)
    assert replace_attention(model, segment_lengths=[4, 8], dilation_rates=[1, 2]) == [
        "first",
        "blocks.again",
        "mixed",
    ]
    assert torch.equal(torch.get_rng_state(), random)
    assert model.first is model.blocks["again"]
    assert model.first.pattern.branches == ((4, 1), (8, 2))
    assert (model.first.training, model.mixed.training) == (False, True)
    assert (model.first.batch_first, model.mixed.batch_first) == (True, False)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"first.q_proj.weight", "first.k_proj.weight", "first.v_proj.weight"}
    assert {p.dtype for p in model.mixed.parameters()} == {torch.bfloat16}
    assert len({p.untyped_storage().data_ptr() for p in model.parameters()}) == 8 + 4
    old = set(map(id, before.parameters()))
    assert not old & set(map(id, model.parameters()))

    # The state dict, both ways.
    state = dense_state_dict(model)
    expected = before.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())
    other = Model()
    other.load_state_dict(state)
    fresh = Model()
    replace_attention(fresh, **WHOLE)
    fresh.load_state_dict(before.state_dict())
    for (name, a), b in zip(fresh.state_dict().items(), model.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_state_dict_of_a_single_module():
    dense = nn.MultiheadAttention(16, 4)
    module = MultiheadDilatedAttention(16, 4, **WHOLE, layer_norm=False)
    module.load_state_dict(dense.state_dict())
    state = dense_state_dict(module)
    assert state.keys() == dense.state_dict().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in dense.state_dict().items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layer_norm": True}, "^0 has no equal .* got layer_norm=True"),
        ({"layer_norm": False, "num_kv_heads": 2}, "^0 has no equal .* num_kv_heads=2, num_heads=4"),
    ],
)
def test_no_dense_state_dict(arguments, message):
    model = nn.Sequential(MultiheadDilatedAttention(16, 4, **WHOLE, **arguments))
    with pytest.raises(ValueError, match=message):
        dense_state_dict(model)


def test_on_the_meta_device():
    model = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, device="meta")
    replace_attention(model, **WHOLE)
    assert {p.device.type for p in model.parameters()} == {"meta"}


def test_lost_dropout_is_said():
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 32), 2, enable_nested_tensor=False)
    message = r"\(layers.0.self_attn: 0.1, layers.1.self_attn: 0.1\)"
    with pytest.warns(UserWarning, match=message) as warned:
        replace_attention(encoder, **WHOLE)
    assert [w.filename for w in warned] == [__file__]
    assert encoder.layers[0].dropout1.p == 0.1


def test_names_choose():
    model = nn.Sequential(nn.MultiheadAttention(16, 4), nn.MultiheadAttention(16, 4))
    assert replace_attention(model, **WHOLE, names=["1"]) == ["1"]
    assert [type(part) for part in model] == [nn.MultiheadAttention, MultiheadDilatedAttention]
    decoder = nn.TransformerDecoderLayer(16, 4, 32, dropout=0.0)
    assert replace_attention(decoder, **WHOLE, names={"multihead_attn"}) == ["multihead_attn"]


class Special(nn.MultiheadAttention):
    pass


def parametrized():
    return nn.utils.parametrizations.weight_norm(nn.MultiheadAttention(16, 4), "in_proj_weight")


def parametrized_out():
    attention = nn.MultiheadAttention(16, 4)
    nn.utils.parametrizations.weight_norm(attention.out_proj)
    return attention


def hooked():
    attention = nn.MultiheadAttention(16, 4)
    attention.register_forward_hook(print)
    return attention


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.MultiheadAttention(16, 4, add_bias_kv=True), "add_bias_kv=True"),
        (lambda: nn.MultiheadAttention(16, 4, add_zero_attn=True), "add_zero_attn=True"),
        (lambda: Special(16, 4), "it is a Special"),
        (parametrized, "it is a ParametrizedMultiheadAttention"),
        (parametrized_out, "its out_proj is a ParametrizedNonDynamicallyQuantizableLinear"),
        (hooked, r"it has hooks \(_forward_hooks\)"),
    ],
)
def test_all_or_nothing(make, message):
    model = nn.Sequential(nn.MultiheadAttention(16, 4), nn.Sequential(make()))
    before = list(model.modules())
    with pytest.raises(
        ValueError, match=rf"^1\.0 cannot be replaced: .*{message}.*pass the names of the others"
    ):
        replace_attention(model, **WHOLE)
    assert list(model.modules()) == before
    assert replace_attention(model, **WHOLE, names=["0"]) == ["0"]


def test_shared_parameters_are_refused():
    model = nn.Sequential(nn.MultiheadAttention(16, 4), nn.MultiheadAttention(16, 4))
    model[1].out_proj = model[0].out_proj
    with pytest.raises(
        ValueError, match=r"shares parameters with others \(1.out_proj.weight, 1.out_proj.bias\)"
    ):
        replace_attention(model, **WHOLE)


@pytest.mark.parametrize(
    ("model", "arguments", "error", "message"),
    [
        (nn.MultiheadAttention(16, 4), {}, ValueError, "model is itself an attention .* build a Multihead"),
        (nn.Linear(2, 2), {}, ValueError, "model has no nn.MultiheadAttention"),
        (nn.MultiheadAttention, {}, TypeError, "model must be a nn.Module, got type"),
        (
            nn.Sequential(nn.MultiheadAttention(8, 2)),
            {"names": ["0", "2"]},
            ValueError,
            r"names .* got \['2'\]",
        ),
        (nn.Sequential(nn.MultiheadAttention(8, 2)), {"names": "0"}, TypeError, "names must be a collection"),
        (nn.Sequential(nn.MultiheadAttention(8, 2)), {"names": []}, ValueError, "no nn.MultiheadAttention"),
        (nn.Sequential(nn.MultiheadAttention(8, 2)), {"dilation_rates": [0]}, ValueError, "dilation_rates"),
    ],
)
def test_bad_arguments(model, arguments, error, message):
    before = list(model.modules()) if isinstance(model, nn.Module) else []
    with pytest.raises(error, match=message):
        replace_attention(model, **{**WHOLE, **arguments})
    assert not before or list(model.modules()) == before


def test_the_swap_of_the_readme_prints_what_it_says(capsys):
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    section = readme.split("`replace_attention` puts")[1]
    exec(section.split("```python\n")[1].split("```")[0], {"torch": torch})
    printed = capsys.readouterr().out.split("\n")[:2]
    assert [f"`{line}`" in section for line in printed] == [True, True]
