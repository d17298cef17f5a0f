"""Facts of a model, as they were recorded once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from kernel_pytorch.advice.facts import Fact, ModelFacts, Roofline, Structure


def recorded_facts(**changes: Any) -> ModelFacts:
    """Two transformer blocks of width 256 at 1,024 tokens, on two threads without a GPU."""
    known = ModelFacts(
        model="Stack",
        place="model.py:12",
        device="cpu",
        training=False,
        loss="",
        inputs=(),
        parameters=1_577_984,
        trainable=1_577_984,
        buffers=0,
        bytes_by_dtype={"float32": 6_311_936},
        tied=(),
        threads=2,
        granted_cpus=2.0,
        memory_limit=8_000_000_000,
        call=Fact(value=0.1, basis="measured"),
        noise=Fact(value=0.04, basis="measured"),
        flops=Fact(value=5.4e9, basis="counted"),
        traffic=Fact(value=3e8, basis="counted"),
        bound=Fact(value=0.045, basis="predicted"),
        attained=Fact(value=0.45, basis="predicted"),
        roofline=Roofline(flops={"float32": 1.2e11}, memory_gb_s=12.0),
        peak=Fact(value=40e6, basis="measured"),
        predicted_peak=Fact(value=40e6, basis="predicted"),
        modules=(),
        operators=(),
        attention_share=Fact(value=0.4, basis="counted"),
        lengths=(),
        greatest_length=Fact(value=16_384, basis="predicted"),
        structure=Structure(linears=12),
    )
    return replace(known, **changes)
