"""torch's tables of process groups. Private to torch, the same from 2.11 to 2.13."""

from __future__ import annotations

import inspect
from datetime import timedelta
from itertools import count
from typing import Any, cast

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import Store, _register_process_group, _unregister_process_group
from torch.distributed import distributed_c10d as c10d

from .batches import keep_batches

Backends = list[tuple[torch.device, Any, Any]]


def describe(group: dist.ProcessGroup) -> tuple[Store, Backends]:
    """Store of a group, and device, type and backend of each of its backends, an accelerator's first."""
    store = c10d._world.pg_map[group][1]
    config = dict(part.split(":") for part in c10d._world.pg_backend_config[group].split(","))
    backends = [
        (torch.device(device), dist.Backend.backend_type_map[name], group._get_backend(torch.device(device)))
        for device, name in sorted(config.items(), key=lambda item: item[0] == "cpu")
    ]
    return store, backends


def new_name(wanted: str) -> str:
    """``wanted``, with a number if there is such a group. Ranks make the same groups, so the same name."""
    taken, name = set(c10d._world.pg_names.values()), wanted
    for number in count(2):
        if name not in taken:
            break
        name = f"{wanted}-{number}"
    return name


def enter(
    group: dist.ProcessGroup, inner: dist.ProcessGroup, name: str, *, in_place: bool, ranks: list[int]
) -> None:
    """Enter a group like ``inner``; ``in_place``: in its stead."""
    world = c10d._world
    world.pg_map[group] = world.pg_map[inner]
    world.pg_backend_config[group] = world.pg_backend_config[inner]
    world.pg_names[group] = cast(Any, name)
    world.pg_to_tag[group] = world.pg_to_tag[inner] if in_place else f"ptd:{name}"
    if in_place:
        tables: list[dict[Any, Any]] = [
            world.pg_map,
            world.pg_backend_config,
            world.pg_names,
            world.pg_to_tag,
        ]
        for table in tables:
            del table[inner]
        for groups in world.tags_to_pg.values():
            groups[:] = [group if each is inner else each for each in groups]
        _unregister_process_group(cast(Any, name))
    else:
        world.tags_to_pg.setdefault(f"ptd:{name}", []).append(group)
    _register_process_group(cast(Any, name), group)
    world.pg_group_ranks[group] = {rank: place for place, rank in enumerate(ranks)}
    keep_batches(c10d)
    dist.batch_isend_irecv = c10d.batch_isend_irecv


def second_group(
    group: dist.ProcessGroup, name: str, ranks: list[int], timeout: timedelta | None
) -> dist.ProcessGroup:
    """A gloo group of the same ranks. They all call this."""
    store = c10d._world.pg_map[group][1]
    if timeout is None:
        timeout = describe(group)[1][-1][2].options._timeout
    new_group = inspect.unwrap(c10d._new_process_group_helper)  # whose groups are not recorded
    made, _ = new_group(
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
    return cast("dist.ProcessGroup", made)
