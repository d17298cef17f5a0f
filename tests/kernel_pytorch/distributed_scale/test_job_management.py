from __future__ import annotations

from kernel_pytorch import distributed_scale
from kernel_pytorch.distributed_scale import job_management
from kernel_pytorch.jobs import spec


def test_the_names_are_those_of_the_jobs_folder():
    for name in job_management.__all__:
        assert getattr(job_management, name) is getattr(spec, name) is getattr(distributed_scale, name)


def test_a_job_as_it_is_described_by_position():
    resources = distributed_scale.ResourceRequirement(16, 80.0, 64, 512.0)
    job = distributed_scale.TrainingJobSpec(
        "books-1", "books", "repo/image:1", ["python", "train.py"], resources, 16, 4, 2, nodes=(2, 2)
    )
    assert (job.data_parallel_size, job.num_ranks_per_node, job.num_gpus_per_node) == (2, 8, 8)
    assert distributed_scale.JobStatus("books-1", distributed_scale.JobState.PENDING).loss is None
    assert distributed_scale.ClusterNode("n1", "n1").available_gpus is None
