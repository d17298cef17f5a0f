"""A real Slurm cluster on this machine: slurmctld, four slurmd, munged, with files and ports of its own."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

import pytest

NODES = ("n1", "n2", "n3", "n4")
GPUS_PER_NODE = 2

CONF = """\
ClusterName=test
SlurmctldHost={hostname}({controller})
SlurmctldPort={port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=2,bf_interval=2
ReturnToService=1
SlurmdTimeout={slurmd_timeout_s}
MessageTimeout=3
KillWait=5
MailProg=/bin/true
GresTypes=gpu
{nodes}
PartitionName=main Nodes=n[1-4] Default=YES MaxTime=INFINITE
PartitionName=small Nodes=n[1-2] MaxNodes=1 MaxTime=60
"""

# The other end of the link is in the network of this shell's parent, the keeper's.
MAKE_NODE = """
hostname "$NODE"
mount --bind "$HOSTS" /etc/hosts
ip link set lo up
ip link add eth0 type veth peer name "$BRIDGE$NODE" netns "$PPID"
nsenter --target "$PPID" --net ip link set "$BRIDGE$NODE" master "$BRIDGE" up
ip address add "$ADDRESS/24" dev eth0
ip link set eth0 up
: > "$READY"
exec sleep infinity
"""


class SlurmCluster:
    """Nodes ``n1`` to ``n4``, each with four cores and two GPUs that are not real.

    The partition ``main``, the default, has all of them; ``small`` has two and gives one to a job. All nodes
    have this machine's hostname and localhost. With ``namespaces=True`` each has its own hostname, network
    and address, and resolves the others' names. When the cluster is stopped or this process ends, in whatever
    way, so do all its processes, and its files are removed.
    """

    def __init__(self, *, namespaces: bool = False, slurmd_timeout_s: int = 3) -> None:
        self.namespaces = namespaces
        self.slurmd_timeout_s = slurmd_timeout_s
        """A node that does not answer for longer is down."""
        self.folder = Path()
        """Configuration, logs and spool folders, while the cluster runs."""
        self.bridge: str | None = None
        """Name of the bridge that joins the nodes' networks; its links are named for it and for the node."""
        self._keeper: subprocess.Popen[str] | None = None
        self._addresses: dict[str, str] = {}
        self._ports: dict[str, int] = {}
        self._slurmds: dict[str, int] = {}  # parents of slurmd and of all that it started
        self._namespace_pids: dict[str, int] = {}
        self._port_lock: socket.socket | None = None

    def __enter__(self) -> SlurmCluster:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start all daemons and wait until every node is idle.

        Raises:
            TimeoutError: one did not start; with the end of each log.
        """
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End every process and remove every file of the cluster. Nothing happens if it does not run."""
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.communicate(timeout=60)
        if self._port_lock is not None:
            self._port_lock.close()

    def environment(self) -> dict[str, str]:
        """Return this process's environment such that Slurm's commands talk to this cluster."""
        of_slurm = ("SLURM", "SBATCH_", "SALLOC_", "SQUEUE_", "SINFO_", "SCANCEL_")
        environment = {name: value for name, value in os.environ.items() if not name.startswith(of_slurm)}
        return {**environment, "SLURM_CONF": f"{self.folder}/slurm.conf"}

    def run(self, *argv: str) -> str:
        """Run a command in ``environment()`` and return what it printed.

        Raises:
            RuntimeError: it failed; with what it printed.
        """
        done = subprocess.run(argv, env=self.environment(), capture_output=True, text=True, timeout=60)
        if done.returncode:
            raise RuntimeError(f"{argv} exited with {done.returncode}: {done.stderr}{done.stdout}")
        return done.stdout

    def wait(self, job: str, states: str | Collection[str], timeout: float) -> str:
        """Wait until a job is in one of some states, as ``"RUNNING"``, and return that state.

        Raises:
            TimeoutError: it was not within ``timeout`` seconds; with the end of each log.
        """
        wanted = {states} if isinstance(states, str) else set(states)
        state = ""

        def reached() -> bool:
            nonlocal state
            state = self.run("squeue", "--states=all", "--noheader", "--format=%T", f"--jobs={job}").strip()
            return state in wanted

        self._until(reached, timeout, lambda: f"job {job} is {state}, not {' or '.join(sorted(wanted))}")
        return state

    def node_states(self) -> dict[str, str]:
        """Return each node's state in the words of sinfo; with ``*`` the node does not answer."""
        words = self.run("sinfo", "--Node", "--noheader", "--partition=main", "--format=%N %T").split()
        return dict(zip(words[::2], words[1::2], strict=True))

    def wait_idle(self, timeout: float = 60) -> None:
        """Wait until every node is idle."""
        states: object = None

        def idle() -> bool:
            nonlocal states
            try:
                states = self.node_states()
            except RuntimeError as error:  # slurmctld does not answer yet
                states = error
            return states == dict.fromkeys(NODES, "idle")

        self._until(idle, timeout, lambda: f"nodes: {states}")

    def address(self, node: str) -> str:
        """Return the NodeAddr of a node."""
        return self._addresses[node]

    def processes(self, node: str) -> set[int]:
        """Return the pids of a node's slurmd and of all that it started."""
        return set(_descendants(self._slurmds[node]))

    def kill_node(self, node: str) -> None:
        """Kill a node's slurmd and all that it started at once, as a loss of power does."""
        if self.namespaces:
            self._set_link(node, "down")
        stopped: set[int] = set()
        while found := self.processes(node) - stopped:
            _signal(found, signal.SIGSTOP)  # before any is killed: none can report the end of another
            stopped |= found
        # Children first: the kernel sends SIGCONT to stopped processes that a parent's end orphans, and
        # srun's child would have the job's other nodes killed.
        _signal(reversed(_descendants(self._slurmds[node])), signal.SIGKILL)
        self._until(
            lambda: not any(Path(f"/proc/{pid}").exists() for pid in stopped), 30, lambda: f"{node} lives"
        )

    @contextlib.contextmanager
    def unshared(self, node: str, folder: Path) -> Iterator[None]:
        """Have an empty folder in place of one, on one node, which needs ``namespaces=True``."""
        enter = ["nsenter", *self._namespaces(node, "--mount")]
        env = {**os.environ, "PATH": _path()}
        subprocess.run([*enter, "mount", "-t", "tmpfs", "none", str(folder)], check=True, env=env)
        try:
            yield
        finally:
            subprocess.run([*enter, "umount", "--lazy", str(folder)], check=True, env=env)

    def restart_node(self, node: str) -> None:
        """Start the slurmd of a killed node; the node is idle soon after."""
        if self.namespaces:
            self._set_link(node, "up")
        self._start_slurmd(node)
        self._until(lambda: self._answers(node), 30, lambda: f"slurmd of {node} does not answer")

    def reset(self) -> None:
        """Cancel all jobs, restart killed nodes, and wait until every node is idle."""
        self.run("scancel", "--user=root")
        for node in NODES:
            if not self.processes(node):
                self.restart_node(node)
        for node, state in self.node_states().items():
            if state.startswith(("down", "drain")):
                # A node that registers meanwhile needs no update, and Slurm refuses it.
                update = ["scontrol", "update", f"NodeName={node}", "State=RESUME"]
                subprocess.run(update, env=self.environment(), capture_output=True, timeout=60)
        self.wait_idle()

    def _start(self) -> None:
        self._keeper = subprocess.Popen(
            [
                sys.executable,
                str(Path(__file__).with_name("keeper.py")),
                "network" if self.namespaces else "host",
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PATH": _path()},
            start_new_session=True,  # Ctrl-C on a terminal is for the tests
        )
        kept = json.loads(self._answer())
        self.folder, self.bridge = Path(kept["folder"]), kept["bridge"]
        for name in ("state", "log", *(f"spool/{node}" for node in NODES)):
            (self.folder / name).mkdir(parents=True)
        if self.namespaces:
            self._addresses = {node: f"{kept['subnet']}.{number}" for number, node in enumerate(NODES, 1)}
            self._make_nodes(self.bridge)
            self._configure(f"{kept['subnet']}.254")
        else:
            self._addresses = dict.fromkeys(NODES, "127.0.0.1")
            self._configure("127.0.0.1")
        files = {word: f"{self.folder}/munge.{word}" for word in ("socket", "key", "pid", "seed", "log")}
        self._spawn(
            "munged",
            ["munged", "--foreground", "--force", "--num-threads=2", f"--socket={files['socket']}"]
            + [f"--{word}-file={files[word]}" for word in ("key", "pid", "seed", "log")],
        )
        self._until(Path(files["socket"]).exists, 30, lambda: "munged does not answer")
        self._spawn("slurmctld", ["slurmctld", "-D", "-f", f"{self.folder}/slurm.conf"])
        for node in NODES:
            self._start_slurmd(node)
        self.wait_idle()

    def _make_nodes(self, bridge: str) -> None:
        hosts = self.folder / "hosts"
        hosts.write_text(
            "127.0.0.1 localhost\n"
            + "".join(f"{address} {node}\n" for node, address in self._addresses.items())
        )
        for node, address in self._addresses.items():
            self._namespace_pids[node] = self._spawn(
                f"namespaces-{node}",
                ["unshare", "--net", "--uts", "--mount", "sh", "-euc", MAKE_NODE],
                NODE=node,
                ADDRESS=address,
                BRIDGE=bridge,
                HOSTS=str(hosts),
                READY=f"{self.folder}/{node}.ready",
            )
        for node in NODES:
            ready = self.folder / f"{node}.ready"
            self._until(ready.exists, 30, lambda: "a node has no network")

    def _configure(self, controller: str) -> None:
        hostname = socket.gethostname().partition(".")[0]
        controller_port, *node_ports = self._reserve_ports(1 + len(NODES))
        self._ports = dict(zip(NODES, node_ports, strict=True))
        nodes = "\n".join(
            f"NodeName={node} NodeHostname={node if self.namespaces else hostname} "
            f"NodeAddr={self._addresses[node]} Port={port} "
            f"Sockets=1 CoresPerSocket=4 ThreadsPerCore=1 RealMemory=1000 Gres=gpu:{GPUS_PER_NODE}"
            for node, port in self._ports.items()
        )
        conf = CONF.format(
            hostname=hostname,
            controller=controller,
            port=controller_port,
            folder=self.folder,
            slurmd_timeout_s=self.slurmd_timeout_s,
            nodes=nodes,
        )
        (self.folder / "slurm.conf").write_text(conf)
        for number in range(GPUS_PER_NODE):
            os.mknod(self.folder / f"nvidia{number}", stat.S_IFCHR | 0o666, os.makedev(195, number))
        (self.folder / "gres.conf").write_text(f"Name=gpu File={self.folder}/nvidia[0-{GPUS_PER_NODE - 1}]\n")
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))

    def _reserve_ports(self, count: int) -> list[int]:
        """Choose consecutive ports that are free, and that no other cluster chooses while this one runs."""
        for first in random.sample(range(20_000, 30_000, 10), 1_000):  # below what connections are given
            lock = socket.socket(socket.AF_UNIX)
            try:
                lock.bind(f"\0longnet-tests-slurm-{first}")  # abstract: gone with this process
                for port in range(first, first + count):
                    with socket.socket() as probe:
                        probe.bind(("", port))
            except OSError:
                lock.close()
                continue
            self._port_lock = lock
            return list(range(first, first + count))
        raise RuntimeError("no free ports from 20000 to 30000")

    def _start_slurmd(self, node: str) -> None:
        argv = ["slurmd", "-D", "-f", f"{self.folder}/slurm.conf", "-N", node]
        if self.namespaces:
            argv = ["nsenter", *self._namespaces(node, "--net", "--uts", "--mount"), *argv]
        self._slurmds[node] = self._spawn(node, argv)

    def _answers(self, node: str) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex((self._addresses[node], self._ports[node])) == 0

    def _namespaces(self, node: str, *kinds: str) -> list[str]:
        (holder,) = _descendants(self._namespace_pids[node])
        return ["--target", str(holder), *kinds]

    def _set_link(self, node: str, state: str) -> None:
        command = ["nsenter", *self._namespaces(node, "--net"), "ip", "link", "set", "eth0", state]
        subprocess.run(command, check=True, env={**os.environ, "PATH": _path()})

    def _spawn(self, name: str, argv: list[str], **environment: str) -> int:
        assert self._keeper is not None
        assert self._keeper.stdin is not None
        env = {**self.environment(), "PATH": _path(), **environment}
        request = {"argv": argv, "env": env, "log": f"{self.folder}/log/{name}"}
        self._keeper.stdin.write(json.dumps(request) + "\n")
        self._keeper.stdin.flush()
        return int(self._answer())

    def _answer(self) -> str:
        assert self._keeper is not None
        assert self._keeper.stdout is not None
        line = self._keeper.stdout.readline()
        if not line:
            raise RuntimeError("the keeper of the cluster's processes has ended; its error is above")
        return line

    def _until(self, done: Callable[[], bool], timeout: float, failure: Callable[[], str]) -> None:
        deadline = time.monotonic() + timeout
        while not done():
            if time.monotonic() > deadline:
                raise TimeoutError(f"after {timeout:g} s: {failure()}\n{self._log_ends()}")
            time.sleep(0.05)

    def _log_ends(self) -> str:
        return "\n".join(
            f"{path.name}: {line}"
            for path in sorted((self.folder / "log").iterdir())
            for line in path.read_text(errors="replace").splitlines()[-10:]
        )


