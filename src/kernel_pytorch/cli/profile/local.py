"""Ranks on this machine, each a process that runs one command with the others."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from ..errors import CommandError
from .ranks import need_torch

_PATIENCE_S = 10.0
"""For ranks to say why they cannot go on, when another has failed."""


def add_ranks(parser: argparse.ArgumentParser) -> None:
    """Add the options of commands that measure links between ranks, which they may start."""
    parser.add_argument("--nproc", type=int, metavar="N", help="start N ranks on this machine")
    parser.add_argument(
        "--seconds", type=float, default=3.0, help="the most that measuring links may take (default: 3)"
    )
    parser.add_argument("--schema", action="store_true", help="print the JSON schema of --json")


def check_ranks(args: argparse.Namespace) -> None:
    """Refuse values of these options.

    Raises:
        CommandError: a value is not possible.
    """
    if not 0 < args.seconds < float("inf"):
        raise CommandError(f"--seconds must be positive, got {args.seconds:g}")
    if args.peers is not None and args.nproc is not None:
        raise CommandError("--nproc starts ranks, but torchrun has started this one: leave it out")


def start(args: argparse.Namespace, command: str, options: Sequence[str]) -> int:
    """Run ``kernel-pytorch profile COMMAND OPTIONS`` as ``args.nproc`` ranks; the exit status.

    Raises:
        CommandError: without a number of ranks, or torch, or a rank was killed.
    """
    if args.nproc is None:
        raise CommandError(
            "no process group: start this with torchrun --nproc-per-node N -m kernel_pytorch.cli profile "
            f"{command}, or give --nproc N for ranks on this machine"
        )
    if args.nproc < 2:
        raise CommandError(f"--nproc must be at least 2, got {args.nproc}")
    need_torch()
    return start_ranks(args.nproc, ["profile", command, *options])


def start_ranks(count: int, arguments: Sequence[str]) -> int:
    """Run ``kernel-pytorch ARGUMENTS`` as ``count`` ranks; the exit status. None is left when it returns.

    Raises:
        CommandError: a rank was killed.
    """
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    ranks: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory(prefix="kernel-pytorch-") as folder:
        store = Path(folder, "store").as_uri()
        try:
            for rank in range(count):
                of_rank = [store, str(os.getpid()), str(rank), str(count)]
                command = [sys.executable, "-m", "kernel_pytorch.cli.profile.one_rank", *of_rank, *arguments]
                # Ctrl-C is for this process, which ends them.
                ranks.append(
                    subprocess.Popen(
                        command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True
                    )
                )
            statuses = _wait(ranks)
        finally:
            for process in ranks:
                process.kill()
            for process in ranks:
                process.wait()
    failed = [(rank, status) for rank, status in enumerate(statuses) if status]
    if not failed:
        return 0
    rank, status = next(((rank, status) for rank, status in failed if status > 0), failed[0])
    if status < 0:
        raise CommandError(f"rank {rank} was killed by {signal.Signals(-status).name}", status=1)
    return status


def _wait(ranks: Sequence[subprocess.Popen[bytes]]) -> list[int | None]:
    """Exit statuses; None: still running some time after another rank has failed."""
    give_up = None
    while None in (statuses := [process.poll() for process in ranks]):
        if give_up is None and any(statuses):
            give_up = time.monotonic() + _PATIENCE_S
        if give_up is not None and time.monotonic() > give_up:
            break
        time.sleep(0.02)
    return statuses
