"""Heartbeats: a mapped file for each rank of a node, written at every step, read by the node program.

The file has 64 bytes: the sequence (odd while the rest is written), step, monotonic time, phase, seconds and
step of the last save, process id, rank, and a checksum of all that. The checksum is what a reader trusts:
stores to memory may arrive in another order than they were made (on ARM), and a writer may be killed halfway.
"""

from __future__ import annotations

import math
import mmap
import os
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from zlib import crc32

PHASES = ("starting", "training", "evaluating", "saving", "left")
_NUMBERS = {phase: number for number, phase in enumerate(PHASES)}
_RECORD, _SEQUENCE, _CHECK = struct.Struct("<qqdqdqii"), struct.Struct("<q"), struct.Struct("<I")
_WHOLE, _SIZE = _RECORD.size + _CHECK.size, 64
_UNKNOWN = -1
_TRIES = 100


@dataclass(frozen=True)
class Beat:
    """The last word of a rank."""

    step: int | None
    """None before the first."""
    time_s: float
    """When, by the node's monotonic clock."""
    phase: str
    """One of :data:`PHASES`."""
    save_s: float | None
    """What the last save took; None before the first."""
    save_step: int | None
    pid: int
    """The rank's process."""
    rank: int | None = None
    """Among all ranks of the job; None if it did not say."""


class BeatWriter:
    """Writes the beats of one rank, without system calls.

    Args:
        path: created, or taken over from an earlier process of the rank.
        rank: among all ranks of the job.

    Raises:
        OSError: it cannot be created.
    """

    def __init__(self, path: str | Path, rank: int | None = None) -> None:
        self._sequence = 0
        self._save_s, self._save_step = math.nan, _UNKNOWN
        self._pid, self._rank = os.getpid(), _UNKNOWN if rank is None else rank
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            # Not ftruncate: where /dev/shm is full, the first store to an empty page is a SIGBUS.
            os.pwrite(descriptor, bytes(_SIZE), 0)
            self._map = mmap.mmap(descriptor, _SIZE)
        finally:
            os.close(descriptor)
        self.step: int | None = None
        self.write(None, "starting")

    def write(self, step: int | None, phase: str) -> None:
        """Beat.

        Raises:
            ValueError: an unknown phase, or a step that is not an integer of 64 bits.
        """
        try:
            record = _RECORD.pack(
                self._sequence + 2,
                _UNKNOWN if step is None else step,
                monotonic(),
                _NUMBERS[phase],
                self._save_s,
                self._save_step,
                self._pid,
                self._rank,
            )
        except (KeyError, struct.error) as error:
            if phase not in _NUMBERS:
                raise ValueError(f"phase must be one of {', '.join(PHASES)}, got {phase!r}") from error
            raise ValueError(f"step must be an integer of 64 bits, got {step!r}") from error
        _SEQUENCE.pack_into(self._map, 0, self._sequence + 1)
        self._map[8:_WHOLE] = record[8:] + _CHECK.pack(crc32(record))
        self._sequence += 2
        _SEQUENCE.pack_into(self._map, 0, self._sequence)
        self.step = step

    def saved(self, step: int, seconds: float) -> None:
        """Have the following beats say so."""
        self._save_step, self._save_s = step, seconds


class Beats:
    """Reads the beats of a node's ranks, from any process of the node.

    Args:
        folder: the ranks' ``$KERNEL_PYTORCH_BEATS``.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._last: dict[int, Beat] = {}

    def read(self) -> dict[int, Beat]:
        """The last whole beat of each rank, by local rank."""
        for name in os.listdir(self.folder):
            if (found := re.fullmatch("rank-([0-9]+)", name)) and (beat := _read(self.folder / name)):
                self._last[int(found[1])] = beat
        return dict(sorted(self._last.items()))

    def ask_to_stop(self) -> None:
        """Have :meth:`.RankJob.must_stop` say so in all ranks of the node."""
        (self.folder / "stop").touch()


def _read(path: Path) -> Beat | None:
    """None if the writer has not begun, or was killed or stopped in the middle of a beat."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for _ in range(_TRIES):
            # Not mapped: reading a map of a file that another process cuts is a SIGBUS.
            data = os.pread(descriptor, _WHOLE, 0)
            if len(data) == _WHOLE and crc32(data[: _RECORD.size]) == _CHECK.unpack(data[_RECORD.size :])[0]:
                _, step, time_s, phase, save_s, save_step, pid, rank = _RECORD.unpack(data[: _RECORD.size])
                return Beat(
                    step=None if step == _UNKNOWN else step,
                    time_s=time_s,
                    phase=PHASES[phase],
                    save_s=None if math.isnan(save_s) else save_s,
                    save_step=None if save_step == _UNKNOWN else save_step,
                    pid=pid,
                    rank=None if rank == _UNKNOWN else rank,
                )
    finally:
        os.close(descriptor)
    return None
