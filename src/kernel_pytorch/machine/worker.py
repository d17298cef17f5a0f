"""Calls that may never return (a vendor's library, a dead disk), on a thread that can be abandoned.

Whoever asks waits for a bound, which Ctrl-C interrupts, and goes on with what has been answered. A call that
hangs holds its worker, a daemon thread, and nothing else: neither a lock nor the end of the process.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

from ..errors import Unavailable

READ_S = 0.5
"""How long a snapshot waits for readings, if those that come late are in time for the next one."""
FRESH_S = 3.0
"""An older reading is none: a few intervals of telemetry."""
_SLICE_S = 0.1
"""A signal that comes just before a wait begins does not end it: it is handled after a slice of the wait."""
T = TypeVar("T")
Key = TypeVar("Key")


class NoAnswerError(Unavailable):
    """A call did not return in time. It goes on, on its worker."""

    def __init__(self, name: str, within_s: float) -> None:
        super().__init__(
            f"{name} did not answer within {within_s:g} s",
            "look into the kernel's log (dmesg); reset the device, or reboot",
        )


class Call(Generic[T]):
    """A call that a worker makes."""

    def __init__(self, function: Callable[[], T]) -> None:
        self._function = function
        self._value: T
        self._error: BaseException | None = None
        self.finished = threading.Event()
        self.abandoned = False
        """Nobody waits for it any more: it is not begun."""

    def run(self) -> None:
        try:
            self._value = self._function()
        except BaseException as error:  # raised where the result is asked for
            self._error = error
        self.finished.set()

    def result(self) -> T:
        """What a finished call returned; raises what it raised."""
        if self._error is not None:
            raise self._error
        return self._value


class _Busy:
    """What the thread tells about itself."""

    since_s: float | None = None
    """When the call that it is in began; None between calls."""


class Worker:
    """A daemon thread that makes calls, one after the other. It ends when its owner goes.

    Args:
        name: whose calls these are, for messages.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._calls: SimpleQueue[Call[Any] | None] = SimpleQueue()
        self._busy = _Busy()
        threading.Thread(
            target=_work, args=(self._calls, self._busy), name=f"worker of {name}", daemon=True
        ).start()

    def submit(self, function: Callable[[], T]) -> Call[T]:
        call = Call(function)
        self._calls.put(call)
        return call

    def wait(self, call: Call[T], within_s: float) -> bool:
        """Wait until the call has returned, or until one call has held the thread for ``within_s``.

        So nobody waits again for a call that others have waited for long enough.
        """
        now = time.monotonic()
        since = self._busy.since_s
        left_s = (now if since is None else since) + within_s - now
        while left_s > _SLICE_S:
            if call.finished.wait(_SLICE_S):
                return True
            left_s -= _SLICE_S
        return call.finished.wait(max(0.0, left_s))

    def call(self, function: Callable[[], T], within_s: float) -> T:
        """The result of a call on the thread.

        Raises:
            NoAnswerError: no result in time, as for :meth:`wait`.
            Exception: whatever the call raised.
        """
        call = self.submit(function)
        try:
            if not self.wait(call, within_s):
                raise NoAnswerError(self.name, within_s)
        finally:
            call.abandoned = True
        return call.result()

    def close(self) -> None:
        """Let the thread end after the calls that were submitted. There must be no more."""
        self._calls.put(None)

    __del__ = close


def _work(calls: SimpleQueue[Call[Any] | None], busy: _Busy) -> None:
    """The thread. Holds no reference to the worker or, between calls, to what they call."""
    while (call := calls.get()) is not None:
        if not call.abandoned:
            busy.since_s = time.monotonic()
            call.run()
            busy.since_s = None
        del call


class Rounds(Generic[Key, T]):
    """Reads several things one after the other on a worker, whenever asked, and keeps the last of each.

    A read that hangs holds up those after it and all further rounds until it returns; what was read before
    it is there at once.

    Args:
        keys: of the things; called on the worker for each round.
        read: one of them.
    """

    def __init__(self, worker: Worker, keys: Callable[[], Iterable[Key]], read: Callable[[Key], T]) -> None:
        self._worker, self._keys, self._read = worker, keys, read
        self._round: Call[None] | None = None
        self._asked_s = -math.inf
        self._seldom = True
        self._latest: dict[Key, tuple[float, T]] = {}
        self._lock = threading.Lock()

    def ask(self) -> None:
        """Begin a round, unless one is under way."""
        with self._lock:
            now = time.monotonic()
            self._seldom, self._asked_s = now - self._asked_s > FRESH_S, now
            if self.finished:
                self._round = self._worker.submit(self._read_all)

    @property
    def finished(self) -> bool:
        return self._round is None or self._round.finished.is_set()

    @property
    def patience_s(self) -> float:
        """How long to wait for a round: what comes later is too old for one who asks seldom."""
        return max(READ_S, FRESH_S) if self._seldom else READ_S

    def wait(self) -> bool:
        """Whether all has been read that was asked for; waits ``patience_s`` at most."""
        return self._round is None or self._worker.wait(self._round, self.patience_s)

    def _read_all(self) -> None:
        for key in self._keys():
            began_s = time.monotonic()
            self._latest[key] = (began_s, self._read(key))

    def latest(self, asked_s: float) -> dict[Key, tuple[float, T]]:
        """(age in seconds, value) of what is not older than ``FRESH_S``; waits ``patience_s`` at most.

        Args:
            asked_s: on the monotonic clock; what was begun since has the age 0.
        """
        if self.wait() and self._round is not None:
            self._round.result()
        now = time.monotonic()
        return {
            key: (0.0 if began_s >= asked_s else round(now - began_s, 3), value)
            for key, (began_s, value) in self._latest.copy().items()
            if now - began_s <= FRESH_S
        }
