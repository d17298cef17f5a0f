"""What the old modules and names of :mod:`kernel_pytorch.legacy` are called now."""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass

from ..legacy import MOVED, RENAMED, Renamed

LEAVES = frozenset(module.rpartition(".")[2] for module in MOVED)
"""Last components of the moved modules."""
WORDS = re.compile("|".join(sorted({*LEAVES, *RENAMED})).encode())
"""What the bytes of every file that needs a change contain."""


@dataclass(frozen=True, kw_only=True)
class Now:
    """Where an old name is found now."""

    module: str
    name: str | None
    """None: the module itself."""

    @property
    def path(self) -> str:
        """Dotted path."""
        return self.module if self.name is None else f"{self.module}.{self.name}"


def package_of(moved: str) -> str:
    """The package that has every name of a moved module."""
    return moved.rpartition(".")[0]


def package_has(moved: str, name: str) -> bool:
    """Whether the package of a moved module offers ``name``."""
    return name in importlib.import_module(package_of(moved)).__all__


def renamed(module: str, name: str) -> Renamed | None:
    """What ``name`` of ``module`` is called now; None if it was not renamed."""
    now = RENAMED.get(name)
    return now if now is not None and module in now.modules else None


def home_of(module: str, now: Renamed) -> str:
    """``module`` if it has the new name too, else the home. Top-level packages offer all new names."""
    return module if module in (now.home, now.home.partition(".")[0]) else now.home


def lookup(path: str) -> Now | None:
    """What an exact path is now; None if it is not in the table, or its calls mean something else."""
    if path in MOVED:
        return Now(module=package_of(path), name=None)
    module, _, name = path.rpartition(".")
    if module in MOVED:
        return Now(module=package_of(module), name=name) if package_has(module, name) else None
    now = renamed(module, name)
    return None if now is None or not now.same else Now(module=home_of(module, now), name=now.new)


def advice(module: str, name: str) -> str:
    """What to do about an old name whose calls mean something else now."""
    now = RENAMED[name]
    return f"{module}.{name} means something else now: use {now.new} of {now.home}"
