import copy
import math
import pickle

import oracle
import pytest
import torch
from garbage import KINDS, spoil
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dilated_attention_pytorch.multihead_dilated_attention import MultiheadDilatedAttention


def by_hand(module, branches, query, key, value, is_causal, ignored):
    """Projections, the oracle's attention, LayerNorm, projection."""
    q = module.q_proj(query).unflatten(2, (module.num_heads, -1))
    k = module.k_proj(key).unflatten(2, (module.num_kv_heads, -1))
    v = module.v_proj(value).unflatten(2, (module.num_kv_heads, -1))
    out = oracle.attention(q, k, v, branches, is_causal=is_causal, padding=ignored)[0].flatten(2)
    if module.norm is not None:
        mean, var = out.mean(-1, keepdim=True), out.var(-1, correction=0, keepdim=True)
        out = (out - mean) / (var + module.norm.eps).sqrt() * module.norm.weight + module.norm.bias
    return out @ module.out_proj.weight.T + (0 if module.out_proj.bias is None else module.out_proj.bias)


@settings(max_examples=40)
@given(
    batch=st.integers(1, 2),
    seq=st.integers(1, 13),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 3),
    branches=st.lists(st.tuples(st.integers(1, 16), st.integers(1, 5)), min_size=1, max_size=3),
    is_causal=st.booleans(),
    bias=st.booleans(),
    layer_norm=st.booleans(),
    distinct=st.booleans(),
    mask=st.sampled_from(["none", "bool", "float"]),
    seed=st.integers(0, 2**32),
)
def test_equals_computation_by_hand(
    batch, seq, kv_heads, group, branches, is_causal, bias, layer_norm, distinct, mask, seed
):
    torch.manual_seed(seed)
    heads = kv_heads * group
    width = 4 * heads
    module = MultiheadDilatedAttention(
        width,
        heads,
        segment_lengths=[w for w, _ in branches],
        dilation_rates=[r for _, r in branches],
        num_kv_heads=kv_heads,
        bias=bias,
        layer_norm=layer_norm,
        layer_norm_eps=0.01,
        dtype=torch.float64,
    )
    for parameter in module.parameters():  # zero biases would hide a missing one
        nn.init.normal_(parameter, std=0.5)
    query, key, value = torch.randn(3, batch, seq, width, dtype=torch.float64)
    ignored = torch.rand(batch, seq) < 0.3 if mask != "none" else torch.zeros(batch, seq, dtype=torch.bool)
    padding = {
        "none": None,
        "bool": ignored,
        "float": torch.zeros(batch, seq).masked_fill(ignored, -math.inf),
    }
    if distinct:
        out, weights = module(query, key, value, key_padding_mask=padding[mask], is_causal=is_causal)
    else:
        out, weights = module(query, key_padding_mask=padding[mask], is_causal=is_causal)
        key = value = query
    assert weights is None
    expected = by_hand(module, branches, query, key, value, is_causal, ignored)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-10)


def test_missing_value_is_the_key():
    torch.manual_seed(0)
    module = MultiheadDilatedAttention(8, 2, segment_lengths=[4], dilation_rates=[2])
    query, key = torch.randn(2, 1, 6, 8)
    assert torch.equal(module(query, key)[0], module(query, key, key)[0])


def dense_twin(norm_first: bool) -> tuple[nn.TransformerEncoderLayer, nn.TransformerEncoderLayer]:
    """A torch layer and its copy with dense attention as the one branch of a MultiheadDilatedAttention."""
    torch.manual_seed(1)
    make = {"dropout": 0.0, "batch_first": True, "norm_first": norm_first, "dtype": torch.float64}
    plain = nn.TransformerEncoderLayer(16, 4, 32, **make)
    twin = nn.TransformerEncoderLayer(16, 4, 32, **make)
    nn.init.normal_(plain.self_attn.in_proj_bias)
    nn.init.normal_(plain.self_attn.out_proj.bias)
    twin.load_state_dict(plain.state_dict())
    attention = MultiheadDilatedAttention(
        16, 4, segment_lengths=[9], dilation_rates=[1], layer_norm=False, dtype=torch.float64
    )
    weights, biases = plain.self_attn.in_proj_weight.chunk(3), plain.self_attn.in_proj_bias.chunk(3)
    names = ("q_proj", "k_proj", "v_proj")
    state = {f"{name}.weight": w for name, w in zip(names, weights, strict=True)}
    state |= {f"{name}.bias": b for name, b in zip(names, biases, strict=True)}
    state |= {f"out_proj.{name}": p for name, p in plain.self_attn.out_proj.named_parameters()}
    attention.load_state_dict(state)
    twin.self_attn = attention
    return plain, twin


