"""The Triton kernels on a GPU: right on fresh random numbers, then fast against dense attention and ``sdpa``.

Letters: n sequence, h heads, d head dimension.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

from dilated_attention_pytorch.attention import dilated_attention
from dilated_attention_pytorch.core.pattern import DilatedPattern
from dilated_attention_pytorch.kernels.backends import Backend, can_run_triton
from dilated_attention_pytorch.kernels.reference import reference_attention
from kernel_pytorch.advice.analysis.memory import peak_memory

from .baselines import gather_pad_scatter
from .measure import medians, progress
from .registry import NumericsError, Options, Table, UsageError, benchmark

HEADS = 16
PATTERNS = {
    "three": ((2048, 1), (4096, 2), (8192, 4)),
    "five": ((2048, 1), (4096, 2), (8192, 4), (16384, 6), (32768, 12)),
}
HEAD_DIMS = (64, 128)
LENGTHS = (1, 4, 16, 64)
"""In units of ``Options.seq``."""
PROOF_SEQ = 1000
PROOF_BRANCHES = ((128, 1), (256, 2), (512, 4), (768, 6), (1536, 12))
"""What is compared with a dense softmax: neither divides anything."""
LONGEST_DENSE = 16
"""Dense attention is not measured beyond this many units: it takes minutes."""
LIMITS = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
"""Of the norm of the error, relative to that of the result (float32 with exact products)."""
TARGETS = {False: (0.55, 0.85), True: (0.45, 0.75)}
"""Share of the saving to reach, at least and as a goal, without and with the backward."""
ROUNDS = 11


@dataclass(frozen=True, kw_only=True)
class Case:
    """One timing."""

    pattern: str
    units: int
    head_dim: int
    is_causal: bool
    backward: bool

    def name(self, seq: int) -> str:
        """As ``--cases`` selects it."""
        mask = "causal" if self.is_causal else "full"
        kind = "forward+backward" if self.backward else "forward"
        return f"{self.pattern}-{self.units * seq}-d{self.head_dim}-{mask}-{kind}"


@benchmark("triton", numerics=("tests/dilated_attention_pytorch/kernels/triton",))
def triton(options: Options) -> list[Table]:
    """The Triton kernels on a GPU, against dense attention, sdpa and gather-pad-scatter."""
    reason = can_run_triton(options.device, torch.bfloat16)
    if reason is not None:
        raise UsageError(f"--device {options.device}: {reason}")
    cases = {
        case.name(options.seq): case
        for case in (
            Case(pattern=pattern, units=units, head_dim=head_dim, is_causal=is_causal, backward=backward)
            for units, pattern, head_dim, is_causal, backward in product(
                LENGTHS, PATTERNS, HEAD_DIMS, (False, True), (False, True)
            )
        )
    }
    names = options.select(cases)
    tables = [_numerics(options)]
    peak = _matmul_peak(options)
    rows = []
    for number, name in enumerate(names, 1):
        progress(f"[{number}/{len(names)}] {name}")
        rows.append([name, *_timing(options, cases[name], peak)])
        progress("  " + ", ".join(rows[-1][1:]))
    tables.append(
        Table(
            title=f"bfloat16, {HEADS} heads, batch 1; matrix products reach {peak / 1e12:.0f} TFLOP/s here",
            columns=(
                *("case", "triton ms", "sdpa ms", "gather ms", "dense ms", "TFLOP/s", "of peak"),
                *("tokens/s", "saving reached", "at least", "goal"),
            ),
            rows=rows,
            note="Medians of interleaved rounds. FLOP are those of offered pairs: a key scored once for two "
            "branches counts twice. Saving reached: times faster than dense over times fewer FLOP.",
        )
    )
    tables.append(_memory(options))
    return tables


def _draw(
    options: Options, seq: int, heads: int, head_dim: int, dtype: torch.dtype, seed: int
) -> list[Tensor]:
    """query, key, value and a gradient, ``[1, n, h, d]``; key and value have half as many heads."""
    random = torch.Generator(options.device).manual_seed(seed)
    return [
        torch.randn(1, seq, h, head_dim, generator=random, device=options.device, dtype=dtype)
        for h in (heads, heads // 2, heads // 2, heads)
    ]


def _numerics(options: Options) -> Table:
    """Every kind of call against a dense float64 softmax; raises NumericsError."""
    seed = int.from_bytes(os.urandom(4), "little")
    seq = PROOF_SEQ
    segments, rates = zip(*PROOF_BRANCHES, strict=True)
    pattern = DilatedPattern(segments, rates, 4, num_kv_heads=2)
    rows = []
    for number, (dtype, head_dim, is_causal, kind) in enumerate(
        product(LIMITS, HEAD_DIMS, (False, True), ("plain", "padded", "positions"))
    ):
        *inputs, grad = _draw(options, seq, 4, head_dim, dtype, seed + number)
        random = torch.Generator(options.device).manual_seed(seed)
        padding = (
            torch.rand(1, seq, generator=random, device=options.device) < 0.2 if kind == "padded" else None
        )
        positions = (
            torch.randperm(seq, generator=random, device=options.device) if kind == "positions" else None
        )
        exact = [x.double().requires_grad_() for x in inputs]
        expected, _ = reference_attention(
            exact[0],
            exact[1],
            exact[2],
            pattern,
            is_causal=is_causal,
            softmax_scale=head_dim**-0.5,
            key_padding_mask=padding,
            positions=positions,
        )
        wanted = [expected.detach(), *torch.autograd.grad(expected, exact, grad.double())]
        torch.use_deterministic_algorithms(True)  # fills what is not written with NaN
        try:
            leaves = [x.requires_grad_() for x in inputs]
            out = dilated_attention(
                leaves[0],
                leaves[1],
                leaves[2],
                segments,
                rates,
                is_causal=is_causal,
                key_padding_mask=padding,
                positions=positions,
                backend="triton",
            )
            got = [out.detach(), *torch.autograd.grad(out, leaves, grad)]
        finally:
            torch.use_deterministic_algorithms(False)
        errors = [float((x.double() - y).norm() / y.norm()) for x, y in zip(got, wanted, strict=True)]
        name = f"{str(dtype)[6:]} d{head_dim} {'causal' if is_causal else 'full'} {kind}"
        rows.append([name, *(f"{error:.1e}" for error in errors), f"{LIMITS[dtype]:.0e}"])
        if not max(errors) <= LIMITS[dtype]:
            raise NumericsError(
                f"{name}, seed {seed + number}: errors {rows[-1][1:-1]}, at most {LIMITS[dtype]}"
            )
    return Table(
        title=f"Errors against a dense float64 softmax, {seq} tokens, 4 heads on 2",
        columns=("case", "out", "grad query", "grad key", "grad value", "at most"),
        rows=rows,
        note=f"Norm of the error over norm of the result; random inputs, seed {seed} and following.",
    )


def _timing(options: Options, case: Case, peak: float) -> list[str]:
    seq = case.units * options.seq
    query, key, value, grad = (
        torch.randn(1, seq, HEADS, case.head_dim, device=options.device, dtype=torch.bfloat16)
        for _ in range(4)
    )
    branches = PATTERNS[case.pattern]
    calls = {
        name: _with_backward(run, (query, key, value), grad, case.backward)
        for name, run in _contenders(case, seq, options, (query, key, value))
    }
    if "sdpa" in calls:
        _check(calls["triton"](), calls["sdpa"]())
    found = medians(calls, rounds=ROUNDS, max_seconds=options.max_seconds, device=options.device)
    passes = 3.5 if case.backward else 1.0
    flops = passes * _flops(branches, seq, case)
    seconds = found["triton"]
    cells = [
        f"{found[name] * 1e3:.2f}" if name in found else "" for name in ("triton", "sdpa", "gather", "dense")
    ]
    cells += [f"{flops / seconds / 1e12:.0f}", f"{flops / seconds / peak:.0%}", f"{seq / seconds:,.0f}"]
    if "dense" not in found:
        return [*cells, "", "", ""]
    reached = found["dense"] / seconds * flops / (passes * _flops(((seq, 1),), seq, case))
    verdicts = [f"{limit:.2f} {'met' if reached >= limit else 'missed'}" for limit in TARGETS[case.backward]]
    return [*cells, f"{reached:.2f}", *verdicts]


def _flops(branches: tuple[tuple[int, int], ...], seq: int, case: Case) -> int:
    segments, rates = zip(*branches, strict=True)
    return DilatedPattern(segments, rates, HEADS).flops(1, seq, case.head_dim, case.is_causal)


def _contenders(
    case: Case, seq: int, options: Options, tensors: tuple[Tensor, Tensor, Tensor]
) -> Iterator[tuple[str, Callable[..., Tensor]]]:
    branches = PATTERNS[case.pattern]
    segments, rates = zip(*branches, strict=True)

    def dilated(backend: Backend) -> Callable[..., Tensor]:
        return lambda q, k, v: dilated_attention(
            q, k, v, segments, rates, is_causal=case.is_causal, backend=backend
        )

    yield "triton", dilated("triton")
    yield "sdpa", dilated("sdpa")
    if not case.backward and all(seq % w == 0 == w % r and HEADS % r == 0 for w, r in branches):
        yield "gather", lambda q, k, v: gather_pad_scatter(q, k, v, list(branches), case.is_causal)
    if case.units <= LONGEST_DENSE:
        yield "dense", partial(_dense, is_causal=case.is_causal)


def _dense(query: Tensor, key: Tensor, value: Tensor, *, is_causal: bool) -> Tensor:
    """PyTorch's choice of its fastest kernel, on views: it reads them as they are."""
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    return F.scaled_dot_product_attention(q, k, v, is_causal=is_causal).transpose(1, 2)


