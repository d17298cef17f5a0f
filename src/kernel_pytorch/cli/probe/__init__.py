"""``kernel-pytorch probe``: this machine and its condition."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ...machine.live import Machine
from ..errors import CommandError
from ..shell import add_json, print_json
from .report import ProbeReport
from .tree import report_tree, tree_lines

if TYPE_CHECKING:
    from ...machine.facts import NodeTopology
    from ...machine.measured import MeasuredPeaks

_EXAMPLES = """\
examples:
  kernel-pytorch probe                                   the machine as a tree
  kernel-pytorch probe --json | jq .node.devices
  kernel-pytorch probe --measure                         products and copies, against the vendor's peaks
  kernel-pytorch probe --plot topology.svg
  kernel-pytorch probe --record trace.jsonl --seconds 60
  kernel-pytorch probe --replay trace.jsonl              the health rules applied to it
  kernel-pytorch probe --serve 127.0.0.1:9400            metrics for Prometheus

Exit status: 0 done, 1 a device could not be measured, 2 a mistake in what was given, 130 ended by Ctrl-C
(0 with --record and --serve), 143 by SIGTERM.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``probe``."""
    parser.description = (
        "Show this machine: CPUs, memory, accelerators, links, network, storage, and what is missing to "
        "see more."
    )
    parser.epilog = _EXAMPLES
    add_json(parser, "JSON, which --schema describes")
    parser.add_argument("--measure", action="store_true", help="measure each device; loads torch")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--plot", type=Path, metavar="FILE", help="draw the topology: .svg, .png or .pdf")
    what.add_argument("--record", type=Path, metavar="FILE", help="record readings for --seconds")
    what.add_argument(
        "--replay", type=Path, metavar="FILE", help="apply the health rules to a recorded trace"
    )
    what.add_argument(
        "--serve", metavar="[HOST]:PORT", help="serve metrics for Prometheus until Ctrl-C or SIGTERM"
    )
    what.add_argument("--schema", action="store_true", help="print the JSON schema of --json")
    parser.add_argument("--seconds", type=float, help="how long to record (default: 60)")
    parser.add_argument("--interval", type=float, help="seconds between readings (default: 1)")


def run(args: argparse.Namespace) -> int:
    """Run ``probe`` and return its exit status."""
    _check(args)
    if args.schema:
        from importlib import resources

        print(resources.files(__name__).joinpath("probe.schema.json").read_text(encoding="utf-8"), end="")
        return 0
    if args.replay is not None:
        from .trace import replay

        return replay(args.replay, as_json=args.json)
    machine = Machine(load_torch=args.measure)
    try:
        if args.record is not None:
            from .trace import record

            return record(machine, machine.node, args.record, args.seconds or 60.0, args.interval or 1.0)
        if args.serve is not None:
            from .serve import serve

            return serve(machine, args.serve, args.interval or 1.0)
        if args.plot is not None:
            from .plot import draw

            draw(machine.node, args.plot)
            print(args.plot)
            return 0
        measured, status = _measure(machine.node) if args.measure else (None, 0)
        report = ProbeReport(node=machine.node, measured=measured)
    finally:
        machine.close()
    if args.json:
        print_json(report)
    else:
        plain = not (sys.stdout.encoding or "").lower().startswith("utf")
        print("\n".join(tree_lines(report_tree(report), ascii_only=plain)))
    return status


def _check(args: argparse.Namespace) -> None:
    for name in ("seconds", "interval"):
        value = getattr(args, name)
        if value is not None and not 0 < value < float("inf"):
            raise CommandError(f"--{name} must be positive, got {value:g}")
    if args.seconds is not None and args.record is None:
        raise CommandError("--seconds is for --record")
    if args.interval is not None and args.record is None and args.serve is None:
        raise CommandError("--interval is for --record and --serve")
    if args.measure and (args.plot or args.record or args.replay or args.serve or args.schema):
        raise CommandError("--measure goes with the tree and with --json only")
    if args.json and (args.plot or args.record or args.serve or args.schema):
        raise CommandError("--json goes with the tree, --measure and --replay only")


def _measure(node: NodeTopology) -> tuple[tuple[MeasuredPeaks, ...], int]:
    """The figures, and the exit status: 1 if a device could not be measured."""
    try:
        from ...machine.measure import measure_peaks
    except ImportError as error:
        raise CommandError(f"--measure needs torch: {error} (pip install torch)") from error
    # torch has one CPU device: its threads run on all packages.
    usable = [device for device in node.devices if device.hidden is None]
    devices = usable[:1] if node.devices[0].kind == "cpu" else usable
    found, status = [], 0
    for device in devices:
        print(f"measuring {device.label} ...", file=sys.stderr)
        try:
            found.append(measure_peaks(device))
        except ValueError as error:
            print(f"kernel-pytorch probe: error: {error}", file=sys.stderr)
            status = 1
    return tuple(found), status
