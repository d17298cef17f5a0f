"""``kernel-pytorch advise``: what makes a model faster, proved on copies of it."""

from __future__ import annotations

import argparse
import shutil
import sys
from importlib import resources, util
from pathlib import Path
from typing import TYPE_CHECKING

from ..advice.facts import LEVELS, Options
from ..advice.inputs import GRAMMAR, check_keywords, parse_input
from ..advice.messages import Request
from ..advice.supervise import Supervisor
from ..advice.target import Named, TargetError
from .advise_options import check_output, lengths, memory_bytes, seconds
from .errors import CommandError
from .shell import add_json, print_json

if TYPE_CHECKING:
    from ..advice.facts import AdviceReport

_EPILOG = f"""\
FILE:NAME is a torch.nn.Module of a Python file, or a function or class that returns one when it is called
without arguments. Loading it runs the file's code, as does each call of the model: advise only on files that
you would run. Nothing is fetched and no weights are unpickled.

{GRAMMAR}
--loss is a function (outputs, inputs) -> scalar; default: the outputs' .loss, else their mean square.
--optimizer is a function or class: parameters -> torch.optim.Optimizer; default: none, gradients alone.

levels:
  conservative   equal results, no compiler
  balanced       also torch.compile
  aggressive     also what loses precision, up to --max-error

examples:
  kernel-pytorch advise model.py:make_model --input 'randn(1, 1024, 256)'
  kernel-pytorch advise model.py:Net --input 'randint(0, 1000, (1, 1024))' --input 'mask=ones(1, 1024)'
  kernel-pytorch advise model.py:Net --input model.py:make_inputs --training --optimizer model.py:make_adamw
  kernel-pytorch advise model.py:Net --input 'randn(1, 1024, 256)' --lengths 512,2048 --memory 8GB
  kernel-pytorch advise model.py:Net --input 'randn(1, 1024, 256)' --write fast.py --html report.html

A run takes at most 15 s longer than --budget. What the model prints goes to standard error.

Exit status: 0 done, 1 the model failed on the inputs, 2 a mistake in what was given, 130 ended by Ctrl-C with
the results so far, 143 by SIGTERM.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``advise``."""
    parser.description = (
        "Analyse a PyTorch model and prove what makes it faster: each change is applied to a copy, its "
        "outputs and gradients are compared, it is timed, and kept or reverted."
    )
    parser.epilog = _EPILOG
    parser.add_argument("target", nargs="?", metavar="FILE:NAME", help="the model, or what returns it")
    parser.add_argument(
        "--input", action="append", default=[], metavar="INPUT", help="an input; see below; may be repeated"
    )
    parser.add_argument("--training", action="store_true", help="measure training steps, not inference")
    parser.add_argument("--loss", metavar="FILE:NAME", help="loss function of a training step")
    parser.add_argument(
        "--optimizer", metavar="FILE:NAME", help="what makes the optimizer of a training step"
    )
    parser.add_argument(
        "--level", choices=LEVELS, default="balanced", help="what may be tried (default: balanced)"
    )
    parser.add_argument(
        "--max-error",
        type=float,
        default=0.01,
        metavar="X",
        help="relative RMS error up to which a change that loses precision is kept (default: 0.01)",
    )
    parser.add_argument(
        "--memory", metavar="SIZE", help="what a call may need, as 8GB (default: what the process is granted)"
    )
    parser.add_argument("--lengths", metavar="N,N", help="other lengths to look at, as 512,2048")
    parser.add_argument(
        "--budget", default="120s", metavar="TIME", help="for all trials, as 90s or 5m (default: 120s)"
    )
    add_json(parser, "JSON, which --schema describes")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the report as one page")
    parser.add_argument(
        "--write", type=Path, metavar="FILE", help="write Python that rebuilds the optimised model"
    )
    parser.add_argument("--schema", action="store_true", help="print the JSON schema of --json")


def run(args: argparse.Namespace) -> int:
    """Run ``advise`` and return its exit status."""
    if args.schema:
        schema = resources.files("kernel_pytorch.advice").joinpath("advice.schema.json")
        print(schema.read_text(encoding="utf-8"), end="")
        return 0
    try:
        request = request_of(args)
        supervisor = Supervisor(request, _say)
        try:
            supervisor.run()
        except KeyboardInterrupt:
            _show(supervisor.report(), args)
            raise
    except TargetError as error:
        raise CommandError(str(error)) from error
    report = supervisor.report()
    _show(report, args)
    if report is not None and report.facts.failed:
        raise CommandError(f"the model could not be run: {report.facts.failed}", status=1)
    return 0


def request_of(args: argparse.Namespace) -> Request:
    """What the workers are to do, checked as far as it can be without running the user's code.

    Raises:
        CommandError, TargetError: a mistake in what was given.
    """
    if args.target is None:
        raise CommandError("FILE:NAME is needed, as model.py:make_model")
    if not args.input:
        raise CommandError("--input is needed, as --input 'randn(1, 1024, 256)'")
    if not args.training and (args.loss or args.optimizer):
        raise CommandError(f"{'--loss' if args.loss else '--optimizer'} is for --training")
    named = [Named.of(args.target)]
    inputs = tuple(parse_input(text) for text in args.input)
    check_keywords(inputs)
    named += [one.named for one in inputs if one.named is not None]
    for option in ("loss", "optimizer"):
        text = getattr(args, option)
        named += [Named.of(text, f"--{option}")] if text is not None else []
    for option in ("html", "write"):
        path = getattr(args, option)
        if path is not None:
            check_output(path, f"--{option}", [one.file for one in named])
    if args.html is not None and args.write is not None and args.html.resolve() == args.write.resolve():
        raise CommandError(f"--html and --write name the same file: {args.html}")
    if not 0 < args.max_error < float("inf"):
        raise CommandError(f"--max-error must be positive and finite, got {args.max_error:g}")
    options = Options(
        level=args.level,
        training=args.training,
        max_error=args.max_error,
        memory_bytes=None if args.memory is None else memory_bytes(args.memory),
        lengths=() if args.lengths is None else lengths(args.lengths),
        budget_s=seconds(args.budget),
    )
    if util.find_spec("torch") is None:
        raise CommandError("advise needs torch: pip install torch")
    return Request(
        target=args.target,
        inputs=tuple(args.input),
        loss=args.loss,
        optimizer=args.optimizer,
        options=options,
        started=0.0,
        analysis_until=0.0,
        until=0.0,
    )


def _show(report: AdviceReport | None, args: argparse.Namespace) -> None:
    if report is None:
        return
    try:
        _save(report, args)  # before printing, which a closed pipe ends
    finally:
        _print(report, args)


def _print(report: AdviceReport, args: argparse.Namespace) -> None:
    if args.json:
        print_json(report)
    else:
        from ..advice.text import text

        width = max(80, shutil.get_terminal_size((110, 24)).columns)
        print(text(report, width, hint="--write FILE saves it" if args.write is None else ""))


def _save(report: AdviceReport, args: argparse.Namespace) -> None:
    try:
        if args.html is not None:
            report.to_html(args.html)
            _say(f"{args.html} is written")
    finally:
        if args.write is not None:
            try:
                report.write(args.write, args.target)
            except ValueError as why:
                _say(f"{args.write} is not written: {why}")
            else:
                _say(f"{args.write} is written")


def _say(line: str) -> None:
    print(f"kernel-pytorch advise: {line}", file=sys.stderr, flush=True)
