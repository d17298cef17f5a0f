"""This machine as a target: a supervisor for each job, which outlives the shell that submitted it."""

from __future__ import annotations

import json
import os
import re
import select
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ...errors import KernelPytorchError
from ..atomic import one_line
from ..facts import JobState
from ..folder import JobFolder
from ..spec import TrainingJobSpec
from ..status import LOST, ClusterWord
from .processes import LOG, end_processes, end_supervisor, last_line, supervisor_of

_BEGIN_S = 150.0
"""Longer than nodes wait for each other, who then say why they did not begin."""
_END_S = 30.0
"""For the supervisor to end: longer than it gives the ranks."""
_LOOK_EVERY_S = 0.02
_KEPT = re.compile("PATH|HOME|USER|LOGNAME|SHELL|LANG|LC_.*|TZ|TMPDIR|PYTHONPATH", re.DOTALL)
"""Variables without which programs do not even start."""
_OF_AN_OUTER_JOB = re.compile(
    "(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|MASTER_(ADDR|PORT)|TORCHELASTIC_.*"
    "|KERNEL_PYTORCH_(JOB|ATTEMPT|BEATS|CHECKPOINT_EVERY|NODE_PID|NODES?|FIRST|NATIVE_ID|RUN_KEY|ENDS_AT)",
    re.DOTALL,
)


class LocalTarget:
    """Nodes are programs on this machine."""

    name = "local"

    def check(self, spec: TrainingJobSpec, plan: Mapping[str, Any]) -> Sequence[str]:
        """See :class:`.Target`."""
        if spec.image is not None:
            raise ValueError(f"image {spec.image!r}: this machine runs no containers; leave it out")
        if spec.volumes:
            raise ValueError("volumes are for containers, which this machine does not run; leave them out")
        if options := spec.options.get("local"):
            raise ValueError(f"options.local has {', '.join(options)}, but there are no such options")
        for name, source in spec.secrets.items():
            kind, _, place = source.partition(":")
            if kind == "file" and not os.access(place, os.R_OK):
                raise ValueError(f"secret {name}: the file {place} cannot be read")
        notes = list(_unused(spec))
        if gpus := (spec.num_gpus_per_node or 0) * spec.num_nodes[1]:
            from .gpus import num_gpus

            there = num_gpus()
            if there is None:
                notes.append("the drivers of this machine's GPUs do not answer: how many it has is not known")
            elif gpus > there:
                raise ValueError(
                    f"{spec.num_nodes[1]} x {spec.num_gpus_per_node} GPUs are more than the {there} of this "
                    "machine: give fewer nodes or --gpus-per-node"
                )
        return tuple(notes)

    def render(self, spec: TrainingJobSpec, folder: Path, job: Mapping[str, Any]) -> str:
        """See :class:`.Target`."""
        lines = [f"# {line}" for line in json.dumps(job, indent=2).splitlines()]
        command = shlex.join([*_command(job["python"]), str(folder)])
        return "\n".join(
            ["#!/bin/sh", "# job.json:", *lines, "# It goes on when this shell has ended.", command, ""]
        )

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

    def words(self, folders: Sequence[JobFolder], patience_s: float = 30.0) -> Mapping[str, ClusterWord]:
        """See :class:`.Target`."""
        return {folder.id: _word(folder) for folder in folders if folder.native() is not None}

    def cancel(self, folder: JobFolder) -> None:
        """See :class:`.Target`."""
        if (host := _host(folder)) != socket.gethostname():
            raise KernelPytorchError(f"{folder.id} runs on {host}", "cancel it there")
        end_supervisor(folder, _END_S)
        end_processes(folder)

    def requeue(self, folder: JobFolder, exclude: Sequence[str] = ()) -> str:
        """See :class:`.Target`. A job that has no supervisor gets the environment of this process."""
        if exclude:
            raise ValueError(f"exclude={', '.join(exclude)}: all nodes of a local job are this machine")
        if (host := _host(folder)) != socket.gethostname():
            raise KernelPytorchError(f"{folder.id} runs on {host}", "requeue it there")
        if supervisor_of(folder.path) is not None:
            folder.request_stop("kernel-pytorch requeue")
            return str((folder.native() or {}).get("native_id"))
        return _start(folder, inherit_env=folder.job().get("inherit_env", True))

    def estimated_start(self, folder: JobFolder) -> float | None:
        """It has started."""
        return None


