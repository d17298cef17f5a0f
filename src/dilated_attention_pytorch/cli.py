"""The ``longnet`` command."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stderr
from typing import NoReturn

from .train.command import run_train
from .train.errors import CommandError, RankError
from .train.generate import run_generate
from .train.options import add_arguments, add_split_arguments
from .train.ranks import Ranks, as_one_of_several, launched

_TRAIN_EXAMPLE = """\
examples:
  longnet train                                   on the Python standard library, context 8192
  longnet train --data books --seq-len 65536 --run books-64k --steps 2000
  longnet train --resume runs/books-64k           go on after Ctrl-C, SIGTERM or a crash
  torchrun --nproc-per-node 4 -m dilated_attention_pytorch.train -- --run long --context-parallel 4

Each process that torchrun starts has a part of the parameters, of each batch and, with --context-parallel,
of each context; the numbers are those of one process. Any number of processes, one too, resumes the run.
The -- keeps torchrun from taking --run for one of its own options.

A run folder has config.json, metrics.jsonl, loss.png, sample.txt and checkpoint.pt (and, of several
processes, the folder with its tensors: shards-0 or shards-1).
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
    """Run ``longnet`` with the arguments ``argv``, by default the process's, and return its exit status.

    ``longnet train`` is one of several ranks where torchrun started it.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["train"] and launched():
        return as_one_of_several(lambda ranks: _run(arguments, ranks))
    return _run(arguments, Ranks())


def _run(arguments: Sequence[str], ranks: Ranks) -> int:
    command = "longnet"

    def complain(reason: object) -> None:
        if ranks.first:
            print(f"{command}: {reason}", file=sys.stderr)

    try:
        args = _parse(arguments, ranks)
        command = f"longnet {args.command}"
        status = run_train(args, ranks) if args.command == "train" else run_generate(args)
    except SystemExit as exit:
        status = exit.code if isinstance(exit.code, int) else 0
    except RankError as error:
        rank = f"rank {ranks.rank}: " if ranks.size > 1 else ""
        print(f"{command}: error: {rank}{error}", file=sys.stderr)
        return error.status
    except CommandError as error:
        complain(f"error: {error}")
        status = error.status
    except OSError as error:
        complain(f"error: {error.filename}: {error.strerror}" if error.filename else f"error: {error}")
        status = 2
    except KeyboardInterrupt:
        complain("interrupted")
        return 130
    # Whoever ends first with a failure has torchrun end the others, in the middle of what they say.
    ranks.gather(None)
    return status


def _parse(arguments: Sequence[str], ranks: Ranks) -> argparse.Namespace:
    with open(os.devnull, "w") as nowhere, nullcontext() if ranks.first else redirect_stderr(nowhere):
        return _parser().parse_args(arguments)


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
    add_split_arguments(train)

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
