"""Measured links, kept in a file for the next run on the same hosts."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import msgspec

from .facts import MeasuredLinks

FORMAT, VERSION = "kernel-pytorch links", 1


class _File(msgspec.Struct):
    format: str
    version: int
    saved_at: float
    """Seconds since 1970."""
    links: MeasuredLinks


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

    Args:
        saved: all links.
        quick: some of them, measured now.
        within: by how much a rate may differ beyond the intervals of both, as a share of the saved one.
    """
    if saved.hosts != quick.hosts:
        return False
    known = {(link.source, link.target): link.gbit_s for link in saved.links}
    for link in quick.links:
        before = known.get((link.source, link.target))
        if before is None:
            return False
        margin = within * before.value
        if link.gbit_s.low > before.high + margin or link.gbit_s.high < before.low - margin:
            return False
    return True
