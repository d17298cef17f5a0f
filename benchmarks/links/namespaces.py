"""Hosts on one machine: network namespaces joined by shaped links. Linux, root, iproute2."""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import shaping

_NETWORK = "10.77.0"
_HEADERS = {"eth0": 66, "delay0": 52}
"""Bytes of Ethernet, IP and TCP with timestamps before the data; a TUN device has no Ethernet."""
GLOO = {"GLOO_SOCKET_IFNAME": "eth0"}
"""Environment by which gloo finds a host's interface."""
_numbers = itertools.count()

# Runs when its input ends: with the block of Links, or with the process that made it, however that died.
_CLEAN_UP = """cat
for name in "$@"; do ip netns pids "$name" | xargs -r kill -9; done
for name in "$@"; do ip netns del "$name"; done"""


def why_no_links() -> str | None:
    """Why :class:`Links` cannot be made here, or None."""
    if shutil.which("ip") is None or shutil.which("tc") is None:
        return "needs ip and tc (Debian: apt-get install iproute2)"
    if os.geteuid() != 0:
        return "needs root, for network namespaces"
    name = f"probe{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode:
        return f"cannot make a network namespace: {made.stderr.strip()}"
    _run("ip", "netns", "del", name)
    return None


def why_no_delay() -> str | None:
    """Why :meth:`Links.delay` cannot work here, or None."""
    return why_no_links() or (None if Path("/dev/net/tun").exists() else "needs /dev/net/tun")


def enter(name: str) -> None:
    """Move this process, which has one thread, to a namespace and its /sys, as ``ip netns exec`` does."""
    new_namespace, new_mounts, detach, slave, recursive = 0x40000000, 0x20000, 2, 0x80000, 0x4000
    libc = ctypes.CDLL(None, use_errno=True)

    def call(function: str, *args: Any) -> None:
        if getattr(libc, function)(*args):
            raise OSError(ctypes.get_errno(), f"{function}: {os.strerror(ctypes.get_errno())}")

    with open(f"/run/netns/{name}") as namespace:
        call("setns", namespace.fileno(), new_namespace)
    call("unshare", new_mounts)
    call("mount", b"", b"/", b"none", ctypes.c_ulong(slave | recursive), None)
    call("umount2", b"/sys", detach)
    call("mount", name.encode(), b"/sys", b"sysfs", ctypes.c_ulong(0), None)


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """What went over a host's interface since it was made."""

    sent_bytes: int
    """With headers."""
    received_bytes: int
    sent_data: int
    """Bytes without headers of Ethernet, IP and TCP."""
    received_data: int


