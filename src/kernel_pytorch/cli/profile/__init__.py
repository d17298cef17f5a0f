"""``kernel-pytorch profile``: what communication costs. Each of its commands is a module."""

from __future__ import annotations

import argparse
import importlib

from ..shell import Command

COMMANDS = (Command("links", "measure the links between ranks", "kernel_pytorch.cli.profile.links"),)
TOGETHER = ("links",)
"""Commands that all ranks of a group run together, and of which rank 0 prints: see :mod:`.ranks`."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the commands below ``profile``."""
    parser.description = "Show what communication between the ranks of a process group costs."
    commands = parser.add_subparsers(dest="profile_command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        below = commands.add_parser(
            command.name,
            help=command.help,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module = importlib.import_module(command.module)
        module.add_arguments(below)
        below.set_defaults(run_below=module.run)


def run(args: argparse.Namespace) -> int:
    """Run a command below ``profile`` and return its exit status."""
    status: int = args.run_below(args)
    return status
