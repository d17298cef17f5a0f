"""The spiking demo: a quick run, its parts against loops in plain Python, and what it refuses to report."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import snntorch
import torch
from demos import neuromorphic_simulation as demo
from hypothesis import given
from hypothesis import strategies as st

PROGRAM = Path(demo.__file__)


def random_weights(seed: int, sizes: tuple[int, ...]) -> list[torch.Tensor]:
    draws = torch.Generator().manual_seed(seed)
    return [torch.randint(-6, 9, (b, a), generator=draws) / 8 for a, b in pairwise(sizes)]


def random_images(seed: int, batch: int, pixels: int) -> torch.Tensor:
    return torch.randint(0, 17, (batch, pixels), generator=torch.Generator().manual_seed(seed)) / 16


def run_in_loops(
    weights: list[torch.Tensor], image: list[float]
) -> tuple[list[float], list[list[list[float]]], int]:
    """Mean outputs, spikes [layer][step][neuron] and how often a weight was added for a spike."""
    *hidden, _ = (len(weight) for weight in weights)
    tables = [weight.tolist() for weight in weights]
    current = [sum(w * pixel for w, pixel in zip(row, image, strict=True)) for row in tables[0]]
    potentials, fired = [[0.0] * n for n in hidden], [[0.0] * n for n in hidden]
    outputs, total = [0.0] * len(tables[-1]), [0.0] * len(tables[-1])
    spikes: list[list[list[float]]] = [[] for _ in hidden]
    added = 0
    for _ in range(demo.STEPS):
        arriving = current
        for layer in range(len(hidden)):
            for neuron in range(hidden[layer]):
                u = demo.BETA * potentials[layer][neuron] + arriving[neuron] - fired[layer][neuron]
                potentials[layer][neuron], fired[layer][neuron] = u, float(u > 1)
            spikes[layer].append(list(fired[layer]))
            arriving = [0.0] * len(tables[layer + 1])
            for source in range(hidden[layer]):
                for target in range(len(arriving)):
                    if fired[layer][source]:
                        arriving[target] += tables[layer + 1][target][source]
                        added += 1
        outputs = [demo.BETA * output + more for output, more in zip(outputs, arriving, strict=True)]
        total = [t + output for t, output in zip(total, outputs, strict=True)]
    return [t / demo.STEPS for t in total], spikes, added


def test_quick_run(tmp_path):
    command = [sys.executable, "-W", "error", str(PROGRAM), "--quick", "--output", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    for words in ("spiking  accuracy", "spiking, together", "(estimate)", "layer 2 breaks even at"):
        assert words in done.stdout
    assert (tmp_path / "neuromorphic_simulation.png").read_bytes().startswith(b"\x89PNG")
    record = json.loads((tmp_path / "neuromorphic_simulation.json").read_text())
    assert [of["seed"] for of in record["seeds"]] == [0, 1]
    assert all(0.9 < of[name] <= 1 for of in record["seeds"] for name in ("dense", "spiking"))
    assert "--quick" in record["command"]
    ops, nj = record["operations"], record["estimated_nj"]
    assert ops["dense_mac"] == 64 * 512 + 512 * 512 + 512 * 10
    assert ops["pixels_mac"] == 64 * 512
    assert ops["neurons_mac"] == 10 * (512 + 512 + 10)
    for of in record["seeds"]:
        first, second = (10 * 512 * rate for rate in of["rates"])
        assert of["operations"]["synapses_add"] == pytest.approx(first * 512 + second * 10, rel=1e-5)
        assert of["operations"]["resets_and_mean_add"] == pytest.approx(first + second + 10 * 10, rel=1e-5)
    for name, picojoules in {"dense_mac": 4.6, "pixels_mac": 4.6, "synapses_add": 0.9}.items():
        assert nj[name] == pytest.approx(ops[name] * picojoules / 1000)
    for figures in record["times"]:
        assert [f["what"] for f in figures] == ["ReLU", "network", "layer 2", "layer 3"] + ["random"] * 9
        assert all(f["ratio"] == pytest.approx(f["dense_us"] / f["event_us"]) for f in figures)
        assert all(0 < f["low"] <= f["ratio"] <= f["high"] for f in figures)
    assert set(record["break_even"]) == {"1", "64"}


@pytest.mark.parametrize(
    "options",
    [{"beta": 0.9}, {"threshold": 0.9}, {"reset_mechanism": "zero"}, {"reset_delay": False}],
    ids=str,
)
def test_a_wrong_neuron_ends_the_run(options: dict[str, Any], monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(demo, "make_neuron", partial(snntorch.Leaky, **{"beta": demo.BETA, **options}))
    monkeypatch.setattr(sys, "argv", [str(PROGRAM), "--quick", "--output", str(tmp_path)])
    with pytest.raises(SystemExit, match="wrong: the neuron differs from its closed form"):
        demo.main()
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


@given(
    st.integers(1, 9),
    st.integers(1, 40),
    st.integers(1, 20),
    st.sampled_from([0, 0.05, 0.5, 1]),
    st.integers(0, 2**32),
)
def test_sums_of_rows_are_the_product(batch: int, inputs: int, outputs: int, rate: float, seed: int):
    draws = torch.Generator().manual_seed(seed)
    spikes = (torch.rand(batch, inputs, generator=draws) < rate).float()
    rows = torch.randint(-999, 999, (inputs, outputs), generator=draws).float()
    torch.testing.assert_close(demo.sum_rows(spikes, rows), spikes @ rows, rtol=0, atol=0)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("event_driven", [False, True])
def test_execution_and_count_against_loops(seed: int, event_driven: bool):
    weights, images = random_weights(seed, (7, 9, 6, 3)), random_images(seed, 5, 7)
    layers = demo.make_layers([weight.double() for weight in weights], event_driven=event_driven)
    logits, spikes = demo.simulate(layers, images.double())
    added = 0
    for image in range(5):
        right, fired, more = run_in_loops(weights, images[image].tolist())
        torch.testing.assert_close(logits[image].tolist(), right)
        assert [of[:, image].tolist() for of in spikes] == fired
        added += more
    assert added > 0
    operations = demo.count(weights, spikes)
    assert operations["synapses_add"] * 5 == pytest.approx(added, rel=1e-12)
    assert operations["dense_mac"] == 7 * 9 + 9 * 6 + 6 * 3


def test_right_parts_pass():
    demo.check_neuron()
    demo.check_execution(random_weights(0, (7, 9, 6, 3)), random_images(0, 5, 7))


def drop_first_row(spikes: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    return spikes[:, 1:] @ rows[1:]


def count_twice(weights: list[torch.Tensor], spikes: list[torch.Tensor]) -> dict[str, float]:
    return {"synapses_add": 2 * sum(float(of.sum()) for of in spikes)}


@pytest.mark.parametrize(
    ("name", "broken", "message"),
    [
        ("sum_rows", drop_first_row, "outputs or spikes of events differ"),
        ("make_neuron", partial(snntorch.Leaky, beta=0.9), "outputs or spikes of the library differ"),
        ("count", count_twice, "additions of weights are counted"),
    ],
    ids=["events", "library", "count"],
)
def test_wrong_execution_ends_the_run(name: str, broken: object, message: str, monkeypatch):
    monkeypatch.setattr(demo, name, broken)
    with pytest.raises(SystemExit, match=message):
        demo.check_execution(random_weights(0, (7, 9, 6, 3)), random_images(0, 5, 7))


def test_break_even():
    assert demo.break_even([(0.1, 3.0), (0.2, 1.5), (0.4, 0.5), (0.8, 0.25)]) == pytest.approx(0.3)
    assert demo.break_even([(0.1, 3.0), (0.2, 1.5)]) is None
    assert demo.break_even([(0.1, 0.9), (0.2, 0.5)]) is None


@pytest.mark.parametrize(
    ("module", "package"),
    [("snntorch", "snntorch"), ("sklearn.datasets", "scikit-learn"), ("matplotlib.figure", "matplotlib")],
)
def test_a_missing_package_is_named(module: str, package: str, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(PROGRAM), run_name="__main__")
    assert end.value.code == 2
    assert capsys.readouterr().err == f"error: the demo needs {package}: pip install {package}\n"
