"""Ranks on this machine, each a process that runs one command with the others."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from ..errors import CommandError

_PATIENCE_S = 10.0
"""For ranks to say why they cannot go on, when another has failed."""


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
