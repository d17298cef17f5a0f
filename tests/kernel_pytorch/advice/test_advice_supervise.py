"""Real workers that speak the protocol but have no model: see ``tests/support/fake_advice_worker.py``."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading

import advice_records
import fake_advice_worker
import pytest

from kernel_pytorch.advice.facts import Options
from kernel_pytorch.advice.run_record import AdviceError
from kernel_pytorch.advice.supervise import WORKER, Supervisor
from kernel_pytorch.advice.target import TargetError
from kernel_pytorch.jobs.node.processes import lives


def supervisor(scenario: str, said: list[str] | None = None) -> Supervisor:
    lines: list[str] = [] if said is None else said
    command = (sys.executable, fake_advice_worker.__file__, scenario)
    return Supervisor(advice_records.request(options=Options(budget_s=20.0)), lines.append, command)


def verdicts(report) -> dict[str, tuple[str, str]]:
    return {trial.strategy: (trial.verdict, trial.reason) for trial in report.trials}


def test_a_run_without_trouble():
    said: list[str] = []
    running = supervisor("plain", said)
    running.run()
    report = running.report()
    assert verdicts(report) == {
        "one": ("kept", ""),
        "two": ("kept", ""),
        "three": ("reverted", "slower"),
        "gpu": ("not tried", "no GPU"),
    }
    assert report.result.strategy == "one + two"
    assert report.confirmed
    assert [trial.strategy for trial in report.kept] == ["one", "two"]
    assert report.reference == "the original in float64"
    assert [finding.kind for finding in report.findings] == ["graph break"]
    assert "three: reverted: slower" in said
    assert "confirming one + two in a fresh process" in said


@pytest.mark.parametrize(
    ("scenario", "record"),
    [
        ("segmentation fault", ("killed", "killed by signal 11")),
        ("hangs in two", ("out of time", "it did not end in time")),
        ("closes its pipe", ("killed", "it closed its pipe")),
        ("fails", ("failed", "ValueError: wrong")),
    ],
)
def test_a_fresh_worker_goes_on_after_a_trial_that_ended_badly(scenario, record):
    running = supervisor(scenario)
    running.run()
    report = running.report()
    assert verdicts(report)["two"] == record
    assert verdicts(report)["three"] == ("reverted", "slower")
    assert [trial.strategy for trial in report.trials] == ["one", "two", "three", "gpu"]
    assert report.result.strategy == "one"


def test_what_is_no_message_ends_a_worker():
    running = supervisor("garbage")
    running.run()
    assert verdicts(running.report())["two"][0] == "killed"
    assert "no message" in verdicts(running.report())["two"][1]


def test_a_child_that_holds_the_pipe_open_is_killed_with_its_worker(tmp_path, monkeypatch):
    file = tmp_path / "child"
    monkeypatch.setenv("FAKE_WORKER_FILE", str(file))
    running = supervisor("child stays")
    running.run()
    assert verdicts(running.report())["two"] == ("killed", "its process ended with status 5")
    assert not lives(int(file.read_text()))


def test_a_worker_that_dies_in_the_analysis_leaves_the_facts_that_need_no_call():
    running = supervisor("dead in analysis")
    running.run()
    report = running.report()
    assert report.facts.failed == "its process ended with status 3 while it was analysed"
    assert report.facts.call.why == "not measured"
    assert report.facts.parameters == 1_577_984
    assert report.trials == ()
    assert report.result is None


def test_a_worker_that_dies_in_the_findings_leaves_the_trials():
    running = supervisor("dead in findings")
    running.run()
    report = running.report()
    assert report.findings == ()
    assert report.facts.remarks == (
        "no findings: its process ended with status 4 while they were looked for",
    )
    assert [trial.strategy for trial in report.kept] == ["one", "two"]


def test_nothing_counts_as_kept_if_the_confirmation_dies():
    running = supervisor("dead in confirmation")
    running.run()
    report = running.report()
    assert report.result.verdict == "killed"
    assert report.result.reason.startswith("killed by signal 9")
    assert not report.confirmed
    assert report.kept == ()


def test_a_file_that_vanishes_after_it_was_loaded_spoils_the_confirmation_alone():
    running = supervisor("file vanished")
    running.run()
    assert running.report().result.reason == "no such file: model.py"


def test_a_mistake_of_the_user_ends_the_run():
    running = supervisor("refused")
    with pytest.raises(TargetError, match="has no 'make'"):
        running.run()
    assert running.report() is None


def test_a_process_that_ends_while_the_file_is_loaded():
    with pytest.raises(TargetError, match="ended with status 7 while it was loaded"):
        supervisor("dead on loading").run()


def test_a_worker_that_cannot_run_is_no_mistake_of_the_user():
    with pytest.raises(AdviceError, match=r"the worker cannot run: .*torch.fx"):
        supervisor("cannot run").run()


def test_what_a_model_prints_goes_to_standard_error(capfd):
    running = supervisor("prints")
    running.run()
    printed = capfd.readouterr()
    assert "printed by the model" in printed.err
    assert printed.out == ""


def test_a_run_leaves_no_files(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    supervisor("segmentation fault").run()
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_kills_the_worker_and_keeps_the_results_so_far(tmp_path, monkeypatch):
    file = tmp_path / "worker"
    os.mkfifo(file)
    monkeypatch.setenv("FAKE_WORKER_FILE", str(file))
    pids: list[int] = []

    def interrupt() -> None:
        pids.append(int(file.read_text()))  # blocks until the worker is in its second trial
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt, daemon=True)
    thread.start()
    running = supervisor("waits")
    with pytest.raises(KeyboardInterrupt):
        running.run()
    thread.join(60)
    assert not lives(pids[0])
    found = verdicts(running.report())
    assert found["one"] == ("kept", "")
    assert found["two"] == found["three"] == ("not tried", "interrupted")
    assert running.report().result is None


def test_a_worker_dies_with_the_command(tmp_path):
    """As where the command is killed by SIGKILL and cannot clean up."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    (tmp_path / "model.py").write_text(
        f"import os, signal\nopen({str(fifo)!r}, 'w').write(str(os.getpid()))\nsignal.pause()\n"
    )
    arguments = ["advise", f"{tmp_path}/model.py:make", "--input", "randn(1)"]
    with subprocess.Popen(
        [sys.executable, "-m", "kernel_pytorch.cli", *arguments], stderr=subprocess.DEVNULL
    ) as command:
        with open(os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)) as told:
            assert select.select([told], [], [], 120)[0]
            worker = os.pidfd_open(int(told.read()))
        command.kill()
    assert select.select([worker], [], [], 30)[0]  # readable once it has ended
    os.close(worker)


def test_a_file_of_the_current_folder_hides_no_module_from_the_worker(tmp_path):
    (tmp_path / "inspect.py").write_text("raise RuntimeError('hidden')\n")
    done = subprocess.run([*WORKER, "no request", "1"], cwd=tmp_path, capture_output=True, text=True)
    assert "No such file or directory: 'no request'" in done.stderr
    assert "hidden" not in done.stderr
