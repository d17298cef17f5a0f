import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import initial, randomised
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from dilated_attention_pytorch.core.pattern import DilatedPattern
from dilated_attention_pytorch.models import LongNetLM
from dilated_attention_pytorch.models.generation import KVCache


@pytest.fixture(scope="module")
def model() -> LongNetLM:
    return randomised(LongNetLM, seed=8)  # its greedy continuations differ


def logits_used(model: LongNetLM, tokens: Tensor, max_new_tokens: int, **how: float) -> tuple[Tensor, Tensor]:
    """What ``generate`` returns, and the logits ``[b, max_new_tokens, vocab]`` it drew each token from."""
    seen: list[Tensor] = []
    handle = model.head.register_forward_hook(lambda _module, _inputs, logits: seen.append(logits))
    out = model.generate(tokens, max_new_tokens, **how)
    handle.remove()
    return out, torch.stack(seen, dim=1)


@settings(max_examples=60)
@given(
    batch=st.integers(1, 2),
    prompt=st.integers(1, 24),
    new=st.integers(1, 24),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 3),
    branches=st.lists(st.tuples(st.integers(1, 30), st.integers(1, 6)), min_size=1, max_size=3),
    temperature=st.sampled_from([0.0, 1.0]),
    seed=st.integers(0, 2**32),
)
def test_every_step_has_the_logits_of_the_full_forward(
    batch, prompt, new, kv_heads, group, branches, temperature, seed
):
    heads = kv_heads * group
    model = randomised(
        LongNetLM,
        seed,
        embed_dim=4 * heads,
        num_heads=heads,
        num_kv_heads=kv_heads,
        segment_lengths=[w for w, _ in branches],
        dilation_rates=[r for _, r in branches],
    )
    tokens = torch.randint(11, (batch, prompt))
    out, used = logits_used(model, tokens, new, temperature=temperature, seed=seed)
    assert out.shape == (batch, prompt + new)
    assert torch.equal(out[:, :prompt], tokens)
    with torch.no_grad():
        full = model(out)[:, prompt - 1 : -1]
    torch.testing.assert_close(used, full, rtol=0, atol=1e-10)
    assert not used.requires_grad
    if temperature == 0:
        assert torch.equal(out[:, prompt:], used.argmax(-1))


@pytest.mark.parametrize("how", ["bfloat16", "autocast"])
def test_reduced_precision_is_as_near_as_the_full_forward(model, how):
    other = LongNetLM(model.config).to(torch.bfloat16 if how == "bfloat16" else torch.float32)
    other.load_state_dict(model.state_dict())
    tokens = torch.arange(12).view(2, 6) % 11
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        out, used = logits_used(other, tokens, 40, seed=0)
        full = other(out)[:, 5:-1]
    exact = model(out)[:, 5:-1]
    assert used.dtype == torch.bfloat16
    assert (used - exact).norm() < 1.25 * (full - exact).norm()


def test_autocast_does_not_round_the_scores_of_a_step():
    results = []
    for enabled in (False, True):
        cache = KVCache(DilatedPattern((8,), (1,), 2), 8)
        cache.keys[0], cache.values[0] = torch.randn(
            2, 1, 8, 2, 4, generator=torch.Generator().manual_seed(0)
        )
        query, key, value = torch.randn(3, 1, 1, 2, 4, generator=torch.Generator().manual_seed(1))
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            results.append(cache.step(7, 0, query, key, value))
    assert torch.equal(*results)


def test_draws_follow_the_softmax(model):
    # 20,000 draws of the same next token: each frequency within 5 standard deviations.
    tokens = torch.tensor([[3, 1, 4]]).expand(20_000, -1)
    for temperature in (1.0, 2.5):
        drawn = model.generate(tokens, 1, temperature=temperature, seed=5)[:, -1]
        expected = (model(tokens[:1])[0, -1] / temperature).softmax(-1)
        frequency = drawn.bincount(minlength=11) / 20_000
        assert ((frequency - expected).abs() <= 5 * (expected * (1 - expected) / 20_000).sqrt()).all()


def test_top_k_draws_only_among_the_largest(model):
    tokens = torch.tensor([[3, 1, 4]]).expand(2_000, -1)
    best = model(tokens[:1])[0, -1].topk(3).indices
    drawn = model.generate(tokens, 1, temperature=10.0, top_k=3, seed=0)[:, -1]
    assert set(drawn.tolist()) == set(best.tolist())


