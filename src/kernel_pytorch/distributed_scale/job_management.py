"""A job's specification and state, and the nodes of a cluster."""

from __future__ import annotations

from ..jobs.spec import (
    ClusterNode,
    FailureType,
    JobState,
    JobStatus,
    ResourceRequirement,
    ResourceType,
    TrainingJobSpec,
)

__all__ = [
    "ClusterNode",
    "FailureType",
    "JobState",
    "JobStatus",
    "ResourceRequirement",
    "ResourceType",
    "TrainingJobSpec",
]
