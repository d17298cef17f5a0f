"""torch's tables of process groups. Private to torch, the same from 2.11 to 2.13."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from datetime import timedelta
from typing import Any, cast

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d as c10d

Backends = list[tuple[torch.device, Any, Any]]
_new_group = c10d._new_process_group_helper


def describe(group: dist.ProcessGroup) -> tuple[dist.Store, Backends]:
    """Store of a group, and device, type and backend of each of its backends, an accelerator's first."""
    store = c10d._world.pg_map[group][1]
    config = dict(part.split(":") for part in c10d._world.pg_backend_config[group].split(","))
    backends = [
        (torch.device(device), dist.Backend.backend_type_map[name], group._get_backend(torch.device(device)))
        for device, name in sorted(config.items(), key=lambda item: item[0] == "cpu")
    ]
    return store, backends


def enter(
    group: dist.ProcessGroup, inner: dist.ProcessGroup, name: str, *, in_place: bool, ranks: list[int]
) -> None:
    """Enter a group like ``inner``; ``in_place``: in its stead."""
    world = c10d._world
    for table in (world.pg_map, world.pg_backend_config):
        table[group] = table[inner]  # type: ignore[index]
    world.pg_names[group] = name
    world.pg_to_tag[group] = world.pg_to_tag[inner] if in_place else f"ptd:{name}"
    if in_place:
        for tables in (world.pg_map, world.pg_backend_config, world.pg_names, world.pg_to_tag):
            del tables[inner]  # type: ignore[attr-defined]
        for groups in world.tags_to_pg.values():
            groups[:] = [group if each is inner else each for each in groups]
        torch._C._distributed_c10d._unregister_process_group(cast(Any, name))
    else:
        world.tags_to_pg.setdefault(f"ptd:{name}", []).append(group)
    torch._C._distributed_c10d._register_process_group(cast(Any, name), group)
    world.pg_group_ranks[group] = {rank: place for place, rank in enumerate(ranks)}


def second_group(
    group: dist.ProcessGroup, name: str, ranks: list[int], timeout: timedelta | None
) -> dist.ProcessGroup:
    """A gloo group of the same ranks. They all call this."""
    store = c10d._world.pg_map[group][1]
    if timeout is None:
        timeout = describe(group)[1][-1][2].options._timeout
    made, _ = _new_group(
        group.size(),
        group.rank(),
        [] if dist.group.WORLD is None else ranks,
        dist.Backend("gloo"),
        store,
        cast(Any, name),
        timeout=timeout,
        group_desc="check",
    )
    c10d._world.pg_group_ranks[made] = {rank: place for place, rank in enumerate(ranks)}
    for tag in c10d._world.tags_to_pg.values():  # torch must not take it for the group of these ranks
        tag[:] = [each for each in tag if each is not made]
    return made


def replace_new_groups(replace: Callable[..., dist.ProcessGroup]) -> None:
    """Have ``replace(group, ranks, timeout)`` take the place of each group that torch makes from now on."""
    signature = inspect.signature(_new_group)

    def new_group(*args: Any, **named: Any) -> Any:
        made, store = _new_group(*args, **named)
        if not isinstance(made, dist.ProcessGroup):  # this rank is not part of it
            return made, store
        given = signature.bind(*args, **named).arguments
        ranks = list(given["global_ranks_in_group"]) or list(range(given["group_size"]))
        return replace(made, ranks, given.get("timeout")), store

    c10d._new_process_group_helper = new_group
    split = c10d.split_group

    def split_group(*args: Any, **named: Any) -> Any:
        made = split(*args, **named)
        if not isinstance(made, dist.ProcessGroup):
            return made
        return replace(made, dist.get_process_group_ranks(made), None)

    for module in (c10d, dist, dist.device_mesh):
        if getattr(module, "split_group", None) is split:
            module.split_group = split_group  # type: ignore[attr-defined]
