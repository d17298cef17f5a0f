"""The configuration of a ring, and the calls of earlier versions that still build one."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle

import pytest

from dilated_attention_pytorch.ring_attention import RingAttentionConfig

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
