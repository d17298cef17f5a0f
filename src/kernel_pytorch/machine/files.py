"""Reading sysfs and procfs, below any root: a test's tree as well as the machine's own."""

from __future__ import annotations

import os
from pathlib import Path


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
            return self.path(name).read_text(errors="replace").strip("\0\n\t ") or None
        except OSError:
            return None

    def number(self, name: str) -> int | None:
        """The integer in the file; None if there is none."""
        try:
            return int(self.text(name) or "")
        except ValueError:
            return None

    def cpus(self, name: str) -> tuple[int, ...]:
        """The numbers of a list such as ``0-3,8``; empty if there is no such file."""
        return parse_cpu_list(self.text(name) or "")

    def names(self, name: str) -> list[str]:
        """Entries of a folder, ordered; empty if there is no such folder."""
        try:
            return sorted(entry.name for entry in self.path(name).iterdir())
        except OSError:
            return []

    def numbered(self, name: str, prefix: str) -> list[int]:
        """The numbers N of the entries ``prefixN`` of a folder, ordered."""
        ends = (entry.removeprefix(prefix) for entry in self.names(name) if entry.startswith(prefix))
        return sorted(int(end) for end in ends if end.isdecimal())

    def link_name(self, name: str) -> str | None:
        """The last part of what a symbolic link points to."""
        try:
            return self.path(name).readlink().name
        except OSError:
            return None

    def exists(self, name: str) -> bool:
        """Whether it is there; False too where that may not be asked."""
        return os.path.exists(self.path(name))


def printable(name: str) -> str:
    """A name that the system gave, as text that UTF-8 has: bytes that are none of it become U+FFFD."""
    return os.fsencode(name).decode("utf-8", "replace")


def parse_cpu_list(text: str) -> tuple[int, ...]:
    """``0-3,8`` is (0, 1, 2, 3, 8): Linux's format for lists of CPUs and nodes.

    Raises:
        ValueError: it is something else.
    """
    found: list[int] = []
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        if not first.strip().isdecimal() or (last and not last.strip().isdecimal()):
            raise ValueError(f"a list of CPUs looks like 0-3,8, got {text!r}")
        found.extend(range(int(first), int(last or first) + 1))
    return tuple(found)


def format_cpu_list(cpus: tuple[int, ...]) -> str:
    """(0, 1, 2, 3, 8) is ``0-3,8``."""
    runs: list[list[int]] = []
    for cpu in sorted(set(cpus)):
        if runs and cpu == runs[-1][1] + 1:
            runs[-1][1] = cpu
        else:
            runs.append([cpu, cpu])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
