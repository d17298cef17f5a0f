"""The configuration of a ring, and the calls of earlier versions that still build one."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle

import pytest
import torch

from dilated_attention_pytorch import dilated_attention, legacy, ring_attention
from dilated_attention_pytorch.ring_attention import (
    RingAttentionConfig,
    RingDilatedAttention,
    RingDilatedAttentionHilbert,
)

CONFIG = RingAttentionConfig(segment_lengths=[8, 16], dilation_rates=[1, 2], ring_size=2)


def test_fields_by_position_warn_with_the_call_by_keyword():
    with pytest.warns(DeprecationWarning, match="takes keywords") as caught:
        config = RingAttentionConfig([8, 16], [1, 2], 0.0, ring_size=2)
    assert config == CONFIG
    assert caught[0].filename == __file__
    assert str(caught[0].message) == (
        "RingAttentionConfig takes keywords: RingAttentionConfig(segment_lengths=[8, 16], "
        "dilation_rates=[1, 2], dropout=0.0, ring_size=2); positions are refused in v0.3.0"
    )


@pytest.mark.filterwarnings("ignore:RingAttentionConfig takes keywords:DeprecationWarning")
@pytest.mark.parametrize(
    ("args", "keywords", "message"),
    [
        (([8],), {"segment_lengths": [8]}, "multiple values for .* 'segment_lengths'"),
        ((1, 2, 3, 4, 5, 6, 7, 8, 9, 10), {}, "takes 1 positional argument but"),
        ((), {"segment_lengths": [8]}, "missing 1 required keyword-only argument: 'dilation_rates'"),
        ((), {"rates": [8]}, "unexpected keyword argument 'rates'"),
    ],
)
def test_other_calls_are_refused_as_python_does(args, keywords, message: str):
    with pytest.raises(TypeError, match=message):
        RingAttentionConfig(*args, **keywords)


OLD_CALLS = [
    (([8, 16], [1, 2]), {}, "segment_lengths=[8, 16], dilation_rates=[1, 2]"),
    ((), {"segment_lengths": [8, 16], "dilation_rates": [1, 2]}, None),
    (((8, 16),), {"dilation_rates": [1, 2]}, "segment_lengths=(8, 16), dilation_rates=[1, 2]"),
    (
        (),
        {"segment_lengths": [8, 16], "dilation_rates": [1, 2], "dropout": 0.0, "ring_size": 2},
        "segment_lengths=[8, 16], dilation_rates=[1, 2], dropout=0.0, ring_size=2",
    ),
    (
        ([8, 16], [1, 2]),
        {"enable_memory_pool": True, "overlap_communication": False},
        "segment_lengths=[8, 16], dilation_rates=[1, 2], overlap_communication=False, "
        "memory_pool_strategy='adaptive'",
    ),
    (([8, 16], [1, 2]), {"enable_memory_pool": False}, "segment_lengths=[8, 16], dilation_rates=[1, 2]"),
]


@pytest.mark.filterwarnings("ignore:RingDilated.* is now RingDilated:DeprecationWarning")
@pytest.mark.parametrize("old_name", [x for x in legacy.RENAMED if x.startswith("RingDilated")])
@pytest.mark.parametrize(("args", "keywords", "config"), OLD_CALLS)
def test_old_names_take_their_old_call_and_show_the_new_one(old_name: str, args, keywords, config):
    cls = getattr(ring_attention, old_name)
    config = config or OLD_CALLS[0][2]
    with pytest.warns(DeprecationWarning, match="takes a config") as caught:
        ring = cls(*args, **keywords)
    new_call = f"{cls.__name__}(RingAttentionConfig({config}))"
    assert str(caught[0].message) == (
        f"{cls.__name__} takes a config: {new_call}; the old call is refused in v0.3.0"
    )
    assert caught[0].filename == __file__
    assert ring.config == eval(new_call, vars(ring_attention)).config
    x = torch.randn(1, 16, 2, 4)
    torch.testing.assert_close(ring(x, x, x), dilated_attention(x, x, x, [8, 16], [1, 2]))


@pytest.mark.parametrize("cls", [RingDilatedAttention, RingDilatedAttentionHilbert])
def test_device_and_dtype_of_the_old_call_have_no_effect(cls):
    with pytest.warns(DeprecationWarning, match="takes a config") as caught:
        cls([8], [1], device="meta", dtype=torch.float64)
    assert str(caught[0].message) == (
        f"{cls.__name__} takes a config: {cls.__name__}(RingAttentionConfig(segment_lengths=[8], "
        "dilation_rates=[1])); device and dtype without effect (the module has no parameters); the old call "
        "is refused in v0.3.0"
    )


@pytest.mark.parametrize("cls", [RingDilatedAttention, RingDilatedAttentionHilbert])
@pytest.mark.parametrize(
    ("args", "keywords", "message"),
    [
        (
            ([8], [1]),
            {"device": "cpu", "use_flash_attention": True},
            r": Ring.*\(RingAttentionConfig\(segment_lengths=\.\.\., .*\); got use_flash_attention$",
        ),
        ((CONFIG,), {"device": "cpu"}, "got device$"),
        ((CONFIG,), {"ring_size": 2}, "takes a config or what older versions took, got both: ring_size$"),
        ((), {}, "config must be a RingAttentionConfig, got NoneType"),
        (([8], [1]), {"dilation_rates": [1]}, "multiple values for .* 'dilation_rates'"),
        ((3,), {}, "config must be a RingAttentionConfig, got int"),
    ],
)
def test_calls_of_no_version_are_refused(cls, args, keywords, message: str):
    with pytest.raises(TypeError, match=message):
        cls(*args, **keywords)


def test_it_is_a_keyword_only_dataclass():
    for twin in (copy.deepcopy(CONFIG), pickle.loads(pickle.dumps(CONFIG)), dataclasses.replace(CONFIG)):
        assert twin == CONFIG
        assert hash(twin) == hash(CONFIG)
    assert dataclasses.replace(CONFIG, ring_size=3) != CONFIG
    assert RingAttentionConfig(**dataclasses.asdict(CONFIG)) == CONFIG
    assert repr(CONFIG).startswith("RingAttentionConfig(segment_lengths=(8, 16), dilation_rates=(1, 2), ")
    parameters = list(inspect.signature(RingAttentionConfig).parameters.values())
    assert [x.name for x in parameters] == [x.name for x in dataclasses.fields(CONFIG)]
    assert {x.kind for x in parameters} == {inspect.Parameter.KEYWORD_ONLY}
    with pytest.raises(dataclasses.FrozenInstanceError):
        CONFIG.ring_size = 3
