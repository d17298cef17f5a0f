"""``python -m benchmarks.run NAME ...``: check the numerics, measure, print the tables, write the results.

Exit status: 0 measured (a missed target too), 1 numbers are wrong, 2 bad usage.
"""

from __future__ import annotations

import argparse
import importlib.util
import shlex
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

import torch

from . import advisor, attention, hilbert, pool, ring, telemetry  # noqa: F401  (they register themselves)
from .registry import BENCHMARKS, NumericsError, Options, UsageError
from .report import document, hardware_name, slug
from .verify import REPOSITORY, failure_of

if importlib.util.find_spec("triton") is not None:
    from . import ahead_of_time, triton_gpu  # noqa: F401


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one benchmark and return the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = _parser()
    chosen = parser.parse_args(arguments)
    if chosen.list:
        for name, entry in BENCHMARKS.items():
            print(f"{name:12} {entry.summary}")
        return 0
    for name in chosen.names or [None]:
        if name not in BENCHMARKS:
            parser.error(f"name one or more of the benchmarks {', '.join(BENCHMARKS)}; got {name}")
    if chosen.output is not None and len(chosen.names) > 1:
        parser.error(f"--output {chosen.output}: takes one benchmark, got {', '.join(chosen.names)}")
    device = torch.device(chosen.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch finds no CUDA device here")
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    torch.set_float32_matmul_precision(chosen.float32_matmul_precision)
    date = datetime.now(timezone.utc).date().isoformat()
    results = REPOSITORY / "benchmarks" / "results"
    outputs = {
        name: chosen.output or results / f"{name}_{slug(hardware_name(device))}_{date}.md"
        for name in chosen.names
    }
    for output in outputs.values():  # before the run, which a path that cannot be written must not cost
        if output.is_dir():
            parser.error(f"--output {output}: is a folder; name a file")
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            parser.error(f"--output {output}: {error.strerror}")

    options = Options(
        device=device,
        seq=chosen.seq,
        pairs=chosen.pairs,
        max_seconds=chosen.max_seconds,
        cases=tuple(chosen.cases),
    )
    command = shlex.join(["python", "-m", "benchmarks.run", *arguments])
    for name, output in outputs.items():
        entry = BENCHMARKS[name]
        failure = failure_of(entry.numerics)
        if failure is not None:
            print(failure)
            return 1
        try:
            tables = entry.measure(options)
        except UsageError as error:
            parser.error(str(error))
        except NumericsError as error:
            print(f"wrong result: {error}")
            return 1
        text = document(name, tables, device=device, command=command, date=date)
        print(text)
        output.write_text(text)
        print(f"written to {output}", file=sys.stderr)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.run",
        description="Run the numerics tests, then a benchmark; no figure is printed when a test fails.",
        epilog="example: python -m benchmarks.run attention --threads 2 --cases forward-large memory",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="which benchmarks")
    parser.add_argument("--list", action="store_true", help="show the benchmarks and exit")
    parser.add_argument("--seq", type=_positive, default=Options.seq, help="tokens (default %(default)s)")
    parser.add_argument(
        "--pairs",
        type=_positive,
        default=Options.pairs,
        help="interleaved pairs per figure (default %(default)s)",
    )
    parser.add_argument(
        "--max-seconds",
        type=float,
        default=Options.max_seconds,
        help="stop a figure after this long, with 3 pairs at least (default %(default)s)",
    )
    parser.add_argument(
        "--cases",
        nargs="+",
        default=[],
        metavar="PART",
        help="only the cases with one of these in their names",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    parser.add_argument("--threads", type=_positive, help="CPU threads (default: PyTorch's choice)")
    parser.add_argument(
        "--float32-matmul-precision",
        choices=("highest", "high", "medium"),
        default="highest",
        help="torch.set_float32_matmul_precision for the measurement (default %(default)s)",
    )
    parser.add_argument(
        "--output", type=Path, help="result file (default benchmarks/results/NAME_HARDWARE_DATE.md)"
    )
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


if __name__ == "__main__":
    sys.exit(main())