class Links:
    """``size`` namespaces, each with an interface ``eth0`` into one switch. A context manager.

    Any number of processes can run on a host. Shapes and delays can change while they do.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        number = f"{os.getpid()}-{next(_numbers)}"
        self._switch = f"switch{number}"
        self._hosts = [f"host{number}-{i}" for i in range(size)]
        self._rates: dict[int, shaping.Rate] = {}
        self._pairs: dict[tuple[int, int], shaping.Rate] = {}
        """From a host to a host."""
        self._classes: set[tuple[int, str]] = set()
        """The devices with a class for each other host."""
        self._relay: subprocess.Popen[str] | None = None
        self._cleaner: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Links:
        self._cleaner = subprocess.Popen(
            ["sh", "-c", _CLEAN_UP, "sh", *self._hosts, self._switch],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            _run("ip", "netns", "add", self._switch)
            _run("ip", "-n", self._switch, "link", "add", "br0", "type", "bridge")
            _run("ip", "-n", self._switch, "addr", "add", f"{_NETWORK}.254/24", "dev", "br0")
            _run("ip", "-n", self._switch, "link", "set", "br0", "up")
            for i, host in enumerate(self._hosts):
                _run("ip", "netns", "add", host)
                _run("ip", "-n", host, "link", "add", "eth0", "type", "veth", "peer", "name", f"port{i}",
                     "netns", self._switch)  # fmt: skip
                _run("ip", "-n", self._switch, "link", "set", f"port{i}", "master", "br0", "up")
                _run("ip", "-n", host, "addr", "add", f"{self.address(i)}/24", "dev", "eth0")
                _run("ip", "-n", host, "link", "set", "lo", "up")
                _run("ip", "-n", host, "link", "set", "eth0", "up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._cleaner is not None:
            self._cleaner.communicate()
        if self._relay is not None:
            self._relay.communicate()

    def shape(
        self, bits_per_s: float | None, burst_bytes: int | None = None, *, host: int | None = None
    ) -> None:
        """Let each host, or one, send no faster than this, but for a burst; None: as fast as it can.

        Args:
            bits_per_s: of what leaves a host, with headers.
            burst_bytes: default: of 10 ms, at least 64 KiB, at most 256 KiB.
            host: default: each.
        """
        for each in self._each(host):
            if bits_per_s is None:
                self._rates.pop(each, None)
            else:
                self._rates[each] = shaping.rate(bits_per_s, burst_bytes)
            for device in self._devices():
                self._apply(each, device)

    def shape_pair(self, a: int, b: int, bits_per_s: float | None) -> None:
        """Let two hosts send no faster than this to each other; None: as fast as each may send to any."""
        for source, target in ((a, b), (b, a)):
            if bits_per_s is None:
                self._pairs.pop((source, target), None)
            else:
                self._pairs[source, target] = shaping.rate(bits_per_s)
            for device in self._devices():
                self._apply(source, device)

    def delay(self, seconds: float, *, host: int | None = None) -> None:
        """Let what each host, or one, sends to others arrive this much later."""
        if self._relay is None:
            if not seconds:
                return
            self._start_relay()
        assert self._relay is not None
        assert self._relay.stdin is not None
        for each in self._each(host):
            self._relay.stdin.write(f"{each} {seconds}\n")
            self._relay.stdin.flush()
            # A socket that is connected already takes the new route too.
            _run("ip", "-n", self._hosts[each], "route", "replace", f"{_NETWORK}.0/24", "dev",
                 "delay0" if seconds else "eth0", "src", self.address(each))  # fmt: skip

    def traffic(self) -> list[Traffic]:
        """What went over each host's interface so far."""
        return [_traffic(self._counters(host)) for host in self._hosts]

    def address(self, host: int) -> str:
        """The address of a host."""
        return f"{_NETWORK}.{host + 1}"

    def start(
        self, host: int, command: list[str], environment: Mapping[str, str] | None = None, **options: Any
    ) -> subprocess.Popen[bytes]:
        """Start a command on a host; ``options`` are those of Popen."""
        own = {**GLOO, "OMP_NUM_THREADS": "1", **(environment or {})}
        argv = ["ip", "netns", "exec", self._hosts[host], *command]
        return subprocess.Popen(argv, env={**os.environ, **own}, **options)

    def name(self, host: int) -> str:
        """The name of a host's namespace, for :func:`enter`."""
        return self._hosts[host]

    def _each(self, host: int | None) -> Iterable[int]:
        return range(self.size) if host is None else (host,)

    def _devices(self) -> tuple[str, ...]:
        return ("eth0",) if self._relay is None else ("eth0", "delay0")

    def _apply(self, host: int, device: str) -> None:
        """Tell the kernel what a host may send over a device."""
        whole = self._rates.get(host)
        if (host, device) in self._classes or any(source == host for source, _ in self._pairs):
            others = [other for other in range(self.size) if other != host]
            if (host, device) not in self._classes:
                self._classes.add((host, device))
                self._tc(host, *shaping.classes(device, {other: self.address(other) for other in others}))
            pairs = {other: self._pairs.get((host, other)) for other in others}
            self._tc(host, *shaping.class_rates(device, whole, pairs))
        elif whole is not None:
            self._tc(host, shaping.one_rate(device, whole))
        else:
            command = ["tc", "-n", self._hosts[host], *shaping.no_rate(device)]
            subprocess.run(command, capture_output=True, check=False)

    def _tc(self, host: int, *commands: list[str]) -> None:
        for command in commands:
            _run("tc", "-n", self._hosts[host], *command)

    def _start_relay(self) -> None:
        relay = subprocess.Popen(
            ["ip", "netns", "exec", self._switch, sys.executable, str(Path(__file__).with_name("relay.py")),
             *(f"delay{host}" for host in range(self.size))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._relay = relay
        assert relay.stdout is not None
        if relay.stdout.readline() != "ready\n":
            raise RuntimeError(f"the relay ended with status {relay.wait()}: it needs /dev/net/tun")
        for number, host in enumerate(self._hosts):
            _run("ip", "-n", self._switch, "link", "set", f"delay{number}", "netns", host, "name", "delay0")
            # What a token bucket lets through at once must not be dropped.
            _run("ip", "-n", host, "link", "set", "delay0", "txqueuelen", "10000", "up")
            self._apply(number, "delay0")

    def _counters(self, host: str) -> list[dict[str, Any]]:
        shown = subprocess.run(
            ["ip", "-n", host, "-j", "-s", "link", "show"], capture_output=True, text=True, check=True
        )
        found: list[dict[str, Any]] = json.loads(shown.stdout)
        return found


def _traffic(devices: list[dict[str, Any]]) -> Traffic:
    total = {"tx": [0, 0], "rx": [0, 0]}
    for device in devices:
        header = _HEADERS.get(device["ifname"])
        if header is not None:
            for way, counted in total.items():
                of = device["stats64"][way]
                counted[0] += of["bytes"]
                counted[1] += of["bytes"] - header * of["packets"]
    return Traffic(
        sent_bytes=total["tx"][0],
        sent_data=total["tx"][1],
        received_bytes=total["rx"][0],
        received_data=total["rx"][1],
    )


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
