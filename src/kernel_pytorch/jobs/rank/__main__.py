"""``python -m kernel_pytorch.jobs.rank FOLDER``: becomes the user's command, as torchrun's child.

The command, its environment and its folder are read from ``job.json``, so that nothing on the way here
parses what the user wrote.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..atomic import one_line
from ..folder import JobFolder, JobFolderError, as_bytes
from .parent import die_with_parent
from .record import RankRecord


def main(arguments: list[str]) -> int:
    """Set this process up as a rank and exec the job's command; returns only if that fails."""
    node_program = os.environ.get("KERNEL_PYTORCH_NODE_PID")
    if not die_with_parent(int(node_program) if node_program else None):
        print("kernel_pytorch.jobs.rank: the agent that started this rank is dead", file=sys.stderr)
        return 1
    if len(arguments) != 1:
        print("usage: python -m kernel_pytorch.jobs.rank FOLDER", file=sys.stderr)
        return 2
    try:
        _exec(JobFolder(arguments[0]).job())
    except (JobFolderError, OSError, ValueError) as error:
        print(f"kernel_pytorch.jobs.rank: error: {error}", file=sys.stderr)
        with suppress(JobFolderError):
            RankRecord.of_this_process().failed(error)
    return 2


def _exec(job: Mapping[str, Any]) -> None:
    given = {as_bytes(name): as_bytes(value) for name, value in job["environment"].items()}
    cwd = as_bytes(job["cwd"])
    with one_line(Path(os.fsdecode(cwd)), "entered"):
        os.chdir(cwd)
    secrets = {as_bytes(name): _secret(name, source) for name, source in job["secrets"].items()}
    environment = {b"PYTHONFAULTHANDLER": b"1", **os.environb, **given, **secrets}
    # Python ignores these; a shell's pipelines need the first.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    # Until the training loop handles it, a request to stop must not kill the rank.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    argv = [as_bytes(argument) for argument in job["argv"]]
    try:
        os.execvpe(argv[0], argv, environment)
    except OSError as error:
        raise type(error)(error.errno, error.strerror, os.fsdecode(argv[0])) from None


def _secret(name: str, source: str) -> bytes:
    """The value of a secret, which is never written anywhere."""
    kind, _, place = source.partition(":")
    try:
        if kind == "file":
            with open(as_bytes(place), "rb") as file:
                return file.read().removesuffix(b"\n")
        return os.environb[as_bytes(place)]
    except OSError as error:
        raise JobFolderError(f"secret {name}: {place} cannot be read: {error.strerror}") from None
    except KeyError:
        raise JobFolderError(f"secret {name}: the environment has no {place}") from None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
