"""A row is a row: with padding anywhere it gives what its tokens give alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import initial, randomised
from torch.func import functional_call, grad, vmap

from dilated_attention_pytorch.models import LongNetEncoder, LongNetLM


def padding(layout: str, lengths: list[int], seq: int) -> torch.Tensor:
    """bool ``[b, seq]``, True outside each row's ``lengths`` tokens."""
    columns, kept = torch.arange(seq), torch.tensor(lengths)[:, None]
    if layout == "left":
        return columns < seq - kept
    if layout == "right":
        return columns >= kept
    return torch.stack([torch.randperm(seq) >= length for length in lengths])


@settings(max_examples=40)
@given(
    model_class=st.sampled_from([LongNetLM, LongNetEncoder]),
    layout=st.sampled_from(["left", "right", "anywhere"]),
    lengths=st.lists(st.integers(0, 24), min_size=1, max_size=3),
    extra=st.integers(0, 5),
    branches=st.lists(st.tuples(st.integers(1, 30), st.integers(1, 5)), min_size=1, max_size=3),
    seed=st.integers(0, 2**32),
)
def test_a_padded_row_equals_the_row_alone(model_class, layout, lengths, extra, branches, seed):
    segment_lengths, dilation_rates = zip(*branches, strict=True)
    model = randomised(model_class, seed, segment_lengths=segment_lengths, dilation_rates=dilation_rates)
    tokens = torch.randint(11, (len(lengths), max(lengths) + extra))
    ignored = padding(layout, lengths, tokens.shape[1])
    out = model(tokens, key_padding_mask=ignored)
    alone = torch.cat([model(row[~gone][None])[0] for row, gone in zip(tokens, ignored, strict=True)])
    torch.testing.assert_close(out[~ignored], alone, rtol=0, atol=1e-10)
    assert out.isfinite().all()


@pytest.mark.parametrize("held", [float("nan"), float("inf"), 1e300])
def test_nothing_that_padding_holds_reaches_outputs_or_gradients(held):
    model = randomised(LongNetEncoder, vocab_size=None)
    x, away = torch.randn(2, 3, 19, 16, dtype=torch.float64)
    ignored = padding("anywhere", [19, 11, 4], 19)
    results = []
    for y in (x.masked_fill(ignored[..., None], held), x):
        y.requires_grad_()
        out = model(y, key_padding_mask=ignored)[~ignored]
        model.zero_grad()
        (out * away[~ignored]).sum().backward()
        results.append([out, y.grad, *(parameter.grad for parameter in model.parameters())])
    assert results[0][1][ignored].count_nonzero() == 0
    for spoilt, clean in zip(*results, strict=True):
        assert torch.equal(spoilt, clean)


@pytest.mark.parametrize("model_class", [LongNetLM, LongNetEncoder])
@pytest.mark.parametrize("held", [-100, 11])
def test_what_is_ignored_need_not_be_a_token(held, model_class):
    model, tokens = randomised(model_class), torch.randint(11, (3, 9))
    ignored = padding("anywhere", [9, 6, 0], 9)
    results = []
    for held_tokens in (tokens.masked_fill(ignored, held), tokens):
        model.zero_grad()
        out = model(held_tokens, key_padding_mask=ignored)
        out[~ignored].square().sum().backward()
        results.append([out, *(parameter.grad for parameter in model.parameters())])
    for got, expected in zip(*results, strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("model_class", [LongNetLM, LongNetEncoder])
@pytest.mark.parametrize(
    "form",
    [
        lambda gone: gone.int(),
        lambda gone: torch.zeros(gone.shape).masked_fill(gone, -torch.inf),
        lambda gone: torch.zeros(gone.shape).masked_fill(gone, -1e9),
    ],
    ids=["int", "inf", "1e9"],
)
def test_other_forms_of_mask(form, model_class):
    model, tokens = initial(model_class), torch.randint(11, (2, 9))
    ignored = padding("left", [5, 9], 9)
    expected = model(tokens, key_padding_mask=ignored)
    assert torch.equal(model(tokens, key_padding_mask=form(ignored)), expected)


@pytest.mark.parametrize("model_class", [LongNetLM, LongNetEncoder])
def test_exported_models_take_masks(model_class):
    model, ignored = randomised(model_class), padding("anywhere", [5, 9, 2], 9)
    first = "tokens" if model_class is LongNetLM else "inputs"
    program = torch.export.export(
        model,
        (torch.randint(11, (3, 9)),),
        {"key_padding_mask": ignored},
        dynamic_shapes={name: {1: torch.export.Dim("seq")} for name in (first, "key_padding_mask")},
    )
    tokens, ignored = torch.randint(11, (3, 40)), padding("left", [40, 22, 0], 40)
    out, expected = (run(tokens, key_padding_mask=ignored) for run in (program.module(), model))
    torch.testing.assert_close(out[~ignored], expected[~ignored], rtol=0, atol=1e-10)


def test_gradients_of_each_row_by_vmap():
    model, tokens = randomised(LongNetLM), torch.randint(11, (3, 9))
    ignored = padding("left", [9, 6, 2], 9)

    def loss(parameters, row, gone):
        return functional_call(model, parameters, row[None], {"key_padding_mask": gone[None]})[0].mean()

    by_row = vmap(grad(loss), (None, 0, 0))(dict(model.named_parameters()), tokens, ignored)
    for i in range(3):
        model.zero_grad()
        model(tokens[i][None], key_padding_mask=ignored[i][None]).mean().backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(by_row[name][i], parameter.grad, rtol=0, atol=1e-10, msg=name)


@pytest.mark.parametrize("model_class", [LongNetLM, LongNetEncoder])
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"key_padding_mask": torch.zeros(2, 9), "attend": lambda _layer, q, _k, _v: q},
            ValueError,
            "attend decides about masks itself: beside it key_padding_mask must be None",
        ),
        ({"key_padding_mask": torch.zeros(9)}, ValueError, r"key_padding_mask .* \[2, 9\], got \[9\]"),
        ({"positions": torch.zeros(9)}, TypeError, "positions must be an int64 tensor, got torch.float32"),
        ({"positions": torch.arange(8)}, ValueError, r"positions must be \[9\] .* \[2, 9\] .* got \[8\]"),
        ({"positions": torch.arange(9) // 2}, ValueError, "positions must be distinct, got 0 twice"),
        ({"positions": torch.arange(9) - 1}, ValueError, "positions must not be negative, got -1"),
    ],
)
def test_bad_masks_and_positions(model_class, arguments, error, message):
    with pytest.raises(error, match=message):
        initial(model_class)(torch.zeros(2, 9, dtype=torch.int64), **arguments)
