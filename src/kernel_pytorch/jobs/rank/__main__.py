"""``python -m kernel_pytorch.jobs.rank FOLDER``: becomes the user's command, as torchrun's child.

The command, its environment and its folder are read from ``job.json``, so that nothing on the way here
parses what the user wrote.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Any

from ..atomic import one_line, write_atomically
from ..folder import JobFolder, JobFolderError, as_bytes
from .gate import wait_for_restart
from .parent import die_with_parent
from .record import RankRecord, variable


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
        if "KERNEL_PYTORCH_ATTEMPT" in os.environ:  # else it was started by hand
            _announce(RankRecord.of_this_process())
        _exec(JobFolder(arguments[0]).job())
    except (JobFolderError, OSError, ValueError) as error:
        print(f"kernel_pytorch.jobs.rank: error: {error}", file=sys.stderr)
        with suppress(JobFolderError):
            RankRecord.of_this_process().failed(error)
    return 2


def _announce(record: RankRecord) -> None:
    """Open the rank's log as stdout and stderr, and tell the node program of the process."""
    beats = Path(variable("KERNEL_PYTORCH_BEATS"))
    log = record.folder.path / "logs" / f"attempt-{record.attempt}" / f"rank-{record.rank}.log"
    with one_line(log.parent, "made"):
        log.parent.mkdir(0o700, exist_ok=True)
    with one_line(log, "written"):
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        size = os.fstat(descriptor).st_size
    started = {
        "rank": record.rank,
        "pid": os.getpid(),
        "restart": record.restart,
        "world": int(os.environ.get("WORLD_SIZE", "1")),
        "time_s": monotonic(),
        "log_from": size,
    }
    write_atomically(beats / f"started-{record.local_rank}.json", json.dumps(started).encode())
    os.dup2(descriptor, sys.stdout.fileno())
    os.dup2(descriptor, sys.stderr.fileno())
    os.close(descriptor)
    wait_for_restart(beats, record.restart)


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
    # The agent ignores these, but ends ranks by SIGTERM when it restarts them.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
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
