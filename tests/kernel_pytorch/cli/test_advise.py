"""``kernel-pytorch advise`` up to its workers, which have no model here."""

from __future__ import annotations

import errno
import io
import json
import os
import sys

import fake_advice_worker
import pytest

from kernel_pytorch.cli import advise, main
from kernel_pytorch.cli.advise_options import lengths, memory_bytes, seconds
from kernel_pytorch.cli.errors import CommandError


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A folder with the user's files, in which the command runs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.py").write_text("raise RuntimeError('the command must not import this itself')\n")
    (tmp_path / "inputs.py").write_text("")
    (tmp_path / "linked.py").symlink_to("model.py")
    os.link(tmp_path / "model.py", tmp_path / "twin.py")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    return tmp_path


GIVEN = ["advise", "model.py:make", "--input", "randn(1, 8, 4)"]


@pytest.fixture
def fake_workers(monkeypatch):
    """Has the command run fake workers of a scenario."""

    def use(scenario: str) -> None:
        command = (sys.executable, fake_advice_worker.__file__, scenario)
        real = advise.Supervisor
        monkeypatch.setattr(advise, "Supervisor", lambda request, say: real(request, say, command))

    return use


@pytest.fixture
def no_workers(monkeypatch):
    def refuse(*_):
        raise AssertionError("a worker would be started")

    monkeypatch.setattr(advise, "Supervisor", refuse)


@pytest.mark.usefixtures("files", "no_workers")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["advise"], "FILE:NAME is needed"),
        (["advise", "model.py:make"], "--input is needed"),
        (["advise", "model.py", "--input", "randn(1)"], "FILE:NAME is needed, as model.py:make_model, got"),
        (["advise", "no.py:make", "--input", "randn(1)"], "no such file: no.py"),
        (["advise", "folder:make", "--input", "randn(1)"], "folder is a folder"),
        ([*GIVEN, "--input", "randn(1"], "--input 'randn(1': it does not parse"),
        ([*GIVEN, "--input", "no.py:make"], "--input: no such file: no.py"),
        ([*GIVEN, "--input", "x=1", "--input", "x=2"], "--input x= is given twice"),
        ([*GIVEN, "--level", "brave"], "'conservative', 'balanced', 'aggressive'"),
        ([*GIVEN, "--budget", "0s"], "--budget must be positive, as 120s or 5m, got '0s'"),
        ([*GIVEN, "--budget=-5"], "--budget must be positive"),
        ([*GIVEN, "--budget", "soon"], "--budget must be positive"),
        ([*GIVEN, "--memory", "0GB"], "--memory must be positive"),
        ([*GIVEN, "--memory", "8"], "--memory must be positive with a unit, as 8GB"),
        ([*GIVEN, "--max-error", "0"], "--max-error must be positive and finite, got 0"),
        ([*GIVEN, "--max-error", "nan"], "--max-error must be positive and finite, got nan"),
        ([*GIVEN, "--lengths", "512,x"], "--lengths must be positive numbers"),
        ([*GIVEN, "--lengths", "0"], "--lengths must be positive numbers"),
        ([*GIVEN, "--loss", "model.py:loss"], "--loss is for --training"),
        ([*GIVEN, "--training", "--loss", "no.py:loss"], "--loss: no such file: no.py"),
        ([*GIVEN, "--training", "--optimizer", "adam"], "--optimizer: FILE:NAME is needed"),
        ([*GIVEN, "--html", "no/report.html"], "--html no/report.html cannot be written: No such file"),
        ([*GIVEN, "--html", "folder"], "--html folder is a folder"),
        ([*GIVEN, "--html", "pipe"], "--html pipe is not a regular file"),
        ([*GIVEN, "--write", "/dev/null"], "--write /dev/null is not a regular file"),
        ([*GIVEN, "--html", "/proc/report.html"], "--html /proc/report.html cannot be written"),
        ([*GIVEN, "--write", "model.py"], "--write model.py would overwrite model.py"),
        ([*GIVEN, "--write", "folder/../model.py"], "would overwrite model.py"),
        ([*GIVEN, "--write", "linked.py"], "would overwrite model.py"),
        ([*GIVEN, "--html", "twin.py"], "would overwrite model.py"),
        ([*GIVEN, "--input", "x=inputs.py:make", "--html", "inputs.py"], "would overwrite inputs.py"),
        ([*GIVEN, "--html", "a", "--write", "./a"], "--html and --write name the same file"),
        ([*GIVEN, "--jsom"], "did you mean --json?"),
    ],
)
def test_mistakes_are_one_line_and_status_2(arguments, said, capsys):
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith("kernel-pytorch advise: error: ")
    assert said.replace("'", "") in line.replace("'", "")


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("8GB", 8 * 10**9),
        ("8 gb", 8 * 10**9),
        ("0.5GiB", 2**29),
        ("512MiB", 2**29),
        ("100B", 100),
        ("1.5TB", 1_500_000_000_000),
    ],
)
def test_sizes(text, nbytes):
    assert memory_bytes(text) == nbytes


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "1iB", "1GBs", "1e9B", "nan", "٣GB"])
def test_what_is_no_size(text):
    with pytest.raises(CommandError):
        memory_bytes(text)


