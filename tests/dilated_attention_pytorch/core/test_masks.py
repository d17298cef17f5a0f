import math

import pytest
import torch
from torch import Tensor

from dilated_attention_pytorch import MultiheadDilatedAttention
from dilated_attention_pytorch.core.masks import ignored_keys, mask_is_causal

IGNORED = torch.tensor([[False, True, False, False], [False, False, True, True]])
LIKE = torch.zeros(2, 4, 8)


def added(least: float, dtype: torch.dtype) -> Tensor:
    return torch.zeros(2, 4, dtype=dtype).masked_fill(IGNORED, least)


FORMS = {
    "bool": IGNORED,
    "uint8": IGNORED.to(torch.uint8),
    "int64": IGNORED * -3,
    "-inf": added(-math.inf, torch.float32),
    "-1e9": added(-1e9, torch.float64),
    "-1e4": added(-1e4, torch.bfloat16),
} | {
    f"finfo-{dtype}".replace("torch.", ""): added(torch.finfo(dtype).min, dtype)
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
}


@pytest.mark.parametrize("mask", FORMS.values(), ids=FORMS)
def test_every_form_means_the_same_keys(mask):
    assert torch.equal(ignored_keys(mask, LIKE), IGNORED)


@pytest.mark.parametrize("number", [1.0, -1.0, -9999.0, math.nan, math.inf])
def test_another_number_is_refused(number):
    mask = torch.zeros(2, 4)
    mask[1, 2] = number
    with pytest.raises(ValueError, match=f"a floating-point m must hold only 0 .* got {number}"):
        ignored_keys(mask, LIKE, "m")
    attention_mask = torch.zeros(4, 4)
    attention_mask[1, 2] = number
    with pytest.raises(ValueError, match=f"a floating-point m must hold only 0 .* got {number}"):
        mask_is_causal(attention_mask, LIKE, 2, name="m")


@pytest.mark.parametrize("checked", [ignored_keys, lambda mask, like: mask_is_causal(mask, like, 2)])
@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (None, TypeError, "mask must be a bool, integer or floating-point tensor, got NoneType"),
        (torch.zeros(2, 4, dtype=torch.complex64), TypeError, "got torch.complex64"),
        (torch.zeros(2, 5), ValueError, r"mask must be .* got \[2, 5\]"),
        (torch.zeros(2, 4, device="meta"), ValueError, "mask must be on cpu like the sequence, got meta"),
    ],
)
def test_bad_mask(checked, mask, error, message):
    with pytest.raises(error, match=message):
        checked(mask, LIKE)


def test_only_the_causal_mask_is_causal():
    causal = torch.ones(4, 4, dtype=torch.bool).triu(1)
    assert mask_is_causal(causal, LIKE, 3) is True
    assert mask_is_causal(causal.expand(6, 4, 4), LIKE, 3) is True
    assert mask_is_causal(torch.zeros(4, 4), LIKE, 3) is False
    by_head = causal.repeat(6, 1, 1)
    by_head[5] = False
    window = causal | causal.T.tril(-2)
    for mask, entry in (
        (causal.T, "got shape [4, 4], whose entry [0, 1] shows what a causal mask hides"),
        (~causal, "[0, 0] hides what a causal mask shows"),
        (by_head, "got shape [6, 4, 4], whose entry [5, 0, 1] shows"),
        (causal | (torch.eye(4) > 0), "[0, 0] hides"),
        (window, "[2, 0] hides"),
    ):
        with pytest.raises(ValueError, match="attn_mask must be causal or hide nothing") as caught:
            mask_is_causal(mask, LIKE, 3)
        assert entry in str(caught.value)
        assert mask_is_causal(mask, LIKE, 3, hint=True) is True


@pytest.mark.parametrize("how", ["compile", "export"])
def test_a_graph_masks_and_never_drops_a_mask(how):
    torch.manual_seed(0)
    module = MultiheadDilatedAttention(8, 2, segment_lengths=[4, 8], dilation_rates=[1, 2]).eval()
    x = torch.randn(2, 4, 8)

    class Masked(torch.nn.Module):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return module(x, key_padding_mask=mask)[0]

    mask = FORMS["finfo-float32"]
    with torch.no_grad():
        if how == "compile":
            graph = torch.compile(Masked(), backend="aot_eager", fullgraph=True)
        else:
            graph = torch.export.export(Masked(), (x, mask)).module()
        torch.testing.assert_close(graph(x, mask), module(x, key_padding_mask=IGNORED)[0])
        torch.testing.assert_close(graph(x, FORMS["-inf"]), module(x, key_padding_mask=IGNORED)[0])
        with pytest.raises(RuntimeError, match="a floating-point key_padding_mask must hold only 0"):
            graph(x, mask.clamp(min=-1))
