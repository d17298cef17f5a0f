"""Recording readings, and applying the health rules to a recording."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ...machine.facts import DeviceInfo, Missing, NodeTopology
from ...machine.readings import Snapshot
from ...watch.health import ComponentHealth, HealthState, MachineHealth
from ...watch.quantities import SHOWN
from ...watch.telemetry import Source
from ...watch.trace import TraceWriter, read_trace
from ..errors import CommandError
from ..shell import Terminated, print_json, status_of


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A component that entered a state, or for which there is new evidence."""

    at_s: float
    """Seconds since the first reading."""
    component: str
    state: HealthState | None
    what: tuple[str, ...]
    """The evidence, or why the state is unknown."""


@dataclass(frozen=True, kw_only=True)
class ReplayReport:
    """The output of ``probe --replay --json``."""

    format: Literal["kernel-pytorch replay"] = "kernel-pytorch replay"
    version: Literal[1] = 1
    readings: int
    seconds: float
    truncated: bool
    """Whether the recording ends in the middle of a line."""
    missing: tuple[Missing, ...]
    """Impossible values in the recording, which count as unknown."""
    findings: tuple[Finding, ...]
    components: dict[str, ComponentHealth]
    """Health at the end."""


class Watch:
    """Follows the readings and the health of all components, and finds changes."""

    def __init__(self, devices: tuple[DeviceInfo, ...]) -> None:
        self._devices = devices
        self._ranges: dict[tuple[int, str], tuple[float, float]] = {}
        self._health = MachineHealth(devices)
        self._before: dict[str, tuple[HealthState | None, frozenset[str]]] = {}
        self._first_s: float | None = None
        self.last_s = 0.0
        self.readings = 0

    def take(self, snapshot: Snapshot) -> Iterator[Finding]:
        """Take in the next snapshot; yields what changed."""
        self._first_s = snapshot.time_s if self._first_s is None else self._first_s
        self.last_s = snapshot.time_s - self._first_s
        self.readings += 1
        self._note(snapshot)
        self._health.update(snapshot)
        for name, health in self._health.components().items():
            now = (health.state, frozenset(item.kind for item in health.evidence))
            before = self._before.get(name, (HealthState.HEALTHY, frozenset()))
            self._before[name] = now
            if now != before and now[0] is not None:
                yield Finding(at_s=self.last_s, component=name, state=health.state, what=_seen(health))

    def components(self) -> Mapping[str, ComponentHealth]:
        """Current health by component."""
        return self._health.components()

    def ranges(self) -> Iterator[str]:
        """A line for each device with the smallest and largest values that were read."""
        for device in self._devices:
            parts = [
                f"{quantity.number(pair[0])} to {quantity.number(pair[1])} {quantity.unit}"
                for field, quantity in SHOWN.items()
                if (pair := self._ranges.get((device.device_id, field))) is not None
            ]
            yield f"  {device.label:<12} {', '.join(parts) or 'nothing could be read'}"

    def _note(self, snapshot: Snapshot) -> None:
        for number, reading in snapshot.devices.items():
            for field in SHOWN:
                value = getattr(reading, field)
                if value is not None:
                    least, most = self._ranges.get((number, field), (value, value))
                    self._ranges[number, field] = min(least, value), max(most, value)


def record(machine: Source, node: NodeTopology, path: Path, seconds: float, interval_s: float) -> int:
    """Record readings of ``node`` into ``path``, for ``seconds`` or until Ctrl-C or SIGTERM.

    Returns:
        The exit status.

    Raises:
        CommandError: the file exists, or a reading failed; the readings before it are kept.
    """
    if path.exists():
        raise CommandError(f"{path} exists; --record does not write over it")
    watch, status = Watch(node.devices), 0
    on_terminal = sys.stderr.isatty()
    with TraceWriter(path, node) as writer:
        try:
            print(f"recording into {path} for {seconds:g} s; Ctrl-C ends it", flush=True)
            for left in _every(interval_s, seconds):
                snapshot = _read(machine, path)
                writer.write(snapshot)
                for finding in watch.take(snapshot):
                    print(_line(finding), flush=True)
                if on_terminal:
                    print(f"\r{left:4.0f} s left ", end="", file=sys.stderr, flush=True)
        except KeyboardInterrupt as interrupt:
            status = status_of(interrupt)
            how = "terminated" if isinstance(interrupt, Terminated) else "interrupted"
            print(f"{how}: what was read so far is kept", file=sys.stderr)
    if on_terminal:
        print(file=sys.stderr)
    print(f"{path}: {watch.readings} readings of {len(node.devices)} devices in {watch.last_s:.0f} s")
    print("\n".join(watch.ranges()))
    return status


def _read(machine: Source, path: Path) -> Snapshot:
    try:
        return machine.read()
    except Exception as error:  # whatever a driver raises
        raise CommandError(f"{path}: {error}") from error


def _every(interval_s: float, seconds: float) -> Iterator[float]:
    """Yields the seconds left: at once and then each interval, for ``seconds``."""
    due = begun = time.monotonic()
    while due - begun <= seconds:
        time.sleep(max(due - time.monotonic(), 0))
        yield seconds - (due - begun)
        due = max(due + interval_s, time.monotonic())  # missed readings are skipped


def replay(path: Path, *, as_json: bool) -> int:
    """Apply the health rules to the recording in ``path``, print the findings and return the exit status.

    Raises:
        CommandError: the file is not a recording, or is damaged.
    """
    try:
        reader = read_trace(path)
        watch = Watch(tuple(reader.topology.devices))
        findings = tuple(finding for snapshot in reader for finding in watch.take(snapshot))
    except ValueError as error:
        raise CommandError(str(error)) from error
    report = ReplayReport(
        readings=watch.readings,
        seconds=watch.last_s,
        truncated=reader.truncated,
        missing=reader.missing,
        findings=findings,
        components=dict(watch.components()) if watch.readings else {},
    )
    if as_json:
        print_json(report)
        return 0
    for finding in findings:
        print(_line(finding))
    cut = ", cut off at the end" if report.truncated else ""
    print(f"{path}: {report.readings} readings in {report.seconds:.0f} s{cut}")
    print("\n".join([*watch.ranges(), *(f"unknown: {note.what}: {note.why}" for note in report.missing)]))
    print("at the end")
    for name, health in report.components.items():
        state = "unknown" if health.state is None else health.state.value
        print(f"  {name:<12} {state}" + "".join(f"; {text}" for text in _seen(health)))
    return 0


def _seen(health: ComponentHealth) -> tuple[str, ...]:
    texts = tuple(item.text for item in health.evidence)
    return texts or ((health.reason,) if health.reason else ())


def _line(finding: Finding) -> str:
    state = "unknown" if finding.state is None else finding.state.value
    return f"{finding.at_s:8.1f} s  {finding.component:<12} {state}" + "".join(f"; {w}" for w in finding.what)
