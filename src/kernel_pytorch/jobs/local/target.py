"""This machine as a target: a supervisor for each job, which outlives the shell that submitted it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ...errors import KernelPytorchError
from ..facts import JobState
from ..folder import JobFolder
from ..node.processes import Family
from ..spec import TrainingJobSpec
from ..status import ClusterWord
from .supervise import GRACE_S, LOCK, locked

_BEGIN_S = 150.0
"""Longer than nodes wait for each other, who then say why they did not begin."""
_END_S = GRACE_S + 20.0
_LOOK_EVERY_S = 0.05
_KEPT = ("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR")


class LocalTarget:
    """Nodes are programs on this machine."""

    name = "local"

    def check(self, spec: TrainingJobSpec, plan: Mapping[str, Any]) -> Sequence[str]:
        """See :class:`.Target`."""
        if spec.image is not None:
            raise ValueError(f"image {spec.image!r}: this machine runs no containers; leave it out")
        if gpus := (spec.num_gpus_per_node or 0) * spec.num_nodes[1]:
            there = _num_gpus()
            if there is not None and gpus > there:
                raise ValueError(
                    f"{spec.num_nodes[1]} x {spec.num_gpus_per_node} GPUs are more than the {there} of this "
                    "machine: give fewer nodes or --gpus-per-node"
                )
        return ()

    def render(self, spec: TrainingJobSpec, folder: Path, job: Mapping[str, Any]) -> str:
        """See :class:`.Target`."""
        lines = [f"# {line}" for line in json.dumps(job, indent=2).splitlines()]
        command = f"{job['python']} -m kernel_pytorch.jobs.local.supervise {folder}"
        return "\n".join([f"# {folder}/job.json", *lines, "# starts, detached from this shell:", command, ""])

    def indices(self, spec: TrainingJobSpec) -> None:
        """There are no arrays."""
        return

    def submit(
        self, spec: TrainingJobSpec, folders: Sequence[JobFolder], *, inherit_env: bool
    ) -> Sequence[str]:
        """Start the supervisor, and wait until the nodes have met.

        Raises:
            KernelPytorchError: they did not; says why.
        """
        return [_start(folder, inherit_env=inherit_env) for folder in folders]

    def words(self, folders: Sequence[JobFolder]) -> Mapping[str, ClusterWord]:
        """See :class:`.Target`."""
        return {folder.id: _word(folder) for folder in folders}

    def cancel(self, folder: JobFolder) -> None:
        """See :class:`.Target`."""
        _refuse_elsewhere(folder)
        if locked(folder):
            with suppress(ProcessLookupError):
                os.kill(_supervisor_pid(folder), signal.SIGTERM)
        family = Family({"KERNEL_PYTORCH_JOB": str(folder.path)})
        until = time.monotonic() + _END_S
        while locked(folder) or (left := family.living()):
            if time.monotonic() > until:
                raise KernelPytorchError(f"{folder.id}: processes are left: {left}", "end them by hand")
            if not locked(folder):  # what the supervisor left, because it was killed
                for pid in left:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            time.sleep(_LOOK_EVERY_S)

    def requeue(self, folder: JobFolder, exclude: Sequence[str] = ()) -> str:
        """See :class:`.Target`; ``exclude`` has no meaning, as all nodes are this machine."""
        _refuse_elsewhere(folder)
        if locked(folder):
            folder.request_stop()
            return str((folder.native() or {})["native_id"])
        return _start(folder, inherit_env=True)

    def estimated_start(self, folder: JobFolder) -> float | None:
        """It has started."""
        return None


def _start(folder: JobFolder, *, inherit_env: bool) -> str:
    environment = {name: value for name, value in os.environ.items() if inherit_env or name in _KEPT}
    begun = len(folder.attempt_numbers())
    log = folder.path / "logs" / "supervisor.log"
    with log.open("ab") as file:
        supervisor = subprocess.Popen(
            [sys.executable, "-m", "kernel_pytorch.jobs.local.supervise", str(folder.path)],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    until = time.monotonic() + _BEGIN_S
    while sum(event["kind"] == "attempt" for event in folder.events()) <= begun:
        ended, late = supervisor.poll() is not None, time.monotonic() > until
        if ended or late:
            supervisor.kill()
            supervisor.wait()
            end = (folder.ended() or {}).get("reason")
            raise KernelPytorchError(f"the job did not begin: {end or _last_line(log)}")
        time.sleep(_LOOK_EVERY_S)
    return f"{socket.gethostname()}-{supervisor.pid}-{int(time.time())}"


def _word(folder: JobFolder) -> ClusterWord:
    now = time.time()
    host = _host(folder)
    if host != socket.gethostname():
        return ClusterWord(as_of=now, native_state="elsewhere", reason=f"it runs on {host}: ask there")
    if locked(folder):
        return ClusterWord(as_of=now, native_state="running", state=JobState.RUNNING)
    if end := folder.ended():  # meanwhile
        return ClusterWord(as_of=now, native_state="ended", state=JobState(end["state"]))
    why = "its supervisor has ended without a word: kernel-pytorch requeue runs it again"
    return ClusterWord(as_of=now, native_state="lost", state=JobState.FAILED, reason=why)


def _host(folder: JobFolder) -> str:
    native_id = (folder.native() or {}).get("native_id")
    return native_id.rsplit("-", 2)[0] if native_id else socket.gethostname()


def _refuse_elsewhere(folder: JobFolder) -> None:
    if (host := _host(folder)) != socket.gethostname():
        raise KernelPytorchError(f"{folder.id} runs on {host}", "do it there")


def _supervisor_pid(folder: JobFolder) -> int:
    return int((folder.path / LOCK).read_text())


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").split("\n")
    return next((line for line in reversed(lines) if line.strip()), "nothing is known about why")


def _num_gpus() -> int | None:
    """GPUs of this machine; None: not known."""
    try:
        from ...machine.discover import read_node

        return sum(device.kind == "gpu" for device in read_node().devices)
    except Exception:  # the machine's own facts are not worth a job
        return None
