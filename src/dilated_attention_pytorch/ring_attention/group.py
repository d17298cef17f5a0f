"""Who takes part in a ring."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Literal, TypeAlias, TypeVar

import torch.distributed as dist
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh

from kernel_pytorch.groups import in_process_group

Ring: TypeAlias = ProcessGroup | Literal["local"] | None
"""The group whose ranks hold the shards; ``"local"`` for one device; None for one device, where there are no
other ranks."""


def ring_group(process_group: object, ring_size: int | None = None) -> ProcessGroup | None:
    """The group of a ring, None for one device. Sends no message.

    Args:
        process_group: a :data:`Ring`.
        ring_size: of the configuration.

    Raises:
        TypeError: ``process_group`` is something else.
        ValueError: it leaves open who takes part, this rank does not, or ``ring_size`` is another number.
    """
    if isinstance(process_group, ProcessGroup):
        size = dist.get_world_size(process_group)
        if ring_size not in (None, size):
            raise ValueError(
                f"ring_size must be the size of process_group or None, got {ring_size=} for a group of {size}"
            )
        return process_group
    if process_group is not None and process_group != "local":
        raise _refusal(process_group)
    world = dist.get_world_size() if in_process_group() else 1
    if world > 1 and process_group is None:
        raise ValueError(
            f"process_group must be given in a world of {world} ranks: dist.group.WORLD for a ring of all, a "
            "group for a ring of some, 'local' for one device; got None"
        )
    if world > 1 and ring_size not in (None, 1):
        raise ValueError(
            f"process_group='local' in a world of {world} ranks needs ring_size=None or 1, got {ring_size=}; "
            "for a ring of several ranks pass their group"
        )
    return None


T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Shared(Generic[T]):
    """What the copies of a module share: its process group, or its mesh. Neither can be pickled."""

    name: str
    """The module's class and attribute."""
    value: T

    def __deepcopy__(self, _: object) -> Shared[T]:
        return self

    def __reduce__(self) -> tuple[type[Shared[T]], tuple[str, T]]:
        if isinstance(self.value, (ProcessGroup, DeviceMesh)):
            raise TypeError(
                f"{self.name} is a {type(self.value).__name__}, which cannot be pickled: save the model's "
                "state_dict(), and build the model with a group of its own where it is loaded"
            )
        return type(self), (self.name, self.value)


def _refusal(process_group: object) -> Exception:
    expected = "process_group must be a ProcessGroup, 'local' or None, got"
    if process_group == dist.GroupMember.NON_GROUP_MEMBER:
        return ValueError(f"{expected} NON_GROUP_MEMBER: this rank is not in the group, and takes no part")
    if isinstance(process_group, str):
        return ValueError(f"{expected} {process_group!r}")
    if isinstance(process_group, DeviceMesh):
        way_out = "pass mesh.get_group(), or the mesh to RingDistributedDilatedAttention"
        return TypeError(f"{expected} a DeviceMesh: {way_out}")
    return TypeError(f"{expected} {type(process_group).__name__}")
