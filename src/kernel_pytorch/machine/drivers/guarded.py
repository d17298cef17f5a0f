"""A vendor's driver behind a worker, since it may never return."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace

import msgspec

from ...errors import Unavailable
from ..facts import DeviceInfo, DeviceLink, HardwareVendor, Missing
from ..readings import DeviceReading
from ..worker import Call, NoAnswerError, Rounds, Worker
from .driver import Driver, DriverUnavailableError

OPEN_S = 30.0
"""How long to wait for a driver to open, or to describe its devices: one without persistence mode is slow."""
CLOSE_S = 0.05
"""Half of the 100 ms that a shutdown has; the rest is the sampling thread's."""


@dataclass(frozen=True)
class DriverFacts:
    """What a driver reports of its devices."""

    devices: tuple[DeviceInfo, ...]
    """With the driver's own numbers."""
    links: tuple[DeviceLink, ...]
    missing: tuple[Missing, ...]

    @classmethod
    def of(cls, driver: Driver) -> DriverFacts:
        devices, links = tuple(driver.devices()), tuple(driver.links())
        return cls(devices, links, tuple(driver.missing))


class GuardedDriver:
    """A driver that only its worker calls.

    While a call for one device hangs, all devices of the driver are silent, once their last readings are old.

    Args:
        name: of the vendor's library.
        vendor: whose GPUs it shows.
        open_driver: opens it; called on the worker.

    Raises:
        Unavailable: it cannot be opened, or does not describe its devices, within ``OPEN_S``.
    """

    def __init__(self, name: str, vendor: HardwareVendor, open_driver: Callable[[], Driver]) -> None:
        self.name, self.vendor = name, vendor
        self._worker = Worker(name)

        def begin() -> tuple[Driver, list[int], DriverFacts]:
            driver = open_driver()
            return driver, driver.indices, DriverFacts.of(driver)

        try:
            self._driver, self._indices, self.facts = self._worker.call(begin, OPEN_S)
        except Unavailable:
            raise
        except Exception as error:  # of a binding or a library that is other than we know
            raise DriverUnavailableError(f"{name}: {error!r}") from error
        self._rounds = Rounds(self._worker, lambda: self._indices, self._read)
        self._xids: dict[int, tuple[int, ...]] = {}
        self._lock = threading.Lock()  # of the Xids, which must be handed on exactly once
        self._logged: set[type[Exception]] = set()

    def refresh(self) -> None:
        """Read the facts anew; if they do not come, those of before stay, with a note."""
        try:
            if not self._rounds.wait():
                raise NoAnswerError(self.name, self._rounds.patience_s)
            self.facts = self._worker.call(lambda: DriverFacts.of(self._driver), OPEN_S)
        except Exception as error:
            why, fix = (error.why, error.fix) if isinstance(error, Unavailable) else (repr(error), None)
            note = Missing(what=f"{self.name}: the facts of now", why=why, fix=fix)
            known = [missing for missing in self.facts.missing if missing != note]
            self.facts = replace(self.facts, missing=(*known, note))

    def ask(self) -> None:
        """Let the worker read all devices, unless it does."""
        self._rounds.ask()

    def readings(self, asked_s: float, *, take_xids: bool) -> list[DeviceReading]:
        """Of all devices, in order; a silent one where there is none that is fresh.

        Args:
            asked_s: when they were asked for, on the monotonic clock.
            take_xids: hand on the error reports; else they are kept.
        """
        latest = self._rounds.latest(asked_s)
        found = []
        for index in self._indices:
            age_s, reading = latest.get(index, (0.0, DeviceReading()))
            if age_s and not reading.silent:
                reading = msgspec.structs.replace(reading, age_s=age_s)
            if take_xids:
                with self._lock:
                    xids = self._xids.pop(index, ())
                reading = msgspec.structs.replace(reading, xids=xids) if xids else reading
            found.append(reading)
        return found

    @property
    def noted(self) -> tuple[Missing, ...]:
        """What the driver would not report so far, its readings included."""
        return tuple(self._driver.missing)

    @property
    def unanswered(self) -> Missing | None:
        """A note, if the readings that were asked for are not all there."""
        if self._rounds.finished:
            return None
        error = NoAnswerError(self.name, self._rounds.patience_s)
        return Missing(what=f"{self.name}: readings", why=error.why, fix=error.fix)

    def _read(self, index: int) -> DeviceReading:
        try:
            reading = self._driver.read(index)
        except Exception as error:  # as in begin(); the other devices are read all the same
            if type(error) not in self._logged:
                import logging  # takes 10 ms to import

                self._logged.add(type(error))
                logging.getLogger(__name__).warning("%s, device %d", self.name, index, exc_info=error)
            return DeviceReading()
        if reading.xids:
            with self._lock:
                self._xids[index] = self._xids.get(index, ()) + reading.xids
        return msgspec.structs.replace(reading, xids=()) if reading.xids else reading

    def begin_close(self) -> Call[None]:
        call = self._worker.submit(self._driver.close)
        self._worker.close()
        return call

    def end_close(self, call: Call[None]) -> None:
        """Wait until it is closed, ``CLOSE_S`` at most. Raises what closing raised."""
        if self._worker.wait(call, CLOSE_S):
            call.result()
