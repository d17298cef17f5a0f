"""Dilated attention on one device, against PyTorch's fused attention.

Letters: b batch (1 here), n sequence, h heads, d head dimension, w segment length, r dilation rate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from dilated_attention_pytorch.attention import dilated_attention
from dilated_attention_pytorch.core.pattern import DilatedPattern
from kernel_pytorch.advice.analysis.memory import peak_memory
from kernel_pytorch.advice.prove.ratio import Ratio

from .baselines import Branch, fused_attention, gather, gather_pad_scatter
from .measure import compare, progress
from .registry import Options, Table, UsageError, benchmark

HEADS, HEAD_DIM = 8, 64
RATES = (1, 2, 4)
SEGMENTS = {"large": (2048, 4096, 8192), "small": (512, 1024, 2048)}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
MASKS = {"full": False, "causal": True}
LONG = 64
"""The long sequence of the scaling figure, in units of the short one."""
LONG_REPEATS = 8
"""Calls on the short sequence for one on the long."""

Targets = tuple[float, float] | None
Row = list[str]


@dataclass(frozen=True, kw_only=True)
class Section:
    """One table: how its cases, by name, are measured."""

    title: str
    columns: tuple[str, ...]
    cases: Mapping[str, Callable[[Options], Row]]
    note: str = ""


@benchmark(
    "attention",
    numerics=(
        "tests/dilated_attention_pytorch/kernels",
        "tests/dilated_attention_pytorch/test_attention.py",
    ),
)
def attention(options: Options) -> list[Table]:
    """Dilated attention on one device: time and memory against PyTorch's fused attention."""
    for size in SEGMENTS:
        _branches(options.seq, size)
    sections = [_timing(), _memory(), _scaling(options), _dense(options)]
    if options.device.type == "cpu":
        sections.append(_baseline())
    names = options.select(name for section in sections for name in section.cases)
    tables = []
    for section in sections:
        rows = []
        for name, measure in section.cases.items():
            if name in names:
                progress(f"[{names.index(name) + 1}/{len(names)}] {name}")
                rows.append([name, *measure(options)])
                progress("  " + ", ".join(rows[-1][1:]))
        if rows:
            tables.append(
                Table(title=section.title, columns=("case", *section.columns), rows=rows, note=section.note)
            )
    return tables


def _timing() -> Section:
    targets: dict[tuple[bool, str], Targets] = {
        (False, "large"): (1.15, 1.05),
        (True, "large"): (1.15, 1.05),
        (False, "small"): (1.25, 1.10),
        (True, "small"): None,
    }
    cases = {
        f"{'forward+backward' if backward else 'forward'}-{size}-{dtype}-{mask}": partial(
            _time_against_bound,
            backward=backward,
            size=size,
            dtype=DTYPES[dtype],
            is_causal=MASKS[mask],
            targets=target,
        )
        for ((backward, size), target), dtype, mask in product(targets.items(), DTYPES, MASKS)
    }
    return Section(
        title="Time / the bound",
        columns=("ms", "bound ms", "ratio", "95 % interval", "pairs", "at most", "goal"),
        cases=cases,
        note="The bound is PyTorch's fused attention on each branch's rows, gathered and contiguous "
        "beforehand. A ratio is one of medians over interleaved pairs, its interval a paired bootstrap.",
    )


def _time_against_bound(
    options: Options, *, backward: bool, size: str, dtype: torch.dtype, is_causal: bool, targets: Targets
) -> Row:
    q, k, v = inputs(options.seq, dtype, options.device, requires_grad=backward)
    grad = torch.ones_like(q)
    gathered = bound_inputs((q, k, v, grad), _branches(options.seq, size))

    def ours() -> None:
        out = _dilated(q, k, v, size, is_causal)
        if backward:
            torch.autograd.grad(out, (q, k, v), grad)

    def bound() -> None:
        for bq, bk, bv, bgrad in gathered:
            out = fused_attention(bq, bk, bv, is_causal)
            if backward:
                torch.autograd.grad(out, (bq, bk, bv), bgrad)

    ratio = compare(ours, bound, options)
    return [*_cells(ratio), *_verdicts(ratio.value, targets)]