PADDING = torch.arange(9) >= torch.tensor([[9], [5]])
PADDING_INSIDE = torch.tensor([[0, 1, 0, 0, 1, 0, 0, 0, 1], [0, 0, 0, 1, 1, 1, 1, 0, 0]], dtype=torch.bool)


@pytest.mark.parametrize("padding", [None, PADDING, PADDING_INSIDE], ids=["whole", "padded", "padded-inside"])
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("norm_first", [True, False], ids=["pre-norm", "post-norm"])
def test_replaces_attention_of_encoder_layer(norm_first, training, grad, padding):
    plain, twin = dense_twin(norm_first)
    plain.train(training)
    twin.train(training)
    x = torch.randn(2, 9, 16, dtype=torch.float64)
    kept = slice(None) if padding is None else ~padding
    with torch.set_grad_enabled(grad):
        expected = plain(x, src_key_padding_mask=padding)[kept]
        torch.testing.assert_close(twin(x, src_key_padding_mask=padding)[kept], expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("replaced", ["before", "after"])
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
def test_replaces_attention_of_encoder(grad, replaced):
    # In evaluation without gradients torch's own encoder turns padded input into a nested tensor.
    plain, twin = dense_twin(norm_first=False)
    expected_encoder = nn.TransformerEncoder(plain, 2).eval()
    if replaced == "before":
        encoder = nn.TransformerEncoder(twin, 2).eval()
    else:
        encoder = nn.TransformerEncoder(plain, 2).eval()
        for layer in encoder.layers:
            layer.self_attn = twin.self_attn
    x = torch.randn(2, 9, 16, dtype=torch.float64)
    expected = expected_encoder(x, src_key_padding_mask=PADDING)[~PADDING]
    with torch.set_grad_enabled(grad):
        out = encoder(x, src_key_padding_mask=PADDING)[~PADDING]
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-10)


def test_causal_encoder_layer_without_a_mask():
    plain, twin = dense_twin(norm_first=True)
    x = torch.randn(2, 9, 16, dtype=torch.float64)
    mask = nn.Transformer.generate_square_subsequent_mask(9, dtype=torch.float64)
    expected = nn.TransformerEncoder(plain, 2, enable_nested_tensor=False)(x, mask, is_causal=True)
    out = nn.TransformerEncoder(twin, 2, enable_nested_tensor=False)(x, is_causal=True)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-10)


def test_initial_weights_are_magnetos():
    torch.manual_seed(0)
    module = MultiheadDilatedAttention(
        512, 8, segment_lengths=[8], dilation_rates=[1], num_kv_heads=2, gamma_init=3.0
    )
    for projection, gain in (
        (module.q_proj, 1),
        (module.k_proj, 1),
        (module.v_proj, 3),
        (module.out_proj, 3),
    ):
        expected = gain * math.sqrt(2 / sum(projection.weight.shape))
        assert projection.weight.std().item() == pytest.approx(expected, rel=0.02)
        assert projection.weight.abs().max() > 3.5 * expected  # normal; uniform would end at 1.73
        assert not projection.bias.any()


def test_state_dict_names():
    make = {"segment_lengths": [4], "dilation_rates": [1]}
    names = {f"{name}_proj.{kind}" for name in "qkv" for kind in ("weight", "bias")}
    names |= {"out_proj.weight", "out_proj.bias"}
    assert set(MultiheadDilatedAttention(8, 2, layer_norm=False, **make).state_dict()) == names
    full = MultiheadDilatedAttention(8, 2, **make)
    assert set(full.state_dict()) == names | {"norm.weight", "norm.bias"}
    other = MultiheadDilatedAttention(8, 2, **make)
    other.load_state_dict(full.state_dict())
    x = torch.randn(1, 5, 8)
    assert torch.equal(full(x)[0], other(x)[0])


