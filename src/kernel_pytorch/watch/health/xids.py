"""NVIDIA's error reports (Xid), by what they mean for the GPU.

Source: NVIDIA, "Xid Errors" and Xid catalog, by the immediate action listed for each.
"""

from __future__ import annotations

from collections.abc import Iterator

from .evidence import Evidence, HealthState
from .windows import HOUR_S

_FAILED = {
    46: "the GPU stopped working",
    48: "uncorrectable ECC error",
    62: "internal microcontroller halted",
    64: "a page or row could not be retired",
    79: "the GPU has fallen off the bus",
    95: "uncontained memory error",
    109: "time-out of a context switch",
    110: "security fault",
    119: "the GPU's system processor does not answer",
    120: "error of the GPU's system processor",
    136: "an NVLink could not be trained",
    140: "unrecovered ECC error",
    143: "the GPU could not be initialised",
    151: "error of key rotation",
    155: "NVLink error that needs a reset",
    156: "a resource was retired, which needs a reset",
    158: "fatal time-out",
}
_DEGRADED = {
    54: "auxiliary power is not connected",
    61: "internal microcontroller warning",
    63: "a page or row was retired",
    74: "NVLink error",
    92: "many corrected ECC errors",
    94: "contained memory error",
    **dict.fromkeys(range(144, 151), "NVLink error"),
}
_APPLICATION = {
    13: "exception in a kernel",
    31: "access to memory that is not mapped",
    43: "a kernel was stopped",
    45: "a process was ended",
}
_UNLISTED = "see NVIDIA's Xid catalog"
_MEANINGS = _FAILED | _DEGRADED | _APPLICATION


def xid_state(xid: int) -> HealthState:
    """State of a GPU with this Xid; healthy for errors caused by a program and for unlisted ones."""
    if xid in _FAILED:
        return HealthState.FAILED
    return HealthState.DEGRADED if xid in _DEGRADED else HealthState.HEALTHY


class XidReports:
    """The reports of one GPU. Those about the GPU are kept until :meth:`clear`, others for an hour."""

    def __init__(self) -> None:
        self._seen: dict[int, tuple[float, float]] = {}
        """When each number was first and last reported."""

    def add(self, now: float, xids: tuple[int, ...]) -> None:
        for xid in xids:
            first, _ = self._seen.get(xid, (now, now))
            self._seen[xid] = (first, now)

    def clear(self) -> None:
        self._seen.clear()

    def evidence(self, now: float) -> Iterator[Evidence]:
        for xid, (first, last) in sorted(self._seen.items()):
            state = xid_state(xid)
            if state is HealthState.HEALTHY and last < now - HOUR_S:
                continue
            yield Evidence(
                kind="xid",
                state=state,
                value=xid,
                threshold=xid,
                since_s=first,
                text=f"Xid {xid}: {_MEANINGS.get(xid, _UNLISTED)}",
            )
