"""Recorded readings: a file of JSON lines, the topology first, then a snapshot a line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import msgspec

from ..machine.facts import ClusterTopology, Missing, NodeTopology
from ..machine.possible import Notes, possible_facts, possible_readings
from ..machine.readings import DeviceReading, HostReading, Snapshot
from .telemetry import EndOfTrace

FORMAT = "kernel-pytorch trace"
VERSION = 1


class _Preamble(msgspec.Struct):
    """Fields of the first line in every version."""

    format: str
    version: int


class TraceHeader(msgspec.Struct, frozen=True, kw_only=True):
    """The first line."""

    format: str = FORMAT
    version: int = VERSION
    topology: ClusterTopology
    """Has the device ids of the readings; of a trace of one node, only that node."""


class _Untyped(msgspec.Struct):
    """A snapshot whose readings may have values of any type, such as text for a number."""

    time_s: float
    devices: dict[int, dict[str, Any]]
    host: HostReading | None = None

    def snapshot(self) -> Snapshot:
        names, devices = set(DeviceReading.__struct_fields__), {}
        for id, reading in self.devices.items():
            known = {name: value for name, value in reading.items() if name in names}
            lists = {name: tuple(value) for name, value in known.items() if isinstance(value, list)}
            devices[id] = DeviceReading(**known | lists)
        return Snapshot(time_s=self.time_s, devices=devices, host=self.host)


class TraceWriter:
    """Records snapshots. Each line is flushed, so a recording that was killed can be read.

    Args:
        path: created, or overwritten.
        topology: has the device ids of the snapshots.
    """

    def __init__(self, path: str | Path, topology: ClusterTopology | NodeTopology) -> None:
        if isinstance(topology, NodeTopology):
            topology = ClusterTopology(nodes={topology.node_id: topology})
        self._encoder = msgspec.json.Encoder()
        self._file: BinaryIO = open(path, "wb")  # noqa: SIM115  (closed by close)
        try:
            self._write_line(TraceHeader(topology=topology))
        except OSError as error:  # a full disk: do not leave half a header
            with suppress(OSError):
                self.close()
            Path(path).unlink(missing_ok=True)
            raise OSError(error.errno, error.strerror, str(path)) from error

    def write(self, snapshot: Snapshot) -> None:
        """Append a snapshot. Fits :attr:`.Telemetry.listeners`."""
        self._write_line(snapshot)

    def _write_line(self, what: msgspec.Struct) -> None:
        self._file.write(self._encoder.encode(what) + b"\n")
        self._file.flush()

    def close(self) -> None:
        try:
            self._file.close()
        except OSError as error:  # a full disk: close writes again, and its error has no path
            raise OSError(error.errno, error.strerror, self._file.name) from error

    def __enter__(self) -> TraceWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class TraceReader:
    """A recorded trace: its topology, and its snapshots by iteration. Impossible values in it are unknown.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not a trace, or of another version; while iterating: a line is damaged.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        with self.path.open("rb") as file:
            topology = self._header(file.readline()).topology
        self._impossible: Notes = {}
        nodes = {
            id: replace(
                node, devices=tuple(possible_facts(device, self._impossible) for device in node.devices)
            )
            for id, node in topology.nodes.items()
        }
        self.topology = replace(topology, nodes=nodes)
        self.truncated = False
        """The last line is incomplete: the recording was cut off. Iteration omits it."""

    @property
    def missing(self) -> tuple[Missing, ...]:
        """Impossible values found so far: one note for each device and quantity."""
        return tuple(self._impossible.values())

    def __iter__(self) -> Iterator[Snapshot]:
        decoder = msgspec.json.Decoder(Snapshot)
        devices = {device.device_id: device for device in self.topology.devices}
        with self.path.open("rb") as file:
            file.readline()
            empty = 0
            for number, line in enumerate(file, 2):
                if not line.strip():  # allowed only at the end, where editors add some
                    empty = empty or number
                    continue
                if empty:
                    raise ValueError(f"{self.path}: line {empty} is damaged: it is empty")
                if not line.endswith(b"\n"):
                    self.truncated = True
                    return
                try:
                    snapshot = self._snapshot(decoder, line)
                except ValueError as error:
                    raise ValueError(f"{self.path}: line {number} is damaged: {error}") from error
                readings = possible_readings(snapshot.devices, devices, self._impossible)
                yield msgspec.structs.replace(snapshot, devices=readings)

    @staticmethod
    def _snapshot(decoder: msgspec.json.Decoder[Snapshot], line: bytes) -> Snapshot:
        try:
            return decoder.decode(line)
        except msgspec.ValidationError:
            return msgspec.json.decode(line, type=_Untyped).snapshot()

    def _header(self, line: bytes) -> TraceHeader:
        try:
            preamble = msgspec.json.decode(line, type=_Preamble)
        except ValueError as error:
            raise ValueError(f"{self.path} is not a trace: its first line is no header ({error})") from error
        if preamble.format != FORMAT:
            raise ValueError(f"{self.path} is not a trace: its format is {preamble.format!r}, not {FORMAT!r}")
        if preamble.version != VERSION:
            raise ValueError(f"{self.path} is a trace of version {preamble.version}; only {VERSION} is read")
        try:
            return msgspec.json.decode(line, type=TraceHeader)
        except ValueError as error:
            raise ValueError(f"{self.path}: line 1 is damaged: {error}") from error


def read_trace(path: str | Path) -> TraceReader:
    """Open a trace: ``reader.topology``, ``for snapshot in reader``.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not a trace, or of another version; while iterating: a line is damaged.
    """
    return TraceReader(path)


class ReplaySource:
    """A trace as a source: each read returns the next snapshot, with its recorded time.

    Raises:
        OSError, ValueError: as of :func:`read_trace`.
    """

    def __init__(self, path: str | Path) -> None:
        self._trace = read_trace(path)
        self._snapshots = iter(self._trace)
        self.topology = self._trace.topology

    def read(self) -> Snapshot:
        """The next snapshot.

        Raises:
            EndOfTrace: there are no more; the message says if the recording was cut off.
            ValueError: the next line is damaged.
        """
        for snapshot in self._snapshots:
            return snapshot
        cut = ", whose last line is cut off" if self._trace.truncated else ""
        raise EndOfTrace(f"end of {self._trace.path}{cut}")
