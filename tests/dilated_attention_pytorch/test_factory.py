from __future__ import annotations

from functools import partial

import pytest
import torch

from dilated_attention_pytorch import (
    DilatedAttention,
    MultiheadDilatedAttention,
    RingAttentionConfig,
    RingDilatedAttention,
    create_dilated_attention,
    create_multihead_dilated_attention,
    dilated_attention,
)

PATTERN = {"segment_lengths": [4, 8], "dilation_rates": [1, 2]}


@pytest.mark.parametrize("type", [(), ("auto",), ("standard",)])
def test_attention_on_one_device(type):
    attention = create_dilated_attention(*type, softmax_scale=0.5, **PATTERN)
    assert isinstance(attention, DilatedAttention)
    assert (attention.segment_lengths, attention.softmax_scale) == ((4, 8), 0.5)
    multihead = create_multihead_dilated_attention(*type, embed_dim=8, num_heads=2, **PATTERN)
    assert isinstance(multihead, MultiheadDilatedAttention)
    assert multihead.pattern.segment_lengths == (4, 8)


def test_a_ring_takes_its_configuration_and_its_group():
    attention = create_dilated_attention("ring", sharding="zigzag", ring_size=2, **PATTERN)
    assert isinstance(attention, RingDilatedAttention)
    assert attention.config == RingAttentionConfig(sharding="zigzag", ring_size=2, **PATTERN)
    q, k, v = torch.randn(3, 1, 16, 2, 4)
    expected = dilated_attention(q, k, v, **PATTERN, is_causal=True)
    torch.testing.assert_close(attention(q, k, v, is_causal=True), expected)


def test_a_ring_in_a_group(tmp_path):
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        group = torch.distributed.group.WORLD
        assert create_dilated_attention("ring", process_group=group, **PATTERN).process_group is group
    finally:
        torch.distributed.destroy_process_group()


def test_a_multihead_module_takes_the_ring_as_its_error_says():
    with pytest.raises(ValueError, match="got 'ring'; a ring is passed to the module's calls, attend="):
        create_multihead_dilated_attention("ring", embed_dim=8, num_heads=2, **PATTERN)
    multihead = create_multihead_dilated_attention(embed_dim=8, num_heads=2, **PATTERN)
    ring = create_dilated_attention("ring", **PATTERN)
    x = torch.randn(1, 16, 8)
    expected, _ = multihead(x, is_causal=True)
    torch.testing.assert_close(multihead(x, attend=partial(ring, is_causal=True))[0], expected)


@pytest.mark.parametrize("make", [create_dilated_attention, create_multihead_dilated_attention])
def test_other_types_are_refused(make):
    with pytest.raises(ValueError, match=r"type must be 'auto'.* got 'improved'"):
        make("improved", **PATTERN)
