"""torchrun as a child, with ranks that really run, crash, hang and are asked to stop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from job_ranks import is_gone, launch, until, write_loop

from kernel_pytorch.jobs.folder import JobFolder
from kernel_pytorch.jobs.node import agent as agent_module
from kernel_pytorch.jobs.node import stacks
from kernel_pytorch.jobs.node.agent import Agent, AgentError, RankExit
from kernel_pytorch.jobs.node.processes import Family
from kernel_pytorch.jobs.node.watch import Seen, Watch
from kernel_pytorch.jobs.recovery.classify import classify


class Node:
    """What a node program has."""

    def __init__(self, folder: JobFolder, here: Path, **options: object) -> None:
        folder.claim_attempt({"nodes": ["n1"]})
        self.agent = Agent(launch(folder, here, **options))
        self.watch = Watch(folder, 1, here / "beats", "n1", min_hang_s=0.5)
        self.exits: list[RankExit] = []

    def look(self) -> Seen:
        assert self.agent.poll() is None, "\n".join(self.agent.lines)
        return self.watch.look(self.agent.closing)

    def training(self, before: Seen | None = None) -> Seen:
        """Wait until both ranks make steps, in other processes than ``before``."""
        old = set(before.pids.values()) if before else set()

        def seen() -> Seen | None:
            now = self.look()
            ready = len(now.pids) == 2 and not old & set(now.pids.values()) and now.median_step_s
            return now if ready and (now.step or 0) > 2 else None

        return until(seen, "steps of both ranks")

    def failed(self) -> list[RankExit]:
        return until(lambda: self.look() and self.agent.new_exits(), "the exit code of a rank")

    def ended(self) -> int:
        return until(lambda: self.agent.poll() is not None and [self.agent.poll()], "the end of torchrun")[0]


@pytest.fixture
def here(folder: JobFolder, tmp_path: Path) -> Path:
    write_loop(folder, tmp_path)
    return tmp_path


@pytest.fixture
def node(folder: JobFolder, here: Path) -> Iterator[Node]:
    node = Node(folder, here)
    yield node
    node.agent.kill()


def test_ranks_that_crash_hang_and_are_asked_to_stop(
    node: Node, here: Path, folder: JobFolder, capfd: pytest.CaptureFixture[str]
):
    (here / "may leave").touch()
    node.agent.start()
    first = node.training()
    os.kill(first.pids[1], signal.SIGKILL)
    (exited,) = node.failed()
    assert exited == RankExit(local_rank=1, pid=first.pids[1], exit_code=-signal.SIGKILL)
    evidence = node.watch.evidence([exited], node.agent)
    assert evidence.exit_codes == {1: -signal.SIGKILL}
    assert evidence.beats[1].step >= first.step
    assert evidence.node_of == {0: "n1", 1: "n1"}
    assert (classify(evidence).kind, classify(evidence).rank) == ("crash", 1)

    second = node.training(before=first)
    os.kill(second.pids[1], signal.SIGSTOP)
    late = until(lambda: 1 in (seen := node.look()).late and seen, "a hang")
    assert late.late == (1,)
    where = stacks.take(late.pids, folder, 1)
    line = f"loop.py:{1 + (here / 'loop.py').read_text().split(chr(10)).index('    time.sleep(0.02)')} in nap"
    assert where == {0: line, 1: line}
    for rank in (0, 1):
        stack = (folder.path / "stacks" / "attempt-1" / f"rank-{rank}.txt").read_text()
        assert stack.startswith("Fatal Python error: Aborted\n")
        assert "in main\n" in stack
    exits = node.failed()
    assert {each.exit_code for each in exits} == {-signal.SIGABRT}
    failure = classify(node.watch.evidence(exits, node.agent, where=where))
    assert (failure.kind, failure.rank) == ("hang", 1)
    assert f"rank 1 hangs at {line}" in failure.text

    (here / "may leave").unlink()
    third = node.training(before=second)
    agent = node.agent._process.pid
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        os.kill(agent, number)
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGTERM):
        for pid in third.pids.values():
            os.kill(pid, number)
    until(lambda: node.look().late == (0, 1), "the end of steps")
    assert node.look().pids == third.pids
    (here / "may leave").touch()
    assert node.ended() == 0
    evidence = node.watch.evidence([], node.agent)
    assert (evidence.agent_exit_code, set(evidence.left)) == (0, {0, 1})
    assert classify(evidence).kind == "stopped"
    assert f"(pid: {exited.pid}) of binary" in capfd.readouterr().err
    assert any(f"(pid: {exited.pid}) of binary" in line for line in node.agent.lines)


CRASH = """
import os, signal, sys, time
from pathlib import Path
from kernel_pytorch.jobs import rank
job, here = rank.current(), Path(sys.argv[1])
job.handle_signals()
(here / os.environ["RANK"]).touch()
while not (here / "0").exists() or not (here / "1").exists():
    time.sleep(0.02)
