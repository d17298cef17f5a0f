import dataclasses
import json
import math

import pytest
from small_models import SMALL

from dilated_attention_pytorch.models import LongNetConfig


@pytest.mark.parametrize(
    "config",
    [SMALL, LongNetConfig(), LongNetConfig(vocab_size=None)],
    ids=["all-set", "default", "no-vocabulary"],
)
def test_config_through_json(config):
    again = LongNetConfig(**json.loads(json.dumps(dataclasses.asdict(config))))
    assert again == config
    assert again.segment_lengths == config.segment_lengths
    assert hash(again) == hash(config)


@pytest.mark.parametrize(
    ("field", "value", "error", "message"),
    [
        ("vocab_size", 0, ValueError, "vocab_size must be at least 1, got 0"),
        ("embed_dim", 256.0, TypeError, "embed_dim must be int, got 256.0"),
        ("embed_dim", 20, ValueError, "embed_dim=20, num_heads=4"),
        ("num_layers", True, TypeError, "num_layers must be int, got True"),
        ("num_layers", None, TypeError, "num_layers must be int, got None"),
        ("num_heads", 0, ValueError, "num_heads must be at least 1, got 0"),
        ("num_kv_heads", 3, ValueError, "num_heads=4, num_kv_heads=3"),
        ("ffn_dim", -1, ValueError, "ffn_dim must be at least 1, got -1"),
        ("segment_lengths", [8], ValueError, r"segment_lengths=\[8\], dilation_rates=\[1, 2, 4\]"),
        ("dilation_rates", [1, 2, 0], ValueError, r"dilation_rates .* got \[1, 2, 0\]"),
        ("layer_norm_eps", 0, ValueError, "layer_norm_eps must be positive and finite, got 0"),
        ("rotary_base", math.inf, ValueError, "rotary_base must be positive and finite, got inf"),
        ("rotary_base", "1e4", TypeError, "rotary_base must be a number, got '1e4'"),
    ],
)
def test_bad_config(field, value, error, message):
    with pytest.raises(error, match=message):
        LongNetConfig(**{field: value})