def _unused(spec: TrainingJobSpec) -> Iterator[str]:
    """Notes about what the job asks for in vain."""
    if spec.options.get("slurm"):
        yield "options.slurm are not used: the job runs on this machine"
    asked = {"--memory": spec.resources.memory_gb, "--cpus": spec.resources.cpu_cores}
    if given := [name for name, value in asked.items() if value is not None]:
        yield f"{' and '.join(given)}: not used, as this machine limits no job"
    if spec.enable_auto_scaling:
        yield "enable_auto_scaling is not used: the nodes of a local job are as many as nodes says"


def _command(python: str) -> list[str]:
    return [python, "-m", "kernel_pytorch.jobs.local.supervise"]


def _environment(*, inherit: bool) -> dict[str, str]:
    """Of the supervisor, from which the ranks inherit it."""
    found = {
        name: value
        for name, value in os.environ.items()
        if (inherit or _KEPT.fullmatch(name)) and not _OF_AN_OUTER_JOB.fullmatch(name)
    }
    if path := found.get("PYTHONPATH"):  # the supervisor has another working directory
        found["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, path.split(os.pathsep)))
    return found


def _start(folder: JobFolder, *, inherit_env: bool) -> str:
    """Start a supervisor and wait until the nodes have met; returns the cluster's id."""
    begun = _num_begun(folder)
    ended, alive = os.pipe()  # the second is the supervisor's as long as it lives
    try:
        try:
            starter = _start_supervisor(folder, inherit_env, alive)
        finally:
            os.close(alive)
        try:
            starter.wait()
            _wait_until_begun(folder, begun, ended)
        except BaseException:
            _end(folder, starter.pid, ended)
            raise
    finally:
        os.close(ended)
    native = folder.native()
    assert native is not None  # the supervisor wrote it first of all
    return str(native["native_id"])


def _start_supervisor(folder: JobFolder, inherit_env: bool, alive: int) -> subprocess.Popen[bytes]:
    path = folder.path / "logs" / LOG
    with one_line(path, "written"), path.open("ab") as log:
        return subprocess.Popen(
            [*_command(sys.executable), str(folder.path)],
            cwd=folder.path,  # not where a file of the user may have the name of a module
            env=_environment(inherit=inherit_env),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            pass_fds=(alive,),
        )


def _wait_until_begun(folder: JobFolder, begun: int, ended: int) -> None:
    until = time.monotonic() + _BEGIN_S
    over = False
    while _num_begun(folder) <= begun:
        if over or time.monotonic() > until:
            why = (folder.ended() or {}).get("reason") or last_line(folder) or "nothing says why"
            raise KernelPytorchError(f"the job did not begin: {why}")
        # Looks once more after the end, as it may have begun just before.
        over = bool(select.select([ended], [], [], _LOOK_EVERY_S)[0])


def _num_begun(folder: JobFolder) -> int:
    return sum(event["kind"] == "attempt" for event in folder.events())


def _end(folder: JobFolder, session: int, ended: int) -> None:
    """End the supervisor that was started, not one that was there before, and what it has started."""
    while not select.select([ended], [], [], 0)[0]:
        with suppress(ProcessLookupError):
            os.killpg(session, signal.SIGKILL)
        time.sleep(_LOOK_EVERY_S)
    if supervisor_of(folder.path) is None:
        end_processes(folder)


def _word(folder: JobFolder) -> ClusterWord:
    now = time.time()
    host = _host(folder)
    if host != socket.gethostname():
        return ClusterWord(as_of=now, native_state="elsewhere", reason=f"it runs on {host}: ask there")
    if supervisor_of(folder.path) is not None:
        return ClusterWord(as_of=now, native_state="running", state=JobState.RUNNING)
    why = f"its supervisor is gone and wrote no end: kernel-pytorch requeue {folder.id} runs it again"
    return ClusterWord(as_of=now, native_state=LOST, reason=why)


def _host(folder: JobFolder) -> str:
    """Name of the machine that the job was started on."""
    native_id = (folder.native() or {}).get("native_id")
    return native_id.rsplit("-", 2)[0] if native_id else socket.gethostname()
