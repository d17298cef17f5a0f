"""What the readers of the vendors' drivers have in common."""

from __future__ import annotations

from typing import Protocol

from ...errors import Unavailable
from ..facts import DeviceInfo, DeviceLink, Missing
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
