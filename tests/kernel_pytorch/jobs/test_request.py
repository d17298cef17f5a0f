"""What a new job is, as data."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import kernel_pytorch
from kernel_pytorch.jobs.folder import JobFolder, JobFolderError, as_bytes
from kernel_pytorch.jobs.read import spec_of
from kernel_pytorch.jobs.request import absolute, job_of, plan_of, refuse_secrets, without_values

NO_NUL = st.binary(max_size=20).filter(lambda data: b"\0" not in data)
NAMES = NO_NUL.filter(lambda name: name and b"=" not in name and not name.startswith((b"KERNEL", b"LC_")))
NASTY = [b"", b"a b", b"'", b'"', b"\n", b"$(id)", b";", b"$$", b"--run", b"\\", b"\xff", "本".encode()]
# Prints its argv and the variables that begin with x.
SHOW = (
    "import os, sys; rows = [os.fsencode(word) for word in sys.argv[1:]] + "
    "[name + b'=' + value for name, value in sorted(os.environb.items()) if name[:1] == b'x']; "
    "sys.stdout.buffer.write(b'\\0'.join(rows))"
)


def typed(data: bytes) -> str:
    """As a shell's word arrives in Python."""
    return os.fsdecode(data)


def job(command: list[str], **more) -> dict:
    return job_of(spec_of({"name": "books", "command": command, **more}), "local", {}, "/")


@given(st.lists(NO_NUL, max_size=6), st.dictionaries(NAMES, NO_NUL, max_size=6), NO_NUL)
@example(NASTY, {b"N" + name.replace(b"=", b""): name for name in NASTY}, b"/\xff")
def test_what_was_typed_is_in_the_job_byte_for_byte(
    tmp_path_factory: pytest.TempPathFactory, words: list[bytes], variables: dict[bytes, bytes], cwd: bytes
):
    spec = spec_of(
        {
            "name": "books",
            "command": ["true", *map(typed, words)],
            "env_vars": {typed(name): typed(value) for name, value in variables.items()},
        }
    )
    folder = JobFolder.create(tmp_path_factory.mktemp("jobs"), job_of(spec, "local", {}, typed(cwd)))
    read = folder.job()
    assert [as_bytes(word) for word in read["argv"]] == [b"true", *words]
    assert {as_bytes(name): as_bytes(value) for name, value in read["environment"].items()} == variables
    assert as_bytes(read["cwd"]) == cwd


@given(st.lists(NO_NUL, max_size=6), st.dictionaries(NAMES, NO_NUL, max_size=6))
@example(NASTY, {b"N" + name.replace(b"=", b""): name for name in NASTY})
@settings(max_examples=8)
def test_what_was_typed_reaches_a_rank_byte_for_byte(
    tmp_path_factory: pytest.TempPathFactory, words: list[bytes], variables: dict[bytes, bytes]
):
    command = [sys.executable, "-IS", "-c", SHOW, *map(typed, words)]
    given_variables = {b"x" + name: value for name, value in variables.items()}
    environment = {typed(name): typed(value) for name, value in given_variables.items()}
    folder = JobFolder.create(tmp_path_factory.mktemp("jobs"), job(command, env_vars=environment))
    done = subprocess.run(
        [sys.executable, "-m", "kernel_pytorch.jobs.rank", folder.path],
        env={"PYTHONPATH": str(Path(kernel_pytorch.__file__).parents[1]), "LC_ALL": "C"},
        capture_output=True,
    )
    rows = [*words, *(b"%b=%b" % row for row in sorted(given_variables.items()))]
    assert (done.stdout, done.stderr) == (b"\0".join(rows), b"")


def test_what_is_shown_of_a_job_has_no_values():
    whole = job(["true"], env_vars={"TOKEN": "hunter2"})
    assert whole["environment"] == {"TOKEN": "hunter2"}
    assert "hunter2" not in str(whole["spec"])
    shown = without_values(whole)
    assert shown["environment"] == {"TOKEN": "(not shown)"}
    assert "hunter2" not in str(shown)
    assert whole["token"] not in str(shown)


def test_two_jobs_have_two_tokens():
    assert job(["true"])["token"] != job(["true"])["token"]


def test_each_number_of_the_plan_has_its_reason():
    plan = plan_of(spec_of({"name": "books", "command": ["true"], "checkpoint_every": "10m"}))
    assert (plan["checkpoint_every_s"], plan["lead_s"], plan["restarts"]) == (600, 60, 3)
    assert plan["checkpoint_every_why"].startswith("600 s: as asked")
    assert plan["lead_why"] == "60 s: assumed, as no save was measured yet"
    plan = plan_of(spec_of({"name": "books", "command": ["true"], "restart_policy": "Never"}))
    assert (plan["restarts"], plan["requeues"], plan["restarts_why"]) == (0, 0, "restart policy Never")


def test_secrets_that_no_rank_could_read(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("KEY", "swordfish")
    refuse_secrets({"A": "env:KEY", "B": "file:/only/on/the/nodes"}, inherit_env=True)
    refuse_secrets({"B": "file:/only/on/the/nodes"}, inherit_env=False)
    with pytest.raises(
        ValueError, match="secret A is in the environment, which the ranks do not get"
    ) as error:
        refuse_secrets({"A": "env:KEY"}, inherit_env=False)
    assert "swordfish" not in str(error.value)
    with pytest.raises(ValueError, match="secret A: the environment has no GONE"):
        refuse_secrets({"A": "env:GONE"}, inherit_env=True)


def test_a_working_directory_that_vanished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    assert absolute("x") == str(gone / "x")
    gone.rmdir()
    with pytest.raises(JobFolderError, match="the working directory has vanished: change to another one"):
        absolute(None)
