"""The advisor's figures: gains of the demo, findings, peaks, FLOPs, and what must not happen."""

from __future__ import annotations

import copy
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from kernel_pytorch.advice.analysis.calls import time_calls
from kernel_pytorch.advice.analysis.flops import count_flops
from kernel_pytorch.advice.analysis.memory import peak_memory, predict_peak, step_peak
from kernel_pytorch.advice.facts import Fact
from kernel_pytorch.advice.prove.timing import time_pairs, verdict
from kernel_pytorch.advice.sample import Sample

from .advisor_models import BATCH, CASES, LENGTH, WIDTH, Case
from .measure import progress
from .registry import Options, Table, benchmark
from .verify import REPOSITORY

OWN_COPIES = 100
AGAIN = ("perceptron", "attention", "demo", "convolutions", "encoder")
HOSTILE_S, HOSTILE_LIMIT_S = 20, 35


@benchmark(
    "advisor",
    numerics=(
        "tests/kernel_pytorch/advice/prove",
        "tests/kernel_pytorch/advice/strategy",
        "tests/kernel_pytorch/advice/analysis",
    ),
)
def advisor(options: Options) -> list[Table]:
    """Advisor: gains of the demo, forms of attention, findings, peaks, FLOPs, own copies, hostile models."""
    cases: dict[str, Callable[[], Table]] = {
        "demo": _demo,
        "forms": _forms,
        "findings": _findings,
        "memory": _memory,
        "flops": _flops,
        "own-copy": _own_copy,
        "again": _again,
        "hostile": _hostile,
    }
    tables = []
    for number, name in enumerate(names := options.select(cases), 1):
        progress(f"[{number}/{len(names)}] {name}")
        tables.append(cases[name]())
    return tables


def _met(met: bool) -> str:
    return "met" if met else "missed"


def _demo() -> Table:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "demos/compiler_optimization.py", "--output", folder]
        done = subprocess.run(command, cwd=REPOSITORY, stdout=sys.stderr, check=False)
        record = json.loads((Path(folder) / "compiler_optimization.json").read_text())
    rows = []
    for figure in record["figures"]:
        asked = {"inference": 1.6, "training": 1.4}[figure["mode"]]
        judged = figure["variant"] == "advice" and figure["length"] == 1024
        rows.append(
            [
                f"{figure['model']}, {figure['mode']}, {figure['length']}",
                figure["variant"],
                f"{figure['original_ms']:.1f}",
                f"{figure['ms']:.1f}",
                f"{figure['gain']:.2f} ({figure['low']:.2f} to {figure['high']:.2f})",
                f"{figure['error']:.1e} ({figure['original_error']:.1e})",
                f"{figure['first_call_s']:.1f}",
                f">= {asked} {_met(figure['gain'] >= asked)}" if judged else "",
            ]
        )
    kept = "; ".join(f"{name}: {', '.join(changes) or 'nothing'}" for name, changes in record["kept"].items())
    equal = "Outputs and gradients were equal." if done.returncode == 0 else f"Wrong: {record['wrong']}."
    return Table(
        title="Demo",
        columns=(
            "stack",
            "variant",
            "original ms",
            "ms",
            "gain (99 %)",
            "error (original)",
            "first call s",
            "",
        ),
        rows=rows,
        note=f"{equal} Kept by the advisor at 1,024 tokens: {kept}.",
    )


