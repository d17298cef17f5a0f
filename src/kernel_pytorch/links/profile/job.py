"""Running a torchrun command with all of its ranks recorded."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from pathlib import Path
from types import FrameType

from ...errors import KernelPytorchError
from .flight import join_folder

_MAIN = "kernel_pytorch.links.profile.rank_main"
_PASSED_ON = ("SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGINT")


class JobCommandError(KernelPytorchError, ValueError):
    """A command of which the ranks cannot be recorded."""


def recorded_launch(command: Sequence[str], folder: Path, *, check: bool) -> list[str]:
    """A torchrun command that starts the same ranks, recorded.

    Args:
        command: ``torchrun OPTIONS script.py ...``, or ``python -m torch.distributed.run ...``.
        folder: of the run.
        check: agree on each collective.

    Raises:
        JobCommandError: it is no such command, or starts something else than Python.
        SystemExit: torchrun's own parser rejects it, and has said why.
    """
    launcher, options = _launcher(command)
    args = _parsed(options)
    if args.no_python:
        raise JobCommandError("--no-python starts what cannot be recorded", "leave it out")
    kind = "module" if args.module else "script"
    at = _place_of_script(options, args.training_script)
    own = [option for option in options[:at] if option not in ("--run-path", "--run_path")]
    ours = [
        str(folder),
        "check" if check else "plain",
        kind,
        args.training_script,
        *args.training_script_args,
    ]
    return [*launcher, *([] if args.module else ["-m"]), *own, _MAIN, *ours]


def on_one_node(command: Sequence[str]) -> bool:
    """Whether a torchrun command starts all ranks of its job."""
    return _parsed(_launcher(command)[1]).nnodes in ("1", "1:1")


def _parsed(options: Sequence[str]) -> argparse.Namespace:
    """What torchrun reads from its arguments."""
    from torch.distributed.run import get_args_parser

    parser = get_args_parser()
    parser.prog = "torchrun"
    return parser.parse_args(list(options))


def _place_of_script(options: Sequence[str], script: str) -> int:
    """Where in torchrun's arguments the script is: those up to it are a whole command."""
    for at, option in enumerate(options):
        if option == script:
            with open(os.devnull, "w") as nowhere, redirect_stderr(nowhere), suppress(SystemExit):
                if _parsed(options[: at + 1]).training_script == script:
                    return at
    raise AssertionError(f"{script} is not in {options}")


def recorded_rank(command: Sequence[str], folder: Path, *, check: bool) -> list[str]:
    """The command of one rank that torchrun has started, recorded; rank 0 reports.

    Args:
        command: ``script.py ...``, ``-m module ...``, or either after ``python OPTIONS``.

    Raises:
        JobCommandError: it is no such command.
    """
    rest, flags = list(command), []
    if rest and _is_python(rest[0]):
        python = rest.pop(0)
        while rest and rest[0].startswith("-") and rest[0] not in ("-m", "-c"):
            flags.append(rest.pop(0))
            if flags[-1] in ("-W", "-X") and rest:
                flags.append(rest.pop(0))
    else:
        python = sys.executable
    kind = "module" if rest[:1] == ["-m"] else "script"
    if kind == "module":
        rest.pop(0)
    if not rest or rest[0].startswith("-"):
        raise JobCommandError(f"{' '.join(command)!r} names no script", "give train.py, or -m module")
    options = f"{'check' if check else 'plain'}+report"
    return [python, *flags, "-m", _MAIN, str(folder), options, kind, *rest]


def is_launch(command: Sequence[str]) -> bool:
    """Whether a command is one of torchrun."""
    try:
        _launcher(command)
    except JobCommandError:
        return False
    return True


def _launcher(command: Sequence[str]) -> tuple[list[str], list[str]]:
    """What starts torchrun, and its arguments."""
    if command and os.path.basename(command[0]) == "torchrun":
        return list(command[:1]), list(command[1:])
    for at, word in enumerate(command[:-1]):
        if word == "-m" and _is_python(command[0]) and command[at + 1] == "torch.distributed.run":
            return list(command[: at + 2]), list(command[at + 2 :])
    told = f"{command[0]!r} is not torchrun" if command else "there is no command"
    raise JobCommandError(told, "give torchrun ... train.py after --")


def _is_python(word: str) -> bool:
    return os.path.basename(word).startswith("python")


def run(command: Sequence[str]) -> int:
    """Run a command, hand signals on to it, and return its exit status, 128 + N if signal N has ended it.

    Raises:
        OSError: it cannot be started.
    """
    process: subprocess.Popen[bytes] | None = None
    early: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        if process is None:
            early.append(number)
        elif number != signal.SIGINT or not _from_terminal():
            process.send_signal(number)

    with _handled(pass_on):
        process = subprocess.Popen(list(command))
        for number in early:
            process.send_signal(number)
        status = process.wait()
    return 128 - status if status < 0 else status


@contextmanager
def _handled(handler: signal._HANDLER) -> Iterator[None]:
    numbers = [getattr(signal, name) for name in _PASSED_ON if hasattr(signal, name)]
    # What is ignored here (nohup) is ignored in the command, too.
    before = {number: signal.getsignal(number) for number in numbers}
    for number, old in before.items():
        if old is not signal.SIG_IGN:
            signal.signal(number, handler)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old if old is not None else signal.SIG_DFL)


def _from_terminal() -> bool:
    """Whether the terminal sends Ctrl-C to this process and to the command alike."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)


def report_of(folder: Path) -> str:
    """Write the report of a run folder, and return what a user is told; why, if there is none."""
    from .report import write_report

    try:
        join_folder(folder)
        return write_report(folder)
    except (OSError, ValueError) as error:
        return f"no report: {error}"
