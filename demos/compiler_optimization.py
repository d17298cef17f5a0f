"""What an advisor that proves its advice gains on two transformer stacks with attention written by hand.

    python demos/compiler_optimization.py [--quick] [--output FOLDER]

Each stack of four blocks runs as it is, with ``F.scaled_dot_product_attention``, under ``torch.compile``, and
as the advisor leaves it, all with the same weights. Outputs (in training also gradients) are compared with
the original in float64 before anything is timed: status 1 if one differs by more than 4 times the original's
own rounding. Times are medians of interleaved pairs with 99 % intervals; a JSON and a picture are written.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import platform
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kernel_pytorch.advice import median_ratio
from kernel_pytorch.advice.prove.run import optimise

try:
    from matplotlib.figure import Figure
except ModuleNotFoundError:
    print("error: the demo needs matplotlib: pip install matplotlib", file=sys.stderr)
    sys.exit(2)

MODELS = {"width 256, 4 heads": (256, 4), "width 512, 8 heads": (512, 8)}
LENGTHS = (256, 512, 1024, 2048)
AT = 1024
"""Tokens at which the advisor is asked, and training is measured."""
WHY = """The gain grows with the length: attention by hand writes and reads scores of length x length, which
fused attention never stores. At 256 tokens they are small, and the linear layers take the time."""


class Attention(nn.Module):
    """Causal self-attention, by hand or fused."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.fused = heads, False
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """``x``: [batch, length, width]."""
        q, k, v = (
            project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project in (self.query, self.key, self.value)
        )
        if self.fused:
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
            future = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
            mixed = torch.softmax(scores.masked_fill(future, float("-inf")), -1) @ v
        return self.out(mixed.transpose(1, 2).flatten(-2))


class Norm(nn.Module):
    """Layer norm by hand."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """``x``: [..., width]."""
        centred = x - x.mean(-1, keepdim=True)
        return centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + 1e-5) * self.gain + self.bias


class Block(nn.Module):
    """Attention and a two-layer network with GELU by hand, each on a normed residual."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attend, self.up, self.down = (
            Attention(width, heads),
            nn.Linear(width, 4 * width),
            nn.Linear(4 * width, width),
        )
        self.first, self.second = Norm(width), Norm(width)

    def forward(self, x: Tensor) -> Tensor:
        """``x``: [batch, length, width]."""
        x = x + self.attend(self.first(x))
        hidden = self.up(self.second(x))
        gelu = 0.5 * hidden * (1 + torch.tanh(math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)))
        return x + self.down(gelu)


def make_stack(width: int, heads: int) -> nn.Module:
    """Four blocks; always with the same weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(*(Block(width, heads) for _ in range(4)))


def fuse(model: nn.Module) -> nn.Module:
    """The attention of a copy as one fused call."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, Attention):
            module.fused = True
    return model


def compiled(model: nn.Module) -> nn.Module:
    """A copy under ``torch.compile``."""
    model = copy.deepcopy(model)
    model.compile()
    return model


def results(model: nn.Module, x: Tensor, *, training: bool) -> list[Tensor]:
    """Outputs, and in training the gradients of input and parameters."""
    if not training:
        with torch.no_grad():
            return [model(x)]
    x = x.detach().requires_grad_()
    output = model(x)
    parameters = list(model.parameters())
    return [output.detach(), *torch.autograd.grad(output.square().mean(), [x, *parameters])]


def worst_error(found: list[Tensor], right: list[Tensor]) -> float:
    """Relative RMS error of the worst tensor; a tensor counts as no smaller than 1/1000 of all."""
    floor = 1e-3 * math.sqrt(sum(float(r.square().sum()) for r in right))
    return max(
        float((f.double() - r).norm()) / max(float(r.norm()), floor)
        for f, r in zip(found, right, strict=True)
    )


def timed_pairs(first: Callable[[], object], second: Callable[[], object], pairs: int) -> list[list[float]]:
    """Seconds of both in alternating order."""
    times: list[list[float]] = [[], []]
    for pair in range(pairs):
        for which in (0, 1) if pair % 2 == 0 else (1, 0):
            start = time.perf_counter()
            (first, second)[which]()
            times[which].append(time.perf_counter() - start)
    return times