def test_gradient_reaches_every_parameter_and_input():
    torch.manual_seed(0)
    module = MultiheadDilatedAttention(16, 4, segment_lengths=[4, 8], dilation_rates=[1, 2], num_kv_heads=2)
    inputs = [torch.randn(2, 7, 16, requires_grad=True) for _ in range(3)]
    module(*inputs, is_causal=True)[0].square().sum().backward()
    # Adding a constant to every key's score changes nothing: k_proj.bias has gradient 0 by theory.
    reached = {
        name: p.grad.abs().max() > 1e-4 for name, p in module.named_parameters() if name != "k_proj.bias"
    }
    assert all(reached.values()), reached
    assert module.k_proj.bias.grad is not None
    assert all(x.grad.abs().max() > 1e-4 for x in inputs)


def test_autocast():
    torch.manual_seed(0)
    module = MultiheadDilatedAttention(32, 4, segment_lengths=[8, 16], dilation_rates=[1, 2])
    x = torch.randn(2, 16, 32)
    expected, _ = module(x, is_causal=True)
    with torch.autocast("cpu", torch.bfloat16):
        out, _ = module(x, is_causal=True)
    assert out.dtype == torch.bfloat16
    # Five roundings, each of 2**-9 at most.
    assert (out - expected).norm() / expected.norm() < 5 * 2**-9
    out.float().square().sum().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"embed_dim": 10}, r"embed_dim=10, num_heads=4"),
        ({"embed_dim": 0}, r"embed_dim=0"),
        ({"num_heads": 0}, r"num_heads=0"),
        ({"num_kv_heads": 3}, r"num_heads=4, num_kv_heads=3"),
        ({"dropout": 0.1}, r"dropout must be 0.0, got 0.1"),
        ({"segment_lengths": [4, 8]}, r"segment_lengths=\[4, 8\], dilation_rates=\[1\]"),
        ({"dilation_rates": [0]}, r"dilation_rates .* got \[0\]"),
        ({"gamma_init": 0.0}, r"gamma_init must be positive and finite, got 0.0"),
        ({"gamma_init": math.nan}, r"gamma_init must be positive and finite, got nan"),
        ({"add_bias_kv": True}, r"add_bias_kv must be False, got True: the pattern has no positions"),
        ({"add_zero_attn": True}, r"add_zero_attn must be False, got True"),
        ({"gamma_init": "a"}, r"gamma_init must be a number, got 'a'"),
        ({"embed_dim": True}, r"embed_dim must be int, got True"),
        ({"layer_norm_eps": "a"}, r"layer_norm_eps must be a number, got 'a'"),
        ({"num_heads": [4]}, r"num_heads must be int, got \[4\]"),
        ({"batch_first": "no"}, r"batch_first must be bool, got 'no'"),
        ({"bias": "no"}, r"bias must be bool, got 'no'"),
        ({"layer_norm": "no"}, r"layer_norm must be bool, got 'no'"),
    ],
)
def test_bad_construction(arguments, message):
    make = {"embed_dim": 16, "num_heads": 4, "segment_lengths": [4], "dilation_rates": [1]}
    with pytest.raises((TypeError, ValueError), match=f"^.*{message}"):
        MultiheadDilatedAttention(**{**make, **arguments})