def _passed(path: str) -> dict[str, bool]:
    """Tests of a file by name, and whether each passed."""
    command = [sys.executable, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider", path]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    words = (line.partition(" ") for line in done.stdout.splitlines())
    return {
        name.partition("::")[2]: word == "PASSED" for word, _, name in words if word in ("PASSED", "FAILED")
    }


def _forms() -> Table:
    passed = _passed("tests/kernel_pytorch/advice/strategy/test_attention_rewrite.py")
    forms = [right for name, right in passed.items() if name.startswith("test_forms_are_found_and_equal")]
    alike = [right for name, right in passed.items() if name.startswith("test_look_alikes_are_left_alone")]
    rows = [
        ["ways to write attention, found, equal", f"{sum(forms)} of {len(forms)}", ">= 18 of 20"],
        ["look-alikes, changed", f"{len(alike) - sum(alike)} of {len(alike)}", "0 of 8"],
    ]
    met = (len(forms) >= 20 and sum(forms) >= 18, len(alike) >= 8 and all(alike))
    return Table(
        title="Attention by hand",
        columns=("what", "measured", "asked", ""),
        rows=[[*row, _met(one)] for row, one in zip(rows, met, strict=True)],
        note="In inference and training, outputs and all gradients against float64, at 63 and 111 tokens.",
    )


def _findings() -> Table:
    command = [sys.executable, "-m", "pytest", "-q", "-rP", "-p", "no:cacheprovider"]
    path = "tests/kernel_pytorch/advice/analysis/test_defects.py"
    done = subprocess.run([*command, path], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("precision")]
    row = ["findings", lines[0] if lines else "the test failed before", ">= 0.95 each"]
    return Table(
        title="Findings",
        columns=("what", "measured", "asked", ""),
        rows=[[*row, _met(done.returncode == 0)]],
        note="A finding is right if its kind and its line are.",
    )


def _memory() -> Table:
    rows = []
    for training in (False, True):
        for name, case in CASES.items():
            predicted, measured = _peaks(case, training)
            ratio = (predicted.value or 0) / measured
            met = ratio <= 1.1 if predicted.at_least else 0.9 <= ratio <= 1.1
            mode = "training" if training else "inference"
            at_least = "at least " if predicted.at_least else ""
            rows.append(
                [
                    f"{name}, {mode}",
                    f"{at_least}{(predicted.value or 0) / 1e6:.2f}",
                    f"{measured / 1e6:.2f}",
                    f"{ratio:.3f}",
                    _met(met),
                ]
            )
    return Table(
        title="Predicted / measured peak",
        columns=("model", "predicted MB", "measured MB", "ratio", ""),
        rows=rows,
        note="Beyond parameters and inputs; training with AdamW. Goal: 0.9 to 1.1; of 'at least', at most "
        "1.1.",
    )


def _peaks(case: Case, training: bool) -> tuple[Fact, int]:
    torch.manual_seed(0)
    model, x = case.make().train(training), case.draw()
    make = torch.optim.AdamW if training else None
    predicted = predict_peak(model, Sample.of(x), training=training, optimizer=make)
    if make is None:

        def run() -> object:
            with torch.no_grad():
                return model(x)

        run()
        return predicted, peak_memory(run, x.device)
    optimizer = make(model.parameters())

    def step() -> None:
        optimizer.zero_grad()
        outputs = model(x)  # held until the end, as in most training loops
        outputs.square().mean().backward()
        optimizer.step()

    step()
    return predicted, step_peak(step, model, optimizer, x.device)


def _flops() -> Table:
    rows = []
    for name, case in CASES.items():
        if case.flops is not None:
            torch.manual_seed(0)
            counted = count_flops(case.make().eval(), Sample.of(case.draw())).total
            rows.append([name, f"{counted:,}", f"{case.flops:,}", _met(counted == case.flops)])
    return Table(title="FLOPs", columns=("model", "counted", "by hand", ""), rows=rows, note="Goal: equal.")


def _own_copy() -> Table:
    torch.manual_seed(0)
    model, x = CASES["residual blocks"].make().eval(), torch.randn(BATCH, LENGTH, WIDTH)
    twin = copy.deepcopy(model)
    kept, gains = 0, []
    with torch.no_grad():
        noise = time_calls(lambda sample: sample.call(model), Sample.of(x)).noise.value or 0.0
        for _ in range(OWN_COPIES):
            timing = time_pairs(model, twin, x.clone, budget_s=60)
            faster, ratio, _ = verdict(timing, noise)
            kept += faster
            gains.append(ratio.value if ratio else 1.0)
    spread = f"{min(gains):.3f} to {max(gains):.3f}, median {statistics.median(gains):.3f}"
    return Table(
        title="A model against its own copy",
        columns=("trials", "gains", "kept", "asked", ""),
        rows=[[str(OWN_COPIES), spread, str(kept), "0", _met(kept == 0)]],
    )


_MODELS = """\
import sys
sys.path.insert(0, {repository!r})
import torch
from benchmarks.advisor_models import ByHand, CASES
from demos.compiler_optimization import make_stack

def perceptron(): return CASES["MLP"].make()
def attention(): return ByHand()
def encoder(): return CASES["encoder layer"].make()
def convolutions(): return CASES["convolutions, batch norm"].make()
def demo(): return make_stack(256, 4)
"""
_INPUTS = {"convolutions": "randn(4, 3, 64, 64)", "demo": "randn(1, 1024, 256)"}
_MEASURE = """\
import json, sys, time, torch
sys.path[:0] = [{folder!r}, {repository!r}]
import models, written
from kernel_pytorch.advice.facts import Fact
from kernel_pytorch.advice.prove.timing import time_pairs
shape = {shape}
torch.manual_seed(0)
original, better = models.{name}().eval(), written.make_model()
with torch.no_grad():
    timing = time_pairs(original, better, lambda: torch.randn(shape), budget_s=60)
print(json.dumps([timing.gain, timing.low, timing.high]))
"""


def _again() -> Table:
    rows = []
    for name in AGAIN:
        progress(f"  {name}")
        with tempfile.TemporaryDirectory() as folder:
            rows.append(_again_one(name, Path(folder)))
    return Table(
        title="Kept results in a third process",
        columns=("model", "advised", "again", "asked", ""),
        rows=rows,
        note="The gain reported, and that of the written file against the original in a new process.",
    )


def _again_one(name: str, folder: Path) -> list[str]:
    (folder / "models.py").write_text(_MODELS.format(repository=str(REPOSITORY)))
    given = _INPUTS.get(name, f"randn({BATCH}, {LENGTH}, {WIDTH})")
    command = [sys.executable, "-m", "kernel_pytorch.cli", "advise", f"models.py:{name}", "--input", given]
    command += ["--budget", "120s", "--json", "--write", "written.py"]
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        return [name, f"status {done.returncode}", "", "", _met(False)]
    result = json.loads(done.stdout)["result"]
    if result is None or result["verdict"] != "kept":
        return [name, "nothing kept", "", "", ""]
    shape = given.removeprefix("randn")
    script = _MEASURE.format(folder=str(folder), repository=str(REPOSITORY), name=name, shape=shape)
    third = subprocess.run([sys.executable, "-c", script], cwd=folder, stdout=subprocess.PIPE, check=True)
    gain, low, high = json.loads(third.stdout)
    told = f"{result['gain']:.2f} ({result['low']:.2f} to {result['high']:.2f})"
    return [name, told, f"{gain:.2f} ({low:.2f} to {high:.2f})", ">= 0.97", _met(gain >= 0.97)]


def _hostile() -> Table:
    from tests.support.advice_hostile import HOSTILE

    rows = []
    for hostile in HOSTILE:
        progress(f"  {hostile.name}")
        with tempfile.TemporaryDirectory() as folder:
            path, gone = Path(folder) / "model.py", Path(folder) / "gone"
            source = hostile.source.replace("GONE", repr(str(gone)))
            path.write_text(source)
            command = [sys.executable, "-m", "kernel_pytorch.cli", "advise", f"{path}:make"]
            command += ["--input", "randn(2, 8)", "--budget", f"{HOSTILE_S}s", "--json"]
            start = time.perf_counter()
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            seconds = time.perf_counter() - start
            changed = path.exists() and path.read_text() != source
        wrong = ["traceback"] * ("Traceback" in done.stderr) + ["file changed"] * changed
        wrong += [f"status {done.returncode}, not {hostile.status}"] * (done.returncode != hostile.status)
        wrong += ["too long"] * (seconds > HOSTILE_LIMIT_S)
        rows.append([hostile.name, f"{seconds:.1f}", str(done.returncode), ", ".join(wrong), _met(not wrong)])
    return Table(
        title="Hostile models",
        columns=("model", "seconds", "status", "wrong", ""),
        rows=rows,
        note=f"`--budget {HOSTILE_S}s`; goal: no traceback, nothing changed, at most {HOSTILE_LIMIT_S} s.",
    )
