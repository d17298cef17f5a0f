"""Submitting jobs, and asking for them, on a cluster that is made up."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from processes import on_a_small_disk

from kernel_pytorch.errors import KernelPytorchError
from kernel_pytorch.jobs import manage
from kernel_pytorch.jobs.facts import JobState, JobStatus
from kernel_pytorch.jobs.folder import JobFolder, JobFolderError, JobNotFoundError
from kernel_pytorch.jobs.manage import Jobs, exit_status, records_of
from kernel_pytorch.jobs.read import spec_of
from kernel_pytorch.jobs.spec import TrainingJobSpec
from kernel_pytorch.jobs.status import LOST, ClusterWord
from kernel_pytorch.jobs.target import ClusterUnavailableError, SubmissionUnknownError

TRAIN = ["longnet", "train", "--run", "books"]


class MadeUpCluster:
    """Remembers what it was asked, and answers what it is told to."""

    name = "slurm"

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.error: BaseException | None = None
        self.array: Sequence[int] | None = None
        self.word = ClusterWord(as_of=1.0, native_state="RUNNING", state=JobState.RUNNING)

    def _asked(self, call: str) -> None:
        self.calls.append(call)
        if self.error is not None:
            raise self.error

    def check(self, spec: TrainingJobSpec, plan: Mapping) -> Sequence[str]:
        self._asked("check")
        return ("a preemption loses an hour",)

    def render(self, spec: TrainingJobSpec, folder: Path, job: Mapping) -> str:
        return f"run {folder.name} {json.dumps(job)}"

    def indices(self, spec: TrainingJobSpec) -> Sequence[int] | None:
        return self.array

    def submit(self, spec, folders: Sequence[JobFolder], *, inherit_env: bool) -> Sequence[str]:
        assert [folder.job()["inherit_env"] for folder in folders] == [inherit_env] * len(folders)
        self._asked("submit")
        return [f"{100 + number}" for number, _ in enumerate(folders)]

    def words(self, folders: Sequence[JobFolder], patience_s: float = 30.0) -> Mapping[str, ClusterWord]:
        self._asked("words")
        return {folder.id: self.word for folder in folders}

    def cancel(self, folder: JobFolder) -> None:
        assert folder.ended()["state"] == "cancelled"  # so that nothing runs it again meanwhile
        self._asked("cancel")

    def requeue(self, folder: JobFolder, exclude: Sequence[str] = ()) -> str:
        assert folder.ended() is None
        self._asked(f"requeue without {','.join(exclude)}")
        return "200"

    def estimated_start(self, folder: JobFolder) -> float | None:
        return 5.0


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> MadeUpCluster:
    made_up = MadeUpCluster()
    monkeypatch.setattr(manage, "target_named", lambda name: made_up)
    monkeypatch.setattr(manage, "_LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(manage, "_ASK_EVERY_S", 0.02)
    return made_up


@pytest.fixture
def jobs(tmp_path: Path) -> Jobs:
    return Jobs(tmp_path / "jobs")


def spec(command: Sequence[str] = TRAIN, **values) -> TrainingJobSpec:
    return spec_of({"name": "books", "command": command, **values})


def submit(jobs: Jobs, cluster: MadeUpCluster, *arguments, **options) -> str:
    (submitted,) = jobs.submit(spec(*arguments), cluster, **options)
    return submitted.job_id


def test_a_job_is_submitted(jobs, cluster, monkeypatch):
    monkeypatch.chdir("/usr")
    (submitted,) = jobs.submit(spec(nodes="1:2", env_vars={"N": "1"}), cluster)
    assert cluster.calls == ["check", "submit"]
    assert submitted.folder == jobs.root / submitted.job_id
    assert (submitted.native_id, submitted.estimated_start_time) == ("100", 5.0)
    assert submitted.notes == ("a preemption loses an hour",)
    folder = JobFolder(submitted.folder)
    job = folder.job()
    assert (job["argv"], job["environment"], job["cwd"]) == (TRAIN, {"N": "1"}, "/usr")
    assert (job["spec"]["nodes"], job["spec"]["ranks_per_node"]) == ([1, 2], 1)
    assert (folder.native()["target"], folder.native()["native_id"]) == ("slurm", "100")
    assert [event["kind"] for event in folder.events()] == ["submitted"]
    assert jobs.status("100").job_id == jobs.status(submitted.job_id[:7]).job_id == submitted.job_id


@pytest.mark.parametrize("error", [ClusterUnavailableError("no answer"), KernelPytorchError("squeue: no")])
def test_an_accepted_job_is_submitted_whatever_the_next_answer_is(jobs, cluster, monkeypatch, error):
    def refuse(folder: JobFolder) -> float | None:
        raise error

    monkeypatch.setattr(cluster, "estimated_start", refuse)
    (submitted,) = jobs.submit(spec(), cluster)
    assert (submitted.native_id, submitted.estimated_start_time) == ("100", None)


def test_the_gpus_of_the_whole_job_are_those_of_its_nodes(jobs, cluster):
    (submitted,) = jobs.submit(spec(nodes=2, resources={"gpu_count": 4}), cluster)
    facts = JobFolder(submitted.folder).job()["spec"]
    assert (facts["gpus_per_node"], facts["ranks_per_node"], facts["world_size"]) == (2, 2, 4)
    assert spec_of(facts).num_gpus_per_node == 2


def test_a_job_that_the_cluster_may_have_keeps_its_folder(jobs, cluster, monkeypatch):
    monkeypatch.setattr(cluster, "check", lambda *_: ())
    cluster.error = SubmissionUnknownError("books-7f3a", "sbatch had no answer in 30 s", "squeue")
    with pytest.raises(SubmissionUnknownError):
        jobs.submit(spec(job_id="books-7f3a"), cluster)
    cluster.error = None
    assert jobs.status("books-7f3a").state is JobState.RUNNING  # the cluster has it


def test_a_dry_run_touches_nothing_and_asks_nobody(jobs, cluster):
    cluster.error = AssertionError("a dry run needs no cluster")
    (submitted,) = jobs.submit(spec(env_vars={"TOKEN": "hunter2"}), cluster, dry_run=True)
    assert not jobs.root.exists()
    assert cluster.calls == []
    assert (submitted.native_id, submitted.estimated_start_time) == (None, None)
    assert submitted.rendered.startswith(f"run {submitted.job_id} ")
    assert "hunter2" not in submitted.rendered


def test_an_array_has_a_folder_for_each_index(jobs, cluster):
    cluster.array = (0, 2)
    with pytest.raises(ValueError, match="the 2 jobs of the array would all write to the run folder"):
        jobs.submit(spec(), cluster, dry_run=True)
    found = jobs.submit(spec(["longnet", "train"]), cluster)
    base = found[0].job_id.removesuffix("-0")
    assert [each.job_id for each in found] == [f"{base}-0", f"{base}-2"]
    assert [each.native_id for each in found] == ["100", "101"]
    assert {folder.id for folder in manage.job_folders(jobs.root)} == {f"{base}-0", f"{base}-2"}


@pytest.mark.parametrize("error", [KernelPytorchError("sbatch: no"), KeyboardInterrupt(), OSError("gone")])
def test_a_submission_that_fails_leaves_nothing(jobs, cluster, monkeypatch, error):
    monkeypatch.setattr(cluster, "check", lambda *_: ())
    cluster.array, cluster.error = (0, 1), error
    with pytest.raises(type(error)):
        jobs.submit(spec(["true"]), cluster)
    assert manage.job_folders(jobs.root) == []
    assert [path.name for path in jobs.root.iterdir()] == [".lock"]


def test_an_array_of_which_one_folder_cannot_be_made_leaves_none(jobs, cluster, monkeypatch):
    cluster.array, create = (0, 1), JobFolder.create

    def full(root: Path, job: Mapping) -> JobFolder:
        if job["id"].endswith("-1"):
            raise JobFolderError("No space left on device")
        return create(root, job)

    monkeypatch.setattr(JobFolder, "create", full)
    with pytest.raises(JobFolderError):
        jobs.submit(spec(["true"]), cluster)
    assert manage.job_folders(jobs.root) == []


def test_what_can_never_run_makes_no_folder(jobs, cluster):
    cluster.error = ValueError("no node has 9 GPUs")
    with pytest.raises(ValueError, match="no node has 9 GPUs"):
        jobs.submit(spec(), cluster)
    assert not jobs.root.exists()


ON_A_SMALL_DISK = """
import sys
from pathlib import Path
from kernel_pytorch.jobs.local.target import LocalTarget
from kernel_pytorch.jobs.manage import Jobs
from kernel_pytorch.jobs.read import spec_of
disk = Path(sys.argv[1])