def _with_backward(
    run: Callable[..., Tensor], inputs: tuple[Tensor, ...], grad: Tensor, backward: bool
) -> Callable[[], list[Tensor]]:
    def call() -> list[Tensor]:
        if not backward:
            with torch.no_grad():
                return [run(*inputs)]
        leaves = [x.detach().requires_grad_() for x in inputs]
        out = run(*leaves)
        return [out.detach(), *torch.autograd.grad(out, leaves, grad)]

    return call


def _check(got: list[Tensor], wanted: list[Tensor]) -> None:
    """Two backends, at full size and with tuned blocks: within bfloat16's rounding of each other."""
    errors = [
        float((x.float() - y.float()).norm() / y.float().norm()) for x, y in zip(got, wanted, strict=True)
    ]
    if not max(errors) <= 2 * LIMITS[torch.bfloat16]:
        raise NumericsError(f"triton and sdpa differ by {errors}, at most {2 * LIMITS[torch.bfloat16]}")


def _matmul_peak(options: Options) -> float:
    """FLOP/s of a large bfloat16 matrix product."""
    size = 8192 if options.device.type == "cuda" else 64
    a, b = (torch.randn(size, size, device=options.device, dtype=torch.bfloat16) for _ in range(2))
    found = medians({"matmul": lambda: a @ b}, rounds=20, max_seconds=10.0, device=options.device)
    return 2 * size**3 / found["matmul"]


def _memory(options: Options) -> Table:
    rows = []
    for units in (1, LENGTHS[-1]):
        seq = units * options.seq
        query, key, value = (
            torch.randn(1, seq, HEADS, 64, device=options.device, dtype=torch.bfloat16) for _ in range(3)
        )
        segments, rates = zip(*list(PATTERNS.values())[-1], strict=True)
        run = partial(dilated_attention, query, key, value, segments, rates, is_causal=True, backend="triton")
        with torch.no_grad():
            run()  # what is allocated once and kept is not the call's
            peak = peak_memory(run, options.device)
        lse = 4 * seq * HEADS
        beyond = peak - query.numel() * query.element_size()
        rows.append(
            [
                f"{seq:,}",
                f"{peak / 2**20:.1f}",
                f"{beyond / 2**20:.2f}",
                f"{lse / 2**20:.2f}",
                f"{beyond / lse:.2f}",
            ]
        )
    return Table(
        title="Peak memory of the forward, the last pattern, d 64",
        columns=("tokens", "peak MiB", "beyond the output MiB", "lse MiB", "ratio"),
        rows=rows,
        note="Beyond the inputs. The goal: nothing but the output and the lse.",
    )
