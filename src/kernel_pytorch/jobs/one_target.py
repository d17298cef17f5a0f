"""The jobs of one target, with the defaults of whoever submits them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .facts import JobStatus
from .folder import JobFolderError
from .manage import Jobs
from .read import parse_time
from .spec import TrainingJobSpec
from .status import FINAL
from .target import target_named

_DEFAULT_HOURS = TrainingJobSpec.max_runtime_hours


class TargetJobs(Jobs):
    """:class:`.Jobs` of one target only.

    Args:
        target: its name.
        root: as of :class:`.Jobs`.
        time_limit: of jobs that leave theirs at the default, such as ``"24:00:00"``.
        options: of the target, for jobs that do not set them; None: not set.

    Raises:
        ValueError: the time limit cannot be read.
    """

    def __init__(
        self, target: str, root: str | Path | None = None, *, time_limit: str, options: Mapping[str, Any]
    ) -> None:
        super().__init__(root)
        self.hours = parse_time(time_limit) / 3600
        self.target = target_named(target)
        self.options = {name: value for name, value in options.items() if value is not None}

    def submit_one(self, spec: TrainingJobSpec, dry_run: bool = False) -> dict[str, Any]:
        """Submit a job, or show what would be submitted. Of an array: the first, and the ids of all.

        Returns:
            ``success``: whether the cluster has acknowledged it, so False in a dry run; ``job_id``,
            ``native_id``, ``dry_run``, ``rendered``, ``estimated_start_time``; ``allocated_resources``: what
            it asks for, as what it gets is in its status; ``plan``, ``notes``, ``job_ids``.
        """
        submitted = self.submit(self.with_defaults(spec), self.target, dry_run=dry_run)
        first = submitted[0]
        return {
            "success": first.native_id is not None,
            "job_id": first.job_id,
            "native_id": first.native_id,
            "dry_run": dry_run,
            "rendered": first.rendered,
            "estimated_start_time": first.estimated_start_time,
            "allocated_resources": {
                "nodes": spec.num_nodes,
                "ranks_per_node": spec.num_ranks_per_node,
                "gpus_per_node": spec.num_gpus_per_node,
                "cpu_cores": spec.resources.cpu_cores,
                "memory_gb": spec.resources.memory_gb,
            },
            "plan": first.plan,
            "notes": list(first.notes),
            "job_ids": [job.job_id for job in submitted],
        }

    def with_defaults(self, spec: TrainingJobSpec) -> TrainingJobSpec:
        """The specification with the defaults where it sets nothing of its own."""
        hours = self.hours if spec.max_runtime_hours == _DEFAULT_HOURS else spec.max_runtime_hours
        own = {**self.options, **spec.options.get(self.target.name, {})}
        options = {**spec.options, self.target.name: own} if own else spec.options
        return spec.with_options(max_runtime_hours=hours, options=options)

    def of_target(self) -> list[JobStatus]:
        """The target's jobs, the newest first."""
        return [status for status in self.list() if self._is_ours(status.job_id)]

    def _is_ours(self, job_id: str) -> bool:
        try:
            return bool(self.folder(job_id).job()["target"] == self.target.name)
        except JobFolderError:
            return False

    def unfinished(self) -> dict[str, JobStatus]:
        """Those of them that have not ended, by id."""
        return {status.job_id: status for status in self.of_target() if status.state not in FINAL}
