"""Reading sysfs and procfs below any root folder, so that tests can use trees of their own.

A file that cannot be read, or is not in the kernel's format, is unknown. Nothing here raises.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

_MAX_CPUS = 8192  # no architecture's NR_CPUS is larger


class Files:
    """The files of a machine.

    Args:
        root: folder that holds ``proc`` and ``sys``.
    """

    def __init__(self, root: str | Path = "/") -> None:
        self.root = Path(root)

    def path(self, name: str) -> Path:
        """``name`` below the root."""
        return self.root / name.lstrip("/")

    def text(self, name: str) -> str | None:
        """The file's text, stripped; None if the file is absent, unreadable or empty."""
        try:
            # Some reads fail (the speed of a link that is down), some files are not UTF-8.
            text = self.path(name).read_text(encoding="utf-8", errors="replace")
        except (OSError, ValueError):  # ValueError: the name, from another file, contains NUL
            return None
        return text.strip("\0\n\t ") or None

    def number(self, name: str) -> int | None:
        """The integer in the file; None if it is not one."""
        return whole(self.text(name))

    def count(self, name: str) -> int | None:
        """The integer in the file; None if it is negative, as the kernel gives -1 for unknown."""
        number = self.number(name)
        return None if number is None or number < 0 else number

    def flag(self, name: str) -> bool | None:
        """The truth value of a file that holds 1 or 0; None for anything else."""
        return {"0": False, "1": True}.get(self.text(name) or "")

    def cpus(self, name: str) -> tuple[int, ...]:
        """The numbers in a file with a list such as ``0-3,8``; empty if there is none."""
        return parse_cpu_list(self.text(name) or "")

    def names(self, name: str) -> list[str]:
        """The sorted entries of a folder; empty if it does not exist."""
        try:
            return sorted(os.listdir(self.path(name)))
        except (OSError, ValueError):
            return []

    def numbered(self, name: str, prefix: str) -> list[int]:
        """The sorted numbers N of a folder's entries ``prefixN``."""
        ends = (entry.removeprefix(prefix) for entry in self.names(name) if entry.startswith(prefix))
        return sorted(number for end in ends if (number := whole(end)) is not None and number >= 0)

    def link_name(self, name: str) -> str | None:
        """The final component of a symbolic link's target; None if unknown."""
        try:
            return printable(self.path(name).readlink().name)
        except (OSError, ValueError):
            return None

    def exists(self, name: str) -> bool:
        """Whether a file or folder exists; False if that cannot be determined."""
        try:
            return os.path.exists(self.path(name))
        except ValueError:
            return False


def whole(text: str | None) -> int | None:
    """An integer of at most 20 digits as the kernel prints it; None for anything else."""
    return int(text) if text is not None and re.fullmatch("-?[0-9]{1,20}", text) else None


def in_line(text: str | None, pattern: str) -> str | None:
    """The group of ``pattern`` in the first line that matches it as a whole; None if none does."""
    found = re.search(f"^{pattern}$", text or "", re.MULTILINE)
    return found[1] if found else None


def printable(name: str) -> str:
    """A file name or host name as valid Unicode: bytes that are not UTF-8 become U+FFFD."""
    return os.fsencode(name).decode("utf-8", "replace")


def parse_cpu_list(text: str) -> tuple[int, ...]:
    """Parse Linux's format for lists of CPUs: ``0-3,8`` is (0, 1, 2, 3, 8). Empty for anything else."""
    found: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        match = re.fullmatch("([0-9]{1,4})(?:-([0-9]{1,4}))?", part)
        if match is None or int(match[2] or match[1]) >= _MAX_CPUS:
            return ()
        found.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    return tuple(sorted(found))


def format_cpu_list(cpus: tuple[int, ...]) -> str:
    """The inverse of :func:`parse_cpu_list`: (0, 1, 2, 3, 8) is ``0-3,8``."""
    runs: list[list[int]] = []
    for cpu in sorted(set(cpus)):
        if runs and cpu == runs[-1][1] + 1:
            runs[-1][1] = cpu
        else:
            runs.append([cpu, cpu])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