def fill():
    with open(disk / "fill", "wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)): pass
        except OSError:
            pass
"""


def test_a_full_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    script = """
fill()
try:
    Jobs(disk / "jobs").submit(spec_of({"name": "books", "command": ["true"]}), LocalTarget())
except Exception as error:
    print(type(error).__name__, error)
print(sorted(path.name for path in (disk / "jobs").iterdir()))
"""
    done = on_a_small_disk(disk, ON_A_SMALL_DISK + script)
    error, left = done.stdout.splitlines()
    assert error.startswith("JobFolderError ")
    assert error.endswith("cannot be written: No space left on device")
    assert left == "['.lock']"
    assert done.stderr == ""


def test_jobs_that_others_can_write_are_refused(jobs, cluster):
    jobs.root.mkdir()
    jobs.root.chmod(0o777)
    with pytest.raises(JobFolderError, match=f"others can write {jobs.root}.*chmod go-w"):
        submit(jobs, cluster)
    jobs.root.chmod(0o700)
    id = submit(jobs, cluster)
    (jobs.root / id).chmod(0o777)
    with pytest.raises(JobFolderError, match="others can write"):
        jobs.cancel(id)
    assert "words" not in cluster.calls


def test_an_id_of_ones_own(jobs, cluster):
    assert jobs.submit(spec(job_id="mine"), cluster)[0].job_id == "mine"
    with pytest.raises(JobFolderError, match="already has a job mine: choose another id"):
        jobs.submit(spec(["true"], job_id="mine"), cluster)
    assert JobFolder(jobs.root / "mine").job()["argv"] == TRAIN


def test_an_accepted_job_that_cannot_be_noted_is_named(jobs, cluster, monkeypatch):
    def full(self, target: str, native_id: str) -> None:
        raise JobFolderError("native.json cannot be written: No space left on device")

    monkeypatch.setattr(JobFolder, "write_native", full)
    with pytest.raises(JobFolderError, match=r"slurm runs books-.* as 100, but: native.json.*No space left"):
        submit(jobs, cluster)
    assert len(manage.job_folders(jobs.root)) == 1


def test_a_run_folder_that_a_job_uses_is_refused(jobs, cluster, tmp_path):
    first = submit(jobs, cluster, cwd=tmp_path)
    with pytest.raises(
        ValueError, match=f"run folder {tmp_path}/runs/books is used by {first}, which has not ended"
    ):
        submit(jobs, cluster, [*TRAIN[:-2], "--run=./runs/books"], cwd=tmp_path)
    with pytest.raises(ValueError, match=f"is used by {first}"):
        submit(jobs, cluster, [*TRAIN[:-2], "--resume", "books"], cwd=tmp_path)
    submit(jobs, cluster, cwd=tmp_path / "elsewhere")
    submit(jobs, cluster, ["longnet", "train", "--run", "papers"], cwd=tmp_path)
    JobFolder(jobs.root / first).end("completed", "done")
    second = submit(jobs, cluster, cwd=tmp_path)
    with pytest.raises(ValueError, match=f"is used by {second}"):
        jobs.requeue(first)
    jobs.requeue(second)


def test_of_two_submissions_at_once_one_gets_the_run_folder(jobs, cluster, monkeypatch):
    refuse, ready = Jobs._refuse_shared_run, threading.Barrier(2)

    def slowly(self, *arguments, **options) -> None:
        refuse(self, *arguments, **options)
        time.sleep(0.05)  # in which the other one looks, if it may

    monkeypatch.setattr(Jobs, "_refuse_shared_run", slowly)
    told: list[str] = []

    def one() -> None:
        ready.wait()
        try:
            told.append(submit(Jobs(jobs.root), cluster))
        except ValueError as error:
            told.append(str(error))

    threads = [threading.Thread(target=one) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    refused = [text for text in told if "is used by" in text]
    assert (len(told), len(refused)) == (2, 1)
    assert len(manage.job_folders(jobs.root)) == 1


def test_the_status_is_the_clusters_word_and_the_folders_records(jobs, cluster):
    id = submit(jobs, cluster)
    folder = JobFolder(jobs.root / id)
    attempt = folder.claim_attempt({"nodes": ["n1"], "native": "100"})
    folder.write_record(attempt, 0, {"saved": [{"step": 4, "seconds": 1.0}]})
    status = jobs.status(id)
    assert (status.state, status.native_state, status.native_id) == (JobState.RUNNING, "RUNNING", "100")
    assert (status.attempt, status.last_checkpoint, status.allocated_nodes) == (1, 4, ["n1"])


def test_a_job_that_ended_between_the_two_questions_has_ended(jobs, cluster):
    id = submit(jobs, cluster)
    folder = JobFolder(jobs.root / id)
    words = cluster.words
    cluster.words = lambda *asked: (words(*asked), folder.end("completed", "all ranks returned 0"))[0]
    assert jobs.status(id).state is JobState.COMPLETED


def test_a_job_that_ended_while_nobody_looked(jobs, cluster):
    id = submit(jobs, cluster)
    JobFolder(jobs.root / id).end("failed", "no memory", step=7)
    cluster.error = AssertionError("what has ended needs no cluster")
    status = Jobs(jobs.root).status(id)
    assert (status.state, status.reason, status.step) == (JobState.FAILED, "no memory", 7)
    assert jobs.wait(id) == status
    assert list(jobs.events(id, follow=True)) == list(jobs.events(id))


def test_without_the_cluster_the_folder_tells_what_was(jobs, cluster):
    id = submit(jobs, cluster)
    cluster.error = ClusterUnavailableError("slurmctld does not answer")
    status = jobs.status(id)
    assert status.state is JobState.PENDING
    assert "could not be asked" in status.reason
    assert status.as_of == JobFolder(jobs.root / id).native()["submitted_at"]
    assert jobs.list() == [status]


def test_a_job_of_which_the_cluster_refuses_to_speak_hides_no_other(jobs, cluster, monkeypatch):
    other, odd = (submit(jobs, cluster, ["true"]) for _ in range(2))

    def words(folders: Sequence[JobFolder], patience_s: float = 30.0) -> Mapping[str, ClusterWord]:
        if odd in [folder.id for folder in folders]:
            raise KernelPytorchError("squeue: Invalid job id specified")
        return {folder.id: cluster.word for folder in folders}

    monkeypatch.setattr(cluster, "words", words)
    assert "could not be asked" in jobs.status(odd).reason
    assert {status.job_id: status.state for status in jobs.list()} == {
        odd: JobState.PENDING,
        other: JobState.RUNNING,
    }


def test_the_list_has_the_newest_first_and_a_broken_one(jobs, cluster):
    first, second, third = (submit(jobs, cluster, ["true"]) for _ in range(3))
    (jobs.root / second / "job.json").write_text("{")
    found = jobs.list()
    assert [status.job_id for status in found] == [second, third, first]
    assert found[0].state is None
    assert "cannot be read" in found[0].reason
    assert cluster.calls.count("words") == 1


def test_cancel_marks_the_end_first_and_asks_again_the_second_time(jobs, cluster):
    id = submit(jobs, cluster)
    assert jobs.cancel(id).state is JobState.CANCELLED
    end = JobFolder(jobs.root / id).ended()
    jobs.cancel(id)
    assert cluster.calls.count("cancel") == 2
    assert JobFolder(jobs.root / id).ended() == end
    assert [event["kind"] for event in jobs.events(id)] == ["submitted", "cancelled"]


def test_a_full_disk_does_not_keep_a_job_from_being_cancelled(jobs, cluster, monkeypatch):
    id = submit(jobs, cluster)

    def full(self, *arguments, **options) -> bool:
        raise JobFolderError("end.json cannot be written: No space left on device")

    cancelled: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(JobFolder, "end", full)
        patch.setattr(cluster, "cancel", lambda folder: cancelled.append(folder.id))
        told = rf"^{id} was cancelled, but that is not recorded: .*No space left.* cancel {id} records it$"
        with pytest.raises(JobFolderError, match=told):
            jobs.cancel(id)
    assert cancelled == [id]
    assert jobs.cancel(id).state is JobState.CANCELLED


def test_a_job_is_cancelled_on_a_disk_that_is_full(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    script = """
from kernel_pytorch.jobs.node.processes import Family
jobs = Jobs(disk / "jobs")
(job,) = jobs.submit(spec_of({"name": "books", "command": ["sleep", "600"], "job_id": "mine"}), LocalTarget())
fill()
try:
    jobs.cancel("mine")
except Exception as error:
    print(type(error).__name__, error)
print(Family({"KERNEL_PYTORCH_JOB": str(job.folder)}).living())
(disk / "fill").unlink()
print(jobs.cancel("mine").state)
"""
    done = on_a_small_disk(disk, ON_A_SMALL_DISK + script)
    error, living, state = done.stdout.splitlines()
    assert error.startswith("JobFolderError mine was cancelled, but that is not recorded: ")
    assert "No space left on device" in error
    assert (living, state, done.stderr) == ("[]", "JobState.CANCELLED", "")


def test_what_has_ended_is_not_cancelled(jobs, cluster):
    id = submit(jobs, cluster)
    JobFolder(jobs.root / id).end("completed", "done")
    assert jobs.cancel(id).state is JobState.COMPLETED
    assert "cancel" not in cluster.calls


def test_without_the_cluster_nothing_is_cancelled_nor_run_again(jobs, cluster):
    id = submit(jobs, cluster)
    cluster.error = ClusterUnavailableError("slurmctld does not answer")
    with pytest.raises(ClusterUnavailableError):
        jobs.cancel(id)
    assert JobFolder(jobs.root / id).ended() is None
    JobFolder(jobs.root / id).end("failed", "no memory")
    with pytest.raises(ClusterUnavailableError):
        jobs.requeue(id)
    assert JobFolder(jobs.root / id).ended()["reason"] == "no memory"


def test_a_job_that_has_ended_runs_again(jobs, cluster):
    id = submit(jobs, cluster)
    folder = JobFolder(jobs.root / id)
    folder.end("failed", "no memory")
    folder.request_stop()
    cluster.word = ClusterWord(as_of=1.0)
    assert jobs.requeue(id, exclude=["n3"]) == "200"
    assert cluster.calls[-1] == "requeue without n3"
    assert (folder.ended(), folder.stop_requested()) == (None, False)
    assert json.loads((folder.path / "end-1.json").read_text())["reason"] == "no memory"
    assert folder.native()["native_id"] == "200"
    folder.end("failed", "no memory either")
    jobs.requeue(id)
    assert json.loads((folder.path / "end-2.json").read_text())["reason"] == "no memory either"


def test_a_job_runs_again_only_when_what_wrote_its_end_has_left(jobs, cluster, monkeypatch):
    id = submit(jobs, cluster)
    folder = JobFolder(jobs.root / id)
    folder.end("completed", "all ranks returned 0")
    words = iter([cluster.word] * 3)

    def leaving(folders):
        assert folder.ended() is not None
        return {id: next(words, ClusterWord(as_of=2.0))}

    monkeypatch.setattr(cluster, "words", leaving)
    assert jobs.requeue(id) == "200"
    assert list(words) == []
    monkeypatch.setattr(cluster, "words", lambda folders: {id: cluster.word})
    monkeypatch.setattr(manage, "_LEAVES_S", 0.1)
    folder.end("completed", "all ranks returned 0")
    with pytest.raises(KernelPytorchError, match="has ended, but slurm still runs it"):
        jobs.requeue(id)
    assert folder.ended() is not None


def test_a_job_that_cannot_run_again_is_as_it_was(jobs, cluster, monkeypatch):
    id = submit(jobs, cluster)
    folder = JobFolder(jobs.root / id)
    folder.end("failed", "no memory")
    monkeypatch.setattr(cluster, "words", lambda folders: {})
    cluster.error = KernelPytorchError("sbatch: no")
    with pytest.raises(KernelPytorchError, match="sbatch: no"):
        jobs.requeue(id)
    assert folder.ended()["reason"] == "no memory"
    assert folder.native()["native_id"] == "100"


@pytest.mark.parametrize(
    "word",
    [
        ClusterWord(as_of=1.0, native_state="NODE_FAIL", state=JobState.FAILED),
        ClusterWord(as_of=1.0, native_state=LOST),
        ClusterWord(as_of=1.0),
    ],
    ids=["failed", "lost", "unknown"],
)
def test_waiting_ends_with_a_job_that_the_cluster_does_not_run(jobs, cluster, word):
    id = submit(jobs, cluster)
    cluster.word = word
    assert jobs.wait(id).state is word.state
    assert [event["kind"] for event in jobs.events(id, follow=True)] == ["submitted"]


def test_events_are_followed_to_the_end(jobs, cluster):
    id = submit(jobs, cluster)
    folder = JobFolder(jobs.root / id)
    kinds = []
    for event in jobs.events(id, follow=True):
        kinds.append(event["kind"])
        if event["kind"] == "submitted":
            folder.event("attempt", "attempt 1")
        elif event["kind"] == "attempt":
            folder.end("completed", "done")
            folder.event("end", "done")
    assert kinds == ["submitted", "attempt", "end"]


def test_what_follows_a_folder_that_vanishes_ends(jobs, cluster):
    id = submit(jobs, cluster)
    following = jobs.events(id, follow=True)
    next(following)
    os.rename(jobs.root / id, jobs.root / "away")
    with pytest.raises(JobFolderError, match="has vanished"):
        next(following)


def test_what_there_is_not(jobs, cluster):
    with pytest.raises(JobNotFoundError, match="no job 'books'"):
        jobs.status("books")
    id = submit(jobs, cluster)
    with pytest.raises(ValueError, match=f"rank must be one of the 1 of {id}, from 0 on, got 1"):
        jobs.logs(id, rank=1)


def test_records_go_back_to_the_last_save(jobs, cluster):
    folder = JobFolder(jobs.root / submit(jobs, cluster))
    for saved in ([{"step": 1, "seconds": 1.0}], [{"step": 2, "seconds": 1.0}], []):
        folder.write_record(folder.claim_attempt({}), 0, {"saved": saved})
    records = records_of(folder)
    assert sorted(records.records) == [2, 3]
    assert len(records.attempts) == 3
    assert records.native["native_id"] == "100"


@pytest.mark.parametrize(
    ("state", "code"),
    [(JobState.COMPLETED, 0), (JobState.FAILED, 1), (JobState.CANCELLED, 130), (None, 1)],
)
def test_the_exit_status_of_a_job(state: JobState | None, code: int):
    assert exit_status(JobStatus(job_id="books", state=state)) == code