if os.environ["RANK"] == "1":
    sys.exit(7)
while True:
    time.sleep(1)  # as in a collective with one that is dead
"""


def test_when_torchrun_gives_up_it_tells_of_all_and_does_not_wait_for_them(
    folder: JobFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(agent_module, "CLOSING_S", 0.2)
    monkeypatch.setenv("PET_RUN_PATH", "1")  # would have torchrun refuse --no-python
    write_loop(folder, tmp_path, CRASH)
    node = Node(folder, tmp_path, max_restarts=0)
    try:
        node.agent.start()
        assert until(lambda: node.watch.look() and node.agent.poll(), "the end of torchrun") == 1
        exits = sorted(node.agent.new_exits(), key=lambda each: each.local_rank)
        evidence = node.watch.evidence(exits, node.agent)
    finally:
        node.agent.kill()
    assert [(each.local_rank, each.exit_code) for each in exits] == [(0, -signal.SIGKILL), (1, 7)]
    assert evidence.exit_codes == {0: -signal.SIGKILL, 1: 7}
    assert evidence.agent_exit_code == 1
    assert not any("forcefully exiting via" in line for line in node.agent.lines)  # by torchrun, after 30 s
    assert node.agent.new_exits() == []


def kill_all(pids: list[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


NODE_PROGRAM = """
import sys, time
from pathlib import Path
from job_ranks import launch
from kernel_pytorch.jobs.folder import JobFolder
from kernel_pytorch.jobs.node.agent import Agent
agent = Agent(launch(JobFolder(sys.argv[1]), Path(sys.argv[2])))
agent.start()
while True:
    agent.poll()
    time.sleep(0.02)
