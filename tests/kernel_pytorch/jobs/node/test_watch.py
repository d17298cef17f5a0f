"""What a node program sees of its ranks: steps, hangs, and the evidence of a failure."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from job_ranks import is_gone, until

from kernel_pytorch.jobs.folder import JobFolder
from kernel_pytorch.jobs.node import watch as watch_module
from kernel_pytorch.jobs.node.agent import RankExit
from kernel_pytorch.jobs.node.place import PlaceError
from kernel_pytorch.jobs.node.processes import oom_kills
from kernel_pytorch.jobs.node.watch import Seen, Watch
from kernel_pytorch.jobs.rank.beats import BeatWriter
from kernel_pytorch.jobs.recovery.classify import classify
from kernel_pytorch.jobs.recovery.evidence import RankError

BEAT = """
import os, sys
from kernel_pytorch.jobs.rank.beats import BeatWriter
writer = BeatWriter(sys.argv[1])
writer.write(int(sys.argv[2]), "training")
print(os.getpid(), flush=True)
sys.stdin.read()
"""


class Clock:
    """Seconds that pass for the watch and for the beats, when a test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = time.monotonic()
        for module in ("node.watch", "rank.beats"):
            monkeypatch.setattr(f"kernel_pytorch.jobs.{module}.monotonic", lambda: self.now)

    def wait(self, seconds: float) -> None:
        self.now += seconds


class Ranks:
    """Ranks 4 and 5 of a job, which are all of this node, in this process if no other is given."""

    def __init__(self, folder: JobFolder, beats: Path, clock: Clock) -> None:
        beats.mkdir()
        folder.claim_attempt({"nodes": ["n2"]})
        self.folder, self.beats, self.clock = folder, beats, clock
        self.logs = folder.path / "logs" / "attempt-1"
        self.logs.mkdir()

    def start(self, local_rank: int, restart: int = 0, pid: int | None = None, world: int = 6) -> None:
        log = self.logs / f"rank-{4 + local_rank}.log"
        started = {
            "rank": 4 + local_rank,
            "pid": pid or os.getpid(),
            "restart": restart,
            "world": world,
            "time_s": self.clock.now,
            "log_from": log.stat().st_size if log.exists() else 0,
        }
        (self.beats / f"started-{local_rank}.json").write_text(json.dumps(started))

    def loop(self, local_rank: int) -> BeatWriter:
        """Have the rank call ``rank.current()``."""
        return BeatWriter(self.beats / f"rank-{local_rank}", 4 + local_rank)

    def print(self, local_rank: int, text: str) -> None:
        with (self.logs / f"rank-{4 + local_rank}.log").open("a") as log:
            log.write(text)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def ranks(folder: JobFolder, tmp_path: Path, clock: Clock) -> Ranks:
    return Ranks(folder, tmp_path / "beats", clock)


@pytest.fixture
def watch(ranks: Ranks) -> Watch:
    return Watch(ranks.folder, 1, ranks.beats, "n2")


def test_before_any_rank_has_started(watch: Watch):
    assert watch.look() == Seen(step=None, save_s=None, median_step_s=None, late=(), pids={})
    evidence = watch.evidence()
    assert (evidence.exit_codes, evidence.beats, evidence.errors, evidence.node_of) == ({}, {}, {}, {})
    assert classify(evidence).kind == "unknown"


def test_the_number_of_ranks_is_that_of_the_living(ranks: Ranks, watch: Watch):
    """One rank has started with fewer nodes, the other not yet."""
    gone = subprocess.Popen(["true"])
    gone.wait()
    ranks.start(1, pid=gone.pid)
    assert watch.look().world == 0
    ranks.start(0, restart=1, world=4)
    assert watch.look().world == 4


def test_a_record_that_cannot_be_read_is_as_none(ranks: Ranks, watch: Watch):
    ranks.start(0)
    ranks.folder.write_record(1, 4, {"error": "broken", "pid": os.getpid()})
    assert set(watch.evidence().errors) == {4}
    (ranks.folder.path / "records" / "attempt-1" / "rank-4.json").write_bytes(b"{")
    assert watch.evidence().errors == {}


def test_steps_and_saves(ranks: Ranks, watch: Watch, clock: Clock):
    ranks.start(0)
    ranks.start(1)
    first = ranks.loop(0)
    assert watch.look().step is None
    first.write(0, "training")
    assert watch.look().step is None  # the other rank has none
    second = ranks.loop(1)
    second.write(3, "training")
    assert watch.look().step == 0
    for step, seconds in ((2, 3.0), (12, 20.0), (13, 2.5), (14, 60.0)):
        clock.wait(seconds)
        first.write(step, "training")
        watch.look()
    seen = watch.look()
    assert (seen.step, seen.median_step_s) == (3, (2.0 + 2.5) / 2)  # of 1.5, 2, 2.5 and 60
    first.saved(14, 1.5)
    first.write(14, "training")
    second.saved(3, 0.5)
    second.write(3, "training")
    assert watch.look().save_s == 1.5
    assert watch.look().pids == {4: os.getpid(), 5: os.getpid()}


