"""``python -m benchmarks.links``: collectives between ranks on hosts of one machine, over shaped links.

Each row is appended to a file as soon as it is measured, so that this can be run in pieces; rows of the same
commit and machine are not measured twice. The result file is written from all rows of this machine. Exit
status: 0 measured (a missed target too), 1 a test failed or a result is wrong, 2 bad usage.
"""

from __future__ import annotations

import argparse
import importlib
import os
import shlex
import sys
import tempfile
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

import torch

from ..report import document, hardware_name, slug
from ..verify import REPOSITORY, failure_of
from .namespaces import why_no_delay
from .rows import Rows, last_of_each, read
from .tables import tables

NUMERICS = ("tests/benchmarks/test_benchmark_links.py", "tests/kernel_pytorch/links")
PARTS = {
    "rates": "rates.measure",
    "bytes": "counted.measure",
    "bf16": "patterns.measure_bf16",
    "patterns": "patterns.measure",
    "urgent": "urgent.measure",
    "loss": "loss.measure",
    "cost": "recording.measure",
    "slow-pair": "slow_pair.measure",
    "faults": "faults.measure",
}
"""Module and function, loaded when it is measured."""
RESULTS = REPOSITORY / "benchmarks" / "results"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and return the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = _parser()
    chosen = parser.parse_args(arguments)
    folder = Path(tempfile.gettempdir()) if chosen.quick else RESULTS
    date = datetime.now(timezone.utc).date().isoformat()
    machine = hardware_name(torch.device("cpu"))
    path = chosen.rows or folder / "links_rows.jsonl"
    output = chosen.output or folder / f"links_{slug(machine)}_{date}.md"
    if not chosen.render:
        if (reason := why_no_delay()) is not None:
            parser.error(f"no shaped links here: {reason}")
        if not chosen.quick and (failure := failure_of(NUMERICS)) is not None:
            print(failure)
            return 1
        os.environ["OMP_NUM_THREADS"] = "1"
        rows = Rows(path=path, quick=chosen.quick, again=chosen.again)
        for name in chosen.parts:
            module, function = PARTS[name].split(".")
            getattr(importlib.import_module(f".{module}", __package__), function)(rows)
    torch.set_num_threads(1)
    command = shlex.join(["python", "-m", "benchmarks.links", *arguments])
    here = [row for row in read(path) if (row["machine"], row["quick"]) == (machine, chosen.quick)]
    text = document(
        "links", tables(last_of_each(here)), device=torch.device("cpu"), command=command, date=date
    )
    print(text)
    output.write_text(text)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.links",
        description="Measure collectives between two hosts with two ranks each (network namespaces).",
        epilog="example: python -m benchmarks.links --parts rates patterns",
    )
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS), help="default: all")
    parser.add_argument(
        "--quick", action="store_true", help="few rounds, no tests, files in a temporary folder"
    )
    parser.add_argument("--again", action="store_true", help="also what was measured for this commit")
    parser.add_argument("--render", action="store_true", help="only write the result file anew")
    parser.add_argument("--rows", type=Path, help="file to append to (default: in benchmarks/results)")
    parser.add_argument("--output", type=Path, help="result file (default: in benchmarks/results)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