def measure(
    name: str, variants: dict[str, nn.Module], x: Tensor, training: bool, pairs: int
) -> tuple[list[dict[str, Any]], list[str]]:
    """The figures of all variants but the first, which is the original, and what is wrong."""
    original = variants["original"]
    run = partial(results, training=training)
    right = run(copy.deepcopy(original).double(), x.double())
    own = worst_error(run(original, x), right)
    mode = "training" if training else "inference"
    figures, wrong = [], []
    for variant, model in list(variants.items())[1:]:
        start = time.perf_counter()
        found = run(model, x)
        first_s = time.perf_counter() - start
        error = worst_error(found, right)
        if not error <= max(4 * own, 16 * torch.finfo(x.dtype).eps):
            wrong.append(f"{name}, {x.shape[1]} tokens, {variant}: error {error:.1e}, original {own:.1e}")
            continue
        times = timed_pairs(partial(run, original, x), partial(run, model, x), pairs)
        ratio = median_ratio(*times, confidence=0.99)
        gain, low, high = ratio.value, ratio.low, ratio.high
        before, after = 1e3 * ratio.first_s, 1e3 * ratio.second_s
        print(
            f"{name:20} {mode:9} {x.shape[1]:5}  {variant:13} {before:8.1f} ms -> {after:7.1f} ms   "
            f"{gain:.2f} ({low:.2f} to {high:.2f})   error {error:.1e} ({own:.1e})   first {first_s:.1f} s",
            flush=True,
        )
        figure = {"model": name, "mode": mode, "length": x.shape[1], "variant": variant, "pairs": pairs}
        figure |= {"original_ms": before, "ms": after, "gain": gain, "low": low, "high": high}
        figures.append(figure | {"error": error, "original_error": own, "first_call_s": first_s})
    return figures, wrong


def draw(figures: list[dict[str, Any]], path: Path) -> None:
    """Gain over length in inference, one panel a stack."""
    shown = [figure for figure in figures if figure["mode"] == "inference"]
    models = list(dict.fromkeys(figure["model"] for figure in shown))
    page = Figure(figsize=(5 * len(models), 4))
    panels = page.subplots(1, len(models), sharey=True, squeeze=False)
    for panel, model in zip(panels[0], models, strict=True):
        for variant in dict.fromkeys(figure["variant"] for figure in shown):
            of = [figure for figure in shown if (figure["model"], figure["variant"]) == (model, variant)]
            spread = [[f["gain"] - f["low"] for f in of], [f["high"] - f["gain"] for f in of]]
            lengths, gains = zip(*((f["length"], f["gain"]) for f in of), strict=True)
            panel.errorbar(lengths, gains, yerr=spread, marker="o", capsize=3, label=variant)
        panel.axhline(1, color="grey", linewidth=0.8)
        panel.set(title=model, xlabel="tokens", xscale="log")
        panel.set_xticks(LENGTHS, [str(length) for length in LENGTHS])
        panel.minorticks_off()
    panels[0][0].set_ylabel("time of the original / time, 99 % interval")
    panels[0][0].legend()
    page.savefig(path, bbox_inches="tight")


def main() -> int:
    """Run the comparison; 1 if a result was wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one stack, 1,024 tokens, inference")
    parser.add_argument("--output", type=Path, default=Path(), metavar="FOLDER", help="for JSON and picture")
    args = parser.parse_args()
    try:
        args.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--output {args.output}: {error.strerror}")
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    figures, wrong, kept = [], [], {}
    for name, (width, heads) in list(MODELS.items())[: 1 if args.quick else None]:
        for training in (False,) if args.quick else (False, True):
            original = make_stack(width, heads).train(training)
            x = torch.randn(1, AT, width, generator=torch.Generator().manual_seed(1))
            budget_s = 60 if args.quick else 180
            report, better = optimise(original, x, "balanced", training=training, budget_s=budget_s)
            changes = [trial.strategy for trial in report.kept]
            kept[f"{name}, {'training' if training else 'inference'}"] = changes
            print(f"{name}: the advisor kept {', '.join(changes) or 'nothing'}")
            variants = {"original": original, "SDPA by hand": fuse(original)}
            variants |= {"torch.compile": compiled(original), "advice": better}
            for length in (AT,) if training or args.quick else LENGTHS:
                x = torch.randn(1, length, width, generator=torch.Generator().manual_seed(2))
                found, faults = measure(name, variants, x, training, 11 if args.quick else 21)
                figures, wrong = figures + found, wrong + faults
    path, record = args.output / "compiler_optimization.json", {"machine": machine, "kept": kept}
    path.write_text(json.dumps({**record, "wrong": wrong, "figures": figures}, indent=1))
    draw(figures, path.with_suffix(".png"))
    print(f"{machine}; written: {path}, {path.with_suffix('.png')}")
    if not args.quick:
        print(WHY)
    for line in wrong:
        print(f"wrong: {line}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
