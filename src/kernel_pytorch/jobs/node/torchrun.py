"""``python -m kernel_pytorch.jobs.node.torchrun NODE_PID ...``: torchrun, as the child of a node program.

It dies with the node program, and requests to stop, which Slurm sends to all processes of a step, do not end
it while its ranks save.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys

from ..rank.parent import die_with_parent

ASKING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
"""Signals that must not end an agent; blocked when it starts."""


def main(arguments: list[str]) -> None:
    """Become torchrun with all arguments but the first, the process id of the node program."""
    if not die_with_parent() or os.getppid() != int(arguments[0]):
        sys.exit("kernel_pytorch.jobs.node.torchrun: the node program is dead")
    for number in ASKING:
        signal.signal(number, signal.SIG_IGN)
    # Ranks inherit what is ignored: torchrun could not end one that starts, and would wait 30 s for it.
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ASKING)
    sys.argv = ["torchrun", *arguments[1:]]
    runpy.run_module("torch.distributed.run", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1:])
