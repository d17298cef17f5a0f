"""The ``kernel-pytorch`` command."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from . import probe
from .errors import CommandError


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``kernel-pytorch`` with ``argv``, by default the process's arguments; returns its exit status."""
    parser = _Parser(prog="kernel-pytorch", description="The machine and the job.", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    probe.add_parser(commands)
    try:
        args = parser.parse_args(argv)
        status: int = args.run(args)
        sys.stdout.flush()  # here, where a full disk or a reader that went away can be told
        return status
    except SystemExit as exit:
        return exit.code if isinstance(exit.code, int) else 0
    except CommandError as error:
        return _complain(args.command, str(error), 2)
    except BrokenPipeError:  # nobody reads any more
        _drop_output()
        return 141
    except OSError as error:
        _drop_output()
        said = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        return _complain(args.command, said, 2)
    except KeyboardInterrupt:
        print(f"kernel-pytorch {args.command}: interrupted", file=sys.stderr)
        return 130


def _drop_output() -> None:
    """What cannot be printed now would be tried again at exit, where Python complains."""
    try:
        sys.stdout.flush()
    except OSError:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())


def _complain(command: str, reason: str, status: int) -> int:
    print(f"kernel-pytorch {command}: error: {reason}", file=sys.stderr)
    return status
