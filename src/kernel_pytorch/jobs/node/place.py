"""Which node of which job this program runs on, as its starter or Slurm says. Standard library only."""

from __future__ import annotations

import calendar
import math
import os
import signal
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from ...errors import KernelPytorchError

_ANSWER_S = 15.0
"""Seconds within which a command of Slurm must answer; its own message timeout is 10."""


class PlaceError(KernelPytorchError):
    """It cannot be told on which node this program runs."""


@dataclass(frozen=True)
class Place:
    """One node of one start of a job."""

    target: str
    """local or slurm."""
    index: int
    """Of this node in ``names``."""
    names: tuple[str, ...]
    """Of all nodes, the first one first."""
    addresses: tuple[str, ...]
    """Names and addresses of the first node, in the order in which to try them."""
    native_id: str
    """The job's id on its target."""
    run_key: str
    """The same on all nodes of this start of the job, another at its next start."""
    ends_at: float | None
    """Seconds since 1970 at which the target ends the job; None if never, or unknown."""
    one_machine: bool = False
    """On Slurm: whether this node and the first one are the same machine under two names."""


def here() -> Place:
    """Where this program runs.

    Raises:
        PlaceError: neither a local supervisor nor Slurm started it, or what they say cannot be understood.
    """
    environment = dict(os.environ)
    if "KERNEL_PYTORCH_NODE" in environment:
        return _local(environment)
    if "SLURM_JOB_ID" in environment:
        return _slurm(environment)
    raise PlaceError("this program was not started as a node of a job", "use `kernel-pytorch submit`")


def positive_seconds(variable: str) -> float | None:
    """The value of an environment variable; None: it is not set.

    Raises:
        PlaceError: it is not a positive number.
    """
    value = os.environ.get(variable)
    if not value:
        return None
    with suppress(ValueError):
        if 0 < (seconds := float(value)) < math.inf:
            return seconds
    raise PlaceError(f"{variable} must be a positive number of seconds, got {value!r}")


def _local(environment: Mapping[str, str]) -> Place:
    names = tuple(_variable(environment, "KERNEL_PYTORCH_NODES").split())
    ends_at = environment.get("KERNEL_PYTORCH_ENDS_AT")
    try:
        end = float(ends_at) if ends_at else None
    except ValueError:
        raise PlaceError(f"KERNEL_PYTORCH_ENDS_AT must be seconds since 1970, got {ends_at!r}") from None
    return Place(
        target="local",
        index=_index(environment, "KERNEL_PYTORCH_NODE", names),
        names=names,
        addresses=tuple(_variable(environment, "KERNEL_PYTORCH_FIRST").split()),
        native_id=_variable(environment, "KERNEL_PYTORCH_NATIVE_ID"),
        run_key=_variable(environment, "KERNEL_PYTORCH_RUN_KEY"),
        ends_at=end,
    )


def _slurm(environment: Mapping[str, str]) -> Place:
    # srun counts its nodes from 0 on, which need not be all that the job has.
    variable = "SLURM_STEP_NODELIST" if environment.get("SLURM_STEP_NODELIST") else "SLURM_JOB_NODELIST"
    names = tuple(_ask("scontrol", "show", "hostnames", _variable(environment, variable)).split())
    job = _variable(environment, "SLURM_JOB_ID")
    if environment.get("SLURM_ARRAY_TASK_ID"):
        # By the bare SLURM_JOB_ID, squeue would take one of the tasks for the whole array.
        job = f"{_variable(environment, 'SLURM_ARRAY_JOB_ID')}_{environment['SLURM_ARRAY_TASK_ID']}"
    index = _index(environment, "SLURM_NODEID", names)
    addresses, one_machine = _first(names[0], names[index])
    return Place(
        target="slurm",
        index=index,
        names=names,
        addresses=addresses,
        native_id=job,
        run_key=f"slurm:{job}:{environment.get('SLURM_RESTART_COUNT') or 0}",
        ends_at=_ends_at(job),
        one_machine=one_machine,
    )


def _first(first: str, own: str) -> tuple[tuple[str, ...], bool]:
    """What may lead to the first node, its name alone where the controller does not answer.

    Also whether a node of another name is the same machine, as in clusters that somebody tries things on.
    """
    if first == own:
        return (first,), False
    try:
        shown = _ask("scontrol", "show", "node", "-o", f"{first},{own}")
    except PlaceError:
        return (first,), False
    nodes = {}
    for line in shown.splitlines():
        # Reversed: what an administrator wrote into Comment or Reason comes last.
        fields = dict(field.split("=", 1) for field in reversed(line.split()) if "=" in field)
        nodes[fields.get("NodeName")] = [fields.get("NodeAddr"), fields.get("NodeHostName")]
    found = nodes.get(first, [])
    one_machine = bool(found) and found[1] is not None and found[1] == nodes.get(own, [None, None])[1]
    return tuple(dict.fromkeys([*filter(None, found), first])), one_machine


def _ends_at(job: str, tries: int = 3) -> float | None:
    """Seconds since 1970; None if the job has no end, or the controller does not know it."""
    until = time.monotonic() + _ANSWER_S
    for attempt in range(tries):
        if attempt:
            time.sleep(0.5)  # a busy controller may fail, or have nothing to say, at first
        with suppress(PlaceError):
            answer = _ask("squeue", "-h", "-o", "%e", "-j", job, patience_s=until - time.monotonic()).strip()
            if answer:
                with suppress(ValueError):  # N/A, NONE
                    return float(calendar.timegm(time.strptime(answer, "%Y-%m-%dT%H:%M:%S")))
                return None
    return None


def _ask(*command: str, patience_s: float = _ANSWER_S) -> str:
    """What a command of Slurm prints, whatever the user has set up for it.

    Raises:
        PlaceError: it does not exist, does not answer in time, or fails.
    """
    # These filter or rewrite what the commands print.
    changes = ("SQUEUE_", "SCONTROL_", "SLURM_CLUSTERS", "SLURM_TIME_FORMAT", "SLURM_BITSTR_LEN")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(changes)}
    environment |= {"LC_ALL": "C", "TZ": "UTC0"}  # UTC: no hour comes twice
    called = " ".join(command)
    try:
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # a site's script around the command ends with what it has started
        )
    except FileNotFoundError:
        raise PlaceError(
            f"{command[0]} was not found on this node", "have Slurm's commands in PATH on compute nodes"
        ) from None
    except OSError as error:
        raise PlaceError(f"`{called}` cannot be started: {error.strerror}") from error
    with process:
        try:
            output, errors = process.communicate(timeout=max(0.0, patience_s))
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise PlaceError(f"`{called}` did not answer within {patience_s:.0f} s") from None
            raise
    if process.returncode:
        why = " ".join(errors.decode(errors="replace").split()) or "no reason given"
        raise PlaceError(f"`{called}` failed with exit status {process.returncode}: {why}")
    return output.decode(errors="replace")


def _index(environment: Mapping[str, str], variable: str, names: tuple[str, ...]) -> int:
    value = _variable(environment, variable)
    if not value.isdecimal() or int(value) >= len(names):
        raise PlaceError(f"{variable} must be one of the {len(names)} nodes, from 0 on, got {value!r}")
    return int(value)


def _variable(environment: Mapping[str, str], name: str) -> str:
    value = environment.get(name, "")
    if not value.strip():
        raise PlaceError(f"the environment has no {name}", "use `kernel-pytorch submit` to start a job")
    return value
