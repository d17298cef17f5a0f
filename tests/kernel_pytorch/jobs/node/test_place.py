from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kernel_pytorch.jobs.node import place
from kernel_pytorch.jobs.node.place import Place, PlaceError, here

LOCAL = {
    "KERNEL_PYTORCH_NODE": "1",
    "KERNEL_PYTORCH_NODES": "node-0 node-1",
    "KERNEL_PYTORCH_FIRST": "127.0.0.1 ::1",
    "KERNEL_PYTORCH_NATIVE_ID": "4711",
    "KERNEL_PYTORCH_RUN_KEY": "local:books-7f3a:2",
    "KERNEL_PYTORCH_ENDS_AT": "1790000000.5",
}
SLURM = {
    "SLURM_JOB_ID": "12",
    "SLURM_NODEID": "1",
    "SLURM_JOB_NODELIST": "n[1-3]",
    "SLURM_STEP_NODELIST": "n[1-2]",
}
# Prints what Slurm prints, but as Slurm does only to who asks for it without the variables that change it.
SCONTROL = """\
if [ "$*" = "show hostnames n[1-2]" ]; then printf 'n1\\nn2\\n'
elif [ "$*" = "show hostnames n1" ]; then echo n1
elif [ "$*" = "show node -o n1,n2" ]; then
    echo "NodeName=n1 Arch=x86_64 NodeAddr=10.0.0.1 NodeHostName=host1 OS=Linux 6.1 #1 Comment=a NodeAddr=no"
    echo "NodeName=n2 Arch=x86_64 NodeAddr=10.0.0.2 NodeHostName=host2"
else echo "what? $*" >&2; exit 3; fi
"""
SQUEUE = """\
env | grep -q -e ^SQUEUE_ -e ^SLURM_TIME_FORMAT= -e ^SLURM_CLUSTERS= && exit 3
[ "$LC_ALL $TZ $*" = "C UTC0 -h -o %e -j JOB" ] && echo ANSWER
"""


@pytest.fixture(autouse=True)
def outside_of_any_job(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith(("SLURM_", "KERNEL_PYTORCH_")):
            monkeypatch.delenv(name)


@pytest.fixture
def local(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in LOCAL.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Slurm's commands, each to be replaced by another script: ``commands(squeue="exit 1")``."""

    def set_up(**scripts: str) -> None:
        for name, script in scripts.items():
            path = tmp_path / name
            path.write_text(f"#!/bin/sh\n{script}")
            path.chmod(path.stat().st_mode | stat.S_IXUSR)

    set_up(scontrol=SCONTROL, squeue=SQUEUE.replace("JOB", "12").replace("ANSWER", "2026-11-26T10:00:00"))
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    return set_up


def test_local(local):
    assert here() == Place(
        "local",
        1,
        ("node-0", "node-1"),
        ("127.0.0.1", "::1"),
        "4711",
        "local:books-7f3a:2",
        1790000000.5,
    )


@pytest.mark.parametrize("value", [None, ""])
def test_local_without_an_end(local, monkeypatch, value):
    monkeypatch.delenv("KERNEL_PYTORCH_ENDS_AT") if value is None else monkeypatch.setenv(
        "KERNEL_PYTORCH_ENDS_AT", value
    )
    assert here().ends_at is None


def test_local_within_a_job_of_slurm(local, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    assert here().target == "local"


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("NODE", "2", "KERNEL_PYTORCH_NODE must be one of the 2 nodes, from 0 on, got '2'"),
        ("NODE", "-1", "KERNEL_PYTORCH_NODE must be one of the 2 nodes, from 0 on, got '-1'"),
        ("NODES", " ", "the environment has no KERNEL_PYTORCH_NODES: use `kernel-pytorch submit`"),
        ("FIRST", "", "the environment has no KERNEL_PYTORCH_FIRST: use `kernel-pytorch submit`"),
        ("ENDS_AT", "soon", "KERNEL_PYTORCH_ENDS_AT must be seconds since 1970, got 'soon'"),
    ],
)
def test_local_mistakes(local, monkeypatch, name, value, told):
    monkeypatch.setenv(f"KERNEL_PYTORCH_{name}", value)
    with pytest.raises(PlaceError) as raised:
        here()
    assert str(raised.value).startswith(told)


def test_nowhere():
    with pytest.raises(PlaceError, match=r"^this program was not started as a node of a job: use"):
        here()


def test_slurm(commands, monkeypatch):
    for name in ("SQUEUE_FORMAT", "SQUEUE_STATES", "SLURM_TIME_FORMAT", "SLURM_CLUSTERS"):
        monkeypatch.setenv(name, "anything")
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    monkeypatch.setenv("TZ", "America/St_Johns")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "3")
    assert here() == Place(
        target="slurm",
        index=1,
        names=("n1", "n2"),
        addresses=("10.0.0.1", "host1", "n1"),
        native_id="12",
        run_key="slurm:12:3",
        ends_at=1795687200.0,
        one_machine=False,
    )


