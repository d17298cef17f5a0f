"""What a spiking network gains and costs beside a dense network of equal size, on handwritten digits.

    python demos/neuromorphic_simulation.py [--quick] [--output FOLDER]

Both have layers of 64, 512, 512 and 10 without biases, and the same initial weights, batches and optimizer. The
spiking network takes the pixels as a current into its first layer, the same at each of 10 steps. Two layers of
leaky integrate-and-fire neurons spike; the outputs only integrate, and their mean potential is the logit.
Before a figure is printed, the neuron is compared with its closed form, event-driven execution with dense, and
the count of operations with loops: status 1 if one is wrong. A JSON and a picture are written.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import platform
import shlex
import sys
from collections.abc import Callable, Sequence
from datetime import date
from functools import partial
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kernel_pytorch.advice import interleave, median_ratio

PACKAGES = {"matplotlib": "matplotlib", "sklearn": "scikit-learn", "snntorch": "snntorch"}
SIZES, STEPS, BETA = (64, 512, 512, 10), 10, 0.875
GRID, LARGEST = 2.0**-14, 64
"""Trained weights are rounded to multiples of GRID. While a neuron's weights sum to less than LARGEST in size,
float32 sums of them, for spikes or pixels (multiples of 1/16), are exact in any order: ways to execute a network
must agree bit by bit."""
ADD_PJ, MULTIPLY_PJ = 0.9, 3.7
"""Energy of 32-bit floating-point operations at 45 nm: M. Horowitz, "Computing's energy problem (and what we can
do about it)", ISSCC 2014. Of the arithmetic alone; memory, which costs more, is not in it."""
RATES = (0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0)
"""Shares of the neurons that spike, for the break-even."""
Layers = Sequence[Callable[[Tensor], Tensor]]


def make_neuron() -> Any:
    """U[t] = BETA U[t-1] + I[t] - S[t-1], and a spike S[t] = 1 where U[t] > 1, else 0."""
    import snntorch
    from snntorch import surrogate

    return snntorch.Leaky(beta=BETA, spike_grad=surrogate.fast_sigmoid(slope=25))


def step_neuron(current: Tensor, potential: Tensor) -> tuple[Tensor, Tensor]:
    """The same without gradients, in fewer operations: spikes and the new potential."""
    potential = (potential * BETA).add_(current).sub_((potential > 1).to(current.dtype))
    return (potential > 1).to(current.dtype), potential


def simulate(layers: Layers, x: Tensor, neuron: Any = step_neuron) -> tuple[Tensor, list[Tensor]]:
    """Logits [batch, 10] of images [batch, 64] of 0 to 1, and each layer's spikes [steps, batch, neurons]."""
    first, *others = layers
    current, output, total = first(x), torch.zeros(()), torch.zeros(())
    potentials, spikes = [torch.zeros(()) for _ in others], [[] for _ in others]
    for _ in range(STEPS):
        signal = current
        for at, layer in enumerate(others):
            fired, potentials[at] = neuron(signal, potentials[at])
            spikes[at].append(fired)
            signal = layer(fired)
        output = BETA * output + signal
        total = total + output
    return total / STEPS, [torch.stack(of) for of in spikes]


def run_dense(layers: Layers, x: Tensor) -> Tensor:
    """Logits of the network with ReLU in place of neurons."""
    for layer in layers[:-1]:
        x = torch.relu(layer(x))
    return layers[-1](x)


