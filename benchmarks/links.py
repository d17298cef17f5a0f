"""Hosts on one machine: network namespaces joined by shaped links. Linux, root, iproute2."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from typing import Any


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


class Links:
    """``size`` namespaces, each with an interface ``eth0`` into one switch. A context manager."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._switch = f"switch{os.getpid()}"
        self._hosts = [f"host{os.getpid()}-{i}" for i in range(size)]

    def __enter__(self) -> Links:
        try:
            _run("ip", "netns", "add", self._switch)
            _run("ip", "-n", self._switch, "link", "add", "br0", "type", "bridge")
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
        for name in (*self._hosts, self._switch):
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)

    def shape(self, bits_per_s: float, burst_bytes: int | None = None) -> None:
        """Let each host send no faster than this, but for a burst; default: of 10 ms, at least 64 KiB."""
        # A token bucket refills at the kernel's ticks.
        burst = burst_bytes or max(65536, int(bits_per_s / 8 / 100))
        for host in self._hosts:
            _run("tc", "-n", host, "qdisc", "replace", "dev", "eth0", "root", "tbf",
                 "rate", f"{int(bits_per_s)}bit", "burst", str(burst), "latency", "2s")  # fmt: skip

    def address(self, host: int) -> str:
        """The address of a host."""
        return f"10.77.0.{host + 1}"

    def start(
        self, host: int, command: list[str], environment: Mapping[str, str] | None = None, **options: Any
    ) -> subprocess.Popen[bytes]:
        """Start a command on a host; ``options`` are those of Popen."""
        own = {"GLOO_SOCKET_IFNAME": "eth0", "OMP_NUM_THREADS": "1", **(environment or {})}
        argv = ["ip", "netns", "exec", self._hosts[host], *command]
        return subprocess.Popen(argv, env={**os.environ, **own}, **options)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
