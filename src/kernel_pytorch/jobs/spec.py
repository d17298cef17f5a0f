"""What a job is, as data: one specification for every target."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from .checks import (
    check_choice,
    check_duration,
    check_mapping,
    check_text,
    check_texts,
    check_whole,
    plain_copy,
    refuse_unknown,
)
from .facts import ClusterNode as ClusterNode
from .facts import FailureType as FailureType
from .facts import JobState as JobState
from .facts import JobStatus as JobStatus
from .facts import ResourceRequirement as ResourceRequirement
from .facts import ResourceType as ResourceType
from .layout import check_layout, resized

MAX_HOURS = 87_600
"""Ten years. Longer times are mistakes of units."""
TARGETS = ("local", "slurm")
RESTART_POLICIES = ("OnFailure", "Never")
_ID = re.compile("[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_SET_FOR_RANKS = re.compile(
    "(|LOCAL_|GROUP_|ROLE_)RANK|(|LOCAL_|GROUP_|ROLE_)WORLD_SIZE|MASTER_(ADDR|PORT)|TORCHELASTIC_.*"
    "|KERNEL_PYTORCH_(JOB|ATTEMPT|BEATS|CHECKPOINT_EVERY)",
    re.DOTALL,
)
"""Variables that the launcher gives each rank; other values would break the job."""


@dataclass(frozen=True)
class TrainingJobSpec:
    """One job, for any target. All that can be checked without a cluster is checked.

    Raises:
        TypeError: a value has the wrong type.
        ValueError: a value is out of range, or two do not fit together; the message has them all.
    """

    job_id: str | None
    """None: made when the job is submitted."""
    name: str
    image: str | None
    """Of the container; None: no container."""
    command: Sequence[str]
    """Program and arguments, for no shell to read."""
    resources: ResourceRequirement
    world_size: int
    """Ranks on the most nodes that the job may have."""
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    data_parallel_size: int | None = None
    """Default: world_size divided by the two sizes above."""
    priority: int = 0
    max_runtime_hours: float = 24
    restart_policy: str = "OnFailure"
    """OnFailure, or Never: then nothing is restarted or requeued after a fault."""
    checkpoint_interval_minutes: float = 30
    """The longest time between checkpoints; faults may make it shorter."""
    env_vars: Mapping[str, str] = field(default_factory=dict)
    volumes: Sequence[Mapping[str, Any]] = field(default_factory=list)
    """Mounts, as the target writes them."""
    max_retries: int = 3
    enable_auto_scaling: bool = False
    min_replicas: int = 1
    """Fewest nodes that auto-scaling may choose."""
    max_replicas: int | None = None
    """Most nodes that auto-scaling may choose. Default: those that the job starts with."""
    _: KW_ONLY
    nodes: tuple[int, int] | None = None
    """Fewest and most nodes. Default: world_size / ranks_per_node; one, if that is None too."""
    ranks_per_node: int | None = None
    """Default: world_size / most nodes if nodes is given, else gpus_per_node, else world_size."""
    gpus_per_node: int | None = None
    """Default: the GPUs of ``resources`` split evenly over the most nodes."""
    secrets: Mapping[str, str] = field(default_factory=dict)
    """Where the value of a variable is: ``file:PATH`` or ``env:NAME``, read when a rank starts."""
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """What only one target knows, by target."""

    def __post_init__(self) -> None:
        self._check_each()
        self._check_environment()
        check_layout(self)
        split = self.tensor_parallel_size * self.pipeline_parallel_size
        object.__setattr__(self, "data_parallel_size", self.world_size // split)

    def _check_each(self) -> None:
        if self.job_id is not None and not _ID.fullmatch(check_text("job_id", self.job_id)):
            raise ValueError(
                f"job_id must be up to 100 letters, digits, '.', '_' and '-', got {self.job_id!r}"
            )
        check_text("name", self.name)
        if self.image is not None:
            check_text("image", self.image)
        command = check_texts("command", self.command, empty=True)
        if not command or not command[0].strip():
            raise ValueError(f"command must start with a program, got {command}")
        if not isinstance(self.resources, ResourceRequirement):
            raise TypeError(f"resources must be a ResourceRequirement, got {type(self.resources).__name__}")
        check_whole("priority", self.priority)
        check_whole("max_retries", self.max_retries, 0)
        check_duration("max_runtime_hours", self.max_runtime_hours, MAX_HOURS)
        check_duration("checkpoint_interval_minutes", self.checkpoint_interval_minutes, 60 * MAX_HOURS)
        check_choice("restart_policy", self.restart_policy, RESTART_POLICIES)
        if not isinstance(self.enable_auto_scaling, bool):
            raise TypeError(f"enable_auto_scaling must be a bool, got {self.enable_auto_scaling!r}")
        options = check_mapping("options", self.options)
        refuse_unknown(options, TARGETS, "options")
        for target, values in options.items():
            check_mapping(f"options.{target}", values)
        volumes = plain_copy("volumes", self.volumes)
        if not isinstance(volumes, list) or not all(isinstance(volume, dict) for volume in volumes):
            raise TypeError(f"volumes must be a list of mappings, got {self.volumes!r:.80}")
        copies = {"command": command, "volumes": volumes, "options": plain_copy("options", options)}
        for name, value in copies.items():
            object.__setattr__(self, name, value)

    def _check_environment(self) -> None:
        """Values are in no message: they may be secret."""
        for field_name in ("env_vars", "secrets"):
            values = check_mapping(field_name, getattr(self, field_name))
            for name, value in values.items():
                if not name or "=" in name:
                    raise ValueError(f"{field_name}: {name!r} is not the name of a variable")
                if _SET_FOR_RANKS.fullmatch(name):
                    raise ValueError(f"{field_name} must not have {name}: the launcher sets it for each rank")
                check_text(f"{field_name}.{name}", value, show=False, empty=True)
                if field_name == "secrets" and not re.fullmatch("(file|env):.+", value, re.DOTALL):
                    raise ValueError(f"secrets.{name} must be file:PATH or env:NAME, which says where it is")
            object.__setattr__(self, field_name, dict(values))
        if twice := sorted(set(self.env_vars) & set(self.secrets)):
            raise ValueError(f"{twice[0]} must be in env_vars or in secrets, not in both")

    @property
    def num_nodes(self) -> tuple[int, int]:
        """Fewest and most nodes."""
        if self.nodes is not None:
            return self.nodes
        most = max(1, self.world_size // self.num_ranks_per_node)
        return most, most

    @property
    def num_ranks_per_node(self) -> int:
        """Ranks on each node."""
        if self.ranks_per_node is not None:
            return self.ranks_per_node
        if self.nodes is not None:
            return self.world_size // self.nodes[1]
        return self.gpus_per_node or self.world_size

    @property
    def num_gpus_per_node(self) -> int | None:
        """GPUs to ask for on each node; None: the job does not say."""
        total = self.resources.gpu_count
        if self.gpus_per_node is not None or total is None:
            return self.gpus_per_node
        return total // self.num_nodes[1]

    @classmethod
    def load(cls, path: str | Path) -> TrainingJobSpec:
        """Read a YAML or JSON file: see :func:`.read.load_spec`."""
        from .read import load_spec

        return load_spec(path)

    def to_dict(self) -> dict[str, Any]:
        """A copy of all fields that JSON can hold; :func:`.read.spec_of` makes an equal spec of it."""
        values: dict[str, Any] = plain_copy("spec", asdict(self))
        return values

    def with_options(self, **options: Any) -> TrainingJobSpec:
        """A copy with other values of some fields.

        ``data_parallel_size`` follows, and ``world_size`` where nodes, their ranks or their GPUs change.

        Raises:
            TypeError, ValueError: as for a new spec, or an option is not a field.
        """
        refuse_unknown(options, [item.name for item in fields(self)])
        return replace(self, **{"data_parallel_size": None, **resized(self, options), **options})
