"""Facts of a model for tests of what judges them: recorded once, changed as a test needs."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from kernel_pytorch.advice.facts import Fact, ModelFacts, Roofline, Structure, TensorInfo

_STRUCTURE = {field.name for field in fields(Structure)}


def facts(**changes: Any) -> ModelFacts:
    """Two transformer blocks of width 256 at 1,024 tokens in inference, on two threads of a CPU.

    Args:
        changes: fields of :class:`ModelFacts` or, by their names, of its structure; a number given for a
            :class:`Fact` counts as measured.
    """
    of_structure = {name: changes.pop(name) for name in list(changes) if name in _STRUCTURE}
    structure = changes.pop("structure", _TWO_BLOCKS)
    changes = {name: _fact(name, value) for name, value in changes.items()}
    ratio = of_structure.get("bfloat16_ratio")
    if isinstance(ratio, (int, float)):
        of_structure["bfloat16_ratio"] = Fact(value=ratio, basis="measured")
    return replace(_FACTS, structure=replace(structure, **of_structure), **changes)


def _fact(name: str, value: Any) -> Any:
    if isinstance(getattr(_FACTS, name), Fact) and isinstance(value, (int, float)):
        return Fact(value=value, basis="measured")
    return value


_TWO_BLOCKS = Structure(
    bfloat16_ratio=Fact(value=50.0, basis="measured"),
    repeated_blocks=("blocks.0", "blocks.1"),
    shared_input_linears=tuple(
        tuple(f"blocks.{at}.attention.{name}" for name in ("query", "key", "value")) for at in range(2)
    ),
    linears=12,
)
_FACTS = ModelFacts(
    model="Stack",
    place="model.py:12",
    device="cpu",
    training=False,
    loss="",
    inputs=(TensorInfo(name="0", shape=(1, 1024, 256), dtype="float32"),),
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
    traffic=Fact(value=3e8, basis="counted", at_least=True),
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
    structure=_TWO_BLOCKS,
)
