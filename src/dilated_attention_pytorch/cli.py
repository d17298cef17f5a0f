"""The ``longnet`` command."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from kernel_pytorch.cli.shell import Command, Program

from .train.ranks import as_one_of_several, launched

PROGRAM = Program(
    "longnet",
    "Train and run byte-level LongNet language models.",
    (
        Command("train", "train a model on text", "dilated_attention_pytorch.train.command"),
        Command(
            "evaluate",
            "bits per byte of a trained model, by position in the context",
            "dilated_attention_pytorch.train.evaluate",
        ),
        Command(
            "generate", "continue a prompt with a trained model", "dilated_attention_pytorch.train.generate"
        ),
    ),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``longnet`` with the arguments ``argv``, by default the process's, and return its exit status.

    ``longnet train`` is one of several ranks where torchrun started it.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["train"] and launched():
        return as_one_of_several(lambda ranks: PROGRAM.main(arguments, ranks))
    return PROGRAM.main(arguments)


if __name__ == "__main__":
    sys.exit(main())
