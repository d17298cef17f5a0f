"""What becomes torchrun: the signals that it leaves to its ranks, and whose child it is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from kernel_pytorch.jobs.node.torchrun import ASKING

STANDS_FOR_TORCHRUN = """
import os, runpy, sys
from kernel_pytorch.jobs.node import torchrun
def run(module, **options):
    for number in torchrun.ASKING:
        os.kill(os.getpid(), number)
    assert (module, sys.argv) == ("torch.distributed.run", ["torchrun", "--nnodes=1", "x"])
    os.execvp("grep", ["grep", "-E", "Sig(Ign|Blk)", "/proc/self/status"])
runpy.run_module = run
torchrun.main(sys.argv[1:])
"""


def test_what_asks_to_stop_does_not_end_it_but_sigterm_ends_a_rank_that_starts():
    command = [sys.executable, "-c", STANDS_FOR_TORCHRUN, str(os.getpid()), "--nnodes=1", "x"]
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ASKING)
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        process.send_signal(signal.SIGTERM)  # while Python starts
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    out, _ = process.communicate()
    assert process.returncode == 0
    masks = {name: int(mask, 16) for name, mask in (line.split(":\t") for line in out.splitlines())}
    assert masks["SigBlk"] == 0
    ignored = {number for number in ASKING if masks["SigIgn"] >> (number - 1) & 1}
    assert ignored == {signal.SIGINT, signal.SIGHUP, signal.SIGUSR1}


def test_it_does_not_start_when_the_node_program_is_dead():
    command = [sys.executable, "-m", "kernel_pytorch.jobs.node.torchrun", "1", "--nnodes=1", "x"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "kernel_pytorch.jobs.node.torchrun: the node program is dead\n"
