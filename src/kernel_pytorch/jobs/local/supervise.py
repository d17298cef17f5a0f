"""``python -m kernel_pytorch.jobs.local.supervise FOLDER``: this machine as a cluster, for one job.

It starts a node program for each node, and all of them again when the job is to be requeued. It holds the
lock of the job's folder as long as it lives, and everything that it started ends with it.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from ...errors import KernelPytorchError
from ..folder import JobFolder
from ..node.head import Contract, Head
from ..node.history import failures, requeues_by_faults
from ..recovery.classify import classify
from ..recovery.evidence import Evidence
from ..recovery.plan import REQUEUE, Limits, plan

LOCK = "supervisor.lock"
GRACE_S = 10.0
"""From a request to stop to the end, as Slurm's KillWait."""
_OVERTIME_S = 60.0
_GOODBYE_S = 15.0
_LOOK_EVERY_S = 0.1
_OF_OTHER_LAUNCHERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class Supervisor:
    """Runs a job on this machine until it ends.

    Args:
        folder: the job's.
        node_program: module that is run for each node.
    """

    def __init__(self, folder: JobFolder, node_program: str = "kernel_pytorch.jobs.node") -> None:
        self.folder, self.node_program = folder, node_program
        self.job = folder.job()
        self.asked = False
        self._nodes: list[subprocess.Popen[bytes]] = []

    def ask_to_stop(self, number: int, frame: FrameType | None) -> None:
        """Handler of SIGTERM."""
        self.asked = True

    def run(self) -> None:
        """Attempt after attempt. Raises KernelPytorchError if the folder cannot be used."""
        while self.folder.ended() is None:
            codes = self._attempt()
            if self.folder.ended() is not None or self.asked:
                return
            if REQUEUE in codes:
                continue
            if codes[0] is not None and codes[0] >= 0:
                log = self.folder.path / "logs" / "supervisor.log"
                reason = f"the first node's program returned {codes[0]}; see {log}"
                self.folder.end("completed" if codes[0] == 0 else "failed", reason)
                return
            self._all_lost()

    def _attempt(self) -> list[int | None]:
        """Exit codes of the node programs of one attempt."""
        self._nodes = self._start()
        end = time.time() + self.job["spec"]["max_runtime_hours"] * 3600
        kill_at: float | None = None
        told = False
        while any(node.poll() is None for node in self._nodes):
            if self.asked and not told:
                told = True
                kill_at = time.monotonic() + GRACE_S
                for node in self._nodes:
                    node.send_signal(signal.SIGTERM)
            # The others end when the first one has, each by itself.
            if self._nodes[0].poll() is not None and kill_at is None:
                kill_at = time.monotonic() + _GOODBYE_S
            if time.time() > end + _OVERTIME_S or (kill_at is not None and time.monotonic() > kill_at):
                self._kill()
            time.sleep(_LOOK_EVERY_S)
        return [node.returncode for node in self._nodes]

    def _start(self) -> list[subprocess.Popen[bytes]]:
        spec = self.job["spec"]
        count, gpus = spec["nodes"][1], spec["gpus_per_node"]
        common = {
            "KERNEL_PYTORCH_NODES": " ".join(f"node-{index}" for index in range(count)),
            "KERNEL_PYTORCH_FIRST": "127.0.0.1",
            "KERNEL_PYTORCH_NATIVE_ID": (self.folder.native() or {}).get("native_id") or f"pid-{os.getpid()}",
            "KERNEL_PYTORCH_RUN_KEY": secrets.token_hex(8),
            "KERNEL_PYTORCH_ENDS_AT": repr(time.time() + spec["max_runtime_hours"] * 3600),
        }
        clean = {name: value for name, value in os.environ.items() if name not in _OF_OTHER_LAUNCHERS}
        nodes = []
        for index in range(count):
            own = {"KERNEL_PYTORCH_NODE": str(index), **_visible(clean, index, gpus)}
            nodes.append(
                subprocess.Popen(
                    [self.job["python"], "-m", self.node_program, str(self.folder.path)],
                    env={**clean, **common, **own},
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,
                )
            )
        return nodes

    def _kill(self) -> None:
        for node in self._nodes:
            if node.poll() is None:
                node.kill()

    def _all_lost(self) -> None:
        """No node program is left to decide, so that the supervisor does, as they would have."""
        spec = self.job["spec"]
        names = [f"node-{index}" for index in range(spec["nodes"][1])]
        attempt = max(self.folder.attempt_numbers(), default=0)
        contract = Contract.of(spec, len(names))
        evidence = Evidence(nodes_lost=tuple(names), first_node=names[0])
        failure = classify(evidence, attempt)
        limits = Limits(
            max_retries=contract.max_retries,
            requeues=requeues_by_faults(self.folder),
            max_requeues=contract.max_requeues,
        )
        decision = plan(failure, failures(self.folder), limits)
        head = Head(self.folder, attempt, names, [], contract)
        head.record(decision, failure, dict.fromkeys(names, "its node program was killed"), {})


def _visible(environment: Mapping[str, str], index: int, gpus: int | None) -> dict[str, str]:
    """This machine's GPUs are shared out among its nodes."""
    if not gpus:
        return {}
    seen = environment.get("CUDA_VISIBLE_DEVICES")
    own: Sequence[Any] = range(index * gpus, (index + 1) * gpus)
    if seen is not None:
        own = seen.split(",")[index * gpus : (index + 1) * gpus]
    return {"CUDA_VISIBLE_DEVICES": ",".join(map(str, own))}


def locked(folder: JobFolder) -> bool:
    """Whether a supervisor of this job lives."""
    try:
        descriptor = os.open(folder.path / LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def main(arguments: list[str]) -> int:
    """Supervise the job of a folder; returns when it has ended."""
    if len(arguments) != 1:
        print("usage: python -m kernel_pytorch.jobs.local.supervise FOLDER", file=sys.stderr)
        return 2
    folder = JobFolder(Path(arguments[0]))
    try:
        lock = os.open(folder.path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{folder.id} has a supervisor already", file=sys.stderr)
            return 1
        os.ftruncate(lock, 0)
        os.write(lock, f"{os.getpid()}\n".encode())
        supervisor = Supervisor(folder)
        signal.signal(signal.SIGTERM, supervisor.ask_to_stop)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the terminal of `submit` may close
        supervisor.run()
    except (KernelPytorchError, OSError) as error:
        print(f"kernel_pytorch.jobs.local: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
