"""What is trained: a model and a text so small that a step takes some 20 to 100 ms."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

STEPS = 80
LIMIT_S = {"local": 30.0, "slurm": 60.0}
"""Slurm counts minutes."""
LONG_STEPS = 100_000
"""For the time limit: more than fit into it. The job is cancelled when it goes on after it."""
EVERY = 20
RANKS_PER_NODE = 2
_WORDS = ("the", "river", "stone", "of", "light", "a", "walks", "under", "night", "and", "bird", "sings")


def write_text(path: Path) -> None:
    """Write a text to train on, always the same."""
    draw = random.Random(0)
    path.write_text(" ".join(draw.choice(_WORDS) for _ in range(40_000)))


def command(run: Path, data: Path, steps: int) -> list[str]:
    """Train in ``run``. The rows of metrics do not depend on the number of steps."""
    options = {
        "--run": run,
        "--data": data,
        "--steps": steps,
        "--checkpoint-every": EVERY,
        "--seq-len": 512,
        "--batch-size": 4,
        "--embed-dim": 32,
        "--num-heads": 2,
        "--schedule": "constant",
        "--warmup-steps": 5,
        "--eval-every": 100_000,
        "--eval-windows": 2,
        "--sample-bytes": 0,
        "--threads": 1,
    }
    words = [str(word) for option in options.items() for word in option]
    return [sys.executable, "-m", "dilated_attention_pytorch.train", *words]


def losses(run: Path) -> list[tuple[int, float]]:
    """Step and bits per byte of each whole row of the metrics, in their order; none without a file."""
    path = run / "metrics.jsonl"
    if not path.exists():
        return []
    rows = [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]
    return [(row["step"], row["train_bits_per_byte"]) for row in rows]


def resumed_at(run: Path) -> list[int]:
    """The steps after which the run was resumed, in their order."""
    path = run / "config.json"
    return [entry["step"] for entry in json.loads(path.read_text())["history"]] if path.exists() else []


def reference(run: Path, data: Path, steps: int) -> list[float]:
    """Bits per byte of each step of an uninterrupted run of four ranks.

    Raises:
        RuntimeError: it failed; with what it printed.
    """
    words = command(run, data, steps)[1:]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "4"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*torchrun, *words[:2], "--", *words[2:]], env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"the uninterrupted run failed: {done.stderr}")
    return [loss for _, loss in losses(run)]


class Reference:
    """Uninterrupted runs as long as needed, of ``data``, below ``folder``."""

    def __init__(self, folder: Path, data: Path) -> None:
        self._folder, self._data = folder, data
        self._losses: list[float] = []

    def __call__(self, steps: int) -> list[float]:
        """Bits per byte of at least as many steps."""
        if len(self._losses) < steps:
            self._losses = reference(self._folder / f"reference-{steps}", self._data, steps)
        return self._losses


def differences(rows: list[tuple[int, float]], expected: list[float], steps: int) -> float | None:
    """The greatest difference of a row from the uninterrupted run's, in bits per byte; 0: equal bit for bit.

    None: the rows are not those of the steps 1 to ``steps``, each once.
    """
    if [step for step, _ in rows] != list(range(1, steps + 1)):
        return None
    return max(abs(loss - of_step) for (_, loss), of_step in zip(rows, expected, strict=False))
