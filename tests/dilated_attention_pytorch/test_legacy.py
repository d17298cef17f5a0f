from __future__ import annotations

import re
import subprocess
import sys

import pytest
import torch

import dilated_attention_pytorch
from dilated_attention_pytorch import (
    LongNetConfig,
    LongNetEncoder,
    LongNetLM,
    RingAttentionConfig,
    RingDilatedAttention,
    UnifiedMemoryPool,
    core,
    legacy,
    long_net,
    models,
    ring_attention,
)

# By old name: the modules that had it, and what it is there.
RING = (dilated_attention_pytorch, ring_attention)
OLD = {
    "RingDilatedAttentionProduction": (RING, RingDilatedAttention),
    "RingDilatedAttentionHybrid": (RING, RingDilatedAttention),
    "RingDilatedAttentionTrue": (RING, RingDilatedAttention),
    "RingDilatedAttentionHilbertOptimized": (RING, ring_attention.RingDilatedAttentionHilbert),
    "MemoryPool": ((*RING, core), UnifiedMemoryPool),
    "get_global_memory_pool": ((dilated_attention_pytorch, core), None),
    "LongNet": ((dilated_attention_pytorch, long_net), None),
    "LongNetLM": ((long_net,), None),
}
CASES = [(module, old) for old, (modules, _) in OLD.items() for module in modules]


def test_every_old_name_is_tested():
    assert {old: tuple(module.__name__ for module in modules) for old, (modules, _) in OLD.items()} == {
        old: now.modules for old, now in legacy.RENAMED.items()
    }


@pytest.mark.parametrize(("module", "old"), CASES, ids=[f"{m.__name__}.{old}" for m, old in CASES])
def test_an_old_name_is_the_new_one_and_warns_where_it_is_used(module, old: str):
    now = legacy.RENAMED[old]
    message = rf"^{old} is now {now.new} \(from {now.home} import {now.new}\); .* is removed in v0\.3\.0$"
    with pytest.warns(DeprecationWarning, match=message) as caught:
        found = getattr(module, old)
    assert [one.filename for one in caught] == [__file__]
    assert found is OLD[old][1] or not now.same
    assert old not in getattr(module, "__all__", ())


def old_name(module: object, name: str):
    with pytest.warns(DeprecationWarning, match=f"^{name} is now "):
        return getattr(module, name)


def test_the_global_pool_is_one_pool():
    pool = old_name(core, "get_global_memory_pool")()
    assert isinstance(pool, UnifiedMemoryPool)
    assert pool is old_name(dilated_attention_pytorch, "get_global_memory_pool")()


@pytest.mark.parametrize("strategy", [None, "simple"])
@pytest.mark.parametrize("method", legacy.METHODS)
def test_an_old_method_is_the_pools(method: str, strategy: str | None):
    ring = RingDilatedAttention(
        RingAttentionConfig(segment_lengths=[4], dilation_rates=[1], memory_pool_strategy=strategy)
    )
    if ring.memory_pool is not None:
        ring.memory_pool.return_buffer(ring.memory_pool.get_buffer((8,), torch.float32))
        assert ring.memory_pool.get_stats()["bytes_cached"] > 0
    message = rf"^{method}\(\) is now {re.escape(legacy.METHODS[method])}; .*removed in v0\.3\.0$"
    with pytest.warns(DeprecationWarning, match=message) as caught:
        given = getattr(ring, method)()
    assert [one.filename for one in caught] == [__file__]
    if method == "get_memory_stats":
        assert given == ({} if ring.memory_pool is None else {"memory_pool": ring.memory_pool.get_stats()})
    elif ring.memory_pool is not None:
        assert ring.memory_pool.get_stats()["bytes_cached"] == 0


SMALL = {"num_encoder_layers": 2, "num_decoder_layers": 1, "dim_feedforward": 32, "segment_lengths": [8, 16]}


@pytest.mark.parametrize(
    ("name", "arguments", "new", "vocab_size"),
    [
        ("LongNet", (16, 2), LongNetEncoder, None),
        ("LongNetLM", (50, 16, 2), LongNetLM, 50),
    ],
)
def test_an_old_model_is_refused_with_the_call_of_a_new_one(name, arguments, new, vocab_size):
    old = old_name(long_net, name)
    with pytest.raises(TypeError, match=f"^{name} of earlier versions, .* nearest is ") as caught:
        old(*arguments, **SMALL, dilation_rates=[1, 2], dropout=0.1)
    model = eval(str(caught.value).rpartition("nearest is ")[2], vars(models).copy())
    assert type(model) is new
    assert model.config == LongNetConfig(
        vocab_size=vocab_size,
        embed_dim=16,
        num_layers=3,
        num_heads=2,
        segment_lengths=(8, 16),
        dilation_rates=(1, 2),
        ffn_dim=32,
    )
    with pytest.raises(TypeError, match=r"embed_dim=768, num_layers=24, num_heads=12, .*ffn_dim=3072"):
        old()
    for again in (old(model.config), old(config=model.config)):
        assert isinstance(again, new)
        assert again.config is model.config


def test_other_names_are_not_there():
    with pytest.raises(AttributeError, match="module 'dilated_attention_pytorch' has no attribute 'Nothing'"):
        _ = dilated_attention_pytorch.Nothing


@pytest.mark.parametrize(
    "module",
    [
        "dilated_attention_pytorch",
        *(f"dilated_attention_pytorch.{name}" for name in ("ring_attention", "core", "long_net")),
    ],
)
def test_importing_everything_is_silent(module: str):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"from {module} import *"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_from_import_of_an_old_name_warns_at_the_import():
    script = "from dilated_attention_pytorch import RingDilatedAttentionTrue"
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", script], capture_output=True, text=True, check=True
    )
    assert (
        "<string>:1: DeprecationWarning: RingDilatedAttentionTrue is now RingDilatedAttention" in done.stderr
    )