def require(*, namespaces: bool = False) -> None:
    """Skip the test where no cluster can run; with ``CI=true`` fail it where Slurm is not installed."""
    programs = [
        "slurmctld",
        "slurmd",
        "sbatch",
        "munged",
        *(["ip", "unshare", "nsenter"] if namespaces else []),
    ]
    absent = [program for program in programs if shutil.which(program, path=_path()) is None]
    if absent:
        packages = "slurm-wlm munge iproute2 util-linux"
        reason = f"needs {', '.join(absent)}: apt-get install --no-install-recommends {packages}"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)
    if os.geteuid() != 0:
        pytest.skip("a Slurm cluster of its own needs root")
    if namespaces:
        command = ["unshare", "--net", "--uts", "--mount", "true"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"needs the right to make namespaces: {done.stderr.strip()}")


def _path() -> str:
    return os.environ.get("PATH", os.defpath) + ":/usr/local/sbin:/usr/sbin:/sbin"


def _descendants(ancestor: int) -> list[int]:
    """Every process below one, after its parent."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            except OSError:  # it has ended
                continue
            if state != "Z":
                children.setdefault(int(parent), []).append(int(entry.name))
    found = [ancestor]
    for pid in found:
        found += children.get(pid, [])
    return found[1:]


def _signal(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