@pytest.mark.parametrize(
    ("shapes", "arguments", "message"),
    [
        ([(2, 5, 16)], {"need_weights": True}, "need_weights must be False"),
        ([(2, 5, 16)], {"attn_mask": torch.ones(5, 5).triu()}, "attn_mask must hold only 0 .*got 1.0"),
        (
            [(2, 5, 16)],
            {"attn_mask": torch.ones(5, 5).triu() > 0},
            r"attn_mask must be causal or hide nothing, got shape \[5, 5\], whose entry \[0, 0\] hides",
        ),
        ([(2, 5, 16)], {"attn_mask": torch.eye(5) > 0}, "attn_mask must be causal .* pass key_padding_mask"),
        (
            [(2, 5, 16)],
            {"attn_mask": torch.zeros(4, 5, 5)},
            r"attn_mask must be \[seq, seq\] = \[5, 5\] or .* = \[8, 5, 5\], got \[4, 5, 5\]",
        ),
        (
            [(2, 5, 16)],
            {"attn_mask": torch.zeros(5, 6), "is_causal": True},
            r"attn_mask must be .* got \[5, 6\]",
        ),
        ([(2, 5, 16)], {"attend": max, "is_causal": True}, "attend decides about masks itself"),
        ([(2, 5, 16)], {"attend": max, "attn_mask": torch.zeros(5, 5)}, "attend decides about masks itself"),
        ([(2, 5, 16), (2, 6, 16)], {}, r"query \[2, 5, 16\], key \[2, 6, 16\]"),
        ([(2, 5, 16), (2, 5, 16), (1, 5, 16)], {}, r"value \[1, 5, 16\]"),
        (
            [(2, 5, 12)],
            {},
            r"query must be \[batch, seq, embed_dim=16\] or \[seq, embed_dim=16\], got \[2, 5, 12\]",
        ),
        ([(16,)], {}, r"query must be .* got \[16\]"),
        ([(5, 16), (1, 5, 16)], {}, r"query \[5, 16\], key \[1, 5, 16\]"),
        ([(5, 16)], {"key_padding_mask": torch.zeros(1, 5)}, r"must be \[seq\] = \[5\] .* got \[1, 5\]"),
        ([(2, 5, 16), (2, 5, 8)], {}, r"key must be .* got \[2, 5, 8\]"),
        (
            [(2, 5, 16)],
            {"key_padding_mask": torch.full((2, 5), 0.5)},
            "key_padding_mask must hold only 0 .* and -inf.*, got 0.5",
        ),
        ([(2, 5, 16)], {"key_padding_mask": torch.full((2, 5), math.nan)}, "only 0 .* and -inf.*, got nan"),
        ([(2, 5, 16)], {"key_padding_mask": torch.zeros(2, 4)}, r"key_padding_mask .*\[2, 5\], got \[2, 4\]"),
    ],
)
def test_bad_call(shapes, arguments, message):
    module = MultiheadDilatedAttention(16, 4, segment_lengths=[4], dilation_rates=[1])
    with pytest.raises(ValueError, match=message):
        module(*(torch.zeros(shape) for shape in shapes), **arguments)


def test_bad_call_names_the_layout():
    module = MultiheadDilatedAttention(
        16, 4, segment_lengths=[4], dilation_rates=[1], kdim=8, batch_first=False
    )
    with pytest.raises(ValueError, match=r"key must be \[seq, batch, kdim=8\] or .*, got \[5, 2, 16\]"):
        module(torch.zeros(5, 2, 16))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"query": [1.0]}, "query must be a dense tensor, got list"),
        ({"query": torch.zeros(2, 5, 16).long()}, r"query must be floating point, got torch.int64"),
        (
            {"query": torch.zeros(2, 5, 16).double()},
            r"query must be torch.float32 like the parameters, got torch.float64: convert it or the module",
        ),
        ({"query": torch.zeros(2, 5, 16).bfloat16()}, r"query must be torch.float32 .* got torch.bfloat16"),
        ({"key": torch.zeros(2, 5, 16).double()}, r"key must be torch.float32 .* got torch.float64"),
        ({"is_causal": "no"}, r"is_causal must be bool, got 'no'"),
        ({"is_causal": "no", "attn_mask": torch.zeros(5, 5)}, r"is_causal must be bool, got 'no'"),
        ({"key_padding_mask": [False] * 5}, "key_padding_mask must be a bool, .* got list"),
        (
            {"attn_mask": torch.zeros(5, 5, dtype=torch.complex64)},
            "attn_mask must be a bool, .* got .*complex64",
        ),
    ],
)
def test_bad_type(wrong, message):
    module = MultiheadDilatedAttention(16, 4, segment_lengths=[4], dilation_rates=[1])
    with pytest.raises(TypeError, match=message):
        module(**{"query": torch.zeros(2, 5, 16), **wrong})


