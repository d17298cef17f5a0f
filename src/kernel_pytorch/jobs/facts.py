"""What a job asks for, how it is, and what nodes there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from enum import Enum

from .checks import check_amount, check_mapping, check_text, check_texts, check_whole


class JobState(Enum):
    """State of a job; one that is not known is None."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    SCALING = "scaling"


class ResourceType(Enum):
    """What a job can use up."""

    GPU_MEMORY = "gpu_memory"
    CPU_CORES = "cpu_cores"
    SYSTEM_MEMORY = "system_memory"
    NETWORK_BANDWIDTH = "network_bandwidth"
    STORAGE_IOPS = "storage_iops"


class FailureType(Enum):
    """What failed; not known is None."""

    NODE_FAILURE = "node_failure"
    GPU_FAILURE = "gpu_failure"
    NETWORK_FAILURE = "network_failure"
    SOFTWARE_FAILURE = "software_failure"
    OOM_FAILURE = "oom_failure"
    TIMEOUT_FAILURE = "timeout_failure"


@dataclass(frozen=True)
class ResourceRequirement:
    """What the whole job needs. None: it does not ask for it.

    Raises:
        TypeError: a value has the wrong type.
        ValueError: a number is negative, or a text empty.
    """

    gpu_count: int | None
    gpu_memory_gb: float | None
    """1e9 bytes, of each GPU."""
    cpu_cores: int | None
    memory_gb: float | None
    """1e9 bytes, of all nodes together; so is the storage."""
    storage_gb: float | None = 100
    network_bandwidth_gbps: float | None = 10
    """1e9 bits per second, of each node."""
    required_gpu_types: Sequence[str] | None = None
    """Any of these will do."""
    node_selector: Mapping[str, str] | None = None
    """Labels that each node must have."""

    def __post_init__(self) -> None:
        if self.gpu_count is not None:
            check_whole("gpu_count", self.gpu_count, 0)
        if self.cpu_cores is not None:
            check_whole("cpu_cores", self.cpu_cores, 1)
        for name in ("gpu_memory_gb", "memory_gb", "storage_gb", "network_bandwidth_gbps"):
            if getattr(self, name) is not None:
                check_amount(name, getattr(self, name))
        if self.required_gpu_types is not None:
            kinds = check_texts("required_gpu_types", self.required_gpu_types)
            if not kinds:
                raise ValueError("required_gpu_types must not be empty; None allows any GPU")
            object.__setattr__(self, "required_gpu_types", kinds)
        if self.node_selector is not None:
            labels = dict(check_mapping("node_selector", self.node_selector))
            for key, value in labels.items():
                check_text(f"node_selector.{key}", value, empty=True)
            object.__setattr__(self, "node_selector", labels)


@dataclass(frozen=True)
class JobStatus:
    """How a job is. What is not known is None, not 0. Times are in seconds since 1970."""

    job_id: str
    state: JobState | None = None
    start_time: float | None = None
    """Of the first attempt."""
    end_time: float | None = None
    allocated_nodes: Sequence[str] | None = None
    """Names of the nodes that it has, or had last."""
    allocated_gpus: int | None = None
    """On all nodes together."""
    current_epoch: int | None = None
    total_epochs: int | None = None
    loss: float | None = None
    throughput_samples_per_sec: float | None = None
    error_message: str | None = None
    """What the first rank to fail said last."""
    restart_count: int | None = None
    """Attempts after the first, and restarts in place."""
    last_checkpoint: int | None = None
    """Step of the newest complete one."""
    _: KW_ONLY
    native_id: str | None = None
    """The cluster's own id."""
    native_state: str | None = None
    """The cluster's own word."""
    reason: str | None = None
    """Why it is in this state, or why that is not known."""
    attempt: int | None = None
    step: int | None = None
    """The last step that is known to be finished."""
    steps_lost: int | None = None
    """Steps that had to be repeated, over all faults."""
    as_of: float | None = None
    """When this was known."""


@dataclass(frozen=True)
class ClusterNode:
    """A node of a cluster. What is not known is None. A GB is 1e9 bytes."""

    node_id: str
    hostname: str
    total_gpus: int | None = None
    available_gpus: int | None = None
    total_memory_gb: float | None = None
    available_memory_gb: float | None = None
    total_cpu_cores: int | None = None
    available_cpu_cores: int | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    taints: Sequence[str] = ()
    """Why it gets no jobs, such as the cluster's words for a drained node."""
    last_seen: float | None = None
    """Seconds since 1970."""
