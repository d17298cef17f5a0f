"""The ``longnet`` command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from .train.command import run_train
from .train.errors import CommandError
from .train.generate import run_generate
from .train.options import add_arguments

_TRAIN_EXAMPLE = """\
examples:
  longnet train                                   on the Python standard library, context 8192
  longnet train --data books --seq-len 65536 --run books-64k --steps 2000
  longnet train --resume runs/books-64k           go on after Ctrl-C, SIGTERM or a crash

A run folder has config.json, metrics.jsonl, loss.png, checkpoint.pt and sample.txt.
--resume takes the options from there; of them --data, --checkpoint-every, --prompt, --sample-bytes,
--device and --threads may be given anew.
Exit status: 0 trained, 130 or 143 stopped by Ctrl-C or SIGTERM with a checkpoint, 2 a mistake in what
was given, 1 a failure of the computation.
"""

_GENERATE_EXAMPLE = """\
example:
  longnet generate runs/books-64k --prompt 'It was ' --bytes 200 --temperature 0.8 --top-k 50 --seed 0
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``longnet`` with the arguments ``argv``, by default the process's, and return its exit status."""
    command = "longnet"
    try:
        args = _parser().parse_args(argv)
        command = f"longnet {args.command}"
        return run_train(args) if args.command == "train" else run_generate(args)
    except SystemExit as exit:
        return exit.code if isinstance(exit.code, int) else 0
    except CommandError as error:
        print(f"{command}: error: {error}", file=sys.stderr)
        return error.status
    except OSError as error:
        reason = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        print(f"{command}: error: {reason}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{command}: interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="longnet", description="Train and run byte-level LongNet language models.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    train = commands.add_parser(
        "train",
        help="train a model on text",
        description="Train a byte-level LongNet language model on text files.",
        epilog=_TRAIN_EXAMPLE,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    where = train.add_mutually_exclusive_group()
    where.add_argument("--run", help="name of the new run below runs/, or its folder; default: the time")
    where.add_argument(
        "--resume", metavar="RUN", help="go on with this run: its folder, or its name below runs/"
    )
    add_arguments(train)

    generate = commands.add_parser(
        "generate",
        help="continue a prompt with a trained model",
        description="Continue a prompt with the model of a run.",
        epilog=_GENERATE_EXAMPLE,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    generate.add_argument("run", metavar="RUN", help="folder of the run, or its name below runs/")
    generate.add_argument("--prompt", required=True, help="text to continue")
    generate.add_argument("--bytes", type=int, default=200, help="bytes to generate (default: 200)")
    generate.add_argument(
        "--temperature", type=float, default=0.8, help="0: always the likeliest byte (default: 0.8)"
    )
    generate.add_argument("--top-k", type=int, help="choose among this many bytes only; default: all")
    generate.add_argument("--seed", type=int, default=0, help="seed of the choice (default: 0)")
    generate.add_argument("--device", default="auto", help="cpu, cuda, ... (default: auto)")
    generate.add_argument("--json", action="store_true", help="print one JSON object")
    return parser