@pytest.mark.parametrize(
    ("text", "expected"), [("120s", 120), ("120", 120), ("2m", 120), ("2min", 120), (".5h", 1800)]
)
def test_times(text, expected):
    assert seconds(text) == expected


def test_lengths_are_sorted_and_each_once():
    assert lengths("1024, 512,1024") == (512, 1024)


def test_help_has_the_grammar_and_says_that_code_is_run(capsys):
    assert main(["advise", "--help"]) == 0
    text = capsys.readouterr().out
    for part in ("randint(0, 1000, (1, 1024))", "runs the file's code", "examples:", "Exit status"):
        assert part in text


@pytest.mark.usefixtures("files")
def test_a_run_as_json(fake_workers, capfd):
    fake_workers("prints")
    assert main([*GIVEN, "--json", "--budget", "20s"]) == 0
    printed = capfd.readouterr()
    report = json.loads(printed.out)
    assert [trial["strategy"] for trial in report["trials"]] == ["one", "two", "three", "gpu"]
    assert report["confirmed"]
    assert "trying one, for 5 s at most" in printed.err
    assert "printed by the model" in printed.err


@pytest.mark.usefixtures("files")
def test_a_model_that_fails_has_its_facts_printed_and_status_1(fake_workers, capfd):
    fake_workers("dead in analysis")
    assert main([*GIVEN, "--json"]) == 1
    printed = capfd.readouterr()
    assert json.loads(printed.out)["facts"]["parameters"] == 1_577_984
    assert printed.err.splitlines()[-1] == (
        "kernel-pytorch advise: error: the model could not be run: its process ended with status 3 while it "
        "was analysed"
    )


def test_ctrl_c_prints_the_results_so_far(files, fake_workers, capfd, monkeypatch):
    fake_workers("waits")
    monkeypatch.setenv("FAKE_WORKER_FILE", str(files / "worker"))
    real = advise._say

    def interrupt(line: str) -> None:
        real(line)
        if line.startswith("trying two"):
            raise KeyboardInterrupt

    monkeypatch.setattr(advise, "_say", interrupt)
    assert main([*GIVEN, "--json"]) == 130
    printed = capfd.readouterr()
    found = {trial["strategy"]: trial["reason"] for trial in json.loads(printed.out)["trials"]}
    assert found == {"one": "", "two": "interrupted", "three": "interrupted", "gpu": "no GPU"}
    assert printed.err.splitlines()[-1] == "kernel-pytorch advise: interrupted"


@pytest.mark.usefixtures("files")
def test_a_mistake_that_the_worker_finds_has_status_2(fake_workers, capfd):
    fake_workers("refused")
    assert main(GIVEN) == 2
    assert capfd.readouterr().err.splitlines()[-1] == "kernel-pytorch advise: error: model.py has no 'make'"


def test_nothing_is_written_where_nothing_was_kept(files, fake_workers, capfd):
    fake_workers("dead in confirmation")
    assert main([*GIVEN, "--json", "--write", "fast.py"]) == 0
    assert "fast.py is not written: all was reverted, one" in capfd.readouterr().err
    assert not (files / "fast.py").exists()


def test_files_are_written_where_nobody_reads_what_is_printed(files, fake_workers, monkeypatch):
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    fake_workers("all well")
    monkeypatch.setattr("sys.stdout", Closed())
    assert main([*GIVEN, "--html", "report.html", "--json"]) != 0
    assert (files / "report.html").read_text().startswith("<!doctype html>")
