"""Jobs on a Slurm cluster."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

from ..errors import Unavailable
from ..jobs.facts import JobState, JobStatus
from ..jobs.folder import JobNotFoundError
from ..jobs.one_target import TargetJobs
from ..jobs.spec import TrainingJobSpec
from ..jobs.target import ClusterUnavailableError

__all__ = ["ClusterUnavailableError", "JobNotFoundError", "SLURMClusterManager", "create_slurm_manager"]


class SLURMClusterManager:
    """:class:`.TargetJobs` of Slurm. Failures raise; ids are ours, a unique beginning of it, or Slurm's.

    Args:
        partition: None: the site's default.
        default_partition: older name of ``partition``.
        account: None: the user's default.
        default_time_limit: of jobs whose ``max_runtime_hours`` is the default.
    """

    def __init__(
        self,
        partition: str | None = None,
        default_partition: str | None = None,
        account: str | None = None,
        default_time_limit: str = "24:00:00",
    ) -> None:
        if None not in (partition, default_partition):
            raise ValueError("default_partition is an older name of partition: give one of them")
        options = {"partition": partition or default_partition, "account": account}
        self.jobs = TargetJobs("slurm", time_limit=default_time_limit, options=options)

    def submit_job(self, spec: TrainingJobSpec, dry_run: bool = False) -> dict[str, Any]:
        """See :meth:`.TargetJobs.submit_one`."""
        return self.jobs.submit_one(spec, dry_run)

    def get_job_status(self, job_id: str) -> JobStatus:
        """See :meth:`.Jobs.status`."""
        return self.jobs.status(job_id)

    def cancel_job(self, job_id: str) -> bool:
        """See :meth:`.Jobs.cancel`; False: it had ended by itself."""
        return self.jobs.cancel(job_id).state is JobState.CANCELLED

    def list_jobs(self) -> list[JobStatus]:
        """All jobs on Slurm, the newest first."""
        return self.jobs.of_target()

    @property
    def active_jobs(self) -> Mapping[str, JobStatus]:
        """Jobs that have not ended, by id, as they are now."""
        return self.jobs.unfinished()

    def logs(self, job_id: str, rank: int | None = None, follow: bool = False) -> Iterator[str]:
        """See :meth:`.Jobs.logs`."""
        return self.jobs.logs(job_id, rank, follow)

    def events(self, job_id: str) -> Iterator[dict[str, Any]]:
        """See :meth:`.Jobs.events`."""
        return self.jobs.events(job_id)

    def requeue_job(self, job_id: str, exclude: Sequence[str] = ()) -> str:
        """See :meth:`.Jobs.requeue`."""
        return self.jobs.requeue(job_id, exclude)

    def scale_job(self, job_id: str, replicas: int) -> NoReturn:
        """Slurm cannot do that.

        Raises:
            Unavailable: always.
        """
        raise Unavailable(
            f"{self.jobs.folder(job_id).id} cannot get {replicas} nodes: on Slurm their number is fixed",
            "cancel it and submit it again with other nodes; it goes on from its checkpoint",
        )

    def get_cluster_info(self) -> dict[str, Any]:
        """See :func:`.jobs.slurm.nodes.cluster_info`."""
        from ..jobs.slurm.nodes import cluster_info

        return cluster_info()


def create_slurm_manager(partition: str | None = None) -> SLURMClusterManager:
    """A manager of the jobs on Slurm; None: the site's default partition."""
    return SLURMClusterManager(partition)
