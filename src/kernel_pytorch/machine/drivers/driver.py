"""What the readers of the vendors' drivers have in common."""

from __future__ import annotations

from typing import Any, Protocol

from ...errors import Unavailable
from ..facts import DeviceInfo, DeviceLink, Missing
from ..files import Files
from ..host.cpu import meminfo_bytes
from ..readings import DeviceReading


class Driver(Protocol):
    """A vendor's driver, open. Device ids are its own numbers here; the node numbers devices anew."""

    @property
    def missing(self) -> list[Missing]:
        """What the driver would not tell."""

    @property
    def indices(self) -> list[int]:
        """The numbers of its devices, ascending."""

    def devices(self) -> list[DeviceInfo]:
        """Their facts, without a reading."""

    def links(self) -> list[DeviceLink]:
        """What is known of the ways between them."""

    def read(self, index: int) -> DeviceReading:
        """One reading; a silent one of a device that does not answer."""

    def close(self) -> None: ...


class DriverUnavailableError(Unavailable):
    """A vendor's driver or its Python binding is not there, or may not be used."""


class DriverAbsentError(DriverUnavailableError):
    """The binding or its library is not installed: nothing points to such a device."""


def note(missing: list[Missing], what: str, why: str, fix: str | None = None) -> None:
    """Add a note, unless there is one about ``what`` already: a driver is asked every second."""
    if all(known.what != what for known in missing):
        missing.append(Missing(what=what, why=why, fix=fix))


def scaled(value: Any, factor: float) -> Any:
    """A number times ``factor``. Anything else, None too, stays as it is: :mod:`..possible` refuses it."""
    return value * factor if type(value) in (int, float) else value


def flag(value: Any) -> Any:
    """A driver's 0 and 1 as a truth value. Anything else, None too, stays as it is, as in :func:`scaled`."""
    return bool(value) if type(value) is int and value in (0, 1) else value


def text(value: Any) -> str | None:
    """A driver's text; None for anything else, and for AMD's word for unknown."""
    return value if isinstance(value, str) and value != "N/A" else None


def parts(value: Any, count: int) -> tuple[Any, ...]:
    """The ``count`` items of a list or tuple; None for each if it is something else."""
    return tuple(value) if isinstance(value, (list, tuple)) and len(value) == count else (None,) * count


def host_memory_bytes(files: Files) -> tuple[int | None, int | None]:
    """Total and used memory of the host: that of a GPU which has none of its own."""
    text = files.text("proc/meminfo")
    total, available = meminfo_bytes(text, "MemTotal"), meminfo_bytes(text, "MemAvailable")
    return total, None if total is None or available is None else total - available