def test_extremes_agree_with_greedy(model):
    tokens = torch.randint(11, (2, 5))
    greedy = model.generate(tokens, 20, temperature=0)
    assert torch.equal(greedy, model.generate(tokens, 20, top_k=1))
    assert torch.equal(greedy, model.generate(tokens, 20, temperature=1e-320))
    everything = model.generate(tokens, 20, seed=1)
    assert torch.equal(everything, model.generate(tokens, 20, top_k=99, seed=1))


def test_rows_of_a_batch_are_independent(model):
    tokens = torch.randint(11, (3, 7))
    together = model.generate(tokens, 20, temperature=0)
    apart = [model.generate(row[None], 20, temperature=0) for row in tokens]
    assert torch.equal(together, torch.cat(apart))


def test_seed_and_global_random_state(model):
    tokens = torch.randint(11, (2, 5))
    before = torch.get_rng_state()
    seeded = [model.generate(tokens, 30, seed=seed) for seed in (7, 7, 8)]
    fresh = [model.generate(tokens, 30) for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(seeded[0], seeded[1])
    assert not torch.equal(seeded[0], seeded[2])
    assert not torch.equal(fresh[0], fresh[1])


def test_leaves_model_and_prompt_as_they_were(model):
    model.train()
    model.blocks[1].eval()
    modes = [module.training for module in model.modules()]
    tokens = torch.randint(11, (2, 5))
    prompt = tokens.clone()
    out = model.generate(tokens, 3)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(tokens, prompt)
    assert out.data_ptr() != tokens.data_ptr()
    assert all(parameter.grad is None for parameter in model.parameters())
    model(out).sum().backward()  # not an inference tensor


def test_no_new_tokens(model):
    tokens = torch.randint(11, (2, 5))
    out = model.generate(tokens, 0)
    assert torch.equal(out, tokens)
    out[0, 0] += 1
    assert not torch.equal(out, tokens)


@pytest.mark.parametrize("mask", [None, torch.zeros(0, 5)], ids=["whole", "masked"])
def test_no_rows(model, mask):
    tokens = torch.zeros(0, 5, dtype=torch.int64)
    assert model.generate(tokens, 3, key_padding_mask=mask).shape == (0, 8)


def test_a_step_costs_w_over_r_keys_however_long_the_text():
    batch, heads, kv_heads, d = 2, 4, 2, 8
    pattern = DilatedPattern((8, 32), (1, 4), heads, num_kv_heads=kv_heads)
    for segments in (1, 40):
        position = 32 * segments - 1  # the last position of a segment of either branch
        cache = KVCache(pattern, position + 1)
        cache.keys[0] = torch.randn(batch, position + 1, kv_heads, d)
        cache.values[0] = torch.randn(batch, position + 1, kv_heads, d)
        q, k, v = (torch.randn(batch, 1, count, d) for count in (heads, kv_heads, kv_heads))
        with FlopCounterMode(display=False) as counter:
            cache.step(position, 0, q, k, v)
        # All 4 heads see 8 keys, one head sees 32 / 4: two products of 2 * d operations per key.
        assert counter.get_total_flops() == batch * (4 * 8 + 1 * 8) * 2 * 2 * d


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tokens": torch.zeros(2, 0, dtype=torch.int64)}, r"tokens .* at least one token, got \[2, 0\]"),
        ({"tokens": torch.tensor([[1, 11]])}, r"tokens must be in \[0, vocab_size=11\), got 11"),
        ({"tokens": torch.tensor([[-1, 2]])}, r"tokens must be in \[0, vocab_size=11\), got -1"),
        ({"tokens": torch.tensor([1, 2])}, r"tokens must be \[batch, seq\], got \[2\]"),
        ({"max_new_tokens": -1}, "max_new_tokens must be at least 0, got -1"),
        ({"temperature": -0.5}, "temperature must be finite and at least 0, got -0.5"),
        ({"temperature": math.nan}, "temperature must be finite and at least 0, got nan"),
        ({"top_k": 0}, "top_k must be at least 1 .*, got 0"),
    ],
)
def test_bad_arguments(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        model.generate(**{"tokens": torch.tensor([[1, 2]]), "max_new_tokens": 1, **arguments})


@pytest.mark.parametrize("name", ["generate", "stream"])  # a stream raises before its first token
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"max_new_tokens": 3.0}, TypeError, "max_new_tokens must be int, got 3.0"),
        ({"max_new_tokens": True}, TypeError, "max_new_tokens must be int, got True"),
        ({"max_new_tokens": None}, TypeError, "max_new_tokens must be int, got None"),
        ({"temperature": True}, TypeError, "temperature must be a number, got True"),
        ({"temperature": "1"}, TypeError, "temperature must be a number, got '1'"),
        ({"top_k": 5.0}, TypeError, "top_k must be int or None, got 5.0"),
        ({"seed": 1.0}, TypeError, "seed must be int or None, got 1.0"),
        ({"seed": 2**64}, ValueError, r"seed must be in \[-2\*\*63, 2\*\*64\), got 18446744073709551616"),
        ({"seed": -(2**63) - 1}, ValueError, "seed must be in .* got -9223372036854775809"),
        ({"tokens": torch.zeros(1, 2, dtype=torch.int32)}, TypeError, "an int64 tensor, got torch.int32"),
        ({"tokens": torch.zeros(1, 0, dtype=torch.int64)}, ValueError, "tokens must hold a prompt"),
    ],
)
def test_arguments_of_another_type_or_range(model, name, arguments, error, message):
    with pytest.raises(error, match=message):
        getattr(model, name)(**{"tokens": torch.tensor([[1, 2]]), "max_new_tokens": 1, **arguments})


