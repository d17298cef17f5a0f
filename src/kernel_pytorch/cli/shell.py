"""What ``kernel-pytorch`` and ``longnet`` share: parser, one-line errors, exit statuses, JSON, version.

Exit status: 0 success, 1 failure, 2 usage error or output that cannot be written, 130 Ctrl-C, 141 broken
pipe, 143 SIGTERM. For a command that runs until it is interrupted, Ctrl-C is success.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr, suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any, NoReturn, Protocol

from .. import __version__
from ..errors import KernelPytorchError
from .errors import CommandError

INTERRUPTED, TERMINATED, BROKEN_PIPE = 128 + signal.SIGINT, 128 + signal.SIGTERM, 141


class Terminated(KeyboardInterrupt):
    """SIGTERM was received. Derived from KeyboardInterrupt, so that it ends a command as Ctrl-C does."""


def status_of(interrupt: KeyboardInterrupt) -> int:
    """Exit status of a command that runs until it is interrupted: 0 for Ctrl-C, its regular end."""
    return TERMINATED if isinstance(interrupt, Terminated) else 0


@dataclass(frozen=True)
class Command:
    """A command of a program."""

    name: str
    help: str
    module: str
    """A module with ``add_arguments(parser)`` and ``run(args)``, which returns the exit status. It is
    imported when the command is used."""
    takes_command: bool = False
    """Whether what follows the first ``--`` is a user's command: ``args.user_command``, else None."""


class Peers(Protocol):
    """The processes that run one command together, as seen by one of them: a module's ``args.peers``."""

    @property
    def rank(self) -> int:
        """Number of this process among them."""

    @property
    def first(self) -> bool:
        """Whether this process is the one that prints."""

    def gather(self, value: Any) -> Any:
        """The values of all processes; returns when all have called it."""


@dataclass(frozen=True)
class Program:
    """A command line: ``name COMMAND ...``."""

    name: str
    description: str
    commands: tuple[Command, ...]

    def main(self, argv: Sequence[str] | None = None, peers: Peers | None = None) -> int:
        """Run a command and return its exit status.

        Args:
            argv: the arguments; default: ``sys.argv[1:]``. Without any, the help is printed.
            peers: the processes that run the same command with the same arguments.
        """
        arguments = list(sys.argv[1:] if argv is None else argv) or ["--help"]
        command = self._command(arguments)
        name = self.name if command is None else f"{self.name} {command.name}"
        quiet = peers is not None and not peers.first

        def report(reason: object) -> None:
            if not quiet:
                _print_error(f"{name}: {reason}")

        _prepare_streams()
        # The launcher of several processes also ends them: a rank blocked in a collective runs no handler.
        with _sigterm_as_interrupt() if peers is None else nullcontext():
            try:
                status = self._run(arguments, command, peers, quiet)
            except KernelPytorchError as error:
                if isinstance(error, CommandError) and error.of_one:
                    rank = "" if peers is None else f"rank {peers.rank}: "
                    _print_error(f"{name}: error: {rank}{error}")
                    return error.status
                report(f"error: {error}")
                status = error.status if isinstance(error, CommandError) else 1
            except BrokenPipeError:
                status = BROKEN_PIPE
            except OSError as error:
                reason = f"{error.filename}: {error.strerror}" if error.filename else str(error)
                report(f"error: {reason}")
                status = 2
            except KeyboardInterrupt as interrupt:
                terminated = isinstance(interrupt, Terminated)
                report("terminated" if terminated else "interrupted")
                return TERMINATED if terminated else INTERRUPTED
            finally:
                _discard_unwritten()
            if peers is not None:  # when one exits, the launcher may kill the others while they print
                peers.gather(None)
            return status

    def _run(
        self, arguments: Sequence[str], command: Command | None, peers: Peers | None, quiet: bool
    ) -> int:
        if sys.stdout is None:
            raise CommandError("standard output is closed")
        parser = self._parser(command)
        user_command = None
        if command is not None and command.takes_command and "--" in arguments:
            at = arguments.index("--")
            arguments, user_command = arguments[:at], list(arguments[at + 1 :])
        elif command is not None and command.takes_command:
            parser.hint = "a command comes after --"
        try:
            with open(os.devnull, "w") as nowhere, redirect_stderr(nowhere) if quiet else nullcontext():
                args = parser.parse_args(arguments)
            args.peers, args.user_command = peers, user_command
            status: int = args.execute(args)
        except SystemExit as exit:  # of argparse
            status = exit.code if isinstance(exit.code, int) else 0
        sys.stdout.flush()  # here a full disk or a broken pipe can still be reported
        return status

    def _command(self, arguments: Sequence[str]) -> Command | None:
        """The command named by the first argument that is not an option; options before it take no value."""
        given = next((argument for argument in arguments if not argument.startswith("-")), None)
        return next((command for command in self.commands if command.name == given), None)

    def _parser(self, chosen: Command | None) -> _Parser:
        parser = _Parser(prog=self.name, description=self.description, allow_abbrev=False)
        parser.add_argument("--version", action=_Version, help="print the version and exit")
        commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
        for command in self.commands:
            below = commands.add_parser(
                command.name,
                help=command.help,
                allow_abbrev=False,
                formatter_class=argparse.RawDescriptionHelpFormatter,
            )
            if command is chosen:
                module = importlib.import_module(command.module)
                module.add_arguments(below)
                below.set_defaults(execute=module.run)
        return parser


class _Parser(argparse.ArgumentParser):
    hint = ""
    """What may be wrong where there are arguments that are not known."""

    def print_help(self, file: Any = None) -> None:
        print(self.format_help(), end="", file=file)  # argparse ignores errors of writing

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        found, unknown = super().parse_known_args(args, namespace)
        valid = [name for action in self._actions for name in action.option_strings]
        for argument in unknown:
            near = difflib.get_close_matches(argument.partition("=")[0], valid, n=1, cutoff=0.8)
            if near and argument.startswith("--"):
                self.error(f"unrecognized arguments: {' '.join(unknown)}; did you mean {near[0]}?")
        if unknown and self.hint:
            self.error(f"unrecognized arguments: {' '.join(unknown)}; {self.hint}")
        return found, unknown

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())} (see {self.prog} --help)\n")


class _Version(argparse.Action):
    """Print the version; argparse's own action ignores errors of writing."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(f"{parser.prog} {__version__}")
        parser.exit()


def add_json(parser: argparse.ArgumentParser, what: str) -> None:
    """Add ``--json``: print ``what``, which the command does with :func:`print_json`."""
    parser.add_argument("--json", action="store_true", help=f"print {what}")


def print_json(data: object) -> None:
    """Print a dataclass, msgspec struct or builtin as one line of JSON, in ASCII for any terminal."""
    import json

    import msgspec

    print(json.dumps(msgspec.to_builtins(data), separators=(",", ":")))


def _print_error(line: str) -> None:
    with suppress(OSError):  # without standard error the exit status must do
        print(line, file=sys.stderr)


def _prepare_streams() -> None:
    """Make standard streams write ``?`` for what they cannot encode; discard errors if stderr is closed."""
    if sys.stderr is None:  # print(file=None) would write to stdout
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115  (for as long as the process runs)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _discard_unwritten() -> None:
    """Discard buffered output, or the interpreter flushes it again at exit and prints a traceback."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except OSError:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """Make SIGTERM raise :class:`Terminated`; without a handler the first process of a container ignores it.

    No effect if the signal is already handled or ignored, or outside the main thread.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def terminate(number: int, frame: FrameType | None) -> None:
        raise Terminated

    signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGTERM) is terminate:  # else the command has decided what it means
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
