"""Having the cluster run the job again, from inside of it."""

from __future__ import annotations

from collections.abc import Sequence

from .place import Place


def requeue(place: Place, exclude: Sequence[str]) -> None:
    """Have the job run again, without some nodes. Locally the supervisor does it, on exit status 75.

    Raises:
        KernelPytorchError: the cluster refuses.
    """
    if place.target == "slurm":
        from ..slurm.requeue import requeue as requeue_slurm_job

        requeue_slurm_job(place.native_id, exclude)


def is_timed_out(place: Place) -> bool:
    """Whether the cluster ends the job because its time is over, and nobody has requeued it.

    Raises:
        KernelPytorchError: the cluster does not tell.
    """
    if place.target != "slurm":  # the supervisor of a local job decides by itself
        return False
    from ..slurm.requeue import is_timed_out as is_slurm_job_timed_out

    return is_slurm_job_timed_out(place.native_id)
