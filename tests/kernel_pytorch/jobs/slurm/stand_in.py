"""Runs once on each node in place of the node program, and does what files in the job's folder say.

``started`` gets a line from each; ``signals`` a line for each signal. It ends when ``code`` exists, with the
number in it, and at SIGTERM, unless ``stubborn`` exists. When ``again`` exists, it requeues the job without
the nodes named in there, once, or again where it has fewer nodes than the variable ``LEAST`` says.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType

folder = Path(sys.argv[1])


def write(name: str, text: str) -> None:
    with (folder / name).open("a") as file:
        file.write(f"{text}\n")


def receive(number: int, frame: FrameType | None) -> None:
    write("signals", signal.Signals(number).name)
    if number == signal.SIGTERM and not (folder / "stubborn").exists():
        sys.exit(75)


for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, receive)
restarts = os.environ.get("SLURM_RESTART_COUNT") or "0"
environment = {os.fsencode(name).hex(): os.fsencode(value).hex() for name, value in os.environ.items()}
write(
    "started", json.dumps({"node": os.environ["SLURMD_NODENAME"], "restarts": restarts, "env": environment})
)
while not (folder / "code").exists():
    too_few = int(os.environ["SLURM_JOB_NUM_NODES"]) < int(os.environ.get("LEAST", "1"))
    if (folder / "again").exists() and (restarts == "0" or too_few):
        from kernel_pytorch.jobs.slurm.requeue import requeue

        job = os.environ["SLURM_JOB_ID"]
        try:
            write("requeued", " ".join(requeue(job, (folder / "again").read_text().split())))
        except Exception as error:
            write("failed", repr(error))
        sys.exit(75)
    time.sleep(0.02)
sys.exit(int((folder / "code").read_text()))
