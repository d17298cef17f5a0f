import itertools
import math

import oracle
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import SMALL, initial, randomised
from tiny import TINY
from torch import Tensor, nn

from dilated_attention_pytorch import dilated_attention
from dilated_attention_pytorch.cli import main
from dilated_attention_pytorch.models import LongNetConfig, LongNetEncoder, LongNetLM, blocks


def by_hand(
    model: LongNetLM | LongNetEncoder,
    x: Tensor,
    is_causal: bool,
    ignored: Tensor | None = None,
    positions: Tensor | None = None,
) -> Tensor:
    """The last hidden state, with rotary positions as complex numbers and the oracle's attention."""
    c = model.config
    batch, seq, d = *x.shape[:2], x.shape[2] // c.num_heads
    positions = torch.arange(seq).expand(batch, seq) if positions is None else positions.expand(batch, seq)
    branches = list(zip(c.segment_lengths, c.dilation_rates, strict=True))

    def norm(of: nn.LayerNorm, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return (
            centred / (centred.square().mean(-1, keepdim=True) + c.layer_norm_eps).sqrt() * of.weight
            + of.bias
        )

    def rotated(x: Tensor) -> Tensor:
        turned = torch.complex(*x.unflatten(-1, (2, d // 2)).unbind(-2)).clone()
        for b, i in itertools.product(range(batch), range(seq)):
            for channel in range(d // 2):
                angle = positions[b, i].item() / c.rotary_base ** (2 * channel / d)
                turned[b, i, :, channel] *= complex(math.cos(angle), math.sin(angle))
        return torch.cat((turned.real, turned.imag), dim=-1)

    for block in model.blocks:
        a, y = block.attention, norm(block.attention_norm, x)
        q, k, v = (projection(y).unflatten(2, (-1, d)) for projection in (a.q_proj, a.k_proj, a.v_proj))
        y, _ = oracle.attention(
            rotated(q), rotated(k), v, branches, is_causal=is_causal, padding=ignored, positions=positions
        )
        x = x + a.out_proj(norm(a.norm, y.flatten(2)))
        f = block.feed_forward
        x = x + f.down(norm(f.norm, F.gelu(f.up(norm(block.feed_forward_norm, x)))))
    return norm(model.norm, x)


def test_lm_equals_computation_by_hand():
    model = randomised(LongNetLM)
    tokens = torch.randint(11, (2, 21))
    expected = by_hand(model, model.embedding.weight[tokens], True) @ model.head.weight.T
    torch.testing.assert_close(model(tokens), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("embedded", [False, True], ids=["tokens", "embeddings"])
def test_encoder_equals_computation_by_hand(embedded):
    model = randomised(LongNetEncoder)
    tokens = torch.randint(11, (2, 21))
    x = torch.randn(2, 21, 16, dtype=torch.float64) if embedded else model.embedding.weight[tokens]
    out = model(x if embedded else tokens)
    torch.testing.assert_close(out, by_hand(model, x, False), rtol=0, atol=1e-10)


@pytest.mark.parametrize("model_class", [LongNetLM, LongNetEncoder])
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("rows", [False, True], ids=["one-order", "by-row"])
def test_given_positions_equal_computation_by_hand(rows, padded, model_class):
    model = randomised(model_class)
    tokens = torch.randint(11, (2, 21))
    positions = torch.stack([torch.randperm(40)[:21] for _ in range(2)]) if rows else torch.randperm(40)[:21]
    ignored = torch.rand(2, 21) < 0.3 if padded else None
    out = model(tokens, positions=positions, key_padding_mask=ignored)
    x = model.embedding.weight[tokens]
    if padded:
        x = x.masked_fill(ignored[..., None], 0)
    expected = by_hand(model, x, model_class is LongNetLM, ignored, positions)
    if model_class is LongNetLM:
        expected = expected @ model.head.weight.T
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-10)


def test_positions_0_to_n_do_not_gather(monkeypatch):
    model, tokens = initial(LongNetLM), torch.randint(11, (2, 21))
    seen = []

    def attention(*args, positions, **kwargs):
        seen.append(positions)
        return dilated_attention(*args, positions=positions, **kwargs)

    monkeypatch.setattr(blocks, "dilated_attention", attention)
    right = torch.arange(21) >= torch.tensor([[13], [21]])
    outputs = [model(tokens), model(tokens, torch.arange(21)), model(tokens, key_padding_mask=right)]
    assert seen == [None] * 6
    assert torch.equal(outputs[0], outputs[1])
    model(tokens, torch.arange(21) + 1)
    assert seen[-1] is not None


@settings(max_examples=25)
@given(
    seq=st.integers(2, 40),
    cut=st.floats(0, 1),
    branches=st.lists(st.tuples(st.integers(1, 48), st.integers(1, 6)), min_size=1, max_size=3),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 2**32),
)
def test_later_tokens_change_no_earlier_logit(seq, cut, branches, dtype, seed):
    segment_lengths, dilation_rates = zip(*branches, strict=True)
    model = initial(LongNetLM, seed, segment_lengths=segment_lengths, dilation_rates=dilation_rates).to(dtype)
    tokens = torch.randint(11, (2, seq))
    kept = round(cut * (seq - 1)) + 1
    other = tokens.clone()
    other[:, kept:] = (tokens[:, kept:] + torch.randint(1, 11, (2, seq - kept))) % 11
    assert torch.equal(model(tokens)[:, :kept], model(other)[:, :kept])


def test_encoder_sees_later_tokens():
    model = initial(LongNetEncoder)
    tokens = torch.randint(10, (1, 4))
    other = tokens.clone()
    other[:, 3] = 10
    assert not torch.equal(model(tokens)[:, 0], model(other)[:, 0])


def test_padding_of_encoder_is_not_seen():
    model = initial(LongNetEncoder)
    tokens = torch.randint(11, (2, 24))
    ignored = torch.zeros(2, 24, dtype=torch.bool)
    ignored[0, 17:] = ignored[1, 5:9] = True
    other = tokens.where(~ignored, (tokens + 1) % 11)
    assert torch.equal(model(tokens, ignored)[~ignored], model(other, ignored)[~ignored])


def test_positions_far_out_keep_their_distances():
    # A rotary score depends on the distance alone; angles in float32 would be off by 0.06 at a million.
    model = randomised(LongNetLM, segment_lengths=(16,), dilation_rates=(1,)).float()
    x = torch.randn(1, 16, 16)
    near = model.hidden(x, torch.arange(16))
    far = model.hidden(x, torch.arange(16) + 16_000_000)
    torch.testing.assert_close(near, far, rtol=0, atol=1e-4)


def test_tokens_in_another_order_with_their_positions_and_attention():
    model = randomised(LongNetLM)
    tokens = torch.randint(11, (2, 21))
    order = torch.randperm(21)
    layers = []

    def attend(layer, query, key, value):
        layers.append(layer)
        in_time = (x[:, order.argsort()] for x in (query, key, value))
        return dilated_attention(*in_time, SMALL.segment_lengths, SMALL.dilation_rates, is_causal=True)[
            :, order
        ]

    torch.testing.assert_close(model(tokens[:, order], order, attend), model(tokens)[:, order])
    assert layers == [0, 1]


@pytest.mark.parametrize("model_class", [LongNetLM, LongNetEncoder])
@pytest.mark.parametrize(
    ("returned", "got"),
    [
        (lambda query: (query, None), "tuple"),  # with its lse
        (lambda query: query[:1], r"\[1, 9, 4, 4\]"),  # it would be broadcast
        (lambda query: query.transpose(1, 2), r"\[2, 4, 9, 4\]"),
    ],
    ids=["tuple", "one-row", "heads-first"],
)
def test_attention_of_another_shape_is_refused(returned, got, model_class):
    with pytest.raises(ValueError, match=rf"attend must return a tensor \[2, 9, 4, 4\] .* got {got}"):
        initial(model_class)(
            torch.zeros(2, 9, dtype=torch.int64), attend=lambda _layer, query, _key, _value: returned(query)
        )


@pytest.mark.parametrize("model_class", [LongNetLM, LongNetEncoder])
def test_gradient_reaches_every_parameter(model_class):
    model = initial(model_class)
    model(torch.arange(11).repeat(2, 2)).square().sum().backward()
    # Adding a constant to every key's score changes nothing, so but for rotation k_proj.bias would have none.
    reached = {name: p.grad is not None and p.grad.abs().max() > 0 for name, p in model.named_parameters()}
    assert all(reached.values()), reached


@pytest.mark.parametrize("model_class", [LongNetLM, LongNetEncoder])
def test_state_dict_round_trip(model_class, tmp_path):
    model, other = initial(model_class), initial(model_class, seed=1)
    tokens = torch.randint(11, (1, 9))
    assert not torch.equal(model(tokens), other(tokens))
    torch.save(model.state_dict(), tmp_path / "model.pt")
    other.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    assert torch.equal(model(tokens), other(tokens))


@pytest.mark.parametrize(
    "size", [{}, {"embed_dim": 128, "num_layers": 2, "num_heads": 8}], ids=["default", "small"]
)
def test_initial_loss_is_little_above_guessing(size):
    torch.manual_seed(0)
    model = LongNetLM(LongNetConfig(**size))
    tokens = torch.randint(256, (2, 129))
    loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    # Normal logits of variance 1 cost half their variance on average.
    assert loss.item() == pytest.approx(math.log(256) + 0.5, abs=0.2)


def test_encoder_without_a_token_table():
    model, with_table = initial(LongNetEncoder, vocab_size=None), initial(LongNetEncoder, seed=1)
    assert list(model.state_dict()) == [name for name in with_table.state_dict() if "embedding" not in name]
    with_table.load_state_dict(model.state_dict(), strict=False)
    x = torch.randn(2, 9, 16)
    assert torch.equal(model(x), with_table(x))


@pytest.mark.parametrize("model_class", [LongNetLM, LongNetEncoder])
def test_meta_tensors_give_shapes(model_class):
    with torch.device("meta"):
        model = initial(model_class)
        tokens = torch.zeros(2, 9, dtype=torch.int64)
        width = 11 if model_class is LongNetLM else 16
        for mask in (None, torch.zeros(2, 9, dtype=torch.bool)):
            out = model(tokens, key_padding_mask=mask)
            assert out.is_meta
            assert out.shape == (2, 9, width)


def test_a_run_of_another_model_is_named(tmp_path):
    (tmp_path / "text.txt").write_text("All happy families are alike. " * 100)
    run = tmp_path / "run"
    arguments = ["--data", str(tmp_path / "text.txt"), "--run", str(run), "--steps", "1", *TINY]
    assert main(["train", *arguments]) == 0
    checkpoint = torch.load(run / "checkpoint.pt", weights_only=True)
    for change, message in (
        ({"num_heads": 3}, "embed_dim must be a multiple of 2"),
        ({"ffn_dim": 16}, "size mismatch for blocks.0.feed_forward"),
        ({"depth": 3}, "unexpected keyword argument 'depth'"),
    ):
        changed = {**checkpoint, "model_config": {**checkpoint["model_config"], **change}}
        torch.save(changed, run / "checkpoint.pt")
        with pytest.raises(ValueError, match=message) as caught:
            LongNetLM.load(run)
        assert str(caught.value).startswith(f"LongNetLM.load({str(run)!r}, 'last'): ")


def test_empty_sequence():
    assert initial(LongNetLM)(torch.zeros(2, 0, dtype=torch.int64)).shape == (2, 0, 11)
    assert initial(LongNetEncoder)(torch.zeros(2, 0, 16)).shape == (2, 0, 16)


def test_autocast():
    model = initial(LongNetLM)
    tokens = torch.randint(11, (2, 20))
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(tokens)
    assert logits.dtype == torch.bfloat16
    expected = model(tokens)
    assert (logits - expected).norm() / expected.norm() < 0.02


@pytest.mark.parametrize(
    ("model_class", "inputs", "error", "message"),
    [
        (LongNetLM, torch.zeros(1, 4), TypeError, "tokens must be an int64 tensor, got torch.float32"),
        (LongNetLM, [[1, 2]], TypeError, "tokens must be a torch.Tensor, got list"),
        (
            LongNetLM,
            torch.zeros(4, dtype=torch.int64),
            ValueError,
            r"tokens must be \[batch, seq\], got \[4\]",
        ),
        (LongNetEncoder, torch.zeros(1, 4, 8), ValueError, r"inputs .* embed_dim=16\], got \[1, 4, 8\]"),
        (LongNetEncoder, torch.zeros(4, 16), ValueError, r"inputs .* embed_dim=16\], got \[4, 16\]"),
        (LongNetEncoder, torch.zeros(1, 4, dtype=torch.int32), TypeError, "inputs .* got torch.int32"),
        (LongNetEncoder, [[1, 2]], TypeError, "inputs must be a torch.Tensor, got list"),
    ],
)
def test_bad_inputs(model_class, inputs, error, message):
    with pytest.raises(error, match=message):
        initial(model_class)(inputs)


def test_tokens_without_a_token_table():
    model = initial(LongNetEncoder, vocab_size=None)
    with pytest.raises(TypeError, match=r"inputs must be embeddings .* vocab_size=None .* got torch.int64"):
        model(torch.zeros(1, 4, dtype=torch.int64))


@pytest.mark.parametrize("model_class", [LongNetLM, LongNetEncoder])
def test_a_dictionary_is_no_config(model_class):
    with pytest.raises(TypeError, match=r"config must be a LongNetConfig, got \{'embed_dim': 16\}"):
        model_class({"embed_dim": 16})


def test_a_language_model_needs_a_vocabulary():
    with pytest.raises(ValueError, match="vocab_size must be the number of token ids, got None"):
        LongNetLM(LongNetConfig(vocab_size=None))