def train(run: Callable[[Layers, Tensor], Tensor], x: Tensor, y: Tensor, epochs: int) -> list[Tensor]:
    """Weights [outputs, inputs] after Adam on the cross-entropy in batches of 64, rounded to the grid."""
    layers = [nn.Linear(*sizes, bias=False) for sizes in pairwise(SIZES)]
    optimizer = torch.optim.Adam([layer.weight for layer in layers], lr=1e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(run(layers, x[batch]), y[batch]).backward()
            optimizer.step()
    return [(layer.weight.detach() / GRID).round() * GRID for layer in layers]


def sum_rows(spikes: Tensor, rows: Tensor) -> Tensor:
    """``spikes`` [batch, inputs] times ``rows`` [inputs, outputs], reading only the rows whose input spiked."""
    if len(spikes) == 1:
        index, starts = spikes[0].nonzero()[:, 0], torch.zeros(1, dtype=torch.long)
    else:
        index, counts = spikes.nonzero()[:, 1], spikes.count_nonzero(1)
        starts = counts.cumsum(0) - counts
    return F.embedding_bag(index, rows, starts, mode="sum")


def make_layers(weights: list[Tensor], *, event_driven: bool = False) -> Layers:
    """Matrix products; if event-driven, sums of rows except in the first layer, whose input is not spikes."""
    products = [partial(F.linear, weight=weight) for weight in weights]
    sums = [partial(sum_rows, rows=weight.t().contiguous()) for weight in weights[1:]]
    return [products[0], *sums] if event_driven else products


def count(weights: list[Tensor], spikes: list[Tensor]) -> dict[str, float]:
    """Operations per image: multiply-accumulates ("_mac") and additions; comparisons are left out.

    A spike adds a row of weights to the next layer's potentials, and subtracts 1 from its own neuron's. The
    current of the pixels does not change, and is computed once. The mean of the outputs adds them up.
    """
    fired = [int(of.count_nonzero()) / of.shape[1] for of in spikes]
    return {
        "dense_mac": sum(weight.numel() for weight in weights),
        "pixels_mac": weights[0].numel(),
        "synapses_add": sum(n * len(weight) for n, weight in zip(fired, weights[1:], strict=True)),
        "neurons_mac": STEPS * sum(map(len, weights)),
        "resets_and_mean_add": sum(fired) + STEPS * len(weights[-1]),
    }


def check_neuron() -> None:
    """Compare the neuron under constant currents with its closed form, in float64.

    The potential n steps after a spike at potential U is BETA^n U + I (1 - BETA^n) / (1 - BETA) - BETA^(n-1);
    before the first spike, U is the initial potential, and the last term, the reset, is not there.
    """
    neuron, current = make_neuron().double(), torch.linspace(-0.1, 0.6, 64, dtype=torch.float64)
    potential = start = torch.linspace(0.9, -0.5, 64, dtype=torch.float64)
    n = reset = torch.zeros_like(start)
    for step in range(64):
        n, (spike, potential) = n + 1, neuron(current, potential)
        right = BETA**n * start + current * (1 - BETA**n) / (1 - BETA) - reset * BETA ** (n - 1)
        error, fires = float((potential - right).abs().max()), right > 1
        if not (error < 1e-12 and torch.equal(spike, fires.double())):
            sys.exit(f"wrong: the neuron differs from its closed form by {error:.1e} at step {step}")
        start, n, reset = right.where(fires, start), n.where(~fires, 0), reset.where(~fires, 1)


@torch.no_grad()
def check_execution(weights: list[Tensor], x: Tensor) -> None:
    """Compare dense execution with the library's neurons and event-driven execution, and counts with loops."""
    products, rows = make_layers(weights), make_layers(weights, event_driven=True)
    logits, spikes = simulate(products, x)
    if not (largest := max(float(weight.abs().sum(1).max()) for weight in weights)) < LARGEST:
        sys.exit(f"wrong: a neuron's weights sum to {largest:.0f}, too much for exact sums")
    calls = {"the library": (products, x, make_neuron()), "events": (rows, x), "one image": (rows, x[:1])}
    for name, call in calls.items():
        found, fired = simulate(*call)
        right = [logits[: len(found)], *(of[:, : len(found)] for of in spikes)]
        if not all(map(torch.equal, [found, *fired], right)):
            sys.exit(f"wrong: outputs or spikes of {name} differ from those of dense execution")
    counted, looped = count(weights, [of[:, :1] for of in spikes])["synapses_add"], 0
    for weight, of in zip(weights[1:], spikes, strict=True):
        for step in of[:, 0].tolist():
            looped += sum(1 for row, s in zip(weight.t().tolist(), step, strict=True) if s for _ in row)
    if counted != looped:
        sys.exit(f"wrong: {counted:.0f} additions of weights are counted, {looped} in loops")


def measure(weights: list[Tensor], x: Tensor, pairs: int) -> list[dict[str, Any]]:
    """Dense against event-driven: the network; its second layer on the spikes it gets, and on random ones."""
    ways, figures = [make_layers(weights), make_layers(weights, event_driven=True)], []
    for batch, images in ((1, x[:20]), (len(x), x)):
        own = simulate(ways[0], images)[1][0].transpose(0, 1).flatten(0, 1)
        noise = torch.rand(own.shape, generator=torch.Generator().manual_seed(0))
        cases = [("network", images), ("its spikes", own), *(("random", (noise < r).float()) for r in RATES)]
        for what, inputs in cases:
            runs = [partial(simulate, way) if what == "network" else way[1] for way in ways]
            calls = [partial(lambda run, parts: [*map(run, parts)], run, inputs.split(batch)) for run in runs]
            if what != "network" and not all(map(torch.equal, calls[0](), calls[1]())):
                sys.exit(f"wrong: event-driven execution of the second layer differs on {what}")
            ratio = median_ratio(*interleave(*calls, pairs=pairs, max_seconds=20, device=x.device), confidence=0.99)
            figure = {"what": what, "batch": batch, "rate": float((own if inputs is images else inputs).mean())}
            figure |= {"dense_us": 1e6 * ratio.first_s / len(inputs), "event_us": 1e6 * ratio.second_s / len(inputs)}
            figures.append(figure | {"ratio": ratio.value, "low": ratio.low, "high": ratio.high})
    return figures


def break_even(points: Sequence[tuple[float, float]]) -> float | None:
    """Rate at which the ratio falls to 1, between two measured (rate, ratio), linear in logarithms; or None."""
    for (rate, ratio), (next_rate, next_ratio) in pairwise(points):
        if ratio >= 1 > next_ratio:
            return rate * (next_rate / rate) ** (math.log(ratio) / math.log(ratio / next_ratio))
    return None


def draw(figures: list[dict[str, Any]], spikes: list[Tensor], path: Path) -> None:
    """The spikes [steps, batch, neurons] of the first image, and the gain of event-driven execution."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    page, (raster, gain) = pyplot.subplots(1, 2, figsize=(11, 4.5))
    for at, of in enumerate(spikes):
        step, neuron = of[:, 0].nonzero().t()
        raster.scatter(step + 1, neuron + at * SIZES[1], s=1, label=f"layer {at + 1}")
    raster.set(title="spikes of one image", xlabel="step", ylabel="neuron")
    for batch in dict.fromkeys(figure["batch"] for figure in figures):
        points = [f for f in figures if (f["what"], f["batch"]) == ("random", batch)]
        rates, ratios = [f["rate"] for f in points], [f["ratio"] for f in points]
        spread = [[f["ratio"] - f["low"] for f in points], [f["high"] - f["ratio"] for f in points]]
        gain.errorbar(rates, ratios, yerr=spread, marker=".", capsize=3, label=f"batch of {batch}")
    gain.axvline(figures[0]["rate"], color="grey", linestyle=":", label="the network's rate")
    gain.axhline(1, color="grey", linewidth=0.8)
    gain.set(title="second layer", xlabel="share of neurons that spike", ylabel="dense / event-driven time, 99 %")
    gain.set_yscale("log")
    raster.legend(loc="upper right"), gain.legend()
    page.savefig(path, bbox_inches="tight")
    pyplot.close(page)


def main() -> int:
    """Run the comparison. 2 if a package is missing; a wrong result ends the process with 1."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="2 seeds and 5 epochs in place of 5 and 20")
    parser.add_argument("--output", type=Path, default=Path(), metavar="FOLDER", help="for JSON and picture")
    args = parser.parse_args()
    for module, package in PACKAGES.items():
        if importlib.util.find_spec(module) is None:
            print(f"error: the demo needs {package}: pip install {package}", file=sys.stderr)
            return 2
    from sklearn.datasets import load_digits

    args.output.mkdir(parents=True, exist_ok=True)
    digits = load_digits()
    x, y = torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target)
    check_neuron()
    neuron, seeds = make_neuron(), []
    networks = {"dense": run_dense, "spiking": lambda layers, x: simulate(layers, x, neuron)[0]}
    for seed in range(2 if args.quick else 5):
        training, test = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed)).split((1437, 360))
        found: dict[str, Any] = {"seed": seed}
        for name, run in networks.items():
            torch.manual_seed(seed)
            weights = train(run, x[training], y[training], 5 if args.quick else 20)
            right = run(make_layers(weights), x[test]).argmax(1) == y[test]
            found[f"{name}_accuracy"] = float(right.double().mean())
        check_execution(weights, x[test])
        spikes = simulate(make_layers(weights), x[test])[1]
        operations = count(weights, spikes)
        picojoules = {"mac": MULTIPLY_PJ + ADD_PJ, "add": ADD_PJ}
        energy = {name: n * picojoules[name[-3:]] / 1e3 for name, n in operations.items()}
        found |= {"rates": [float(of.mean()) for of in spikes], "operations": operations, "estimated_nj": energy}
        seeds.append(found)
    times = measure(weights, x[test], 11 if args.quick else 31)
