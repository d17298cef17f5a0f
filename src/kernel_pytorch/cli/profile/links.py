"""``kernel-pytorch profile links``: the links between ranks, measured or confirmed."""

from __future__ import annotations

import argparse
from importlib import resources
from typing import TYPE_CHECKING

from ..errors import CommandError
from ..shell import add_json, print_json
from .local import add_ranks, check_ranks, start
from .ranks import need_torch
from .report import report_lines, report_of

if TYPE_CHECKING:
    from .ranks import Ranks

_EXAMPLES = """\
examples:
  kernel-pytorch profile links --nproc 4                 four ranks on this machine
  torchrun --nnodes 2 --nproc-per-node 2 --rdzv-endpoint HOST:29500 -m kernel_pytorch.cli profile links
  kernel-pytorch profile links --nproc 4 --json | jq .links.links

What was measured is kept in $XDG_CACHE_HOME/kernel-pytorch/links (default: ~/.cache), by the ranks' hosts.
The next run uses it if a quick round agrees.

Exit status: 0 done, 1 a rank failed or did not answer, 2 a mistake in what was given, 130 ended by Ctrl-C,
143 by SIGTERM.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``profile links``."""
    parser.description = (
        "Measure how fast the hosts of a process group's ranks send to each other, and in which order ranks "
        "send least between hosts in a ring. torchrun starts the ranks, or, on this machine, --nproc."
    )
    parser.epilog = _EXAMPLES
    add_json(parser, "JSON, which --schema describes")
    add_ranks(parser)
    parser.add_argument(
        "--fresh", action="store_true", help="measure anew, whatever an earlier run has saved"
    )


def run(args: argparse.Namespace) -> int:
    """Run ``profile links`` and return its exit status."""
    if args.schema:
        schema = resources.files(__package__).joinpath("links.schema.json")
        print(schema.read_text(encoding="utf-8"), end="")
        return 0
    check_ranks(args)
    ranks: Ranks | None = args.peers
    if ranks is None:
        options = ["--seconds", str(args.seconds), *["--json"] * args.json, *["--fresh"] * args.fresh]
        return start(args, "links", options)
    need_torch()
    from ...links.saved import measure_or_saved

    try:
        links = measure_or_saved(ranks.group, seconds=args.seconds, fresh=args.fresh)
    except ValueError as error:
        raise CommandError(f"{error}: start two ranks or more") from error
    if ranks.first:
        report = report_of(links)
        if args.json:
            print_json(report)
        else:
            print("\n".join(report_lines(report)))
    return 0
