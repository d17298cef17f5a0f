"""Periodic readings: one thread samples a source, and a history keeps the samples."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from ..machine.readings import Snapshot
from .history import History

__all__ = ["EndOfTrace", "History", "Source", "Telemetry"]

_LOG = logging.getLogger(__name__)
_STOP_S = 0.045
"""Seconds that :meth:`Telemetry.stop` waits for the thread. Closing has 100 ms, half for the drivers."""
_STALE_INTERVALS = 3
"""A snapshot older than this many intervals is out of date."""
_STALE_LEAST_S = 3.0


class EndOfTrace(Exception):  # noqa: N818  (an end, not an error: like StopIteration)
    """A replayed trace has no more snapshots."""


class Source(Protocol):
    """Where snapshots come from: a machine or a trace."""

    def read(self) -> Snapshot:
        """The next snapshot.

        Raises:
            EndOfTrace: there are no more.
        """


class Telemetry:
    """Samples a source, on request or on its own thread, which may be restarted.

    Args:
        source: read by one thread at a time.
        device_ids: the columns of the history.
        interval_s: seconds between samples of the thread.
        capacity: number of samples that the history keeps.
        clock: monotonic seconds.

    Raises:
        ValueError: an interval or a capacity that is not positive, or a device id twice.
    """

    def __init__(
        self,
        source: Source,
        device_ids: Sequence[int],
        *,
        interval_s: float = 1.0,
        capacity: int = 3600,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not 0 < interval_s < math.inf:
            raise ValueError(f"interval_s must be positive, got {interval_s}")
        self.interval_s = interval_s
        self.history = History(device_ids, capacity)
        self.listeners: list[Callable[[Snapshot], None]] = []
        """Each is called with every snapshot, by the thread that sampled it."""
        self.latest: Snapshot | None = None
        self.error: Exception | None = None
        """Exception that the source or a listener raised in the thread's last sample, or None."""
        self.cpu_seconds = 0.0
        """CPU time of the thread up to its last sample, including listeners."""
        self._source = source
        self._clock = clock
        self._latest_at: float | None = None
        self._started_at = -math.inf
        self._sampler: int | None = None
        """The thread that takes a sample, or tells the listeners; None: no thread does."""
        self._read_began_at: float | None = None
        """None while the source is not being read."""
        self._lock = threading.RLock()
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._logged: set[type[Exception]] = set()

    def sample(self) -> Snapshot:
        """Read the source now, keep the snapshot and call the listeners; one that calls this gets its own.

        Raises:
            EndOfTrace: the source has no more.
            Exception: whatever the source raised; or what a listener raised, after all were called.
        """
        if self.sampling_here and self.latest is not None:
            return self.latest
        return self._sample(threading.Event())

    def _sample(self, stop: threading.Event) -> Snapshot:
        with self._lock:
            self._sampler, self._read_began_at = threading.get_ident(), self._clock()
            try:
                snapshot = self._source.read()
                self._read_began_at = None
                if stop.is_set():  # stopped during a long read: no longer wanted
                    return snapshot
                self.history.append(snapshot)
                self.latest, self._latest_at = snapshot, self._clock()
                self._notify(snapshot)
            finally:
                self._sampler = self._read_began_at = None
            return snapshot

    def _notify(self, snapshot: Snapshot) -> None:
        raised: Exception | None = None
        for listener in tuple(self.listeners):
            try:
                listener(snapshot)
            except Exception as error:  # the other listeners are still called
                raised = raised or error
        if raised is not None:
            raise raised

    @property
    def age_s(self) -> float | None:
        """Seconds since the latest sample; None before the first."""
        return None if self._latest_at is None else self._clock() - self._latest_at

    @property
    def sampling_here(self) -> bool:
        """Whether the calling thread is taking a sample: a listener asks."""
        return self._sampler == threading.get_ident()

    @property
    def up_to_date(self) -> bool:
        """Whether the thread samples, and has done so since it was started."""
        return self.running and self._latest_at is not None and self._latest_at >= self._started_at

    @property
    def stale(self) -> bool:
        """Whether there should be a newer sample: the source does not return, or keeps failing."""
        bound = max(_STALE_INTERVALS * self.interval_s, _STALE_LEAST_S)
        began_at, latest_at = self._read_began_at, self._latest_at
        waits = [] if began_at is None else [began_at]
        if self.running:
            waits.append(max(self._started_at, -math.inf if latest_at is None else latest_at))
        now = self._clock()
        return any(now - since > bound for since in waits)

    @property
    def running(self) -> bool:
        """Whether the thread samples."""
        return self._thread is not None and self._thread.is_alive() and not self._stop.is_set()

    def start(self) -> None:
        """Sample on a daemon thread, now and at each interval, until :meth:`stop` or the source ends."""
        if self.running:
            return
        self._stop, self._started_at = threading.Event(), self._clock()
        self._thread = threading.Thread(
            target=self._run, args=(self._stop, self.cpu_seconds), name="telemetry", daemon=True
        )
        self._thread.start()

    def stop(self) -> bool:
        """Wake the thread and wait for its end, 100 ms at most.

        Returns:
            Whether it has ended. If not, it is blocked in a read of the source and ends after it, discarding
            the snapshot.
        """
        self._stop.set()
        thread = self._thread
        if thread is None or thread is threading.current_thread():
            return thread is None
        thread.join(_STOP_S)
        return not thread.is_alive()

    def _run(self, stop: threading.Event, cpu_before: float) -> None:
        for pause_s in self._pauses():
            if stop.wait(pause_s):
                return
            try:
                self._sample(stop)
            except EndOfTrace:
                return
            except Exception as error:  # kept in `error`: one bad reading must not end the watch
                self.error = error
                if type(error) not in self._logged:
                    self._logged.add(type(error))
                    _LOG.warning("a sample failed, sampling goes on", exc_info=error)
            else:
                self.error = None
            finally:
                self.cpu_seconds = cpu_before + time.thread_time()

    def _pauses(self) -> Iterator[float]:
        """Seconds to wait before each sample: samples start an interval apart, however long they take."""
        due = self._clock()
        while True:
            now = self._clock()
            due = max(due, now)  # missed samples are not made up for
            yield due - now
            due += self.interval_s
