"""What a spiking network gains and costs beside a dense network of equal size, on handwritten digits.

    python demos/neuromorphic_simulation.py [--quick] [--output FOLDER]

Layers of 64, 512, 512 and 10 without biases; the same initial weights, batches and optimizer. In the spiking
network the pixels are a constant current, for 10 steps, into the first of two layers of leaky integrate-and-
fire neurons; the outputs only integrate, and their mean potential is the logit. The neuron, event-driven
execution and counts are checked first: status 1 and no figures if one is wrong. Writes a JSON and a picture.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from datetime import date
from functools import partial
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kernel_pytorch.advice import interleave, median_ratio

try:
    import snntorch
    from matplotlib.figure import Figure
    from sklearn.datasets import load_digits
except ModuleNotFoundError as error:
    package = str(error.name).partition(".")[0].replace("sklearn", "scikit-learn")
    print(f"error: the demo needs {package}: pip install {package}", file=sys.stderr)
    sys.exit(2)

SIZES, STEPS, BETA = (64, 512, 512, 10), 10, 0.875
GRID = 2.0**-14
"""Trained weights are rounded to multiples of it: float32 sums of them, below 64, are exact in any order."""
ADD_PJ, MULTIPLY_PJ = 0.9, 3.7
"""Energy of 32-bit floating-point operations at 45 nm: M. Horowitz, "Computing's energy problem (and what we
can do about it)", ISSCC 2014. Of the arithmetic alone; memory, which costs more, is not in it."""
RATES = (0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0)  # shares of neurons that spike
make_neuron = partial(snntorch.Leaky, beta=BETA, spike_grad=snntorch.surrogate.fast_sigmoid(slope=25))
"""U[t] = BETA U[t-1] + I[t] - S[t-1], and a spike S[t] = 1 where U[t] > 1, else 0."""
Layers = Sequence[Callable[[Tensor], Tensor]]


def step_neuron(current: Tensor, potential: Tensor) -> tuple[Tensor, Tensor]:
    """The same neuron without gradients, in fewer operations: spikes and the new potential."""
    potential = (potential * BETA + current).sub_((potential > 1).to(current.dtype))
    return (potential > 1).to(current.dtype), potential


def simulate(layers: Layers, x: Tensor, neuron: Any = step_neuron) -> tuple[Tensor, list[Tensor]]:
    """Logits [batch, 10] of images [batch, 64] of 0 to 1, and each layer's spikes [steps, batch, neurons]."""
    current, others, outputs = layers[0](x), layers[1:], [torch.zeros(())]
    potentials, spikes = outputs * len(others), [[] for _ in others]
    for _ in range(STEPS):
        signal = current
        for at, layer in enumerate(others):
            fired, potentials[at] = neuron(signal, potentials[at])
            spikes[at].append(fired)
            signal = layer(fired)
        outputs.append(BETA * outputs[-1] + signal)
    return sum(outputs) / STEPS, [torch.stack(of) for of in spikes]


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
    """``spikes`` [batch, inputs] times ``rows`` [inputs, outputs], reading only rows whose input spiked."""
    starts = torch.zeros(len(spikes), dtype=torch.long)
    if len(spikes) > 1:
        starts[1:] = spikes[:-1].count_nonzero(1).cumsum(0)
    return F.embedding_bag(spikes.nonzero()[:, 1], rows, starts, mode="sum")


def make_layers(weights: list[Tensor], *, event_driven: bool = False) -> Layers:
    """Matrix products; if event-driven, sums of rows except in the first layer, whose input is not spikes."""
    products = [partial(F.linear, weight=weight) for weight in weights]
    sums = [partial(sum_rows, rows=weight.t().contiguous()) for weight in weights[1:]]
    return [products[0], *sums] if event_driven else products