@pytest.mark.parametrize("other", ["evaluating", "saving"])
def test_what_is_no_training_is_no_step(ranks: Ranks, watch: Watch, clock: Clock, other: str):
    ranks.start(0)
    beat = ranks.loop(0)
    for step, phase in ((1, "training"), (1, other), (2, "training")):
        clock.wait(100)
        beat.write(step, phase)
        watch.look()
    assert watch.look().median_step_s is None
    clock.wait(1)
    beat.write(3, "training")
    assert watch.look().median_step_s == 1


@pytest.mark.parametrize(
    ("phase", "step_s", "limit"),
    [
        ("training", None, 1800),
        ("training", 1, 60),
        ("training", 10, 100),
        ("evaluating", 1, 1800),
        ("saving", 1, 1800),
    ],
)
def test_a_rank_is_late_after_the_limit_of_its_phase(
    ranks: Ranks, watch: Watch, clock: Clock, phase: str, step_s: float | None, limit: float
):
    ranks.start(0)
    beat = ranks.loop(0)
    beat.write(1, "training")
    watch.look()
    if step_s is not None:
        clock.wait(step_s)
        beat.write(2, "training")
        watch.look()
    beat.write(beat.step, phase)
    clock.wait(limit - 0.5)
    assert watch.look().late == ()
    clock.wait(1)
    assert watch.look().late == (4,)
    failure = classify(watch.evidence())
    assert (failure.kind, failure.rank) == ("hang", 4)
    assert watch.look(closing={os.getpid()}).late == ()
    beat.write(3, "training")
    assert watch.look().late == ()


def test_a_loop_that_starts_may_hang_but_a_program_without_a_loop_does_not(
    ranks: Ranks, watch: Watch, clock: Clock
):
    ranks.start(0)
    ranks.start(1)
    ranks.loop(1)
    clock.wait(1801)
    assert watch.look().late == (5,)
    assert list(watch.evidence().beats) == [5]


