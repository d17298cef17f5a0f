"""What is known of a model, what was tried and what came of it: data, without torch.

A number is a :class:`Fact`: it says how it was got, or why it is not known.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

LEVELS = ("conservative", "balanced", "aggressive")
"""conservative: equal results, no compiler. balanced: and torch.compile. aggressive: and lower precision."""

Level = Literal["conservative", "balanced", "aggressive"]
Basis = Literal["measured", "counted", "predicted"]
Verdict = Literal["kept", "reverted", "failed", "out of time", "killed", "not tried"]
"""failed: it raised. killed: the process ended. not tried: the reason says why."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What an advisor is asked to do.

    Raises:
        ValueError: a value is out of its range; the message names it.
    """

    level: Level = "balanced"
    training: bool = False
    """Whether a call is a training step: forward, loss, backward, and the optimizer's step if any."""
    max_error: float = 0.01
    """Relative RMS error up to which a change that loses precision is kept."""
    memory_bytes: int | None = None
    """Memory that a call may need; None: what the process is granted."""
    lengths: tuple[int, ...] = ()
    """Other lengths of the inputs to look at."""
    budget_s: float = 120.0
    """Seconds for all trials."""

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise ValueError(f"level must be one of {', '.join(LEVELS)}, got {self.level!r}")
        for name in ("max_error", "budget_s", "memory_bytes"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {value}")
        if any(length < 1 for length in self.lengths):
            raise ValueError(f"lengths must be positive, got {list(self.lengths)}")


@dataclass(frozen=True, kw_only=True)
class Fact:
    """One number, and how it was got."""

    value: float | None = None
    """None: unknown."""
    basis: Basis | None = None
    at_least: bool = False
    """Whether the true value may be greater."""
    why: str = ""
    """Why it is unknown, or what one should know of it."""


def unknown(why: str) -> Fact:
    """A number that is not known."""
    return Fact(why=why)


@dataclass(frozen=True, kw_only=True)
class TensorInfo:
    """An input tensor."""

    name: str
    """Its keyword, or its position as text."""
    shape: tuple[int, ...]
    dtype: str
    """As torch writes it, without "torch."."""


@dataclass(frozen=True, kw_only=True)
class ModuleCost:
    """A submodule's share of a call, with all that it contains."""

    path: str
    """Its name in the model; "": the model."""
    kind: str
    """Name of its class."""
    place: str
    """FILE:LINE of its forward; "": unknown."""
    calls: int
    seconds: float | None
    """Of the forward pass; None: not measured."""
    flops: int | None


@dataclass(frozen=True, kw_only=True)
class OperatorCost:
    """An operator's share of a call."""

    name: str
    """As "aten::mm"."""
    calls: int
    seconds: float | None
    """Without the operators that it calls."""
    flops: int | None
    bytes: int | None
    """Read and written: the sizes of its operands, a lower bound."""


@dataclass(frozen=True, kw_only=True)
class Roofline:
    """Peaks measured on this device (Williams, Waterman and Patterson, Roofline, CACM 52(4), 2009)."""

    flops: dict[str, float]
    """FLOP/s by dtype."""
    memory_gb_s: float | None
    unmeasured: dict[str, str] = field(default_factory=dict)
    """Reason by dtype, or "copy", that was not measured."""


@dataclass(frozen=True, kw_only=True)
class LengthFacts:
    """A call at another length."""

    length: int
    peak: Fact
    """Bytes beyond the parameters and inputs; predicted."""
    flops: Fact
    attention_share: Fact
    """Of the FLOPs: those of attention over those of all."""
    fits: bool | None
    """In the memory limit; None: the peak is unknown."""


@dataclass(frozen=True, kw_only=True)
class AttentionSite:
    """Where attention is computed."""

    place: str
    """FILE:FIRST-LAST line, or FILE:LINE."""
    paths: tuple[str, ...]
    """The submodules that run through it."""
    fused: bool
    """Whether it is ``scaled_dot_product_attention`` already."""
    scores_bytes: int
    """Size of the scores of one call, of what is computed by hand or unfused."""
    call: str
    """The equal call of ``F.scaled_dot_product_attention``, or as it is written."""
    why: str = ""
    """Why it is not fused, or cannot be written so; ""."""


@dataclass(frozen=True, kw_only=True)
class Structure:
    """What strategies look at."""

    unusual: tuple[str, ...] = ()
    """Any of: scripted, compiled, quantised, meta, no parameters, uncopyable, random (differs from itself
    under equal seeds). Such a model is analysed as far as possible; one without parameters is changed too."""
    compiler_missing: str = ""
    """Why torch.compile cannot build code here; "": it can."""
    gpu: bool = False
    bfloat16_ratio: Fact = field(default_factory=lambda: unknown("not measured"))
    """Time of a small matrix product in bfloat16 over that in float32."""
    attention: tuple[AttentionSite, ...] = ()
    attention_switch: bool = False
    """Whether the model has Hugging Face's ``set_attn_implementation`` and is on "eager"."""
    repeated_blocks: tuple[str, ...] = ()
    """Paths of the largest family of equal blocks that run one after the other; none: no family of two."""
    shared_input_linears: tuple[tuple[str, ...], ...] = ()
    """Linear layers of one parent that were given the same tensor: query, key and value projections."""
    linears: int = 0
    convolutions: int = 0
    conv_batch_norms: tuple[tuple[str, str], ...] = ()
    """A convolution and the batch norm that alone reads it."""
    channels_last: bool = False
    """Whether the convolutions' weights and the input are so already."""
    optimizer: str = ""
    """Class of the optimizer with its variant, as "AdamW foreach"; "": there is none."""
    liger: tuple[str, ...] = ()
    """Kinds of submodules for which Liger has kernels."""


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What is known of a model and its call, before anything is changed."""

    model: str
    """Its class."""
    place: str
    """FILE:LINE of its class; "": unknown."""
    device: str
    training: bool
    loss: str
    """How the loss of a training step is computed; "" in inference."""
    inputs: tuple[TensorInfo, ...]
    parameters: int
    trainable: int
    buffers: int
    bytes_by_dtype: dict[str, int]
    """Of parameters and buffers, tied ones once."""
    tied: tuple[tuple[str, ...], ...]
    """Parameters with one storage."""
    threads: int
    granted_cpus: float | None
    """CPU seconds per second that the process is granted."""
    memory_limit: int | None
    """Bytes that a call may need: the option, else what the process is granted."""
    call: Fact
    """Seconds of a call: the median."""
    noise: Fact
    """Between the model's odd calls and its even ones: the ratio of medians less 1, absolute."""
    flops: Fact
    traffic: Fact
    """Bytes read and written by all operators; a lower bound."""
    bound: Fact
    """Seconds below which no call can be, by the roofline: FLOPs and bytes over the peaks."""
    attained: Fact
    """The roofline's bound over the measured time."""
    roofline: Roofline
    peak: Fact
    """Bytes that a call holds at once beyond parameters and inputs; measured."""
    predicted_peak: Fact
    modules: tuple[ModuleCost, ...]
    operators: tuple[OperatorCost, ...]
    """The dearest first."""
    attention_share: Fact
    """Of the FLOPs of a call."""
    lengths: tuple[LengthFacts, ...]
    greatest_length: Fact
    """The greatest that fits the memory limit; predicted."""
    structure: Structure
    remarks: tuple[str, ...] = ()
    """What a reader should know: inputs that were moved, an error of the model with its line."""
    failed: str = ""
    """The exception and the line at which the model failed on the sample; "": it ran."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A defect of a model, with its place."""

    kind: str
    """As "attention by hand", "graph break"."""
    place: str
    """FILE:LINE or a submodule's path; "" of the process."""
    cost: str
    """What it costs, with the number."""
    remedy: str


@dataclass(frozen=True, kw_only=True)
class Expectation:
    """Why a strategy should be tried, and what is hoped for; an estimate, until it is measured."""

    gain: float
    """Estimated time of the original over that of the changed model."""
    reason: str
    seconds: float = 5.0
    """Estimated seconds of a trial, with compiling."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One change that was tried on a copy, on top of those kept before."""

    strategy: str
    verdict: Verdict
    reason: str = ""
    """Why it was reverted or not tried; "" where it was kept."""
    lossless: bool = True
    gain: float | None = None
    """Time of the best so far over that with the change: medians. None: not timed."""
    low: float | None = None
    """Lower end of the 99 % interval."""
    high: float | None = None
    error: float | None = None
    """Relative RMS error against the reference, of the worst tensor."""
    original_error: float | None = None
    """The same of the unchanged model: its own rounding. None: the reference is the model itself."""
    peak_ratio: float | None = None
    """Peak memory over that of the original."""
    compile_s: float | None = None
    """Of the first call beyond a later one; None: nothing was compiled."""
    pairs: tuple[tuple[float, float], ...] = ()
    """Seconds of the best so far and of the candidate, in the order measured."""
    expected: float | None = None
    """The estimated gain."""
    source: tuple[str, ...] = ()
    """Lines that change ``model`` likewise, of what was kept."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """On what it was measured."""

    processor: str
    device: str
    threads: int
    torch: str
    date: str
    """ISO 8601."""


@dataclass(frozen=True, kw_only=True)
class AdviceReport:
    """Facts, findings, trials and the result."""

    target: str
    """FILE:NAME, or the class."""
    machine: Machine
    options: Options
    facts: ModelFacts
    findings: tuple[Finding, ...]
    trials: tuple[Trial, ...]
    """In the order tried; those not tried last."""
    result: Trial | None
    """All that was kept against the original, in a fresh process where the command ran it; verdict "kept", or
    "reverted" if its interval reached 1. None: nothing was kept."""
    confirmed: bool = False
    """Whether the result was measured in a process of its own."""
    reference: str = ""
    """What outputs were compared with: "the original in float64", or "the original itself"."""
    offers: tuple[Finding, ...] = ()
    """Other functions that could replace parts of the model: never applied."""
    seconds: float = 0.0
    """Wall clock of all."""

    @property
    def kept(self) -> tuple[Trial, ...]:
        """The changes of the result, in order; none if it was reverted."""
        if self.result is None or self.result.verdict != "kept":
            return ()
        return tuple(trial for trial in self.trials if trial.verdict == "kept")

    def to_json(self) -> str:
        """As ``kernel-pytorch advise --json`` prints it."""
        import msgspec

        return msgspec.json.format(msgspec.json.encode(self), indent=2).decode()

    def to_html(self, path: str | os.PathLike[str]) -> None:
        """Write one page that needs no network, whole or not at all.

        Raises:
            JobFolderError: it cannot be written; what was there is as it was.
        """
        from ..jobs.atomic import write_atomically
        from .html import html

        write_atomically(Path(path).resolve(), html(self).encode(), 0o666)

    def write(self, path: str | os.PathLike[str], target: str | None = None) -> None:
        """Write Python that makes the same changes without this package: see :func:`.write.save`.

        Args:
            target: FILE:NAME of the model or its factory; default: the report's.
        """
        from .write import save

        save(self, path, target)
