"""The Slurm cluster that the tests of jobs run on."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.cluster.slurm.cluster import NODES, SlurmCluster, require

ROOT = Path(__file__).parents[3]


def until(done: Callable[[], object], timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def submit(cluster: SlurmCluster, script: str, *options: str) -> str:
    return cluster.run("sbatch", "--parsable", "--chdir=/", *options, f"--wrap={script}").strip()


def mentions(text: str) -> list[str]:
    """Return the processes whose command line or environment has ``text`` in it."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if text.encode() in (process / "cmdline").read_bytes() + (process / "environ").read_bytes():
                found.append(f"process {process.name}")
        except OSError:  # it has ended
            pass
    return found


def test_every_node_is_idle(slurm_cluster):
    assert slurm_cluster.node_states() == dict.fromkeys(NODES, "idle")
    partitions = slurm_cluster.run("sinfo", "--noheader", "--format=%P %D").split("\n")
    assert sorted(partitions) == ["", "main* 4", "small 2"]


def test_a_job_runs_on_two_nodes(slurm_cluster, tmp_path):
    job = submit(
        slurm_cluster,
        "srun sh -c 'echo $SLURMD_NODENAME $(hostname)'",
        "--nodelist=n[1-2]",
        f"--output={tmp_path}/out",
    )
    slurm_cluster.wait(job, "COMPLETED", 30)
    hostname = socket.gethostname()
    assert sorted((tmp_path / "out").read_text().splitlines()) == [f"n1 {hostname}", f"n2 {hostname}"]


def test_gpus(slurm_cluster, tmp_path):
    out = tmp_path / "out"
    job = submit(slurm_cluster, "echo $CUDA_VISIBLE_DEVICES", "--gres=gpu:2", f"--output={out}")
    slurm_cluster.wait(job, "COMPLETED", 30)
    assert out.read_text() == "0,1\n"
    with pytest.raises(RuntimeError, match="Requested node configuration is not available"):
        submit(slurm_cluster, "true", "--gres=gpu:3")


MEET = """
import os, socket, sys, time
name, address, port = socket.gethostname(), sys.argv[1], int(sys.argv[2])
if os.environ["SLURM_PROCID"] == "0":
    with socket.create_server(("", port)) as server, server.accept()[0] as peer:
        peer.sendall(name.encode())
else:
    while True:
        try:
            with socket.create_connection((address, port), timeout=30) as peer:
                first = peer.recv(100).decode()
                break
        except ConnectionRefusedError:
            time.sleep(0.05)
    print(name, first, socket.gethostbyname(first), socket.gethostbyname(name))
"""


def test_nodes_with_networks_of_their_own(slurm_hosts, tmp_path):
    """The second node meets the first at its NodeAddr; both names resolve."""
    (tmp_path / "meet.py").write_text(MEET)
    first, second = slurm_hosts.address("n1"), slurm_hosts.address("n2")
    job = submit(
        slurm_hosts,
        f"srun {sys.executable} {tmp_path}/meet.py {first} 7000",
        "--nodelist=n[1-2]",
        f"--output={tmp_path}/out",
    )
    slurm_hosts.wait(job, "COMPLETED", 30)
    assert (tmp_path / "out").read_text() == f"n2 n1 {first} {second}\n"
    shown = slurm_hosts.run("scontrol", "show", "node", "n1")
    assert f"NodeAddr={first} NodeHostName=n1 " in shown


def test_nodes_with_networks_of_their_own_do_not_share_localhost(slurm_hosts, tmp_path):
    connect = "import socket, sys; print(socket.socket().connect_ex(('127.0.0.1', int(sys.argv[1]))))"
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        job = submit(
            slurm_hosts,
            f'srun {sys.executable} -c "{connect}" {port}',
            "--nodelist=n[1-2]",
            f"--output={tmp_path}/out",
        )
        slurm_hosts.wait(job, "COMPLETED", 30)
    assert (tmp_path / "out").read_text() == f"{errno.ECONNREFUSED}\n" * 2