def count(weights: list[Tensor], spikes: list[Tensor]) -> dict[str, float]:
    """Operations per image: multiply-accumulates ("_mac") and additions, without comparisons.

    A spike adds a row of weights and resets its neuron; the pixels' constant current is computed once.
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
    """Compare the neuron at constant currents I with its closed form n steps after a spike at U, in float64.

    BETA^n U + I (1 - BETA^n) / (1 - BETA) - BETA^(n-1); the last term, a reset, only after the first spike.
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
    """Compare dense execution with the library's neurons and with event-driven, counts with loops."""
    products, rows = make_layers(weights), make_layers(weights, event_driven=True)
    logits, spikes = simulate(products, x)
    calls = {"the library": (products, x, make_neuron()), "events": (rows, x), "one image": (rows, x[:1])}
    for name, call in calls.items():
        found, fired = simulate(*call)
        right = [logits[: len(found)], *(of[:, : len(found)] for of in spikes)]
        if not all(map(torch.equal, [found, *fired], right)):
            sys.exit(f"wrong: outputs or spikes of {name} differ from those of dense execution")
    counted = count(weights, [of[:, :1] for of in spikes])["synapses_add"]
    layers = zip(weights[1:], spikes, strict=True)
    looped = sum(1 for w, of in layers for step in of[:, 0] for row in w.t()[step > 0] for _ in row)
    if counted != looped:
        sys.exit(f"wrong: {counted:.0f} additions of weights are counted, {looped} in loops")


def measure(weights: list[Tensor], x: Tensor, batch: int, pairs: int, relu: Any) -> list[dict[str, Any]]:
    """Dense or ReLU against event-driven: the network, layers on its spikes, layer 2 on random ones."""
    ways, figures = [make_layers(weights), make_layers(weights, event_driven=True)], []
    own = [of.transpose(0, 1).flatten(0, 1) for of in simulate(ways[0], x)[1]]
    noise = torch.rand(own[0].shape, generator=torch.Generator().manual_seed(0))
    cases = [("ReLU", 0, x), ("network", 0, x), ("layer 2", 1, own[0]), ("layer 3", 2, own[1])]
    for what, at, inputs in cases + [("random", 1, (noise < rate).float()) for rate in RATES]:
        runs, parts = [way[at] if at else partial(simulate, way) for way in ways], inputs.split(batch)
        runs[0] = partial(relu, ways[0]) if what == "ReLU" else runs[0]
        calls = [lambda run=run, parts=parts: [run(part) for part in parts] for run in runs]
        if at and not all(map(torch.equal, *(call() for call in calls))):
            sys.exit(f"wrong: event-driven execution of {what} differs from dense")
        times = interleave(*calls, pairs=pairs, max_seconds=20, device=x.device)
        ratio, us = median_ratio(*times, confidence=0.99), 1e6 / len(inputs)
        figure = {"what": what, "batch": batch, "rate": float((inputs if at else torch.cat(own)).mean())}
        figure |= {"dense_us": us * ratio.first_s, "event_us": us * ratio.second_s}
        figures.append(figure | {"ratio": ratio.value, "low": ratio.low, "high": ratio.high})
    return figures


def break_even(points: list[tuple[float, float]]) -> float | None:
    """The rate at which the ratio falls to 1, interpolated between two points (rate, ratio); or None."""
    for (rate, ratio), (next_rate, next_ratio) in pairwise(points):
        if ratio >= 1 > next_ratio:
            return rate + (next_rate - rate) * (ratio - 1) / (ratio - next_ratio)
    return None