def test_slurm_without_a_step(commands, monkeypatch):
    """As in the batch script itself."""
    monkeypatch.delenv("SLURM_STEP_NODELIST")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "n1")
    monkeypatch.setenv("SLURM_NODEID", "0")
    found = here()
    assert (found.index, found.names, found.addresses) == (0, ("n1",), ("n1",))


def test_an_array_is_named_by_task(commands, monkeypatch):
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "10")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "7")
    commands(squeue=SQUEUE.replace("JOB", "10_7").replace("ANSWER", "2026-11-26T10:00:00"))
    found = here()
    assert (found.native_id, found.run_key, found.ends_at) == ("10_7", "slurm:10_7:0", 1795687200.0)


@pytest.mark.parametrize("answer", ["N/A", "NONE", "Unknown"])
def test_a_job_without_an_end(commands, answer, tmp_path):
    commands(squeue=f"echo >> {tmp_path}/asked; echo {answer}")
    assert here().ends_at is None
    assert (tmp_path / "asked").read_text() == "\n"


@pytest.mark.parametrize("first", ["true", "echo slurmctld is busy >&2; exit 1"])
def test_an_empty_answer_is_asked_again(commands, monkeypatch, tmp_path, first):
    monkeypatch.setattr(place.time, "sleep", lambda _: None)
    script = (
        f"if [ -e {tmp_path}/asked ]; then echo 2026-11-26T10:00:00; else > {tmp_path}/asked; {first}; fi"
    )
    commands(squeue=script)
    assert here().ends_at == 1795687200.0


def test_a_controller_that_does_not_answer(commands, monkeypatch):
    """The node's own name may do, and a job goes on without knowing its end."""
    monkeypatch.setattr(place.time, "sleep", lambda _: None)
    only_names = SCONTROL.replace("show node", "no such thing")
    commands(scontrol=only_names, squeue="echo Unable to contact slurm controller >&2; exit 1")
    found = here()
    assert (found.addresses, found.one_machine, found.ends_at) == (("n1",), False, None)


def test_nodes_that_are_one_machine(commands):
    commands(scontrol=SCONTROL.replace("host2", "host1"))
    assert here().one_machine


@pytest.mark.parametrize(
    ("script", "told"),
    [
        (
            "printf 'scontrol: error: a\\nb\\n' >&2; exit 1",
            "`scontrol show hostnames n[1-2]` failed with exit status 1: scontrol: error: a b",
        ),
        ("exit 4", "`scontrol show hostnames n[1-2]` failed with exit status 4: no reason given"),
        ("printf 'n1\\n'", "SLURM_NODEID must be one of the 1 nodes, from 0 on, got '1'"),
    ],
)
def test_slurm_mistakes(commands, script, told):
    commands(scontrol=script)
    with pytest.raises(PlaceError) as raised:
        here()
    assert str(raised.value) == told


def is_running(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_command_that_hangs(commands, tmp_path):
    """A site's script around the command, and what it started, are killed."""
    commands(scontrol=f"sleep 600 & echo $! > {tmp_path}/pid; wait")
    before = time.monotonic()
    with pytest.raises(PlaceError, match=r"^`scontrol x` did not answer within 1 s$"):
        place._ask("scontrol", "x", patience_s=1)
    assert time.monotonic() - before < 300
    pid = (tmp_path / "pid").read_text().strip()
    while is_running(pid):
        assert time.monotonic() - before < 300
        time.sleep(0.01)


def test_slurm_that_is_not_there(commands, monkeypatch, tmp_path):
    (tmp_path / "nothing").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    with pytest.raises(PlaceError, match=r"^scontrol was not found on this node: have Slurm's commands in"):
        here()


def test_it_needs_the_standard_library_only():
    script = """
import sys
before = set(sys.modules)
import kernel_pytorch.jobs.node.place, kernel_pytorch.jobs.node.rendezvous
loaded = {name.partition(".")[0] for name in set(sys.modules) - before}
print(sorted(loaded - sys.stdlib_module_names))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "['kernel_pytorch']\n"
