"""Rules about the host: memory, CPU time, disks, network interfaces."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from ...machine.readings import DiskReading, HostReading
from .counters import OOM_KILLS, Growth
from .evidence import ComponentHealth, Evidence, HealthState, judge
from .nics import NicHealth
from .thresholds import Thresholds


class StallShare:
    """Share of a time window in which some task waited, from a counter of seconds.

    The kernel updates its counters every 2 s, so the growth in a short window may exceed its length.
    """

    def __init__(self) -> None:
        self._seen: deque[tuple[float, float]] = deque()
        self.share: float | None = None
        """Share of 1; None until readings cover the window."""
        self.since_s: float | None = None
        """When it reached the threshold; None while it is below."""

    def update(self, now: float, stalled_s: float | None, window_s: float, threshold: float) -> None:
        if stalled_s is None:
            return
        if self._seen and (stalled_s < self._seen[-1][1] or now == self._seen[-1][0]):
            self._seen.clear()  # a reboot, or a jump of the clock: the period that was counted is unknown
        self._seen.append((now, stalled_s))
        while len(self._seen) > 1 and self._seen[1][0] <= now - window_s:
            self._seen.popleft()
        first_s, first = self._seen[0]
        covered = now - first_s
        self.share = min((stalled_s - first) / covered, 1.0) if covered >= window_s else None
        if self.share is None or self.share < threshold:
            self.since_s = None
        elif self.since_s is None:
            self.since_s = now


class HostHealth:
    """The health of a host, from the readings so far.

    Args:
        thresholds: may be replaced at any time.
    """

    def __init__(self, thresholds: Thresholds) -> None:
        self.thresholds = thresholds
        self._time_s = float("-inf")
        self._memory, self._cpu = StallShare(), StallShare()
        self._oom_kills = Growth(OOM_KILLS)
        self._nics: dict[str, NicHealth | None] = {}
        self._disks: dict[str, DiskReading | None] = {}
        self._full_since: dict[str, float] = {}

    def update(self, now: float, host: HostReading | None) -> None:
        """Take in the next reading, at ``now`` seconds, which are not less than before."""
        self._time_s = now
        if host is None:
            return
        thresholds = self.thresholds
        window = thresholds.pressure_window_s
        self._memory.update(now, host.memory_stall_s, window, thresholds.memory_stall_share)
        self._cpu.update(now, host.cpu_stall_s, window, thresholds.cpu_stall_share)
        self._oom_kills.update(now, [host.oom_kills], thresholds)
        for name in self._nics.keys() | host.nics.keys():
            if name not in host.nics:
                self._nics[name] = None
                continue
            nic = self._nics[name] = self._nics.get(name) or NicHealth()
            nic.update(now, host.nics[name], thresholds)
        for mount in self._disks.keys() | host.disks.keys():
            self._disks[mount] = disk = host.disks.get(mount)
            if disk is None or used_share(disk) < thresholds.disk_full_share:
                self._full_since.pop(mount, None)
            else:
                self._full_since.setdefault(mount, now)

    def health(self) -> dict[str, ComponentHealth]:
        """``memory``, ``cpu``, ``disk:/``, ``nic:eth0`` and so on."""
        found = {"memory": self._memory_health(), "cpu": self._cpu_health()}
        found |= {f"disk:{mount}": self._disk_health(mount) for mount in sorted(self._disks)}
        for name, nic in sorted(self._nics.items()):
            found[f"nic:{name}"] = (
                judge([], unknown="it left this host's network: moved, renamed or deleted")
                if nic is None
                else nic.health(self._time_s, self.thresholds)
            )
        return found

    def _memory_health(self) -> ComponentHealth:
        pressure = self._stall(
            "memory_pressure",
            self._memory,
            self.thresholds.memory_stall_share,
            "memory",
            HealthState.DEGRADED,
        )
        kills = self._oom_kills.evidence(self.thresholds)
        unchecked = [] if self._memory.share is not None else ["memory_pressure"]
        unchecked += [] if self._oom_kills.known[0] else ["oom_kills"]
        unknown = self._why_unknown() if len(unchecked) == 2 else None
        return judge([*pressure, *kills], unchecked, unknown)

    def _cpu_health(self) -> ComponentHealth:
        # More work than CPUs is not a fault, but worth reporting.
        pressure = self._stall(
            "cpu_pressure", self._cpu, self.thresholds.cpu_stall_share, "a CPU", HealthState.HEALTHY
        )
        if self._cpu.share is None:
            return judge(pressure, ["cpu_pressure"], self._why_unknown())
        return judge(pressure)

    def _why_unknown(self) -> str:
        return f"no readings of the pressure that cover {self.thresholds.pressure_window_s:g} s"

    def _stall(
        self, kind: str, stall: StallShare, threshold: float, what: str, state: HealthState
    ) -> Iterator[Evidence]:
        if stall.share is not None and stall.since_s is not None:
            yield Evidence(
                kind=kind,
                state=state,
                value=stall.share,
                threshold=threshold,
                since_s=stall.since_s,
                text=f"tasks waited for {what} in {stall.share:.0%} of the time (from {threshold:.0%} on)",
            )

    def _disk_health(self, mount: str) -> ComponentHealth:
        disk, thresholds = self._disks[mount], self.thresholds
        if disk is None:
            return judge([], unknown="it is not mounted any more, or cannot be read")
        used, since_s = used_share(disk), self._full_since.get(mount)
        if since_s is None:
            return judge([])
        failed = used >= thresholds.disk_failed_share
        full = Evidence(
            kind="disk_full",
            state=HealthState.FAILED if failed else HealthState.DEGRADED,
            value=used,
            threshold=thresholds.disk_failed_share if failed else thresholds.disk_full_share,
            since_s=since_s,
            text=f"{used:.1%} of {disk.total_bytes / 1e9:.4g} GB used, {disk.free_bytes / 1e9:.3g} GB free",
        )
        return judge([full])


def used_share(disk: DiskReading) -> float:
    """Used share of 1, space reserved for privileged users included; 0 for a file system without space."""
    return 1 - disk.free_bytes / disk.total_bytes if disk.total_bytes else 0.0
