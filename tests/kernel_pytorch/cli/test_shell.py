"""What both command lines have in common, with commands made up."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

import kernel_pytorch.cli
from kernel_pytorch.cli.errors import CommandError
from kernel_pytorch.cli.shell import Command, Program, Terminated, print_json, status_of
from kernel_pytorch.errors import Unavailable


def add_arguments(parser):
    parser.description = "Does something."
    parser.add_argument("--count", type=int)


@pytest.fixture
def program(monkeypatch) -> Callable[..., Program]:
    """A program with one command, ``work``, that calls a function."""

    def make(run: Callable[..., int]) -> Program:
        module = types.ModuleType("made_up_work")
        module.add_arguments, module.run = add_arguments, run
        monkeypatch.setitem(sys.modules, module.__name__, module)
        return Program("tool", "A tool.", (Command("work", "do it", module.__name__),))

    return make


def raising(error: BaseException) -> Callable[..., int]:
    def run(args):
        raise error

    return run


class OfOneError(CommandError):
    of_one = True


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (CommandError("bad\n value"), 2, "error: bad value"),
        (CommandError("not finite", status=1), 1, "error: not finite"),
        (OfOneError("out of memory", status=1), 1, "error: out of memory"),
        (Unavailable("no cluster", "log in"), 1, "error: no cluster: log in"),
        (FileNotFoundError(2, "No such file or directory", "x"), 2, "error: x: No such file or directory"),
        (OSError(28, "No space left on device"), 2, "error: [Errno 28] No space left on device"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (Terminated(), 143, "terminated"),
        (BrokenPipeError(), 141, None),
    ],
    ids=repr,
)
def test_what_ends_a_command_is_one_line_and_a_status(program, capsys, error, status, line):
    assert program(raising(error)).main(["work"]) == status
    assert capsys.readouterr() == ("", "" if line is None else f"tool work: {line}\n")


def test_an_error_of_ours_keeps_its_traceback(program):
    with pytest.raises(ZeroDivisionError):
        program(lambda args: 1 // 0).main(["work"])


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--"], "tool: error: the following arguments are required: COMMAND (see tool --help)"),
        (["wrok"], "tool: error: argument COMMAND: invalid choice: 'wrok'"),
        (["work", "--count", "many"], "tool work: error: argument --count: invalid int value: 'many'"),
        (["work", "a\nb"], "tool: error: unrecognized arguments: a b (see tool --help)"),
        (["work", "--cou", "3"], "tool work: error: unrecognized arguments: --cou 3; did you mean --count?"),
        (["work", "--xyz=3"], "tool: error: unrecognized arguments: --xyz=3 (see tool --help)"),
    ],
    ids=" ".join,
)
def test_a_mistake_is_one_line_and_status_2(program, capsys, arguments, line):
    assert program(lambda args: 0).main(arguments) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(line)


def test_the_status_is_that_of_the_command(program, capsys):
    given = []
    assert (
        program(lambda args: given.append((args.count, args.peers)) or 7).main(["work", "--count", "3"]) == 7
    )
    assert given == [(3, None)]
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("arguments", "rest"),
    [
        (["work"], None),
        (["work", "--"], []),
        (["work", "--count", "3", "--", "run", "--count", "x", "--", ""], ["run", "--count", "x", "--", ""]),
    ],
)
def test_a_users_command_is_not_parsed(monkeypatch, arguments, rest):
    given = []
    module = types.ModuleType("made_up_work")
    module.add_arguments, module.run = add_arguments, lambda args: given.append(args.user_command) or 0
    monkeypatch.setitem(sys.modules, module.__name__, module)
    program = Program("tool", "A tool.", (Command("work", "do it", module.__name__, takes_command=True),))
    assert program.main(arguments) == 0
    assert given == [rest]


def test_help(program, capsys):
    assert program(lambda args: 1).main(["--help"]) == 0
    out, _ = capsys.readouterr()
    assert "A tool." in out
    assert "    work      do it" in out
    assert program(lambda args: 1).main([]) == 0
    assert capsys.readouterr() == (out, "")
    assert program(lambda args: 1).main(["work", "--help"]) == 0
    assert "Does something." in capsys.readouterr().out


def test_a_module_is_loaded_for_its_own_command_only():
    heavy = ("msgspec", "kernel_pytorch.cli.probe", "kernel_pytorch.machine")
    script = (
        "import sys; from kernel_pytorch.cli import main; main(['--help']); "
        f"print([module for module in {heavy} if module in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("\n[]\n")


def test_the_version(capsys):
    assert kernel_pytorch.cli.main(["--version"]) == 0
    assert capsys.readouterr() == (f"kernel-pytorch {kernel_pytorch.__version__}\n", "")


@dataclass
class Rank:
    rank: int
    said: list[str] = field(default_factory=list)

    @property
    def first(self) -> bool:
        return self.rank == 0

    def gather(self, value: object) -> list[object]:
        self.said.append("met")
        return [value]


@pytest.mark.parametrize(
    ("run", "status", "lines", "meet"),
    [
        (lambda args: 3, 3, ("", ""), True),
        (raising(CommandError("no text")), 2, ("tool work: error: no text\n", ""), True),
        (raising(OSError("full")), 2, ("tool work: error: full\n", ""), True),
        (raising(KeyboardInterrupt()), 130, ("tool work: interrupted\n", ""), False),
        (
            raising(OfOneError("memory", status=1)),
            1,
            ("tool work: error: rank 0: memory\n", "tool work: error: rank 1: memory\n"),
            False,
        ),
    ],
    ids=["done", "the user's", "of the system", "interrupted", "of one rank"],
)
def test_of_several_processes_the_first_speaks_and_all_meet_before_they_leave(
    program, capsys, run, status, lines, meet
):
    for number, line in enumerate(lines):
        rank = Rank(number)
        assert program(run).main(["work"], rank) == status
        assert (capsys.readouterr().err, rank.said) == (line, ["met"] * meet)


def test_of_several_processes_the_first_tells_of_a_mistake(program, capsys):
    for number, lines in enumerate((1, 0)):
        rank = Rank(number)
        assert program(lambda args: 0).main(["work", "--nonsense"], rank) == 2
        assert (capsys.readouterr().err.count("\n"), rank.said) == (lines, ["met"])


def test_peers_reach_the_command(program):
    given = []
    program(lambda args: given.append(args.peers) or 0).main(["work"], Rank(4))
    assert given == [Rank(4, ["met"])]


def test_sigterm_ends_a_command_as_ctrl_c_does_and_is_given_back(program, capsys):
    def run(args):
        os.kill(os.getpid(), signal.SIGTERM)
        return 0

    assert program(run).main(["work"]) == 143
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert capsys.readouterr().err == "tool work: terminated\n"
    assert (status_of(Terminated()), status_of(KeyboardInterrupt())) == (143, 0)


def test_what_a_command_decides_about_sigterm_stays_until_the_process_ends(program):
    try:
        assert program(lambda args: signal.signal(signal.SIGTERM, signal.SIG_IGN) and 0).main(["work"]) == 0
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def test_sigterm_stays_with_who_handles_it_or_ignores_it(program):
    handlers = []

    def run(args):
        handlers.append(signal.getsignal(signal.SIGTERM))
        return 0

    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        program(run).main(["work"])
    finally:
        signal.signal(signal.SIGTERM, before)
    program(run).main(["work"], Rank(0))  # torchrun ends its ranks
    assert handlers == [signal.SIG_IGN, signal.SIG_DFL]


def test_json_is_ascii_and_loses_nothing(monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    data = {"ä": ["𝄞", "\udcff", "\ufffd", 1.5, None], "1": "\n"}
    print_json(data)
    out.flush()
    printed = out.buffer.getvalue()
    assert printed.count(b"\n") == 1
    assert json.loads(printed) == data


def test_streams_replace_what_they_cannot_encode(program, monkeypatch):
    streams = {}
    for name in ("stdout", "stderr"):
        streams[name] = io.TextIOWrapper(io.BytesIO(), encoding="ascii", line_buffering=True)
        monkeypatch.setattr(sys, name, streams[name])

    def run(args):
        print("caf\u00e9 \udcff")
        raise CommandError("na\u00efve")

    assert program(run).main(["work"]) == 2
    assert streams["stdout"].buffer.getvalue() == b"caf? ?\n"
    assert streams["stderr"].buffer.getvalue() == b"tool work: error: na?ve\n"