def test_errors_that_are_not_about_dtypes_stay_what_they_are():
    module = MultiheadDilatedAttention(16, 4, segment_lengths=[4], dilation_rates=[1]).to(torch.bfloat16)

    def exhausted(*_):
        raise torch.OutOfMemoryError("out of memory")

    module.k_proj.register_forward_pre_hook(exhausted)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(torch.OutOfMemoryError):
        module(torch.zeros(2, 5, 16))


def test_a_hook_may_convert_the_input():
    module = MultiheadDilatedAttention(16, 4, segment_lengths=[4], dilation_rates=[1])
    for projection in (module.q_proj, module.k_proj, module.v_proj):
        projection.register_forward_pre_hook(lambda _module, inputs: inputs[0].float())
    x = torch.randn(2, 5, 16)
    assert torch.equal(module(x.double())[0], module(x)[0])


def test_nested_tensor_is_refused_by_name():
    module = MultiheadDilatedAttention(16, 4, segment_lengths=[4], dilation_rates=[1])
    rows = torch.nested.nested_tensor([torch.zeros(3, 16), torch.zeros(5, 16)], layout=torch.jagged)
    with pytest.raises(TypeError, match="query must be a dense tensor, got a nested one"):
        module(rows)


# --- as nn.MultiheadAttention, of which it is a copy here: one branch of the whole sequence


def copy_of(dense: nn.MultiheadAttention) -> MultiheadDilatedAttention:
    """The same function: it takes the state dict of torch's module."""
    for parameter in dense.parameters():  # zero biases would hide a missing one
        nn.init.normal_(parameter, std=0.5)
    module = MultiheadDilatedAttention(
        dense.embed_dim,
        dense.num_heads,
        segment_lengths=[9],
        dilation_rates=[1],
        bias=dense.in_proj_bias is not None,
        kdim=dense.kdim,
        vdim=dense.vdim,
        batch_first=dense.batch_first,
        layer_norm=False,
        dtype=torch.float64,
    )
    state = dense.state_dict()
    module.load_state_dict(state)
    assert list(state) == list(dense.state_dict())
    return module


CAUSAL = torch.ones(9, 9, dtype=torch.bool).triu(1)
ADDED = torch.zeros(9, 9).masked_fill(CAUSAL, -math.inf)
# What ours is given and what torch's is.
CAUSES = {
    "none": ({}, {}),
    "is_causal": ({"is_causal": True}, {"attn_mask": CAUSAL}),
    "bool": ({"attn_mask": CAUSAL}, {"attn_mask": CAUSAL}),
    "int": ({"attn_mask": CAUSAL.int()}, {"attn_mask": CAUSAL}),
    "inf": ({"attn_mask": ADDED}, {"attn_mask": CAUSAL}),
    "-1e9": ({"attn_mask": ADDED.clamp(min=-1e9)}, {"attn_mask": CAUSAL}),
    "finfo": ({"attn_mask": ADDED.half().clamp(min=torch.finfo(torch.float16).min)}, {"attn_mask": CAUSAL}),
    "by-head": ({"attn_mask": CAUSAL.expand(8, 9, 9)}, {"attn_mask": CAUSAL}),
    "hint": ({"attn_mask": CAUSAL, "is_causal": True}, {"attn_mask": CAUSAL, "is_causal": True}),
    "unread-hint": ({"attn_mask": torch.rand(9, 9), "is_causal": True}, {"attn_mask": CAUSAL}),
    "hides-nothing": ({"attn_mask": torch.zeros(9, 9)}, {}),
    "hides-nothing-bool": ({"attn_mask": torch.zeros(8, 9, 9, dtype=torch.bool)}, {}),
}


