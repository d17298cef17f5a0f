"""A job's folder: attempts, events, records and the end, for many processes at once."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel_pytorch.jobs.folder import (
    JobFolder,
    JobFolderError,
    JobNotFoundError,
    as_bytes,
    as_text,
    find_job,
    job_folders,
    jobs_folder,
    new_job_id,
)


def test_a_new_job(tmp_path: Path):
    jobs = tmp_path / "not" / "there"
    folder = JobFolder.create(jobs, {"name": "books", "argv": ["a"]})
    assert folder.job() == {"version": 1, "id": folder.id, "name": "books", "argv": ["a"]}
    assert folder.path.parent == jobs
    assert [stat.S_IMODE(path.stat().st_mode) for path in (jobs, folder.path)] == [0o700, 0o700]
    assert stat.S_IMODE((folder.path / "job.json").stat().st_mode) == 0o600
    assert (folder.attempts(), folder.events(), folder.records(1)) == ([], [], {})
    assert (folder.native(), folder.ended(), folder.stop_requested()) == (None, None, False)
    assert folder.record(1, 0) is None


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("books", "books"),
        ("Ünïcode Büçher!", "unicode-bucher"),
        ("--; rm -rf $HOME\n", "rm-rf-home"),
        ("\udcff本", "job"),
        ("x" * 99, "x" * 40),
    ],
)
def test_an_id_is_safe_to_type(name: str, slug: str):
    stem, _, number = new_job_id(name).rpartition("-")
    assert stem == slug
    assert len(number) == 4
    assert int(number, 16) >= 0


def test_an_id_in_use_is_not_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    numbers = iter(["0000", "0000", "0001"])
    monkeypatch.setattr("kernel_pytorch.jobs.folder.secrets.token_hex", lambda size: next(numbers, "f" * 8))
    first = JobFolder.create(tmp_path, {"name": "a", "id": "a-0000"})
    with pytest.raises(JobFolderError, match="already has a job a-0000: choose another id"):
        JobFolder.create(tmp_path, {"name": "b", "id": "a-0000"})
    assert first.job()["name"] == "a"
    with pytest.raises(ValueError, match=r"id must consist of letters, .* got '\.\./a'"):
        JobFolder.create(tmp_path, {"name": "b", "id": "../a"})


def test_two_submissions_at_once_get_two_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    numbers = iter("0001000100010002")
    monkeypatch.setattr(
        "kernel_pytorch.jobs.folder.secrets.token_hex",
        lambda size: "".join(next(numbers) for _ in range(4)) if size == 2 else os.urandom(size).hex(),
    )
    ids = [JobFolder.create(tmp_path, {"name": "a"}).id for _ in range(2)]
    assert ids == ["a-0001", "a-0002"]


def test_a_submission_that_fails_leaves_nothing(tmp_path: Path):
    with pytest.raises(TypeError, match="not JSON serializable"):
        JobFolder.create(tmp_path, {"name": "a", "argv": [b"bytes"]})
    assert os.listdir(tmp_path) == []
    (tmp_path / "file").touch()
    with pytest.raises(JobFolderError, match="file cannot be made: File exists"):
        JobFolder.create(tmp_path / "file", {"name": "a"})


@pytest.mark.parametrize("mode", [0o770, 0o702, 0o1777])
def test_a_folder_that_others_can_write_is_refused(folder: JobFolder, mode: int):
    folder.path.chmod(mode)
    with pytest.raises(JobFolderError) as caught:
        folder.job()
    line = f"others can write {folder.path} (mode {mode:04o}): chmod go-w {folder.path}"
    assert str(caught.value) == line


def test_a_job_that_others_can_write_is_refused(folder: JobFolder):
    (folder.path / "job.json").chmod(0o620)
    with pytest.raises(JobFolderError, match=r"others can write .*job\.json \(mode 0620\)"):
        folder.job()


def test_a_folder_of_jobs_in_which_others_can_replace_one_is_refused(tmp_path: Path):
    tmp_path.chmod(0o777)
    with pytest.raises(JobFolderError, match=r"others can write .* chmod go-w"):
        JobFolder.create(tmp_path, {"name": "a"})
    tmp_path.chmod(0o1777)
    JobFolder.create(tmp_path, {"name": "a"})


@pytest.mark.skipif(os.geteuid() != 0, reason="needs the right to give files away")
def test_a_folder_of_another_user_is_refused(folder: JobFolder):
    os.chown(folder.path, 12345, -1)
    with pytest.raises(JobFolderError, match=r"belongs to another user \(12345\): use a folder of your own"):
        folder.job()


def test_what_is_not_a_job(folder: JobFolder):
    folder.write_job({"version": 2})
    with pytest.raises(JobFolderError, match="is not of version 1: use the release that submitted the job"):
        folder.job()
    (folder.path / "job.json").write_text("[1, 2")
    with pytest.raises(JobFolderError, match=r"job\.json cannot be read: Expecting ',' delimiter"):
        folder.job()
    with pytest.raises(JobFolderError, match=r"job\.json cannot be read: the folder .*/gone has vanished"):
        JobFolder(folder.path.with_name("gone")).job()


@given(st.lists(st.binary().filter(lambda data: b"\0" not in data)))
def test_any_bytes_survive_in_the_job(words: list[bytes]):
    typed = [os.fsdecode(word) for word in words]
    stored = json.loads(json.dumps([as_text(word) for word in typed]))
    assert [as_bytes(word) for word in stored] == words


def test_claims_of_many_processes(folder: JobFolder):
    script = (
        "import sys\nfrom kernel_pytorch.jobs.folder import JobFolder\nfolder = JobFolder(sys.argv[1])\n"
        "print(flush=True)\nsys.stdin.readline()\n"
        "print(*[folder.claim_attempt({'nodes': [sys.argv[2]]}) for _ in range(25)])"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, folder.path, str(name)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in range(4)
    ]
    for process in processes:
        process.stdout.readline()
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    claimed = [list(map(int, process.communicate()[0].split())) for process in processes]
    assert sorted(number for numbers in claimed for number in numbers) == list(range(1, 101))
    for name, numbers in enumerate(claimed):
        assert numbers == sorted(numbers)
        assert [folder.attempts()[number - 1]["nodes"] for number in numbers] == [[str(name)]] * 25
    assert [attempt["attempt"] for attempt in folder.attempts()] == list(range(1, 101))


def test_events(folder: JobFolder):
    folder.event("submitted", "by hand\nwith a \udcff byte", native_id="7")
    folder.event("lost", "node n2", attempt=2, nodes=["n2"])
    with (folder.path / "events.jsonl").open("a") as file:
        file.write('{"kind": "to')
    first, second = folder.events()
    assert first.pop("at") <= second.pop("at")
    assert first == {
        "attempt": None,
        "kind": "submitted",
        "text": "by hand\nwith a \udcff byte",
        "native_id": "7",
    }
    assert second == {"attempt": 2, "kind": "lost", "text": "node n2", "nodes": ["n2"]}


def test_only_the_first_end_counts(folder: JobFolder):
    assert folder.end("failed", "out of memory", step=300, attempt=2)
    assert not folder.end("completed", "done")
    end = folder.ended()
    assert end.pop("at") > 0
    assert end == {"state": "failed", "reason": "out of memory", "step": 300, "attempt": 2}


def test_a_person_can_make_the_stop_file(folder: JobFolder):
    (folder.path / "stop").touch()
    assert folder.stop_requested()
    assert folder.stop_reason() == "stop file"
    (folder.path / "stop").unlink()
    assert folder.stop_reason() is None
    folder.request_stop("Slurm sent USR1")
    assert folder.stop_reason() == "Slurm sent USR1"
    folder.request_stop()
    assert folder.stop_requested()


def test_the_stop_file_and_the_end_are_not_looked_up_by_name(folder: JobFolder, monkeypatch):
    """NFS may go on for a minute to say that a file, once looked up, does not exist."""
    looked_up = []
    with monkeypatch.context() as patch:
        for name in ("exists", "read_bytes"):
            real = getattr(Path, name)
            patch.setattr(Path, name, lambda path, real=real: looked_up.append(path) or real(path))
        assert not folder.stop_requested()
        assert folder.ended() is None
    assert looked_up == []
    folder.request_stop()
    folder.end("failed", "it failed")
    assert folder.stop_requested()
    assert folder.ended()["state"] == "failed"


def test_a_request_to_stop_is_forgotten(folder: JobFolder):
    folder.clear_stop()
    folder.request_stop()
    folder.clear_stop()
    assert not folder.stop_requested()
    (folder.path / "stop").mkdir()
    with pytest.raises(JobFolderError, match="stop cannot be removed: Is a directory"):
        folder.clear_stop()


def test_records_by_rank(folder: JobFolder):
    for rank in (10, 9):
        folder.write_record(2, rank, {"left": rank})
    (folder.path / "records" / "attempt-2" / ".rank-1.json.0a1b").touch()  # of a writer that was killed
    assert folder.records(2) == {9: {"left": 9}, 10: {"left": 10}}
    assert list(folder.records(2)) == [9, 10]


@pytest.fixture
def jobs(tmp_path: Path) -> Path:
    for id, native_id in [("books-7f3a", "41"), ("books-7f", "42"), ("41-0000", "43"), ("wiki-0001", None)]:
        folder = JobFolder.create(tmp_path, {"name": "x", "id": id})
        if native_id:
            folder.write_native("slurm", native_id)
    (tmp_path / "being-made").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("given", "id"),
    [
        ("wiki-0001", "wiki-0001"),
        ("w", "wiki-0001"),
        ("books-7f", "books-7f"),
        ("books-7f3", "books-7f3a"),
        ("42", "books-7f"),
        ("41", "books-7f3a"),
        ("41-", "41-0000"),
    ],
)
def test_a_job_by_the_beginning_of_its_id_or_by_the_clusters(jobs: Path, given: str, id: str):
    assert find_job(jobs, given).id == id


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ("books", "'books' names 2 jobs: choose one of books-7f, books-7f3a"),
        ("wiki-0002", "no job 'wiki-0002' in JOBS: did you mean wiki-0001?"),
        ("wikki", "no job 'wikki' in JOBS: did you mean wiki-0001?"),
        ("zzzz", "no job 'zzzz' in JOBS: see the list of jobs"),
        ("", "no job '' in JOBS: see the list of jobs"),
    ],
)
def test_a_job_that_is_not_there(jobs: Path, given: str, line: str):
    with pytest.raises(JobNotFoundError) as caught:
        find_job(jobs, given)
    assert str(caught.value) == line.replace("JOBS", str(jobs))
    assert isinstance(caught.value, LookupError)


def test_no_jobs_at_all(tmp_path: Path):
    assert job_folders(tmp_path / "none") == []
    with pytest.raises(JobNotFoundError, match=r"no job 'x': .*none has no jobs"):
        find_job(tmp_path / "none", "x")


def test_a_broken_folder_does_not_hide_the_others(jobs: Path):
    (jobs / "41-0000" / "native.json").write_text("{")
    assert find_job(jobs, "42").id == "books-7f"
    assert [folder.id for folder in job_folders(jobs)] == ["41-0000", "books-7f", "books-7f3a", "wiki-0001"]


def test_where_jobs_are(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("KERNEL_PYTORCH_JOBS", raising=False)
    assert jobs_folder() == Path("/home/me/.kernel-pytorch/jobs")
    monkeypatch.setenv("KERNEL_PYTORCH_JOBS", "~/jobs")
    assert jobs_folder() == Path("/home/me/jobs")
    assert jobs_folder("here") == Path.cwd() / "here"


def test_it_needs_only_the_standard_library():
    """``-S`` leaves out what is installed."""
    sources = str(Path(sys.modules["kernel_pytorch"].__file__).parents[1])
    script = "import kernel_pytorch.jobs.folder, kernel_pytorch.jobs.rank.__main__"
    done = subprocess.run(
        [sys.executable, "-S", "-W", "error", "-c", script],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": sources},
    )
    assert (done.returncode, done.stderr) == (0, "")
