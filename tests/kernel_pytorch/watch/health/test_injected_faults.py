"""Faults that are made for real, on this host."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kernel_pytorch.machine.files import Files
from kernel_pytorch.machine.host.host_readings import HostReader
from kernel_pytorch.machine.readings import Snapshot
from kernel_pytorch.watch.health import MachineHealth, Thresholds
from kernel_pytorch.watch.telemetry import Telemetry

MIB = 1 << 20


class Host:
    """This host alone, as a source."""

    def __init__(self, reader: HostReader) -> None:
        self._reader = reader

    def read(self) -> Snapshot:
        return Snapshot(time_s=time.time(), devices={}, host=self._reader.read())


def namespaces_refused(*flags: str) -> str | None:
    """Why this process may not have namespaces of its own."""
    try:
        done = subprocess.run(["unshare", *flags, "true"], capture_output=True, text=True)
    except FileNotFoundError:
        return "unshare (util-linux) is not installed"
    return None if done.returncode == 0 else f"no new namespaces: {done.stderr.strip()} (needs root)"


def in_namespaces(flags: list[str], script: str, *arguments: str) -> dict[str, object]:
    """What ``script``, run by Python in namespaces of its own, prints as JSON."""
    done = subprocess.run(
        ["unshare", *flags, sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


FILL = """
import json, subprocess, sys
from pathlib import Path
from test_injected_faults import *
place = Path(sys.argv[1])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", place], check=True)
telemetry = Telemetry(Host(HostReader(mounts=[str(place)])), [])
health = MachineHealth([])
telemetry.listeners.append(health.update)
disk = lambda: health.components()[f"disk:{place}"]
states = []
for written in range(16):
    telemetry.sample()
    states.append(disk().state.value)
    (place / f"{written}").write_bytes(bytes(MIB))
telemetry.sample()
full = disk()
for file in place.iterdir():
    file.unlink()
telemetry.sample()
print(json.dumps([states, full.state.value, full.evidence[0].text, disk().state.value]))
"""


def test_a_file_system_that_fills_up(tmp_path: Path):
    if reason := namespaces_refused("--mount"):
        pytest.skip(f"cannot mount a tmpfs: {reason}")
    states, full, text, after = in_namespaces(["--mount"], FILL, str(tmp_path))
    assert states == ["healthy"] * 15 + ["degraded"]  # 15 of 16 MiB are the first to exceed 90 %
    assert (full, after) == ("failed", "healthy")
    assert text == "100.0% of 0.01678 GB used, 0 GB free"
    assert list(tmp_path.iterdir()) == []  # the mount was theirs alone


UNPLUG = """
import json, subprocess
from test_injected_faults import *
def ip(*words): subprocess.run(["ip", *words], check=True)
subprocess.run(["mount", "-t", "sysfs", "sysfs", "/sys"], check=True)  # sysfs shows its mounter's namespace
ip("link", "add", "left", "type", "veth", "peer", "name", "right")
ip("link", "set", "left", "up")
ip("link", "set", "right", "up")
telemetry = Telemetry(Host(HostReader(mounts=[])), [])
health = MachineHealth([], Thresholds(carrier_lost_s=1e-9))
telemetry.listeners.append(health.update)
def states(*names):
    for _ in range(2):
        telemetry.sample()
    found = [health.components()[f"nic:{name}"].state for name in names]
    return [None if state is None else state.value for state in found]
def until(*expected):
    for _ in range(10_000):  # the kernel passes news of the carrier on in its time
        if (seen := states("left", "right")) == list(expected):
            break
    return seen
