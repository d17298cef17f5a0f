"""``kernel-pytorch profile collectives``: what collectives take, and what was expected of them."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Literal

from ...jobs.read import parse_size
from ...links.collectives.counters import TimedCollective
from ...links.facts import Hosts
from ...links.methods import Operation
from ..errors import CommandError
from ..shell import add_json, print_json
from .local import add_ranks, check_ranks, start
from .ranks import need_torch
from .report import number

if TYPE_CHECKING:
    from .ranks import Ranks

_STEP = 4
"""Of a range of sizes, from one to the next."""
_OPERATIONS = [operation.value for operation in Operation]
_EXAMPLES = """\
examples:
  kernel-pytorch profile collectives --nproc 4 --sizes 64K:16M
  torchrun --nnodes 2 --nproc-per-node 2 --rdzv-endpoint HOST:29500 -m kernel_pytorch.cli profile collectives
  kernel-pytorch profile collectives --nproc 4 --operations all_reduce --sizes 1M --json

Times are of the slowest rank, the median of --calls calls. algbw is the size over the time, busbw what the
busiest link carries if all are equally fast (as nccl-tests define them). Expected is what the links, measured
first, let expect before anything is timed, error how far that is from the time. K and M are 1024 and 1024 K,
as in nccl-tests.

Exit status: 0 done, 1 a rank failed or did not answer, 2 a mistake in what was given, 130 ended by Ctrl-C,
143 by SIGTERM.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``profile collectives``."""
    parser.description = (
        "Time collectives of float32 between the ranks of a process group, by size and pattern, beside what "
        "was expected. torchrun starts the ranks, or, on this machine, --nproc."
    )
    parser.epilog = _EXAMPLES
    add_json(parser, "JSON, which --schema describes")
    add_ranks(parser)
    parser.add_argument(
        "--sizes",
        default="64K:16M",
        metavar="FROM:TO",
        help="of the whole vector, or one size; each is four times the one before (default: 64K:16M)",
    )
    parser.add_argument(
        "--operations",
        nargs="+",
        choices=_OPERATIONS,
        default=_OPERATIONS,
        help="default: all",
        metavar="OPERATION",
    )
    parser.add_argument("--calls", type=int, default=5, metavar="N", help="of each pattern (default: 5)")


@dataclass(frozen=True, kw_only=True)
class CollectivesReport:
    """The output of ``profile collectives --json``; ``profile collectives --schema`` prints its schema."""

    format: Literal["kernel-pytorch profile collectives"] = "kernel-pytorch profile collectives"
    version: Literal[1] = 1
    """Incremented when a field is removed or changes its meaning, but not when one is added."""
    hosts: Hosts
    dtype: Literal["float32"] = "float32"
    calls: int
    collectives: list[TimedCollective]


def run(args: argparse.Namespace) -> int:
    """Run ``profile collectives`` and return its exit status."""
    if args.schema:
        schema = resources.files(__package__).joinpath("collectives.schema.json")
        print(schema.read_text(encoding="utf-8"), end="")
        return 0
    sizes = _sizes(args.sizes)
    if args.calls < 1:
        raise CommandError(f"--calls must be at least 1, got {args.calls}")
    check_ranks(args)
    ranks: Ranks | None = args.peers
    if ranks is None:
        options = ["--sizes", args.sizes, "--calls", str(args.calls), "--seconds", str(args.seconds)]
        return start(
            args, "collectives", [*options, *["--json"] * args.json, "--operations", *args.operations]
        )
    need_torch()
    from ...links.collectives.collectives import Collectives
    from ...links.collectives.timed import timed_collectives
    from ...links.saved import measure_or_saved

    assert ranks.group is not None
    try:
        links = measure_or_saved(ranks.group, seconds=args.seconds)
    except ValueError as error:
        raise CommandError(f"{error}: start two ranks or more") from error
    collectives = Collectives(ranks.group, links=links)
    operations = [Operation(name) for name in dict.fromkeys(args.operations)]
    found: list[TimedCollective] = []
    for timed in timed_collectives(collectives, ranks.group, operations, sizes, args.calls):
        if ranks.first and not args.json:
            if not found:
                print("\n".join(_head(links.hosts)), flush=True)
            print("\n".join(_lines(timed)), flush=True)
        found += timed
    collectives.close()
    if ranks.first and args.json:
        print_json(CollectivesReport(hosts=links.hosts, calls=args.calls, collectives=found))
    return 0


def _sizes(text: str) -> list[int]:
    """From one size to another, each four times the one before."""
    ends = text.split(":")
    try:
        sizes = [int(end) if end.isdigit() else parse_size(end if "i" in end else f"{end}i") for end in ends]
    except ValueError:
        sizes = []
    if len(sizes) not in (1, 2) or not 0 < sizes[0] <= sizes[-1]:
        raise CommandError(f"--sizes must be a size or FROM:TO, such as 64K:16M, got {text}")
    found = [sizes[0]]
    while found[-1] * _STEP <= sizes[-1]:
        found.append(found[-1] * _STEP)
    return found


def _head(hosts: Sequence[Sequence[int]]) -> Iterator[str]:
    yield f"  float32, {sum(map(len, hosts))} ranks on {len(hosts)} host{'s' * (len(hosts) > 1)}"
    yield _line("operation", "size", "pattern", "ms", "algbw GB/s", "busbw GB/s", "expected ms", "error")


def _lines(timed: Sequence[TimedCollective]) -> Iterator[str]:
    for each in timed:
        expected = error = ""
        if each.expected_s is not None:
            expected = number(each.expected_s * 1e3)
            error = f"{each.expected_s / each.seconds - 1:+.0%}"
        line = _line(
            each.operation.value,
            _size(each.nbytes),
            each.pattern.value if each.pattern else "direct",
            number(each.seconds * 1e3),
            number(each.algbw_gbyte_s),
            number(each.busbw_gbyte_s),
            expected,
            error,
        )
        yield f"{line}  chosen" if each.chosen and each.pattern else line.rstrip()


def _line(operation: str, size: str, pattern: str, *columns: str) -> str:
    ms, algbw, busbw, expected, error = columns
    left = f"  {operation:14}  {size:>7}  {pattern:12}"
    return f"{left}  {ms:>8}  {algbw:>10}  {busbw:>10}  {expected:>11}  {error:>6}"


def _size(nbytes: int) -> str:
    for unit, scale in (("MB", 1 << 20), ("KB", 1 << 10)):
        if nbytes >= scale:
            return f"{number(nbytes / scale)} {unit}"
    return f"{nbytes} B"
