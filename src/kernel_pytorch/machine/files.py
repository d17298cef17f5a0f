"""Reading sysfs and procfs, below any root: a test's tree as well as the machine's own.

What cannot be read and what is not as the kernel writes it are one: unknown. Nothing here raises.
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
        return self.root / name.lstrip("/")

    def text(self, name: str) -> str | None:
        """The file's text without white space around it; None if it is absent, unreadable or empty."""
        try:
            # The kernel answers some reads with an error (a speed of a link that is down), some with bytes.
            text = self.path(name).read_text(encoding="utf-8", errors="replace")
        except (OSError, ValueError):  # ValueError: a name with a NUL, from another file
            return None
        return text.strip("\0\n\t ") or None

    def number(self, name: str) -> int | None:
        """The whole number in the file; None if there is none."""
        return whole(self.text(name))

    def count(self, name: str) -> int | None:
        """The number in the file, if it is not negative: -1 is the kernel's word for unknown."""
        number = self.number(name)
        return None if number is None or number < 0 else number

    def flag(self, name: str) -> bool | None:
        """Of a file that holds 1 or 0."""
        return {"0": False, "1": True}.get(self.text(name) or "")

    def cpus(self, name: str) -> tuple[int, ...]:
        """The numbers of a list such as ``0-3,8``; empty if there is no such file."""
        return parse_cpu_list(self.text(name) or "")

    def names(self, name: str) -> list[str]:
        """Entries of a folder, ordered; empty if there is no such folder."""
        try:
            return sorted(os.listdir(self.path(name)))
        except (OSError, ValueError):
            return []

    def numbered(self, name: str, prefix: str) -> list[int]:
        """The numbers N of the entries ``prefixN`` of a folder, ordered."""
        ends = (entry.removeprefix(prefix) for entry in self.names(name) if entry.startswith(prefix))
        return sorted(number for end in ends if (number := whole(end)) is not None and number >= 0)

    def link_name(self, name: str) -> str | None:
        """The last part of what a symbolic link points to."""
        try:
            return printable(self.path(name).readlink().name)
        except (OSError, ValueError):
            return None

    def exists(self, name: str) -> bool:
        """Whether it is there; False too where that may not be asked."""
        try:
            return os.path.exists(self.path(name))
        except ValueError:
            return False


def whole(text: str | None) -> int | None:
    """A whole number as the kernel prints it, of at most 64 bits; None for anything else."""
    return int(text) if text is not None and re.fullmatch("-?[0-9]{1,20}", text) else None


def in_line(text: str | None, pattern: str) -> str | None:
    """What the group of ``pattern`` holds in the first line that is like it from end to end."""
    found = re.search(f"^{pattern}$", text or "", re.MULTILINE)
    return found[1] if found else None


def printable(name: str) -> str:
    """A name that the system gave, as text that UTF-8 has: bytes that are none of it become U+FFFD."""
    return os.fsencode(name).decode("utf-8", "replace")


def parse_cpu_list(text: str) -> tuple[int, ...]:
    """``0-3,8`` is (0, 1, 2, 3, 8): Linux's format for lists of CPUs and nodes. Empty for anything else."""
    found: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        match = re.fullmatch("([0-9]{1,4})(?:-([0-9]{1,4}))?", part)
        if match is None or int(match[2] or match[1]) >= _MAX_CPUS:
            return ()
        found.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    return tuple(sorted(found))


def format_cpu_list(cpus: tuple[int, ...]) -> str:
    """(0, 1, 2, 3, 8) is ``0-3,8``."""
    runs: list[list[int]] = []
    for cpu in sorted(set(cpus)):
        if runs and cpu == runs[-1][1] + 1:
            runs[-1][1] = cpu
        else:
            runs.append([cpu, cpu])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