def _memory() -> Section:
    return Section(
        title="Peak memory, large w",
        columns=("peak MiB", "unit MiB", "ratio", "at most", "goal"),
        cases={
            f"memory-{'backward' if backward else 'forward'}-{dtype}-{mask}": partial(
                _peak_against_unit, backward=backward, dtype=DTYPES[dtype], is_causal=MASKS[mask]
            )
            for backward, dtype, mask in product((False, True), DTYPES, MASKS)
        },
        note="Forward: beyond the inputs, over a float32 output and its lse. Backward: beyond inputs, saved "
        "tensors and the incoming gradient, over three float32 gradients.",
    )


def _peak_against_unit(options: Options, *, backward: bool, dtype: torch.dtype, is_causal: bool) -> Row:
    q, k, v = inputs(options.seq, dtype, options.device, requires_grad=backward)
    run: Callable[[], object] = partial(_dilated, q, k, v, "large", is_causal)
    unit = 4 * (q.numel() + q.numel() // HEAD_DIM)
    if backward:
        out = _dilated(q, k, v, "large", is_causal)
        # The graph is retained so that no saved tensor is released inside, which would hide as much scratch.
        run = partial(torch.autograd.grad, out, (q, k, v), torch.ones_like(out), retain_graph=True)
        unit = 4 * 3 * q.numel()
    run()  # what is allocated once and kept is not the call's
    peak = peak_memory(run, options.device)
    return [
        f"{peak / 2**20:.1f}",
        f"{unit / 2**20:.1f}",
        f"{peak / unit:.2f}",
        *_verdicts(peak / unit, (1.6, 1.3)),
    ]


def _scaling(options: Options) -> Section:
    return Section(
        title=f"Forward time per token at seq {LONG * options.seq:,} / at {options.seq:,}",
        columns=(
            "ns a token, long",
            "ns a token, short",
            "ratio",
            "95 % interval",
            "pairs",
            "at most",
            "goal",
        ),
        cases={"scaling-large-float32-full": _time_per_token},
        note=f"A pair is one call on the long sequence and {LONG_REPEATS} on the short one.",
    )


def _time_per_token(options: Options) -> Row:
    long = LONG * options.seq
    needed = 5 * 4 * long * HEADS * HEAD_DIM  # query, key, value, the output, and as much again for scratch
    available = _available_memory(options.device)
    if available is not None and available < needed:
        reason = f"not measured: {needed / 1e9:.1f} GB needed, {available / 1e9:.1f} GB available"
        return [reason, *[""] * 6]
    one = inputs(long, torch.float32, options.device)
    short = inputs(options.seq, torch.float32, options.device)

    def many() -> None:
        for _ in range(LONG_REPEATS):
            _dilated(*short, "large", False)

    ratio = compare(
        partial(_dilated, *one, "large", False), many, options, work=(long, LONG_REPEATS * options.seq)
    )
    return [*_cells(ratio, 1e9), *_verdicts(ratio.value, (1.15, 1.05))]


def _dense(options: Options) -> Section:
    return Section(
        title="Speed against dense attention, forward, large w",
        columns=(
            "dense ms",
            "ms",
            "times faster",
            "95 % interval",
            "pairs",
            "arithmetic saved",
            "fraction reached",
        ),
        cases={
            f"dense-{seq}-float32-{mask}": partial(_speed_against_dense, seq=seq, is_causal=MASKS[mask])
            for seq, mask in product((options.seq, 4 * options.seq), MASKS)
        },
        note="Dense is scaled_dot_product_attention on contiguous [b, h, n, d]. Arithmetic saved: dense "
        "floating-point operations over ours.",
    )


def _speed_against_dense(options: Options, *, seq: int, is_causal: bool) -> Row:
    q, k, v = inputs(seq, torch.float32, options.device)
    dense_q, dense_k, dense_v = (x.transpose(1, 2).contiguous() for x in (q, k, v))
    ratio = compare(
        lambda: F.scaled_dot_product_attention(dense_q, dense_k, dense_v, is_causal=is_causal),
        partial(_dilated, q, k, v, "large", is_causal),
        options,
    )
    dense = DilatedPattern((seq,), (1,), HEADS).flops(1, seq, HEAD_DIM, is_causal)
    ours = DilatedPattern(SEGMENTS["large"], RATES, HEADS).flops(1, seq, HEAD_DIM, is_causal)
    saved = dense / ours
    return [*_cells(ratio), f"{saved:.2f}", f"{ratio.value / saved:.2f}"]


def _baseline() -> Section:
    return Section(
        title="Gather-pad-scatter baseline / the bound, forward",
        columns=("ms", "bound ms", "ratio", "95 % interval", "pairs"),
        cases={
            f"gather-pad-scatter-{size}-float32-{mask}": partial(
                _baseline_against_bound, size=size, is_causal=MASKS[mask]
            )
            for size, mask in product(SEGMENTS, MASKS)
        },
        note="Each branch gathered to contiguous rows, attended by the same kernel, scattered to a dense "
        "tensor; all branches stacked and mixed by the softmax of their lse.",
    )


def _baseline_against_bound(options: Options, *, size: str, is_causal: bool) -> Row:
    q, k, v = inputs(options.seq, torch.float32, options.device)
    branches = _branches(options.seq, size)
    gathered = bound_inputs((q, k, v), branches)

    def bound() -> None:
        for bq, bk, bv in gathered:
            fused_attention(bq, bk, bv, is_causal)

    return _cells(compare(partial(gather_pad_scatter, q, k, v, branches, is_causal), bound, options))


def inputs(
    seq: int, dtype: torch.dtype, device: torch.device, *, requires_grad: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value, normal, ``[1, n, h, d]``."""
    generator = torch.Generator(device).manual_seed(0)
    q, k, v = (
        torch.randn(1, seq, HEADS, HEAD_DIM, generator=generator, device=device, dtype=dtype)
        for _ in range(3)
    )
    return q.requires_grad_(requires_grad), k.requires_grad_(requires_grad), v.requires_grad_(requires_grad)


def bound_inputs(tensors: tuple[Tensor, ...], branches: list[Branch]) -> list[tuple[Tensor, ...]]:
    """The same tensors as leaves of their own for every branch, gathered and contiguous."""
    return [
        tuple(gather(x.detach(), branch).requires_grad_(x.requires_grad) for x in tensors)
        for branch in branches
    ]


def _branches(seq: int, size: str) -> list[Branch]:
    branches = [(min(w, seq), r) for w, r in zip(SEGMENTS[size], RATES, strict=True)]
    for w, r in branches:
        if seq % w or w % r:
            raise UsageError(f"--seq {seq}: the bound needs a multiple of {w} and {r}; take a power of two")
    return branches


def _dilated(query: Tensor, key: Tensor, value: Tensor, size: str, is_causal: bool) -> Tensor:
    return dilated_attention(query, key, value, SEGMENTS[size], RATES, is_causal=is_causal)


def _cells(ratio: Ratio, unit: float = 1e3) -> Row:
    return [
        f"{ratio.first_s * unit:.1f}",
        f"{ratio.second_s * unit:.1f}",
        f"{ratio.value:.3f}",
        f"{ratio.low:.3f} to {ratio.high:.3f}",
        str(ratio.pairs),
    ]


def _verdicts(value: float, targets: Targets) -> Row:
    if targets is None:
        return ["none", "none"]
    return [f"{limit:.2f} {'met' if value <= limit else 'missed'}" for limit in targets]


def _available_memory(device: torch.device) -> int | None:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return None
    kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in meminfo.read_text().splitlines()}
    return kilobytes["MemAvailable"] * 1024