def draw(times: list[list[dict[str, Any]]], spikes: list[Tensor], path: Path) -> None:
    """The spikes [steps, batch, neurons] of the first image, and the ratio of times against the rate."""
    raster, gain = (page := Figure(figsize=(11, 4.5))).subplots(1, 2)
    for at, of in enumerate(spikes):
        step, neuron = of[:, 0, :64].nonzero().t()
        raster.scatter(step + 1, neuron + 64 * at, s=4, label=f"layer {at + 1}")
    for figures in times:
        rate, ratio, low, high = ([f[key] for f in figures[4:]] for key in ("rate", "ratio", "low", "high"))
        gain.plot(rate, ratio, ".-", label=f"batch of {figures[0]['batch']}")
        gain.fill_between(rate, low, high, alpha=0.3)
    gain.axvline(times[-1][2]["rate"], color="grey", linestyle=":", label="rate of layer 1")
    gain.axhline(1, color="grey", linewidth=0.8)
    raster.set(xlabel="step of one image", ylabel="64 neurons of each layer", xlim=(0.5, STEPS + 0.5))
    gain.set(xlabel="share of neurons that spike", ylabel="dense / event-driven time", yscale="log")
    raster.legend(ncols=2, loc="lower left", bbox_to_anchor=(0, 1)), gain.legend()
    page.savefig(path, bbox_inches="tight")


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="2 seeds and 5 epochs in place of 5 and 20")
    parser.add_argument("--output", type=Path, default=Path(), metavar="FOLDER", help="for JSON and picture")
    args = parser.parse_args()
    if args.output.exists() and not args.output.is_dir():
        parser.error(f"--output {args.output} is not a folder")
    args.output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # the tensors are too small to share
    check_neuron()
    digits, neuron, seeds = load_digits(), make_neuron(), []
    x, y = torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target)
    networks = {"dense": lambda layers, x: layers[2](layers[1](layers[0](x).relu()).relu())}
    networks["spiking"] = lambda layers, x: simulate(layers, x, neuron)[0]
    for seed in range(2 if args.quick else 5):
        known, test = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed)).split((1437, 360))
        seeds.append({"seed": seed})
        for name, run in networks.items():
            torch.manual_seed(seed)
            weights = train(run, x[known], y[known], 5 if args.quick else 20)
            seeds[-1][name] = float((run(make_layers(weights), x[test]).argmax(1) == y[test]).double().mean())
        check_execution(weights, x[test])
        spikes = simulate(make_layers(weights), x[test])[1]
        seeds[-1] |= {"rates": [float(of.mean()) for of in spikes], "operations": count(weights, spikes)}
    pairs, path = 11 if args.quick else 31, args.output / "neuromorphic_simulation.json"
    sizes, relu = ((20, 1), (64, 64)), networks["dense"]
    times = [measure(weights, x[test[:number]], batch, pairs, relu) for number, batch in sizes]
    even = {of[0]["batch"]: break_even([(f["rate"], f["ratio"]) for f in of[4:]]) for of in times}
    ops = {name: mean(of["operations"][name] for of in seeds) for name in seeds[0]["operations"]}
    nj = {name: n * (MULTIPLY_PJ * name.endswith("mac") + ADD_PJ) / 1e3 for name, n in ops.items()}
    cpu = Path("/proc/cpuinfo").read_text() if sys.platform == "linux" else ""
    model = cpu.partition("model name")[2].partition("\n")[0].lstrip("\t :") or os.uname().machine
    machine = f"{model}, {os.cpu_count()} CPUs, {torch.get_num_threads()} used"
    record = {name: metadata.version(name) for name in ("torch", "snntorch", "scikit-learn")}
    record |= {"machine": machine, "date": str(date.today()), "command": " ".join(sys.argv), "seeds": seeds}
    record |= {"operations": ops, "estimated_nj": nj, "times": times, "break_even": even}
    path.write_text(json.dumps(record, indent=1))
    draw(times, spikes, path.with_suffix(".png"))
    print(f"{machine}, torch {torch.__version__}, {date.today()}; written: {path} and .png beside it")
    for name in networks:
        each = [of[name] for of in seeds]
        print(f"{name:8} accuracy {mean(each):.2%} (s.d. {stdev(each):.2%}):", *map("{:.1%}".format, each))
    for name, n in ops.items():
        print(f"{name:19}  {n:9,.0f} an image   {nj[name]:7.1f} nJ (estimate)")
    print(f"{'spiking, together':39} {sum(nj.values()) - nj['dense_mac']:7.1f} nJ (estimate)")
    for f in [*times[0], *times[1]]:
        print("{what:7} batch {batch:2} {rate:6.1%} spike  dense {dense_us:6.1f} us".format(**f), end="  ")
        print("event-driven {event_us:6.1f}  ratio {ratio:.2f} ({low:.2f} to {high:.2f})".format(**f))
    print("layer 2 breaks even at", {n: of and f"{of:.1%}" for n, of in even.items()}, "by batch")


if __name__ == "__main__":
    main()
