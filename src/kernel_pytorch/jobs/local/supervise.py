"""``python -m kernel_pytorch.jobs.local.supervise FOLDER``: this machine as a cluster, for one job.

It starts a node program for each node, and all of them again when the job is to be requeued. It holds the
lock of the job's folder as long as it lives, and everything that it started ends with it.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

from ...errors import KernelPytorchError
from ..folder import JobFolder
from ..node.head import Contract, Head
from ..rank.parent import die_with_parent
from ..recovery.classify import Failure
from ..recovery.messages import TYPES
from ..recovery.plan import REQUEUE
from .gpus import share_of
from .processes import end_processes, last_line, take_lock

_NODE_PROGRAM = "kernel_pytorch.jobs.node"
GRACE_S = 10.0
"""From a request to stop to the end, as Slurm's KillWait."""
OVERTIME_S = 60.0
"""From the time limit to the end of an attempt that does not leave by itself."""
_GOODBYE_S = 15.0
_LOOK_EVERY_S = 0.1


class Supervisor:
    """Runs a job on this machine until it ends.

    Args:
        folder: the job's.
        native_id: of this start of the job.
        node_program: module that is run for each node.
    """

    def __init__(self, folder: JobFolder, native_id: str, node_program: str = _NODE_PROGRAM) -> None:
        self.folder, self.native_id, self.node_program = folder, native_id, node_program
        self.job = folder.job()
        self.names = [f"node-{index}" for index in range(self.job["spec"]["nodes"][1])]
        self.asked = False
        self._overtime = False

    def ask_to_stop(self, number: int, frame: FrameType | None) -> None:
        """Handler of SIGTERM."""
        self.asked = True

    def run(self) -> None:
        """Attempt after attempt, until the job has ended or this process was asked to.

        Raises:
            KernelPytorchError: the folder cannot be used, or a process cannot be ended.
        """
        while self.folder.ended() is None:
            codes = self._attempt()
            if self.folder.ended() is not None:
                return
            if self.asked:
                self.folder.event("note", "its supervisor was asked to end, and runs it no more")
                return
            if REQUEUE in codes:
                continue
            if codes[0] >= 0:
                line = last_line(self.folder)
                reason = f"the first node's program returned {codes[0]}{f': {line}' if line else ''}"
                self.folder.end("completed" if codes[0] == 0 else "failed", reason)
                return
            self._all_lost()

    def _attempt(self) -> list[int]:
        """Exit codes of the node programs of one attempt, of which no process is left."""
        limit_s = self.job["spec"]["max_runtime_hours"] * 3600
        end = time.monotonic() + limit_s + OVERTIME_S
        nodes = self._start(time.time() + limit_s)
        self._overtime = False
        kill_at: float | None = None
        told = False
        while any(node.poll() is None for node in nodes):
            now = time.monotonic()
            if self.asked and not told:
                told, kill_at = True, now + GRACE_S
                for node in nodes:
                    node.send_signal(signal.SIGTERM)
            # The others end when the first one has, each by itself.
            if nodes[0].poll() is not None and kill_at is None:
                kill_at = now + _GOODBYE_S
            self._overtime = now > end
            if self._overtime or (kill_at is not None and now > kill_at):
                for node in nodes:
                    node.kill()
            time.sleep(_LOOK_EVERY_S)
        end_processes(self.folder)  # such as what the ranks of a killed node program have started
        return [node.wait() for node in nodes]

    def _start(self, ends_at: float) -> list[subprocess.Popen[bytes]]:
        spec = self.job["spec"]
        common = {
            "KERNEL_PYTORCH_JOB": str(self.folder.path),
            "KERNEL_PYTORCH_NODES": " ".join(self.names),
            "KERNEL_PYTORCH_FIRST": "127.0.0.1",
            "KERNEL_PYTORCH_NATIVE_ID": self.native_id,
            "KERNEL_PYTORCH_RUN_KEY": secrets.token_hex(8),
            "KERNEL_PYTORCH_ENDS_AT": repr(ends_at),
        }
        own_pid = os.getpid()

        def die_with_supervisor() -> None:
            if not die_with_parent() or os.getppid() != own_pid:
                os._exit(1)

        return [
            subprocess.Popen(
                [self.job["python"], "-m", self.node_program, str(self.folder.path)],
                env={
                    **os.environ,
                    **common,
                    "KERNEL_PYTORCH_NODE": str(index),
                    **share_of(index, len(self.names), spec["gpus_per_node"]),
                },
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                preexec_fn=die_with_supervisor,
            )
            for index in range(len(self.names))
        ]

    def _all_lost(self) -> None:
        """No node program is left to decide, so that the supervisor does, as they would have."""
        attempt = max(self.folder.attempt_numbers(), default=0)
        contract = Contract.of(self.job, len(self.names))
        kind, text = "first_node_lost", "all node programs were killed"
        if self._overtime:
            kind, text = "timeout", f"it went on for {OVERTIME_S:g} s after its time limit"
        failure = Failure(kind=kind, text=text, type=TYPES[kind], attempt=attempt)
        head = Head(self.folder, attempt, self.names, [], contract)
        head.record(head.decision_on(failure), failure, {})


def main(arguments: list[str], node_program: str = _NODE_PROGRAM) -> int:
    """Supervise the job of a folder; returns when it has ended."""
    if len(arguments) != 1:
        print("usage: python -m kernel_pytorch.jobs.local.supervise FOLDER", file=sys.stderr)
        return 2
    folder = JobFolder(Path(arguments[0]))
    native_id = f"{socket.gethostname()}-{os.getpid()}-{int(time.time())}"
    try:
        supervisor = Supervisor(folder, native_id, node_program)
        signal.signal(signal.SIGTERM, supervisor.ask_to_stop)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the terminal of `submit` may close
        if take_lock(folder.path) is None:
            print(f"{folder.id} has a supervisor already", file=sys.stderr)
            return 1
        folder.write_native("local", native_id)
        supervisor.run()
    except (KernelPytorchError, OSError) as error:
        print(f"kernel_pytorch.jobs.local: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    if os.fork():
        os._exit(0)  # nobody has to wait for the one that goes on
    sys.exit(main(sys.argv[1:]))
