"""What collectives did, and the time they took."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

from ..methods import CommunicationPattern, CompressionMethod, Operation


@dataclass(frozen=True, kw_only=True)
class Call:
    """What one collective did."""

    operation: Operation
    dtype: str
    nbytes: int
    """Of the whole vector that it is about: of an all-gather its output, of a reduce-scatter its input."""
    pattern: CommunicationPattern | None
    """None: of an all-to-all, in which each rank sends to each."""
    compression: CompressionMethod
    reason: str
    """For the pattern and the compression."""
    seconds: float
    """From its beginning on this rank to its end."""
    expected_s: float | None
    """None: not known."""
    sent_bytes: int
    """By this rank, without headers."""
    sent_between_hosts_bytes: int


@dataclass(frozen=True, kw_only=True)
class TimedCollective:
    """One operation of one size, of float32, by one pattern."""

    operation: Operation
    nbytes: int
    """Of the whole vector: of an all-gather the output, of a reduce-scatter and an all-to-all the input."""
    pattern: CommunicationPattern | None
    """None: each rank sends to each, the only one of an all-to-all."""
    seconds: float
    """The median over the calls of the slowest rank's time."""
    algbw_gbyte_s: float
    """``nbytes`` / ``seconds``."""
    busbw_gbyte_s: float
    """As nccl-tests define it: what the busiest link would carry if all were equally fast."""
    expected_s: float | None
    """Before anything was timed; None: a link was not measured."""
    chosen: bool
    """Whether ADAPTIVE chooses this pattern at these times."""


@dataclass(kw_only=True)
class _Sum:
    last: Call
    calls: int = 0
    seconds: float = 0.0
    shortest_s: float = float("inf")


class Counters:
    """Sums over calls. Any thread may ask."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sums: dict[tuple[object, ...], _Sum] = {}
        self._seconds = self._expected_s = self._measured_s = 0.0
        self._sent = self._between = self._expectations = 0
        self.last: Call | None = None

    def add(self, call: Call) -> None:
        """Count a call."""
        size, kind = bucket(call.nbytes), call.reason.partition(":")[0]  # times follow, new ones each time
        key = call.operation, call.dtype, size, call.pattern, call.compression, kind
        with self._lock:
            found = self._sums.setdefault(key, _Sum(last=call))
            found.last = self.last = call
            found.calls += 1
            found.seconds += call.seconds
            found.shortest_s = min(found.shortest_s, call.seconds)
            self._seconds += call.seconds
            self._sent += call.sent_bytes
            self._between += call.sent_between_hosts_bytes
            if call.expected_s is not None:
                self._expectations += 1
                self._expected_s += call.expected_s
                self._measured_s += call.seconds

    def stats(self) -> dict[str, Any]:
        """Sums over all calls, and ``choices``: one entry by operation, dtype, size, pattern, compression and
        kind of reason, with the last such reason.

        ``expected_s`` and ``measured_s`` are sums over the calls whose time was expected; None if there were
        none.
        """
        with self._lock:
            return {
                "bytes_on_wire": self._sent,
                "bytes_between_hosts": self._between,
                "seconds": self._seconds,
                "expected_s": self._expected_s if self._expectations else None,
                "measured_s": self._measured_s if self._expectations else None,
                "choices": [
                    {
                        "operation": found.last.operation.value,
                        "dtype": found.last.dtype,
                        "up_to_bytes": bucket(found.last.nbytes),
                        "pattern": found.last.pattern and found.last.pattern.value,
                        "compression": found.last.compression.value,
                        "reason": found.last.reason,
                        "calls": found.calls,
                        "seconds": found.seconds,
                        "shortest_s": found.shortest_s,
                        "expected_s": found.last.expected_s,
                    }
                    for found in self._sums.values()
                ],
            }


def bucket(nbytes: int) -> int:
    """The power of two that is not less."""
    return 1 << max(nbytes - 1, 0).bit_length()
