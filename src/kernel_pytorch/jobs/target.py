"""What a target is: where a job can be submitted to."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from ..errors import Unavailable
from .checks import check_choice
from .folder import JobFolder
from .spec import TARGETS, TrainingJobSpec
from .status import ClusterWord


class ClusterUnavailableError(Unavailable, OSError):
    """The cluster does not answer, or its commands are not there."""


class SubmissionUnknownError(ClusterUnavailableError):
    """The cluster has not answered a submission: whether it has the job is not known."""

    def __init__(self, job_id: str, why: str, ask: str) -> None:
        super().__init__(
            f"it is not known whether the cluster has {job_id}, whose folder is kept: {why}",
            f"see kernel-pytorch status {job_id}, or {ask}",
        )


class Target(Protocol):
    """A cluster. Its methods raise ClusterUnavailableError where it has to answer and does not.

    ``render`` and ``indices`` need no cluster.
    """

    name: str
    """As in ``--to``."""

    def check(self, spec: TrainingJobSpec, plan: Mapping[str, Any]) -> Sequence[str]:
        """Notes about what the user should know, such as what a preemption would lose.

        Args:
            spec: the job's.
            plan: as :func:`.manage.plan_of` makes it.

        Raises:
            ValueError: the cluster can never run it; says why, and the way out.
        """

    def render(self, spec: TrainingJobSpec, folder: Path, job: Mapping[str, Any]) -> str:
        """All that would be submitted, as text; touches nothing.

        Args:
            spec: the job's.
            folder: that the job would have.
            job: what its ``job.json`` would have, values of variables left out.
        """

    def indices(self, spec: TrainingJobSpec) -> Sequence[int] | None:
        """Of an array of jobs, each with its folder; None: it is one job."""

    def submit(
        self, spec: TrainingJobSpec, folders: Sequence[JobFolder], *, inherit_env: bool
    ) -> Sequence[str]:
        """Submit, and return the cluster's id by folder once it has acknowledged them.

        Args:
            spec: the job's.
            folders: one, or that of each index, all with their ``job.json``.
            inherit_env: whether the ranks get this process's environment.

        Raises:
            SubmissionUnknownError: whether it was submitted is not known.
            KernelPytorchError: it was not.
        """

    def words(self, folders: Sequence[JobFolder], patience_s: float = 30.0) -> Mapping[str, ClusterWord]:
        """What the cluster says of jobs, by our id.

        Args:
            folders: the jobs'.
            patience_s: how long each question may take, in seconds.

        Raises:
            ClusterUnavailableError: it does not answer.
        """

    def cancel(self, folder: JobFolder) -> None:
        """End all processes of a job; returns when none is left.

        Raises:
            KernelPytorchError: one is left.
        """

    def requeue(self, folder: JobFolder, exclude: Sequence[str] = ()) -> str:
        """Have a job stop in order and run again, or run an ended one again; returns the cluster's id.

        Args:
            folder: the job's.
            exclude: nodes that are not to be used.
        """

    def estimated_start(self, folder: JobFolder) -> float | None:
        """When the cluster means to start the job, in seconds since 1970; None: it does not say."""


def target_named(name: str, **options: Any) -> Target:
    """The target of that name.

    Raises:
        ValueError: there is none.
    """
    check_choice("target", name, TARGETS)
    module = importlib.import_module(f".{name}.target", __package__)
    target: Target = getattr(module, f"{name.capitalize()}Target")(**options)
    return target