@pytest.mark.parametrize("padding", [None, PADDING], ids=["whole", "padded"])
@pytest.mark.parametrize("cause", CAUSES)
def test_masks_as_in_multihead_attention(cause, padding):
    torch.manual_seed(2)
    dense = nn.MultiheadAttention(16, 4, batch_first=True, dtype=torch.float64)
    module = copy_of(dense)
    x = torch.randn(2, 9, 16, dtype=torch.float64)
    ours, torchs = CAUSES[cause]
    expected, _ = dense(x, x, x, padding, need_weights=False, **torchs)
    torch.testing.assert_close(module(x, x, x, padding, **ours)[0], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("widths", [(16, 16), (8, 12)], ids=["fused", "kdim-vdim"])
@pytest.mark.parametrize("layout", ["batch-first", "seq-first", "unbatched", "unbatched-seq-first"])
def test_layouts_as_in_multihead_attention(layout, widths, bias):
    torch.manual_seed(3)
    kdim, vdim = widths
    batch_first = layout in ("batch-first", "unbatched")
    dense = nn.MultiheadAttention(
        16, 4, bias=bias, kdim=kdim, vdim=vdim, batch_first=batch_first, dtype=torch.float64
    )
    module = copy_of(dense)
    lead = {"batch-first": (2, 9), "seq-first": (9, 2)}.get(layout, (9,))
    inputs = [torch.randn(*lead, w, dtype=torch.float64, requires_grad=True) for w in (16, kdim, vdim)]
    padding = PADDING if len(lead) == 2 else PADDING[1]
    results = []
    for attention in (dense, module):
        # In torch's order: key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal.
        out, weights = attention(*inputs, padding, False, CAUSAL, False, False)
        assert weights is None
        weight = torch.arange(out.numel(), dtype=torch.float64).cos().view(out.shape)
        results.append((out, *torch.autograd.grad((out * weight).sum(), inputs)))
    for ours, expected in zip(results[1], results[0], strict=True):
        assert ours.shape == expected.shape
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)


# --- what padding holds


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("inputs", ["self", "key-is-value", "distinct"])
@pytest.mark.parametrize("layer_norm", [True, False], ids=["norm", "no-norm"])
def test_nothing_that_padding_holds_reaches_outputs_or_gradients(kind, compiled, inputs, layer_norm):
    torch.manual_seed(0)
    branches = [(4, 1), (9, 2)]
    module = MultiheadDilatedAttention(
        16, 4, segment_lengths=[4, 9], dilation_rates=[1, 2], num_kv_heads=2, layer_norm=layer_norm
    ).double()
    clean = torch.randn({"self": 1, "key-is-value": 2, "distinct": 3}[inputs], 2, 9, 16, dtype=torch.float64)
    away = torch.randn(2, 9, 16, dtype=torch.float64)
    kept = ~PADDING_INSIDE if inputs == "self" else torch.ones(2, 9, dtype=torch.bool)
    results = []
    for spoilt in (False, True):
        # Queries of their own are real where keys are padding.
        leaves = [
            spoil(x, PADDING_INSIDE, kind)
            if spoilt and (i > 0 or inputs == "self")
            else x.clone().requires_grad_()
            for i, x in enumerate(clean)
        ]
        query, key, value = (leaves + [leaves[-1]] * 2)[:3]
        if spoilt:
            call = torch.compile(module, backend="aot_eager") if compiled else module
            out = call(query, key, value, PADDING_INSIDE)[0]
        else:
            out = by_hand(module, branches, query, key, value, False, PADDING_INSIDE)
        out = out[kept]
        results.append([out, *torch.autograd.grad((out * away[kept]).sum(), [*leaves, *module.parameters()])])
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_that_padding_holds_reaches_gradients_under_autocast(kind):
    """Numbers that are finite in float32 are not in float16."""
    torch.manual_seed(0)
    module = MultiheadDilatedAttention(16, 4, segment_lengths=[9], dilation_rates=[1], batch_first=False)
    x = torch.randn(9, 2, 16)
    results = []
    for y in (x, spoil(x, PADDING_INSIDE.T, kind)):
        with torch.autocast("cpu", torch.float16):
            out = module(y, y, y, PADDING_INSIDE)[0][~PADDING_INSIDE.T]
        results.append([out, *torch.autograd.grad(out.float().sin().sum(), list(module.parameters()))])
    assert all(x.isfinite().all() for x in results[1])
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)


