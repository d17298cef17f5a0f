"""``kernel-pytorch migrate``: old module paths and names in Python files, rewritten."""

from __future__ import annotations

import argparse
import sys
from importlib import util
from pathlib import Path

from ..legacy import REMOVED_IN
from ..migrate.find import python_files
from ..migrate.migrate import Outcome, migrate
from .errors import CommandError
from .shell import add_json, print_json

_EPILOG = f"""\
Rewrites imports of modules that moved and of names that were renamed, in kernel_pytorch and
dilated_attention_pytorch, and their uses through a module; the old ones are removed in {REMOVED_IN}. A
variable keeps its name: `from m import Old` becomes `from m import New as Old`. All else stays byte for byte,
and a second run changes nothing. No file is imported or run.

Folders are searched for *.py and *.pyi files; hidden folders, virtual environments and links are skipped.
Reported on standard error as FILE:LINE, for you to decide: import *, old paths in strings other than the
exact argument of importlib.import_module, mock.patch or monkeypatch, and names that mean something else now.
Patches of old modules are reported too: a patch of the new place does not reach code that still reads the
old one. Comments and docstrings are not read.

examples:
  kernel-pytorch migrate src tests
  kernel-pytorch migrate src tests --write

Exit status: without --write 1 if a file would change, 0 if none would; with --write 0. In both cases 1 if a
file or folder was left alone because this Python cannot parse it or it cannot be read or written. 2: usage
error.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``migrate``."""
    parser.description = (
        "Rewrite old module paths and names in Python files. By default only print what would change."
    )
    parser.epilog = _EPILOG
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="a file or a folder")
    parser.add_argument("--write", action="store_true", help="change the files")
    parser.add_argument("--diff", action="store_true", help="with --write: print the diff, too")
    add_json(parser, "JSON: path, diff, notes and problem of each file that has any")


def run(args: argparse.Namespace) -> int:
    """Run ``migrate`` and return its exit status."""
    if util.find_spec("libcst") is None:
        raise CommandError("migrate needs libcst: pip install libcst")
    for path in args.paths:
        if not path.exists():
            raise CommandError(f"{path}: no such file or folder")
        if not (path.is_file() or path.is_dir()):
            raise CommandError(f"{path}: neither a file nor a folder")
    outcomes = []

    def unreadable(path: Path, why: str) -> None:
        outcomes.append(Outcome(path=str(path), problem=why))
        _say(outcomes[-1])

    def linked(path: Path, why: str) -> None:
        print(f"{path}: left alone: {why}", file=sys.stderr)

    for path in python_files(args.paths, unreadable, linked):
        outcome = migrate(path, write=args.write)
        outcomes.append(outcome)
        _say(outcome)
        if not args.json and (args.diff or not args.write):
            print(outcome.diff, end="")
    changed = sum(bool(outcome.diff) for outcome in outcomes)
    if args.json:
        print_json([one for one in outcomes if one.diff or one.notes or one.problem])
    elif args.write:
        print(f"files changed: {changed}", file=sys.stderr)
    failed = any(outcome.problem for outcome in outcomes)
    return 1 if failed or (changed and not args.write) else 0


def _say(outcome: Outcome) -> None:
    for note in outcome.notes:
        print(f"{outcome.path}:{note.line}: {note.text}", file=sys.stderr)
    if outcome.problem is not None:
        print(f"{outcome.path}: left alone: {outcome.problem}", file=sys.stderr)
