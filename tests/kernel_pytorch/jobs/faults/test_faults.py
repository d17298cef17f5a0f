"""Each fault once, with real processes, on this machine and on a real Slurm: what the contract promises."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.kernel_pytorch.jobs.faults.loop import EVERY, STEP_S
from tests.support.running_jobs import Running, descendants, kill

from kernel_pytorch.jobs.manage import Jobs
from kernel_pytorch.jobs.read import spec_of
from kernel_pytorch.jobs.slurm import commands
from kernel_pytorch.jobs.target import target_named

LOOP = Path(__file__).with_name("loop.py")
STEPS = 60
"""Three seconds of them."""

ON_SLURM = pytest.mark.parametrize(
    "submit", [pytest.param("slurm", marks=pytest.mark.xdist_group("slurm"))], indirect=True
)
Submit = Callable[..., Running]


@pytest.fixture(params=["local", pytest.param("slurm", marks=pytest.mark.xdist_group("slurm"))])
def submit(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Submit]:
    """Submit the loop for two nodes; whatever happens, no process stays."""
    name = request.param
    if name == "slurm":
        cluster = request.getfixturevalue("slurm_hosts")
        for variable, value in cluster.environment().items():
            monkeypatch.setenv(variable, value)
    jobs, started = Jobs(tmp_path / "jobs"), []

    def start(out: Path, *arguments: object, steps: int = STEPS, **options: object) -> Running:
        out.mkdir(exist_ok=True)
        command = [sys.executable, str(LOOP), str(out), str(steps), *map(str, arguments)]
        spec = spec_of({"name": "loop", "command": command, "nodes": 2, "ranks_per_node": 1, **options})
        (submitted,) = jobs.submit(spec, target_named(name))
        started.append(Running(jobs, submitted.job_id))
        return started[-1]

    yield start
    for job in started:
        if job.folder.ended() is None:
            jobs.cancel(job.id)
        kill(*job.processes())
    if name == "slurm":
        cluster.reset()


@pytest.fixture
def lose_node(request: pytest.FixtureRequest) -> Callable[[Running, int], None]:
    """End a node with all that runs on it, as a loss of power does."""

    def lose(job: Running, index: int) -> None:
        if "slurm" in request.node.callspec.id:
            names = job.event("attempt", len(job.folder.attempt_numbers()))["nodes"]
            request.getfixturevalue("slurm_hosts").kill_node(names[index])
        else:
            victims = descendants(job.node_programs()[index])
            kill(*victims, number=signal.SIGSTOP)  # before any is killed: none can report the end of another
            kill(*victims)

    return lose


def check_rows(job: Running, out: Path, *, ranks: int = 2, repeated: int = 0, steps: int = STEPS) -> None:
    """Every step was taken, in order, and none but those since a checkpoint twice."""
    for rank in range(ranks):
        rows = job.rows(out, rank)
        assert set(rows) == set(range(1, steps + 1)), job.told()
        assert len(rows) - steps <= repeated, rows


def test_a_killed_worker_is_restarted_in_place(submit, tmp_path):
    job = submit(tmp_path / "out")
    job.step(7)
    kill(job.ranks()[1])
    assert job.end()["state"] == "completed", job.told()
    failure = job.event("failure")
    assert (failure["failure"]["kind"], failure["failure"]["rank"]) == ("crash", 1)
    assert job.event("restart")["attempt"] == 1
    status = job.jobs.status(job.id)
    assert (status.state.value, status.attempt, status.restart_count) == ("completed", 1, 1)
    check_rows(job, tmp_path / "out", repeated=EVERY + 2)


@pytest.mark.parametrize("submit", ["local"], indirect=True)
@pytest.mark.parametrize(("code", "times"), [(2, 1), (3, 3)])
def test_how_often_a_command_runs_that_always_fails(submit, tmp_path, code, times):
    """It knows nothing of jobs: a restart is decided before any rank begins again."""
    runs = tmp_path / "runs"
    job = submit(tmp_path / "out", command=["sh", "-c", f"echo $RANK >> {runs}; exit {code}"])
    assert job.end()["state"] == "failed", job.told()
    assert sorted(runs.read_text().split()) == ["0"] * times + ["1"] * times


def test_without_a_node_a_job_of_one_size_is_run_again(submit, lose_node, tmp_path):
    job = submit(tmp_path / "out")
    job.step(7)
    lose_node(job, 1)
    assert job.end()["state"] == "completed", job.told()
    lost = job.event("attempt")["nodes"][1]
    failure = job.event("failure")["failure"]
    assert (failure["kind"], failure["nodes"]) == ("node_lost", [lost])
    assert job.event("requeue").get("exclude") == (None if lost == "node-1" else [lost])  # local: one machine
    assert job.event("attempt", 2)["attempt"] == 2
    check_rows(job, tmp_path / "out", repeated=2 * EVERY + 2)


def test_without_a_node_the_other_goes_on_where_one_is_enough(submit, lose_node, tmp_path):
    job = submit(tmp_path / "out", nodes="1:2")
    job.step(7)
    lose_node(job, 1)
    assert job.end()["state"] == "completed", job.told()
    assert job.event("go_on_smaller")["nodes"] == job.event("attempt")["nodes"][:1]
    assert job.folder.attempt_numbers() == [1]
    check_rows(job, tmp_path / "out", ranks=1, repeated=EVERY + 2)


@pytest.mark.parametrize("submit", ["local"], indirect=True)
def test_without_the_node_of_a_faulty_gpu_the_others_go_on(submit, tmp_path):
    out = tmp_path / "out"
    ecc = "RuntimeError: CUDA error: uncorrectable ECC error encountered"
    faulty = f'if [ "$KERNEL_PYTORCH_NODE" = 1 ]; then echo "{ecc}" >&2; exit 1; fi; exec "$@"'
    loop = [sys.executable, str(LOOP), str(out), "20"]
    job = submit(out, nodes="2:3", command=["sh", "-c", faulty, "sh", *loop])
    assert job.end()["state"] == "completed", job.told()
    failure = job.event("failure")["failure"]
    assert (failure["kind"], failure["nodes"]) == ("gpu", ["node-1"])
    assert job.event("go_on_smaller")["nodes"] == ["node-0", "node-2"]
    assert [event["kind"] for event in job.folder.events()].count("failure") == 1
    assert job.folder.attempt_numbers() == [1]
    check_rows(job, out, repeated=2 * EVERY, steps=20)


def test_without_the_first_node_the_job_is_run_again(submit, lose_node, tmp_path):
    job = submit(tmp_path / "out", nodes="1:2")
    job.step(7)
    lose_node(job, 0)
    assert job.end()["state"] == "completed", job.told()
    assert job.event("failure")["failure"]["kind"] == "first_node_lost"
    assert len(job.folder.attempt_numbers()) == 2
    check_rows(job, tmp_path / "out", ranks=1, repeated=EVERY + 2)


def test_a_rank_that_hangs_is_named_with_its_line(submit, tmp_path, monkeypatch):
    monkeypatch.setenv("KERNEL_PYTORCH_HANG_S", "2")
    job = submit(tmp_path / "out")
    job.step(30)  # by then steps have been measured
    kill(job.ranks()[1], number=signal.SIGSTOP)
    assert job.end()["state"] == "completed", job.told()
    failure = job.event("failure")["failure"]
    assert (failure["kind"], failure["rank"]) == ("hang", 1)
    assert ".py:" in failure["text"]
    stack = job.folder.path / "stacks" / "attempt-1" / "rank-1.txt"
    assert "loop.py" in stack.read_text()
    check_rows(job, tmp_path / "out", repeated=EVERY + 2)


def test_signals_to_all_processes_twice_lose_no_step(submit, tmp_path):
    job = submit(tmp_path / "out")
    job.step(7)
    nodes = set().union(*(descendants(pid) for pid in job.node_programs().values()))
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGTERM):
        kill(*nodes, number=number)
    assert job.end()["state"] == "completed", job.told()
    assert job.event("requeue")["because"] == "asked"
    assert len(job.folder.attempt_numbers()) == 2
    assert job.jobs.status(job.id).steps_lost == 0
    check_rows(job, tmp_path / "out", repeated=0)


def test_a_requeued_job_goes_on_where_it_stopped(submit, tmp_path, request):
    """On Slurm also where the batch script gets the signal that comes before a time limit."""
    job, attempts = submit(tmp_path / "out"), 2
    job.step(7)
    job.jobs.requeue(job.id)
    if "slurm" in request.node.callspec.id:
        attempts = 3
        job.step(20, attempt=2)
        commands.run("scancel", "--batch", "--signal=USR1", str((job.folder.native() or {})["native_id"]))
        assert job.event("stop", 2)["text"] == "asked to stop: Slurm sent USR1"
    assert job.end()["state"] == "completed", job.told()
    assert len(job.folder.attempt_numbers()) == attempts
    check_rows(job, tmp_path / "out", repeated=0)


def test_the_time_limit_stops_the_job_in_time(submit, tmp_path, request):
    slurm = "slurm" in request.node.callspec.id
    limit_s = 60 if slurm else 12  # Slurm counts minutes
    steps = round(limit_s / STEP_S)
    job = submit(tmp_path / "out", steps=steps, max_runtime_hours=limit_s / 3600)
    assert job.end()["state"] == "completed", job.told()
    assert "time limit" in job.event("stop")["text"]
    assert job.event("requeue")["because"] == "asked"
    check_rows(job, tmp_path / "out", steps=steps)


@ON_SLURM
def test_a_job_folder_that_a_node_does_not_see(submit, slurm_hosts, tmp_path, monkeypatch):
    monkeypatch.setenv("KERNEL_PYTORCH_MEET_S", "3")
    (tmp_path / "jobs").mkdir(mode=0o700)
    with slurm_hosts.unshared("n2", tmp_path / "jobs"):
        job = submit(tmp_path / "out", options={"slurm": {"sbatch": ["--nodelist=n[1-2]"]}})
        end = job.end()
    assert end["state"] == "failed"
    assert end["reason"] == (
        "only 1 of 2 nodes met within 3 s, at least 2 are needed; missing: n2: see logs/slurm-*.out in the "
        "job's folder, which must be on a file system that all nodes share"
    )
    (log,) = (job.folder.path / "logs").glob("slurm-*.out")
    assert f"{job.id} has vanished on n2: the job's folder must be on" in (log.read_text())


@ON_SLURM
def test_a_save_that_is_not_over_at_the_time_limit(submit, slurm_hosts, tmp_path):
    """Slurm kills everything KillWait later; by then the job is requeued."""
    job = submit(tmp_path / "out")
    job.step(7)
    (tmp_path / "out" / "slow").touch()
    slurm_hosts.run("scontrol", "update", f"JobId={job.folder.native()['native_id']}", "EndTime=now")
    job.event("attempt", 2)
    (tmp_path / "out" / "slow").unlink()
    assert job.end()["state"] == "completed", job.told()
    failure = job.event("failure")
    assert (failure["failure"]["kind"], failure["attempt"]) == ("timeout", 1)
    assert job.event("requeue")["text"].startswith("the time limit has passed, and not all ranks")
    assert job.folder.attempt_numbers() == [1, 2]
    check_rows(job, tmp_path / "out", repeated=EVERY + 2)


def test_a_full_disk_ends_the_job_and_says_so(submit, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "rank-0.tmp").symlink_to("/dev/full")
    job = submit(out)
    end = job.end()
    assert end["state"] == "failed", job.told()
    assert "No space left on device" in end["reason"]
    assert "restart" not in {event["kind"] for event in job.folder.events()}


def test_a_rank_killed_while_it_saves_leaves_the_checkpoint_whole(submit, tmp_path):
    job = submit(tmp_path / "out", 0.3)

    def saving() -> int | None:
        beats = job.beats()
        return (
            beats[0].pid if 0 in beats and beats[0].phase == "saving" and (beats[0].step or 0) > 5 else None
        )

    kill(job.until(saving, "save"))
    assert job.end()["state"] == "completed", job.told()
    assert job.event("restart")
    check_rows(job, tmp_path / "out", repeated=2 * EVERY)
