"""Reports as a run makes them, with recorded figures."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from advice_facts import facts

from kernel_pytorch.advice.facts import (
    AdviceReport,
    Fact,
    Finding,
    LengthFacts,
    Machine,
    ModuleCost,
    OperatorCost,
    Options,
    Trial,
)


def report(**changes: Any) -> AdviceReport:
    """A confirmed run of a stack of blocks: attention to SDPA and torch.compile were kept.

    Args:
        changes: fields of :class:`AdviceReport`.
    """
    return replace(_REPORT, **changes)


def nothing_kept() -> AdviceReport:
    """The same model, of which every change was reverted."""
    reason = "no gain is proved: 1.01, and at least 0.97"
    tried = (replace(one, verdict="reverted", reason=reason, source=()) for one in (SDPA, FUSED, COMPILE))
    return report(trials=(*tried, *LEFT), result=None, confirmed=False)


def failed() -> AdviceReport:
    """A model that raised on its inputs."""
    why = "model.py:31: ValueError: 3 is not 4"
    nothing = Fact(why="the model did not run on its inputs")
    names = "call noise flops traffic bound attained peak predicted_peak attention_share greatest_length"
    return report(
        facts=facts(failed=why, **dict.fromkeys(names.split(), nothing)),
        findings=(),
        trials=(Trial(strategy="torch.compile", verdict="not tried", reason=f"the model failed: {why}"),),
        result=None,
        confirmed=False,
        offers=(),
    )


SDPA = Trial(
    strategy="attention to SDPA",
    verdict="kept",
    gain=1.8,
    low=1.71,
    high=1.92,
    error=6.4e-7,
    original_error=6.4e-7,
    peak_ratio=0.7,
    pairs=tuple((0.206 + 0.001 * at, 0.114 + 0.001 * (at % 3)) for at in range(11)),
    expected=1.7,
    source=('model.compile(backend=attention_backend("eager"))',),
)
COMPILE = Trial(
    strategy="torch.compile",
    verdict="kept",
    gain=1.17,
    low=1.12,
    high=1.22,
    error=6.7e-7,
    original_error=6.4e-7,
    peak_ratio=0.62,
    compile_s=21.0,
    pairs=tuple((0.114 + 0.001 * (at % 3), 0.098 + 0.0005 * at) for at in range(11)),
    expected=1.3,
    source=('model.compile(backend=attention_backend("inductor"))',),
)
FUSED = Trial(
    strategy="fused projections",
    verdict="reverted",
    reason="a gain of 1.02 is not worth a change",
    gain=1.02,
    low=1.006,
    high=1.03,
    error=6.5e-7,
    original_error=6.4e-7,
    peak_ratio=1.01,
    pairs=tuple((0.114, 0.112 + 0.0001 * at) for at in range(11)),
)
LEFT = (
    Trial(
        strategy="bfloat16",
        verdict="not tried",
        lossless=False,
        reason="a 256 x 256 product takes 50 times as long as in float32",
    ),
    Trial(strategy="CUDA graphs", verdict="not tried", reason="no GPU"),
    Trial(strategy="int8", verdict="not tried", lossless=False, reason="--level aggressive"),
)
TRIALS = (SDPA, FUSED, COMPILE, *LEFT)
RESULT = Trial(
    strategy="attention to SDPA + torch.compile",
    verdict="kept",
    gain=2.1,
    low=2.02,
    high=2.17,
    error=6.7e-7,
    original_error=6.4e-7,
    peak_ratio=0.62,
    compile_s=20.0,
    pairs=tuple((0.206 + 0.001 * (at % 2), 0.098 + 0.0005 * (at % 3)) for at in range(13)),
    source=(*SDPA.source, *COMPILE.source),
)


def _length(length: int, peak: float, fits: bool) -> LengthFacts:
    return LengthFacts(
        length=length,
        peak=Fact(value=peak, basis="predicted"),
        flops=Fact(value=5e6 * length, basis="counted"),
        attention_share=Fact(value=length / (length + 1500), basis="counted"),
        fits=fits,
    )


_FACTS = facts(
    parameters=3_158_000,
    call=0.206,
    attained=0.17,
    modules=(
        ModuleCost(path="", kind="Stack", place="model.py:60", calls=1, seconds=0.2, flops=5_400_000_000),
        ModuleCost(path="blocks.0", kind="Block", place="model.py:40", calls=1, seconds=0.1, flops=None),
        ModuleCost(
            path="blocks.0.attention", kind="Attention", place="model.py:25", calls=1, seconds=0.07, flops=9
        ),
        ModuleCost(path="norm", kind="LayerNorm", place="", calls=1, seconds=None, flops=None),
    ),
    operators=(
        OperatorCost(name="aten::mm", calls=12, seconds=0.06, flops=3_200_000_000, bytes=90_000_000),
        OperatorCost(name="aten::_softmax", calls=4, seconds=0.05, flops=None, bytes=134_000_000),
        OperatorCost(name="aten::bmm", calls=8, seconds=0.04, flops=2_200_000_000, bytes=70_000_000),
    ),
    lengths=(_length(512, 12e6, True), _length(1024, 40e6, True), _length(32768, 3.5e10, False)),
)
_REPORT = AdviceReport(
    target="model.py:make_model",
    machine=Machine(
        processor="Xeon of a test", device="cpu", threads=2, torch="2.13.0", date="2026-11-02T10:20:30+00:00"
    ),
    options=Options(lengths=(512, 1024, 32768)),
    facts=_FACTS,
    findings=(
        Finding(
            kind="attention by hand",
            place="model.py:31-33",
            cost="4 modules, 16.8 MB of scores each, 58 % of the time",
            remedy="F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.125)",
        ),
    ),
    trials=TRIALS,
    result=RESULT,
    confirmed=True,
    reference="the original in float64",
    offers=(
        Finding(
            kind="dilated attention",
            place="blocks.0.attention",
            cost="another function: 0.3 of the FLOPs, the loss grows by 0.02",
            remedy="dilated_attention_pytorch.replace_attention",
        ),
    ),
    seconds=96.0,
)
