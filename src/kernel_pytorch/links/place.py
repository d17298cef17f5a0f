"""This process's place in a process group, against what a caller says of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..groups import in_process_group

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def size_and_rank(process_group: ProcessGroup | None = None) -> tuple[int, int]:
    """Number of ranks of a group (default: all), and this process's; (1, 0) outside of any."""
    if process_group is None and not in_process_group():
        return 1, 0
    import torch.distributed as dist

    return dist.get_world_size(process_group), dist.get_rank(process_group)


def check_place(world_size: int, rank: int | None = None, process_group: ProcessGroup | None = None) -> None:
    """Refuse a size or a rank that is not that of the group.

    Raises:
        ValueError: it is not.
    """
    size, own = size_and_rank(process_group)
    if world_size != size:
        raise ValueError(f"world_size is {world_size}, the process group has {size} ranks")
    if rank is not None and rank != own:
        raise ValueError(f"rank is {rank}, this process has rank {own} in the process group")


def need_group(world_size: int, what: str, process_group: ProcessGroup | None = None) -> None:
    """Refuse several ranks without a process group.

    Raises:
        RuntimeError: there is none.
    """
    if world_size > 1 and process_group is None and not in_process_group():
        raise RuntimeError(f"{what} needs a process group: call torch.distributed.init_process_group first")