def test_a_query_that_is_no_padding_is_not_hidden():
    module = MultiheadDilatedAttention(16, 4, segment_lengths=[9], dilation_rates=[1])
    x = torch.randn(2, 9, 16)
    query = x.clone()
    query[1, 8] = math.nan  # a key is padding there, the query is not
    assert module(query, x, x, PADDING)[0][1, 8].isnan().all()
    x[1, 4] = math.nan
    assert module(x, x, x, PADDING)[0][1, :5].isnan().all()


def test_a_mask_in_a_compiled_graph_counts_as_causal():
    torch.manual_seed(4)
    module = MultiheadDilatedAttention(8, 2, segment_lengths=[4, 8], dilation_rates=[1, 2])
    x = torch.randn(2, 9, 8)
    compiled = torch.compile(lambda m: module(x, attn_mask=m)[0], backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        assert torch.equal(compiled(CAUSAL), module(x, is_causal=True)[0])
        with pytest.raises(RuntimeError, match="attn_mask must be causal"):
            compiled(~CAUSAL)


@pytest.mark.parametrize("batch_first", [True, False], ids=["batch-first", "seq-first"])
def test_encoder_exports_and_compiles(batch_first):
    torch.manual_seed(5)
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=batch_first)
    layer.self_attn = MultiheadDilatedAttention(
        16, 4, segment_lengths=[4, 9], dilation_rates=[1, 2], batch_first=batch_first
    )
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=batch_first).eval()
    x = torch.randn(2, 9, 16) if batch_first else torch.randn(9, 2, 16)
    arguments = {"src_key_padding_mask": torch.zeros(2, 9).masked_fill(PADDING, torch.finfo().min)}
    arguments |= {"mask": ADDED, "is_causal": True}
    with torch.no_grad():
        expected = encoder(x, **arguments)
        without = encoder(x, is_causal=True)
        compiled = torch.compile(encoder, backend="eager", fullgraph=True)(x, **arguments)
        exported = torch.export.export(encoder, (x,), arguments).module()(x, **arguments)
    torch.testing.assert_close(compiled, expected)
    torch.testing.assert_close(exported, expected)
    assert (without - expected).abs().max() > 1e-3


# --- the module as an object


def test_repr_shows_the_pattern():
    module = MultiheadDilatedAttention(16, 4, segment_lengths=[4, 8], dilation_rates=[1, 2], num_kv_heads=2)
    line = "16, 4, segment_lengths=[4, 8], dilation_rates=[1, 2], batch_first=True, num_kv_heads=2"
    assert line in repr(module)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("order", ["parents-first", "children-first"])
def test_deferred_initialisation_gives_the_distribution_of_a_new_module(order, bias):
    torch.manual_seed(6)
    make = {"segment_lengths": [8], "dilation_rates": [1], "num_kv_heads": 2, "gamma_init": 3.0, "bias": bias}
    module = MultiheadDilatedAttention(256, 8, device="meta", **make).to_empty(device="cpu")
    modules = list(module.modules())
    for part in modules if order == "parents-first" else reversed(modules):
        part.reset_parameters()
    new = MultiheadDilatedAttention(256, 8, **make)
    for (name, parameter), expected in zip(module.named_parameters(), new.parameters(), strict=True):
        if parameter.dim() == 1:
            assert torch.equal(parameter, expected), name
        else:
            assert parameter.std().item() == pytest.approx(expected.std().item(), rel=0.03), name
            assert parameter.abs().max() > 3.5 * parameter.std(), name  # normal, not uniform


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))],
    ids=["deepcopy", "pickle"],
)
def test_a_copy_is_independent(copied):
    module = MultiheadDilatedAttention(16, 4, segment_lengths=[4, 8], dilation_rates=[1, 2], bias=False)
    x = torch.randn(2, 9, 16)
    expected = module(x)[0]
    other = copied(module)
    assert torch.equal(other(x)[0], expected)
    for part in other.modules():
        part.reset_parameters()
    assert torch.equal(module(x)[0], expected)
    assert not torch.equal(other(x)[0], expected)
    assert all(type(p) is nn.Linear for n, p in other.named_children() if n != "norm")  # for quantisers
