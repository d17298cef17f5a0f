"""When a strategy is tried, on recorded facts."""

from __future__ import annotations

from typing import Any

import pytest
from advice_facts import facts

from kernel_pytorch.advice.facts import LEVELS, Expectation, Fact, LengthFacts, TensorInfo, unknown
from kernel_pytorch.advice.strategy.protocol import Strategy
from kernel_pytorch.advice.strategy.registry import built_in

IMAGE = (TensorInfo(name="0", shape=(8, 3, 32, 32), dtype="float32"),)
CONVOLUTIONS = {"inputs": IMAGE, "convolutions": 4, "linears": 1}
LENGTH = LengthFacts(length=9, peak=unknown(""), flops=unknown(""), attention_share=unknown(""), fits=None)
TOO_BIG = {"training": True, "memory_limit": 40_000_000, "repeated_blocks": tuple("abcdefgh")}


def answer(name: str, **changes: Any) -> Expectation | str:
    strategy = next(one for one in built_in() if one.name == name)
    return strategy.applies(facts(**changes))


def test_built_in_strategies_are_ordered_and_named():
    found = built_in()
    assert all(isinstance(strategy, Strategy) for strategy in found)
    assert len({strategy.name for strategy in found}) == len(found)
    levels = [LEVELS.index(strategy.level) for strategy in found if "checkpoint" not in strategy.name]
    assert levels == sorted(levels)
    lossy = [strategy for strategy in found if not strategy.lossless]
    assert {strategy.level for strategy in lossy} == {"aggressive"}
    assert len(lossy) == 4
    assert all("compiler" not in one.needs for one in found if one.level == "conservative")


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("fused projections", {}),
        ("channels_last", CONVOLUTIONS),
        ("conv-bn folding", {"conv_batch_norms": (("a", "b"),)}),
        ("inference mode", {}),
        ("fused optimizer", {"training": True, "optimizer": "AdamW"}),
        ("fused optimizer", {"training": True, "optimizer": "SGD foreach"}),
        ("thread count", {"threads": 8}),
        ("torch.compile", {}),
        ("torch.compile by block", {}),
        ("torch.compile for any length", {"lengths": (LENGTH,)}),
        ("freezing", CONVOLUTIONS),
        ("checkpointing of 25% of the blocks", {**TOO_BIG, "peak": 45e6}),
        ("checkpointing of 100% of the blocks", {**TOO_BIG, "peak": 400e6}),
        ("compile budget 0.5", {**TOO_BIG, "peak": 60e6}),
        ("compile budget 0.2", {**TOO_BIG, "peak": 400e6}),
        ("CUDA graphs", {"gpu": True}),
        ("Liger", {"gpu": True, "liger": ("LayerNorm",)}),
        ("max-autotune", {}),
        ("bfloat16 autocast", {"bfloat16_ratio": 0.5}),
        ("bfloat16 weights", {"bfloat16_ratio": 0.5}),
        ("int8", {}),
        ("int8 weights (torchao)", {}),
    ],
)
def test_it_is_tried(name, changes):
    hope = answer(name, **changes)
    assert isinstance(hope, Expectation), hope
    assert hope.gain > 1 or name.startswith(("checkpointing", "compile budget"))
    assert hope.seconds > 0
    assert hope.reason


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("fused projections", {"shared_input_linears": ()}, "no two linear layers"),
        ("channels_last", {}, "no convolutions"),
        ("channels_last", {"convolutions": 4}, "four dimensions"),
        ("channels_last", {**CONVOLUTIONS, "channels_last": True}, "already"),
        ("conv-bn folding", {}, "no batch norm"),
        ("conv-bn folding", {"conv_batch_norms": (("a", "b"),), "training": True}, "depends on the batch"),
        ("inference mode", {"training": True}, "gradients"),
        ("fused optimizer", {}, "inference"),
        ("fused optimizer", {"training": True}, "no optimizer"),
        ("fused optimizer", {"training": True, "optimizer": "Lion"}, "Lion has no fused variant"),
        ("fused optimizer", {"training": True, "optimizer": "AdamW fused"}, "already"),
        ("thread count", {"granted_cpus": None}, "not known"),
        ("thread count", {}, "not too many"),
        ("torch.compile", {"compiler_missing": "no g++ here"}, "no g++ here"),
        ("freezing", {**CONVOLUTIONS, "compiler_missing": "no g++ here"}, "no g++ here"),
        ("torch.compile by block", {"repeated_blocks": ()}, "no equal blocks"),
        ("torch.compile for any length", {}, "no other lengths"),
        ("freezing", {}, "nothing on models without convolutions"),
        ("freezing", {**CONVOLUTIONS, "training": True}, "changes the weights"),
        ("checkpointing of 25% of the blocks", {}, "inference"),
        ("checkpointing of 25% of the blocks", {"training": True}, "fits in the memory"),
        ("checkpointing of 25% of the blocks", {**TOO_BIG, "peak": 90e6}, "still more"),
        ("checkpointing of 50% of the blocks", {**TOO_BIG, "peak": 45e6, "repeated_blocks": "ab"}, "as many"),
        ("checkpointing of 50% of the blocks", {**TOO_BIG, "peak": 45e6, "repeated_blocks": ()}, "no equal"),
        (
            "checkpointing of 25% of the blocks",
            {"training": True, "peak": unknown(""), "predicted_peak": unknown("")},
            "not known",
        ),
        ("compile budget 0.5", {**TOO_BIG, "peak": 400e6}, "still more"),
        ("CUDA graphs", {}, "no GPU"),
        ("Liger", {"liger": ("LayerNorm",)}, "no GPU"),
        ("Liger", {"gpu": True}, "no submodule"),
        ("max-autotune", {"linears": 0}, "to tune"),
        ("bfloat16 autocast", {}, "a 256 x 256 product takes 50 times as long as in float32"),
        ("bfloat16 weights", {"bfloat16_ratio": unknown("it failed")}, "it failed"),
        ("bfloat16 weights", {"bfloat16_ratio": 0.5, "training": True}, "small steps"),
        ("bfloat16 autocast", {"bfloat16_ratio": 0.5, "bytes_by_dtype": {"bfloat16": 8}}, "no float32"),
        ("int8", {"training": True}, "cannot be trained"),
        ("int8", {"gpu": True}, "CPUs only"),
        ("int8", {"linears": 0}, "no linear layers"),
        ("int8 weights (torchao)", {"training": True}, "cannot be trained"),
    ],
)
def test_it_is_not_tried(name, changes, reason):
    found = answer(name, **changes)
    assert isinstance(found, str), found
    assert reason in found


def test_the_least_checkpointing_that_may_fit_is_hoped_to_cost_least():
    names = [one.name for one in built_in() if one.name.startswith("checkpointing")]
    hopes = [answer(name, **TOO_BIG, peak=45e6) for name in names]
    gains = [hope.gain for hope in hopes]
    assert gains == sorted(gains, reverse=True)
    assert max(gains) < 1


def test_predicted_peaks_serve_where_none_was_measured():
    changes = {**TOO_BIG, "peak": unknown("it does not fit"), "predicted_peak": Fact(value=45e6)}
    assert isinstance(answer("checkpointing of 25% of the blocks", **changes), Expectation)


def test_deep_models_are_compiled_by_block_first():
    def per_second(name, count):
        hope = answer(name, repeated_blocks=tuple(map(str, range(count))), linears=6 * count)
        return (hope.gain - 1) / hope.seconds

    assert per_second("torch.compile", 2) > per_second("torch.compile by block", 2)
    assert per_second("torch.compile", 12) < per_second("torch.compile by block", 12)
