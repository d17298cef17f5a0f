"""What ``submit`` takes of a job's specification."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import Any

from ..errors import CommandError

_SLURM = {
    "partition": "partition",
    "account": "account that is charged",
    "qos": "quality of service",
    "constraint": "features that nodes must have",
    "gres": "generic resources of each node",
    "exclude": "nodes that are not to be used",
    "dependency": "jobs to wait for, such as afterok:17",
    "array": "such as 0-3 or 0-9%%2: a job by index",
    "reservation": "reservation",
}
_FIELDS = {
    "nodes": "nodes",
    "gpus_per_node": "gpus_per_node",
    "ranks_per_node": "ranks_per_node",
    "time": "max_runtime_hours",
    "checkpoint_every": "checkpoint_interval_minutes",
    "name": "name",
    "max_retries": "max_retries",
    "user_command": "command",
}
"""Fields of TrainingJobSpec by argument."""


def add_spec_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that change the specification. None, or empty: not given."""
    add = parser.add_argument
    add("--nodes", metavar="N[:MAX]", help="fewest and most nodes (default: 1)", type=_parsed("nodes"))
    add("--gpus-per-node", metavar="N", type=int, help="default: none are asked for")
    add("--ranks-per-node", metavar="N", type=int, help="default: as many as GPUs, else 1")
    add(
        "--time",
        metavar="T",
        type=_parsed("time"),
        help="of each attempt, such as 4h or 1-12:00:00 (default: 24h)",
    )
    add(
        "--checkpoint-every",
        metavar="T",
        type=_parsed("time"),
        help="the longest time between checkpoints, such as 10m (default: 30m)",
    )
    add("--name", help="default: from the command")
    add("--max-retries", metavar="N", type=int, help="restarts in place after faults (default: 3)")
    add("--memory", metavar="SIZE", type=_parsed("size"), help="of the whole job, such as 256G; for Slurm")
    add("--cpus", metavar="N", type=int, help="CPU cores of the whole job; for Slurm")
    add(
        "--env",
        metavar="NAME[=VALUE]",
        action="append",
        default=[],
        help="set a variable of the ranks; without a value, to what it is in this shell",
    )
    add(
        "--secret",
        metavar="NAME=SOURCE",
        action="append",
        default=[],
        help="a variable from file:PATH or env:NAME, read when a rank starts and written nowhere",
    )
    add(
        "--inherit-env",
        action=argparse.BooleanOptionalAction,
        help="whether the ranks also get what is exported in this shell, or only what --env and --secret set "
        "(default: 'inherit_env' of the file, else they do)",
    )
    slurm = parser.add_argument_group("with --to slurm")
    for name, what in _SLURM.items():
        slurm.add_argument(f"--{name}", metavar=name.upper(), help=what)
    slurm.add_argument(
        "--sbatch",
        metavar="FLAG",
        action="append",
        default=[],
        help="any other option of sbatch, as in --sbatch='--exclusive'",
    )


def check_target(args: argparse.Namespace, to: str) -> None:
    """Refuse Slurm's options for other targets."""
    if to != "slurm":
        for name in (*_SLURM, "sbatch"):
            if getattr(args, name):
                raise CommandError(f"--{name} is for --to slurm, and this job is --to {to}")


def options_of(args: argparse.Namespace) -> dict[str, Any]:
    """What was given, as values of TrainingJobSpec's fields."""
    given = {field: getattr(args, name) for name, field in _FIELDS.items()}
    if args.time is not None:
        given["max_runtime_hours"] = args.time / 3600
    if args.checkpoint_every is not None:
        given["checkpoint_interval_minutes"] = args.checkpoint_every / 60
    resources = {
        "memory_gb": None if args.memory is None else args.memory / 1e9,
        "cpu_cores": args.cpus,
    }
    slurm = {name: getattr(args, name) for name in (*_SLURM, "sbatch")}
    found = {name: value for name, value in given.items() if value is not None}
    for name, values in {
        "resources": _known(resources),
        "env_vars": dict(_variable(text) for text in args.env),
        "secrets": dict(_secret(text) for text in args.secret),
        "options": {"slurm": known} if (known := _known(slurm)) else {},
    }.items():
        if values:
            found[name] = values
    return found


def _known(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value not in (None, [])}


def _variable(text: str) -> tuple[str, str]:
    name, has_value, value = text.partition("=")
    if has_value:
        return name, value
    if name not in os.environ:
        from difflib import get_close_matches

        near = get_close_matches(name, os.environ, n=1)
        fix = f"did you mean {near[0]}?" if near else "export it, or give --env NAME=VALUE"
        raise CommandError(f"--env {name}: no such variable in this shell: {fix}")
    return name, os.environ[name]


def _secret(text: str) -> tuple[str, str]:
    """The text is in no message: it may be a secret that was typed by mistake."""
    name, has_source, source = text.partition("=")
    if not name or not has_source or not source.startswith(("file:", "env:")):
        raise CommandError("--secret must be NAME=file:PATH or NAME=env:NAME, which says where the value is")
    return name, source


def _parsed(kind: str) -> Callable[[str], Any]:
    """A parser of :mod:`kernel_pytorch.jobs.read`, loaded when it is used, for ``type=``."""

    def parse(text: str) -> Any:
        from ...jobs import read

        try:
            return getattr(read, f"parse_{kind}")(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parse