def test_a_killed_node(slurm_cluster, slurm_hosts, tmp_path):
    """It is down, and its job, killed with it, runs on other nodes."""
    clusters = (slurm_cluster, slurm_hosts)
    jobs, pids = [], []
    for number, cluster in enumerate(clusters):
        out = tmp_path / f"{number}"
        jobs.append(
            submit(
                cluster, "srun sh -c 'echo $$; exec sleep 600'", "--nodes=2", "--requeue", f"--output={out}"
            )
        )
        until(lambda out=out: out.exists() and len(out.read_text().split()) == 2, 30)
        pids.append({int(pid) for pid in out.read_text().split()})
    lost = [cluster.processes("n2") & of_job for cluster, of_job in zip(clusters, pids, strict=True)]
    for cluster in clusters:
        cluster.kill_node("n2")
    assert [len(of_node) for of_node in lost] == [1, 1]
    assert not any(Path(f"/proc/{pid}").exists() for of_node in lost for pid in of_node)
    for cluster, job in zip(clusters, jobs, strict=True):
        cluster.wait(job, "PENDING", 30)
        assert cluster.node_states()["n2"] == "down*"
    for cluster, job in zip(clusters, jobs, strict=True):
        cluster.wait(job, "RUNNING", 15)
        assert "Restarts=1 " in cluster.run("scontrol", "show", "job", job)
        cluster.restart_node("n2")
        until(lambda cluster=cluster: cluster.node_states()["n2"] == "idle", 15)


def test_a_node_that_is_set_down(slurm_cluster):
    job = submit(slurm_cluster, "sleep 600", "--nodelist=n3", "--requeue")
    slurm_cluster.wait(job, "RUNNING", 15)
    slurm_cluster.run("scontrol", "update", "NodeName=n3", "State=DOWN", "Reason=test")
    slurm_cluster.wait(job, "PENDING", 15)
    assert slurm_cluster.node_states()["n3"] == "down"


SLEEP_IN_A_CLUSTER = """
import subprocess, sys
from tests.cluster.slurm.cluster import SlurmCluster
with SlurmCluster(namespaces=sys.argv[1] == "namespaces") as cluster:
    job = cluster.run("sbatch", "--parsable", "--chdir=/", "-N2", "--wrap=srun setsid sleep 600").strip()
    cluster.wait(job, "RUNNING", 30)
    while len(cluster.processes("n2")) < 3:  # slurmd, slurmstepd, sleep
        pass
    print(cluster.folder, cluster.bridge, flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize(
    ("kind", "end"),
    [
        ("host", "stop"),
        ("host", signal.SIGKILL),
        ("namespaces", signal.SIGINT),
        ("namespaces", signal.SIGKILL),
    ],
)
def test_nothing_is_left(kind, end):
    require(namespaces=kind == "namespaces")
    with subprocess.Popen(
        [sys.executable, "-c", SLEEP_IN_A_CLUSTER, kind],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as process:
        folder, bridge = process.stdout.readline().split()

        def left() -> list[str]:
            links = [name for name in os.listdir("/sys/class/net") if name.removesuffix("n1") == bridge]
            sockets = [line for line in Path("/proc/net/unix").read_text().splitlines() if folder in line]
            return links + sockets + mentions(folder)

        assert len(left()) > 10
        if end == "stop":
            process.stdin.close()
        else:
            process.send_signal(end)
        assert process.wait(30) == (0 if end == "stop" else -end)
        if end == signal.SIGKILL:
            until(lambda: not Path(folder).exists(), 30)
        assert left() == []
        assert not Path(folder).exists()


def test_two_clusters_at_once(slurm_cluster):
    """They share no port, no folder and no job."""
    with SlurmCluster() as other:
        job = submit(other, "sleep 600")
        other.wait(job, "RUNNING", 15)
        assert slurm_cluster.run("squeue", "--noheader") == ""
    assert slurm_cluster.node_states() == dict.fromkeys(NODES, "idle")


def test_without_slurm_tests_skip_and_fail_in_ci(monkeypatch):
    monkeypatch.setattr("tests.cluster.slurm.cluster._path", lambda: "/nonexistent")
    told = "needs slurmctld, slurmd, sbatch, munged: apt-get install --no-install-recommends slurm-wlm munge"
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match=told):
        require()
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match=told):
        require()


def test_the_end_of_the_logs_is_told(slurm_cluster):
    job = submit(slurm_cluster, "sleep 600")
    with pytest.raises(
        TimeoutError, match=rf"(?s)job {job} is \w+, not FAILED\nmunged: .*slurmctld: .*{job}"
    ):
        slurm_cluster.wait(job, "FAILED", 0)
