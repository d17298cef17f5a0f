"""``probe --serve``: real processes, scraped over HTTP."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest
from processes import WITH_A_DRIVER, first_process
from prometheus_samples import samples

from kernel_pytorch.cli import main
from kernel_pytorch.cli.probe.serve import _listen

SERVE = [sys.executable, "-m", "kernel_pytorch.cli", "probe", "--serve"]
needs_ipv6 = pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="needs IPv6")


@contextmanager
def serving(*arguments: str) -> Iterator[str]:
    """The URL at which a process serves. Ctrl-C ends it, without a word."""
    command = [*SERVE, *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process.stdout.readline().strip()
    finally:
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "", "")


def scraped(url: str) -> dict[tuple[str, ...], float]:
    with urllib.request.urlopen(url, timeout=60) as answer:
        return samples(answer.read().decode())


def test_scraped():
    with serving("127.0.0.1:0") as url:
        found = scraped(url)
        assert found["memory_available_bytes",] > 0
        assert found["disk_size_bytes", "/"] > found["disk_free_bytes", "/"] >= 0
        with pytest.raises(ConnectionRefusedError):  # at the other addresses of this machine it is not served
            socket.create_connection(("127.0.0.2", urlsplit(url).port), timeout=60)


def test_readings_go_on():
    """Free memory never stays the same: asked until a second reading shows."""
    with serving("127.0.0.1:0", "--interval", "0.05") as url:
        seen = set()
        until = time.monotonic() + 60
        while len(seen) < 2 and time.monotonic() < until:
            seen.add(scraped(url)["memory_available_bytes",])
        assert len(seen) == 2


@needs_ipv6
def test_a_port_alone_serves_both_families():
    with serving(":0") as url:
        port = urlsplit(url).port
        assert url == f"http://[::]:{port}/metrics"
        for host in ("127.0.0.1", "[::1]"):
            assert scraped(f"http://{host}:{port}/metrics")["memory_available_bytes",] > 0


@needs_ipv6
def test_an_ipv6_address_serves_that_alone():
    with serving("[::1]:0") as url:
        port = urlsplit(url).port
        assert url == f"http://[::1]:{port}/metrics"
        assert scraped(url)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=60)


def test_both_families_where_the_system_keeps_them_apart():
    """``net.ipv6.bindv6only`` of a network namespace of its own."""
    set_up = "ip link set lo up && echo 1 > /proc/sys/net/ipv6/bindv6only"
    if subprocess.run(["unshare", "--net", "sh", "-c", set_up], capture_output=True).returncode:
        pytest.skip("needs ip, IPv6 and the right to make a network namespace")
    script = """
import socket
from kernel_pytorch.cli.probe.serve import _listen
with _listen("", 0) as server:
    for host in ("127.0.0.1", "::1"):
        socket.create_connection((host, server.server_port)).close()
"""
    command = ["unshare", "--net", "sh", "-c", f'{set_up} && exec "$@"', "sh", sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("number", [errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL])
def test_without_ipv6_ipv4_is_served(monkeypatch, number):
    class NoIpv6(socket.socket):
        def __init__(self, family: int = -1, *arguments: object, **options: object) -> None:
            if family == socket.AF_INET6:
                raise OSError(number, os.strerror(number))
            super().__init__(family, *arguments, **options)

    monkeypatch.setattr(socket, "socket", NoIpv6)
    with _listen("", 0) as server:
        assert server.url == f"http://0.0.0.0:{server.server_port}/metrics"


@pytest.mark.parametrize("address", ["9400x", "host", "1:99999", ""])
def test_what_is_no_address(capsys, address):
    assert main(["probe", "--serve", address]) == 2
    assert "--serve takes [HOST]:PORT" in capsys.readouterr().err


@pytest.mark.parametrize("host", ["a..b", "192.0.2.1"], ids=["no name", "of another machine"])
def test_a_host_that_is_not_here(capsys, host):
    assert main(["probe", "--serve", f"{host}:9400"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"kernel-pytorch probe: error: --serve {host}:9400: ")


@pytest.mark.parametrize("host", ["127.0.0.1", ""], ids=["there", "anywhere"])
def test_a_port_that_is_taken(capsys, host):
    with socket.socket() as taken:
        taken.bind((host, 0))
        taken.listen()
        assert main(["probe", "--serve", f"{host}:{taken.getsockname()[1]}"]) == 2
    assert "Address already in use" in capsys.readouterr().err


def test_sigterm_ends_the_first_process_of_a_container(monkeypatch):
    """As Ctrl-C does, drivers closed. The kernel delivers no signal that PID 1 does not handle."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    command = [sys.executable, "-c", WITH_A_DRIVER, "probe", "--serve", "127.0.0.1:0"]
    with first_process(command) as (process, child, _):
        os.kill(child, signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (143, "opened 1, closed 1\n", "")
