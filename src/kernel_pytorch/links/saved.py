"""Measured links, kept in a file for the next run on the same hosts."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ..groups import tell_all
from .facts import Figure, MeasuredLinks, host_of
from .hosts import group_by_host, host_names

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

FORMAT, VERSION = "kernel-pytorch links", 1


class _File(msgspec.Struct):
    format: str
    version: int
    saved_at: float
    """Seconds since 1970."""
    links: MeasuredLinks


def measure_or_saved(
    process_group: ProcessGroup | None = None, *, seconds: float = 3.0, fresh: bool = False
) -> MeasuredLinks:
    """The links that rank 0 has saved for these hosts if a quick round confirms them, else measured anew.

    All ranks call this, and nothing else may use the group meanwhile. What is measured, rank 0 saves; where
    it cannot write, the next run measures again.

    Args:
        process_group: of two ranks or more; default: all ranks.
        seconds: for measuring anew; a quick round takes a fraction of it.
        fresh: measure anew in any case.

    Returns:
        The same on all ranks; ``basis`` says which of the two it is.

    Raises:
        GroupError, ValueError: see :func:`.measure.measure_links`.
    """
    import torch.distributed as dist

    from .measure import homes_of, measure_links

    first = dist.get_rank(process_group) == 0
    homes = homes_of(process_group)
    hosts = group_by_host(homes)
    names = host_names(homes, hosts)
    key = key_of([names[host] for host in host_of(hosts)])
    found = load(key) if first and not fresh else None
    told = tell_all(lambda: b"" if found is None else msgspec.json.encode(found), process_group)[0]
    if told:
        found = msgspec.json.decode(told, type=MeasuredLinks)
        if agrees(found, measure_links(process_group, seconds=seconds, quick=True)):
            return found
    links = measure_links(process_group, seconds=seconds)
    if first:
        with suppress(OSError):
            save(links, key, time.time())
    return links


def links_folder() -> Path:
    """``$XDG_CACHE_HOME/kernel-pytorch/links``, by default below ``~/.cache``."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "kernel-pytorch" / "links"


def key_of(hostnames: Sequence[str]) -> str:
    """A name for the ranks' hosts, part of the file's. The same ranks on the same hosts have the same.

    Args:
        hostnames: by rank.
    """
    return hashlib.sha256("\n".join(hostnames).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def save(links: MeasuredLinks, key: str, now: float) -> Path:
    """Write the links, whole or not at all; returns the file.

    Raises:
        OSError: that is not possible.
    """
    path = links_folder() / f"{key}.json"
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    content = msgspec.json.encode(_File(format=FORMAT, version=VERSION, saved_at=now, links=links))
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{key}-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    return path


def load(key: str) -> MeasuredLinks | None:
    """What was saved, with ``basis`` saved; None: nothing, or something that this version does not read."""
    try:
        content = (links_folder() / f"{key}.json").read_bytes()
        file = msgspec.json.decode(content, type=_File)
    except (OSError, msgspec.DecodeError):
        return None
    if (file.format, file.version) != (FORMAT, VERSION):
        return None
    return replace(file.links, basis="saved")


def agrees(saved: MeasuredLinks, quick: MeasuredLinks, within: float = 0.15) -> bool:
    """Whether a quick measurement confirms what was saved.

    Inside a host, where rates depend on what else its CPUs do, a factor of two is no other link. Between
    hosts, round trips may differ by half and by a millisecond.

    Args:
        saved: all links.
        quick: at least all between hosts, measured now.
        within: by how much a rate may differ beyond the intervals of both, as a share of the saved one.
    """
    if saved.hosts != quick.hosts:
        return False
    known = {(link.source, link.target): link.gbit_s for link in saved.links}
    measured = {(link.source, link.target) for link in quick.links}
    if any(source != target for source, target in known.keys() - measured):
        return False
    for link in quick.links:
        before = known.get((link.source, link.target))
        if before is None:
            return False
        down, up = (0.5, 1.0) if link.source == link.target else (within, within)
        if not _overlap(link.gbit_s, before, down * before.value, up * before.value):
            return False
    for a, b in combinations(range(len(saved.hosts)), 2):
        now, then = quick.host_round_trip_us(a, b), saved.host_round_trip_us(a, b)
        if now is not None and then is not None:
            margin = max(1_000.0, 0.5 * then.value)
            if not _overlap(now, then, margin, margin):
                return False
    return True


def _overlap(now: Figure, before: Figure, down: float, up: float) -> bool:
    return now.high >= before.low - down and now.low <= before.high + up