def test_the_shortest_limit(ranks: Ranks, clock: Clock, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("KERNEL_PYTORCH_HANG_S", "2.5")
    watches = [
        Watch(ranks.folder, 1, ranks.beats, "n2"),
        Watch(ranks.folder, 1, ranks.beats, "n2", min_hang_s=5),
    ]
    ranks.start(0)
    beat = ranks.loop(0)
    for step in (1, 2):
        clock.wait(0.1)
        beat.write(step, "training")
        for watch in watches:
            watch.look()
    clock.wait(3)
    assert [watch.look().late for watch in watches] == [(4,), ()]
    assert [classify(watch.evidence()).kind for watch in watches] == ["hang", "unknown"]


@pytest.mark.parametrize("value", ["2m", "0", "-1", "nan", "inf"])
def test_a_shortest_limit_that_is_none(ranks: Ranks, monkeypatch: pytest.MonkeyPatch, value: str):
    monkeypatch.setenv("KERNEL_PYTORCH_HANG_S", value)
    with pytest.raises(PlaceError, match=r"^KERNEL_PYTORCH_HANG_S must be a positive number of seconds, got"):
        Watch(ranks.folder, 1, ranks.beats, "n2")


def test_the_beat_of_an_earlier_process_is_not_the_new_ones(ranks: Ranks, watch: Watch, clock: Clock):
    ranks.start(0)
    ranks.loop(0).write(7, "training")
    assert watch.look().step == 7
    clock.wait(1)
    ranks.start(0, restart=1)
    clock.wait(2000)
    seen = watch.look()
    assert (seen.step, seen.late) == (None, ())
    ranks.loop(0)
    assert watch.look().step is None


def test_a_rank_whose_loop_is_a_child_of_its_process(ranks: Ranks, watch: Watch):
    child = [sys.executable, "-c", BEAT, str(ranks.beats / "rank-0"), "3"]
    ranks.start(0, pid=os.getpid())
    with subprocess.Popen(child, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"%d\n" % process.pid
        assert watch.look().pids == {4: process.pid}
        process.stdin.close()


def test_a_rank_that_has_ended_is_not_late_and_its_last_words_are_evidence(
    ranks: Ranks, watch: Watch, clock: Clock
):
    child = [sys.executable, "-c", BEAT, str(ranks.beats / "rank-0"), "3"]
    with subprocess.Popen(child, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        ranks.start(0, pid=process.pid)
        process.stdout.readline()
        watch.look()
        process.kill()
    assert is_gone(process.pid)
    clock.wait(5000)
    assert watch.look().late == ()
    ranks.print(0, "Traceback\nRuntimeError: NCCL error\n")
    evidence = watch.evidence([RankExit(0, process.pid, -9)], stop_requested="preemption")
    assert evidence.exit_codes == {4: -9}
    assert evidence.beats[4].step == 3
    assert evidence.beats[4].since_s < 60
    assert evidence.log_lines == {4: ("Traceback", "RuntimeError: NCCL error")}
    assert evidence.node_of == {4: "n2"}
    assert evidence.stop_requested == "preemption"
    assert set(evidence.disk_free) == {str(ranks.folder.path), "/"}
    assert all(free > 0 for free in evidence.disk_free.values())


def test_evidence_is_of_the_processes_that_failed_also_when_they_were_started_again(
    ranks: Ranks, watch: Watch, clock: Clock
):
    for local_rank in (0, 1):
        ranks.start(local_rank, pid=100 + local_rank)
        ranks.loop(local_rank).write(7, "training")
        ranks.print(local_rank, f"first start of {local_rank}\n")
    watch.look()
    error = {"error": "CUDA error", "type": "RuntimeError", "step": 7, "pid": 100, "saved": [], "restart": 0}
    ranks.folder.write_record(1, 4, error)
    ranks.folder.write_record(1, 5, {**error, "error": "of another process", "pid": 1})
    for local_rank in (0, 1):
        clock.wait(1)
        ranks.start(local_rank, restart=1, pid=200 + local_rank)
        ranks.print(local_rank, f"second start of {local_rank}\n")
    then = watch.evidence([RankExit(0, 100, 1)])
    assert then.exit_codes == {4: 1}
    assert then.errors == {4: RankError(text="CUDA error", type="RuntimeError", step=7)}
    assert then.log_lines == {4: ("first start of 0",), 5: ("first start of 1",)}
    assert {beat.step for beat in then.beats.values()} == {7}
    now = watch.evidence([RankExit(1, 201, 3)])
    assert (now.exit_codes, now.errors, now.beats) == ({5: 3}, {}, {})
    assert now.log_lines == {4: ("second start of 0",), 5: ("second start of 1",)}
    ranks.folder.write_record(1, 5, {"left": 9, "pid": 201})
    assert watch.evidence().left == {5: 9}


def test_a_long_log_is_read_from_its_end(ranks: Ranks, watch: Watch):
    ranks.start(0)
    ranks.print(0, "".join(f"{number:0999}\n" for number in range(1000)))
    lines = watch.evidence().log_lines[4]
    assert [int(line) for line in lines[1:]] == list(range(1000 - len(lines) + 1, 1000))
    assert sum(map(len, lines)) <= 1 << 16


@pytest.mark.parametrize(("counts", "kills"), [((2, 3), {"n2": 1}), ((2, 2), {"n2": 0}), ((None, 2), {})])
def test_the_kernels_kills(ranks: Ranks, monkeypatch: pytest.MonkeyPatch, counts, kills: dict[str, int]):
    answers = iter(counts)
    monkeypatch.setattr(watch_module, "oom_kills", lambda: next(answers))
    evidence = Watch(ranks.folder, 1, ranks.beats, "n2").evidence()
    assert evidence.oom_kills == kills
    assert (classify(evidence).kind == "oom") == (kills == {"n2": 1})


@pytest.mark.parametrize(
    ("cgroup", "events", "kills"),
    [
        ("0::/job/step", "low 0\noom 4\noom_kill 3\noom_group_kill 0\n", 3),
        ("4:memory:/job/step\n0::/job/step", "oom_kill 0\n", 0),
        ("0::/job/step", None, None),
        ("4:memory:/job/step", "oom_kill 3\n", None),
    ],
)
def test_the_counter_of_the_own_cgroup(tmp_path: Path, cgroup: str, events: str | None, kills: int | None):
    files: dict[str, str | None] = {
        "proc/self/cgroup": cgroup,
        "sys/fs/cgroup/job/step/memory.events": events,
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True)
        if content is not None:
            (tmp_path / name).write_text(content)
    assert oom_kills(str(tmp_path)) == kills


def test_a_look_while_a_rank_beats(folder: JobFolder, tmp_path: Path):
    """With the real clock and a real rank."""
    beats = tmp_path / "beats"
    beats.mkdir()
    loop = (
        "import time; from kernel_pytorch.jobs import rank\njob = rank.current()\n"
        "for step in range(10 ** 6): job.beat(step); time.sleep(0.01)"
    )
    folder.write_job({**folder.job(), "argv": [sys.executable, "-c", loop]})
    folder.claim_attempt({})
    environment = {
        "KERNEL_PYTORCH_JOB": str(folder.path),
        "KERNEL_PYTORCH_ATTEMPT": "1",
        "KERNEL_PYTORCH_BEATS": str(beats),
        "RANK": "4",
        "LOCAL_RANK": "0",
        "TORCHELASTIC_RESTART_COUNT": "0",
    }
    command = [sys.executable, "-m", "kernel_pytorch.jobs.rank", str(folder.path)]
    watch = Watch(folder, 1, beats, "n2")
    with subprocess.Popen(command, env={**os.environ, **environment}) as process:
        try:
            until(lambda: watch.look().median_step_s, "steps")
            seen = watch.look()
        finally:
            process.kill()
    assert seen.pids == {4: process.pid}
    assert seen.median_step_s >= 0.01