@pytest.mark.parametrize("seed", [-(2**63), -1, 2**64 - 1])
def test_seeds_at_the_ends_of_their_range(model, seed):
    assert model.generate(torch.tensor([[1, 2]]), 2, seed=seed).shape == (1, 4)


def test_a_stream_has_the_tokens_of_generate_one_step_at_a_time(model):
    tokens, steps = torch.arange(10).view(2, 5), []
    handle = model.head.register_forward_hook(lambda *_: steps.append(torch.is_grad_enabled()))
    drawn = []
    for token in model.stream(tokens, 6, temperature=0.7, top_k=5, seed=2):
        drawn.append(token.clone())
        assert len(steps) == len(drawn)
        assert torch.is_grad_enabled()
        token += 1  # the caller's own
    handle.remove()
    assert not any(steps)
    expected = model.generate(tokens, 6, temperature=0.7, top_k=5, seed=2)
    assert torch.equal(torch.stack(drawn, dim=1), expected[:, 5:])


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("value", [math.nan, math.inf], ids=str)
def test_logits_that_are_not_finite_are_refused(temperature, value):
    spoilt = initial(LongNetLM)
    spoilt.head.weight.data[3] = value
    with pytest.raises(FloatingPointError, match="the logits are not finite"):
        spoilt.generate(torch.zeros(1, 4, dtype=torch.int64), 2, temperature=temperature)


@pytest.mark.parametrize("temperature", [0, 1])
def test_a_token_with_a_logit_of_minus_infinity_is_never_drawn(model, temperature):
    # A hook may forbid tokens.
    handle = model.head.register_forward_hook(
        lambda _module, _inputs, logits: logits.masked_fill(torch.arange(11) % 2 == 0, -math.inf)
    )
    out = model.generate(torch.zeros(20, 1, dtype=torch.int64), 20, temperature=temperature, seed=0)
    handle.remove()
    assert (out[:, 1:] % 2 == 1).all()


PADDING = torch.tensor(
    [
        [0, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [0, 0, 0, 0, 1, 1, 1],
        [1, 0, 1, 0, 0, 1, 0],
        [1, 1, 1, 1, 1, 1, 0],
    ]
)


@pytest.mark.parametrize("temperature", [0, 1])
def test_a_padded_row_is_continued_as_it_is_alone(model, temperature):
    torch.manual_seed(1)
    # What is ignored need not be a token.
    tokens = torch.randint(11, PADDING.shape).where(PADDING == 0, -100)
    how = {"temperature": temperature, "seed": 3}
    out = model.generate(tokens, 30, **how, key_padding_mask=PADDING)
    assert torch.equal(out[:, :7], tokens)
    stream = model.stream(tokens, 30, **how, key_padding_mask=PADDING)
    assert torch.equal(torch.stack(list(stream), dim=1), out[:, 7:])
    for length, rows in {7: [0], 4: [1, 2, 3], 1: [4]}.items():
        prompts = torch.stack([tokens[row][PADDING[row] == 0] for row in rows])
        assert torch.equal(out[rows, 7:], model.generate(prompts, 30, **how)[:, length:])
    assert len({tuple(row) for row in out[:, 7:].tolist()}) > 2


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (torch.tensor([[1, 0], [1, 1]]), ValueError, "must leave every row a token, got row 1 without one"),
        (torch.zeros(2, 3), ValueError, r"key_padding_mask must be \[batch, seq\] = \[2, 2\], got \[2, 3\]"),
        ([[1, 0], [1, 1]], TypeError, "key_padding_mask must be .* got list"),
    ],
)
@pytest.mark.parametrize("name", ["generate", "stream"])
def test_bad_masks(model, name, mask, error, message):
    with pytest.raises(error, match=message):
        getattr(model, name)(torch.ones(2, 2, dtype=torch.int64), 1, key_padding_mask=mask)