story = [until("healthy", "healthy")]
ip("link", "set", "right", "down")
story.append(until("failed", "failed"))
ip("link", "set", "right", "up")
story.append(until("healthy", "healthy"))
ip("link", "set", "right", "down")
story.append(until("failed", "failed"))
evidence = health.components()["nic:left"].evidence[0]
ip("link", "delete", "left")
story.append(until(None, None))
print(json.dumps([story, evidence.kind, evidence.text]))
"""


def test_a_cable_that_is_unplugged_is_a_fault_and_an_interface_that_is_deleted_is_none():
    if reason := namespaces_refused("--mount", "--net"):
        pytest.skip(f"cannot make a veth: {reason}")
    if subprocess.run(["which", "ip"], capture_output=True).returncode:
        pytest.skip("cannot make a veth: ip (iproute2) is not installed")
    story, kind, text = in_namespaces(["--mount", "--net"], UNPLUG)
    assert story == [["healthy"] * 2, ["failed"] * 2, ["healthy"] * 2, ["failed"] * 2, [None] * 2]
    assert (kind, text) == ("carrier_lost", "no carrier for 0 s, having had one before")


BUSY = "import os; os.sched_setaffinity(0, {int(os.environ['CPU'])})\nwhile True: pass"


@contextmanager
def two_loops_each(cpus: list[int]) -> Iterator[None]:
    """Two processes for each CPU, that never wait for anything else."""
    command = [sys.executable, "-S", "-c", BUSY]
    loops = [subprocess.Popen(command, env=os.environ | {"CPU": str(cpu)}) for cpu in cpus for _ in range(2)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
        for loop in loops:
            loop.wait()


def test_two_busy_loops_on_one_cpu():
    if Files().text("proc/pressure/cpu") is None:
        pytest.skip("no /proc/pressure/cpu: this kernel tells nothing of pressure")
    cpus = sorted(os.sched_getaffinity(0))[:4]
    # The kernel's figure is a mean over the CPUs that are not idle, and others may be busy without waiting.
    threshold = 0.5 * len(cpus) / (os.cpu_count() or 1)
    telemetry = Telemetry(Host(HostReader(mounts=[])), [], interval_s=0.25)
    health = MachineHealth([], Thresholds(pressure_window_s=4, cpu_stall_share=threshold))
    fired = threading.Event()

    def listen(snapshot: Snapshot) -> None:
        health.update(snapshot)
        if health.components()["cpu"].evidence:
            fired.set()

    telemetry.listeners.append(listen)
    with two_loops_each(cpus):
        telemetry.start()
        try:
            while not fired.is_set() and telemetry.error is None and len(telemetry.history) < 400:
                fired.wait(1)
        finally:
            telemetry.stop()
    assert fired.is_set(), (telemetry.error, telemetry.latest, len(telemetry.history))
    (evidence,) = health.components()["cpu"].evidence
    assert evidence.kind == "cpu_pressure"
    assert threshold <= evidence.value <= 1


KILLED = """
import os, sys
with open(sys.argv[1] + "/cgroup.procs", "w") as procs:
    procs.write(str(os.getpid()))
from kernel_pytorch.watch.health import assess
from kernel_pytorch.machine.host.host_readings import HostReader
from kernel_pytorch.machine.readings import Snapshot
reader = HostReader(mounts=[])
before = Snapshot(time_s=0, devices={}, host=reader.read())
child = os.fork()
if child == 0:
    hog = bytearray(os.urandom(1)) * (1 << 30)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 9
after = Snapshot(time_s=1, devices={}, host=reader.read())
memory = assess([before, after], [])["memory"]
print(memory.state.value, [item.kind for item in memory.evidence])
"""


def test_a_process_that_is_killed_for_want_of_memory():
    """In a control group of its own with 256 MiB."""
    group = Path(f"/sys/fs/cgroup/memory/kernel-pytorch-oom-{os.getpid()}")
    if not Path("/sys/fs/cgroup/memory/cgroup.procs").exists():
        pytest.skip("needs a cgroup v1 hierarchy at /sys/fs/cgroup/memory")
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"needs the right to make a cgroup: {error}")
    try:
        (group / "memory.limit_in_bytes").write_text(str(256 << 20))
        done = subprocess.run([sys.executable, "-c", KILLED, str(group)], capture_output=True, text=True)
        assert (done.stdout, done.stderr) == ("degraded ['oom_kills']\n", "")
    finally:
        group.rmdir()