"""


def test_nothing_outlives_a_node_program_that_is_killed(folder: JobFolder, here: Path):
    folder.claim_attempt({"nodes": ["n1"]})
    family = Family(launch(folder, here).identity())
    path = os.pathsep.join([os.environ.get("PYTHONPATH", ""), str(Path(__file__).parents[3] / "support")])
    command = [sys.executable, "-c", NODE_PROGRAM, str(folder.path), str(here)]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}) as program:
        try:
            watch = Watch(folder, 1, here / "beats", "n1")
            until(lambda: len(watch.look().pids) == 2 and watch.look().step, "steps of both ranks")
            assert len(family.living()) == 3
        finally:
            program.kill()
    try:
        until(lambda: not family.living(), "the end of agent and ranks", 10)
    finally:
        kill_all(family.living())


CHILDREN = """
import os, signal, subprocess, sys, time
from pathlib import Path
signal.signal(signal.SIGTERM, signal.SIG_IGN)
children = [
    subprocess.Popen(["sleep", "600"]),
    subprocess.Popen(["sleep", "600"], env={}),
    subprocess.Popen(["sleep", "600"], start_new_session=True),
]
path = Path(sys.argv[1], os.environ["RANK"])
path.with_suffix(".new").write_text(" ".join(str(child.pid) for child in children))
path.with_suffix(".new").rename(path)
time.sleep(600)
"""


def test_kill_leaves_no_child_of_a_rank(folder: JobFolder, tmp_path: Path):
    write_loop(folder, tmp_path, CHILDREN)
    node = Node(folder, tmp_path)
    try:
        node.agent.start()
        until(lambda: node.look() and all((tmp_path / rank).exists() for rank in "01"), "children")
        children = [int(pid) for rank in "01" for pid in (tmp_path / rank).read_text().split()]
        ranks = node.look().pids
        assert not any(map(is_gone, [*children, *ranks.values()]))
        os.kill(ranks[0], signal.SIGSTOP)
    finally:
        node.agent.kill()
    left = [pid for pid in (*children, *ranks.values()) if not is_gone(pid)]
    kill_all(left)
    assert left == []
    assert node.agent.poll() == -signal.SIGKILL
    node.agent.kill()


def test_what_cannot_be_killed_is_named(folder: JobFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    agent = Agent(launch(folder, tmp_path))
    with subprocess.Popen(["sleep", "60"], env=agent.launch.identity()) as process:
        try:
            with monkeypatch.context() as patch:
                patch.setattr(os, "kill", lambda pid, number: None)
                with pytest.raises(
                    AgentError, match=rf"^processes {process.pid} of {folder.id} are left 0.1 s"
                ):
                    agent.kill(within_s=0.1)
        finally:
            process.kill()


def test_what_cannot_be_started(folder: JobFolder, tmp_path: Path):
    agent = Agent(launch(folder, tmp_path, python="/no/python"))
    with pytest.raises(AgentError, match=r"^/no/python cannot be started: No such file or directory$"):
        agent.start()
    caught: list[BaseException] = []

    def start() -> None:
        try:
            agent.start()
        except RuntimeError as error:
            caught.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert "main thread" in str(caught[0])
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_the_command_line(folder: JobFolder, tmp_path: Path):
    timeouts = {
        "join_timeout": 120.0,
        "last_call_timeout": 2.5,
        "keep_alive_interval": 1.0,
        "shutdown_timeout": 30.5,
    }
    given = launch(
        folder,
        tmp_path,
        python="python",
        nodes=(1, 4),
        endpoint="n1:1234",
        local_address="n2",
        is_host=False,
        timeouts=timeouts,
        numa_binding="node",
        environment={"CUDA_VISIBLE_DEVICES": "0,1"},
    )
    assert given.command() == [
        *("python", "-m", "kernel_pytorch.jobs.node.torchrun", str(os.getpid())),
        "--nnodes=1:4",
        "--nproc-per-node=2",
        "--rdzv-backend=c10d",
        "--rdzv-endpoint=n1:1234",
        f"--rdzv-id={folder.id}-1",
        "--rdzv-conf=is_host=0,join_timeout=120,last_call_timeout=3,keep_alive_interval=1",
        "--max-restarts=3",
        "--signals-to-handle=SIGQUIT",
        "--local-addr=n2",
        "--numa-binding=node",
        *("--no-python", "python", "-m", "kernel_pytorch.jobs.rank", str(folder.path)),
    ]
    variables = given.variables()
    expected = {
        "KERNEL_PYTORCH_JOB": str(folder.path),
        "KERNEL_PYTORCH_ATTEMPT": "1",
        "KERNEL_PYTORCH_BEATS": str(tmp_path / "beats"),
        "KERNEL_PYTORCH_CHECKPOINT_EVERY": "60",
        "KERNEL_PYTORCH_NODE_PID": str(os.getpid()),
        "CUDA_VISIBLE_DEVICES": "0,1",
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "31",
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        "PYTHONFAULTHANDLER": "1",
    }
    assert {name: variables[name] for name in expected} == expected
    assert "--local-addr" not in " ".join(launch(folder, tmp_path, local_address=None).command())
