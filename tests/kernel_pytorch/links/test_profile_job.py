"""``profile job``: the command that it runs, what its ranks do, and what is left of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import profiled_script
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel_pytorch.cli import main
from kernel_pytorch.links.profile.job import JobCommandError, on_one_node, recorded_launch, recorded_rank
from kernel_pytorch.links.profile.read import read_folder
from kernel_pytorch.links.profile.record import CallRecord, EndRecord, StepRecord

MAIN = "kernel_pytorch.links.profile.rank_main"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("TORCHELASTIC")} | {
    "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    "OMP_NUM_THREADS": "1",
}
PROFILE = [sys.executable, "-m", "kernel_pytorch.cli", "profile", "job", "--output", "run"]


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=240, check=False
    )


# Options of torchrun, and what its parser makes of them.
OPTIONS = {
    "--nproc-per-node=2": ("nproc_per_node", "2"),
    "--nproc_per_node 3": ("nproc_per_node", "3"),
    "--standalone": ("standalone", True),
    "--max-restarts 2": ("max_restarts", 2),
    "--rdzv-endpoint host:29500": ("rdzv_endpoint", "host:29500"),
    "--tee 3": ("tee", "3"),
    "--run-path": ("run_path", False),  # our program starts the script so in any case
}


@given(
    options=st.lists(st.sampled_from(sorted(OPTIONS)), unique_by=lambda option: OPTIONS[option][0]),
    script=st.sampled_from([["train.py"], ["-m", "my.training"]]),
    arguments=st.lists(
        st.sampled_from(["--steps", "5", "-m", "--", "train.py", "--nproc-per-node=9"]), max_size=4
    ),
    launcher=st.sampled_from(
        [["torchrun"], ["/usr/bin/torchrun"], ["python3", "-u", "-m", "torch.distributed.run"]]
    ),
    check=st.booleans(),
)
def test_torchrun_reads_the_same_from_the_rewritten_command(options, script, arguments, launcher, check):
    from torch.distributed.run import get_args_parser

    given_options = [word for option in options for word in option.split()]
    command = [*launcher, *given_options, *script, *arguments]
    before = get_args_parser().parse_args(command[len(launcher) :])
    made = recorded_launch(command, Path("/run"), check=check)
    assert made[: len(launcher)] == launcher
    after = get_args_parser().parse_args(made[len(launcher) :])
    for option in options:
        name, value = OPTIONS[option]
        assert getattr(after, name) == value
    assert after.module
    assert after.training_script == MAIN
    kind = "module" if script[0] == "-m" else "script"
    own = ["/run", "check" if check else "plain", kind, script[-1]]
    assert after.training_script_args == own + before.training_script_args
    changed = ("module", "training_script", "training_script_args", "run_path")
    assert {k: v for k, v in vars(after).items() if k not in changed} == {
        k: v for k, v in vars(before).items() if k not in changed
    }


@pytest.mark.parametrize(
    ("options", "one"),
    [([], True), (["--nnodes=1:1"], True), (["--nnodes", "2"], False), (["--nnodes=1:4"], False)],
)
def test_a_job_of_several_nodes_may_find_records(options, one):
    assert on_one_node(["torchrun", *options, "train.py"]) is one


@pytest.mark.parametrize(
    "command", [[], ["python", "train.py"], ["mpirun", "train.py"], ["torchrun", "--no-python", "ls"]]
)
def test_other_commands_are_refused(command):
    with pytest.raises(JobCommandError, match=r"torchrun|--no-python"):
        recorded_launch(command, Path("/run"), check=False)


@pytest.mark.parametrize(
    ("command", "kind", "rest"),
    [
        (["train.py", "-m", "x"], "script", ["train.py", "-m", "x"]),
        (["-m", "my.training", "a"], "module", ["my.training", "a"]),
        (["python3", "-u", "-W", "error", "train.py"], "script", ["train.py"]),
    ],
)
def test_the_command_of_a_rank(command, kind, rest):
    made = recorded_rank(command, Path("/run"), check=True)
    at = made.index(MAIN)
    assert made[at:] == [MAIN, "/run", "check+report", kind, *rest]
    assert made[1 : at - 1] == command[1 : len(command) - len(rest)] * (command[0] == "python3")


def test_torchrun_rejects_its_arguments_in_its_own_name(capsys):
    with pytest.raises(SystemExit):
        recorded_launch(["torchrun", "--nproc-per-node", "2"], Path("run"), check=False)
    assert "\ntorchrun: error: " in capsys.readouterr().err


def test_no_script_is_a_mistake():
    with pytest.raises(JobCommandError, match="names no script"):
        recorded_rank(["python", "-c", "pass"], Path("/run"), check=False)


SCRIPT = """
import sys, os, __main__
class Mine: pass
print(sys.argv, __name__, os.path.abspath(__file__), sys.path[0])
print(__main__.Mine is Mine, "torch" in sys.modules)
what = sys.argv[1]
if what == "text": sys.exit("a reason")
if what == "status": sys.exit(5)
if what == "raise": raise ValueError("two\\nlines")
if what == "both":
    try: 1 / 0
    except ZeroDivisionError: raise KeyError("second")
if what == "hard": sys.stdout.flush(); os._exit(9)
"""


@pytest.mark.parametrize("what", ["nothing", "text", "status", "raise", "both", "hard"])
@pytest.mark.parametrize("kind", ["script", "module"])
def test_a_script_cannot_tell_the_difference(tmp_path, kind, what):
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "__init__.py").touch()
    (tmp_path / "below" / "script.py").write_text(SCRIPT)
    name = "below/script.py" if kind == "script" else "below.script"
    plain = run([sys.executable, *["-m"] * (kind == "module"), name, what, "--check"], tmp_path)
    folder = str(tmp_path / "run")
    ours = run([sys.executable, "-m", MAIN, folder, "plain", kind, name, what, "--check"], tmp_path)
    assert ours.returncode == plain.returncode
    # python gives a module's file as sys.argv[0], and runpy does it for ours.
    assert ours.stdout == plain.stdout
    assert _without_runpy(ours.stderr) == _without_runpy(plain.stderr)


def _without_runpy(traceback: str) -> list[str]:
    lines, kept = traceback.splitlines(), []
    skip = False
    for line in lines:
        if line.startswith("  File "):
            skip = "runpy" in line
        elif not line.startswith("    "):
            skip = False
        if not skip and line.strip(" ^~"):
            kept.append(line)
    return kept


def test_a_script_that_is_not_there(tmp_path):
    done = run([sys.executable, "-m", MAIN, str(tmp_path), "plain", "script", "no.py"], tmp_path)
    assert done.returncode == 2
    assert "can't open file 'no.py'" in done.stderr


def test_a_job_is_recorded_from_outside(tmp_path):
    """Two ranks under torchrun, with ``--check``."""
    script = profiled_script.__file__
    done = run([*PROFILE, "--check", "--", *TORCHRUN, "--nproc-per-node=2", script, "a", "b"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("profiled_script.py is done") == 2
    assert "step " in done.stdout
    for rank in (0, 1):
        assert (tmp_path / f"told-{rank}").read_text() == f"rank {rank} of 2: gloo ['a', 'b']"
    assert done.stdout.endswith("run/profile.json  run/trace.json (Perfetto)  run/report.html\n")
    assert "/run/profile.json" not in done.stdout
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {"rank-0.jsonl", "rank-1.jsonl", "profile.json", "trace.json", "report.html"}
    assert json.loads((tmp_path / "run" / "profile.json").read_text())["world_size"] == 2
    for each in read_folder(tmp_path / "run")[0]:
        calls = [record for record in each.records if isinstance(record, CallRecord)]
        assert [call.operation for call in calls].count("barrier") == 4
        assert [call.nbytes for call in calls if call.operation == "all_reduce"] == [4 * 72] * 4
        assert all(call.done is not None and call.error is None for call in calls)
        steps = [record.step for record in each.records if isinstance(record, StepRecord)]
        assert steps == [1, 2, 3, 4]
        (end,) = [record for record in each.records if isinstance(record, EndRecord)]
        assert end.error is None
    again = run([*PROFILE, "--", *TORCHRUN, script], tmp_path)
    assert (again.returncode, again.stdout) == (2, "")
    assert "choose a new folder" in again.stderr


def test_a_job_is_recorded_from_inside(tmp_path):
    """One rank; its script fails."""
    inside = ["-m", "kernel_pytorch.cli", *PROFILE[3:]]
    script = profiled_script.__file__
    done = run([*TORCHRUN, "--nproc-per-node=1", *inside, "--", script, "fail"], tmp_path)
    assert done.returncode == 1
    assert "ValueError: the script's own mistake" in done.stderr
    assert "rank_main" not in done.stderr.partition("ValueError")[0]
    assert done.stdout.count("report.html") == 1
    (each,) = read_folder(tmp_path / "run")[0]
    (end,) = [record for record in each.records if isinstance(record, EndRecord)]
    assert end.error == "ValueError: the script's own mistake"


ENDLESS = """
import signal, sys, torch, torch.distributed as dist
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
dist.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=0, world_size=1)
while True:
    for _ in range(50): dist.all_reduce(torch.ones(3))
    print("more", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_folder_can_be_read_after_a_signal(tmp_path, number):
    script, folder = tmp_path / "endless.py", tmp_path / "run"
    script.write_text(ENDLESS)
    inner = [sys.executable, "-m", MAIN, str(folder), "plain", "script", str(script), str(tmp_path / "store")]
    # As the command runs torchrun: it hands the signal on, and answers with the status.
    code = f"import sys; from kernel_pytorch.links.profile.job import run; sys.exit(run({inner!r}))"
    process = subprocess.Popen([sys.executable, "-c", code], env=ENVIRONMENT, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"more\n"
        rank = json.loads((folder / "rank-0.jsonl").read_text().splitlines()[0])["pid"]
        os.kill(rank if number == signal.SIGKILL else process.pid, number)
        assert process.wait(60) == (137 if number == signal.SIGKILL else 7)
    finally:
        process.kill()
        process.communicate()
    (each,), notes = read_folder(folder)
    assert notes == []
    calls = [record for record in each.records if isinstance(record, CallRecord)]
    assert len(calls) >= 50
    assert all(call.done is not None for call in calls[:-1])
    ends = [record.error for record in each.records if isinstance(record, EndRecord)]
    assert ends == ([] if number == signal.SIGKILL else ["exit status 7"])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "--output"),
        (["--output", "run"], "torchrun ... train.py after --"),
        (["--output", "run", "train.py"], "a command comes after --"),
        (["--output", "run", "--", "python", "train.py"], "is not torchrun"),
    ],
)
def test_mistakes_are_one_line_and_status_2(capsys, tmp_path, monkeypatch, arguments, told):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert main(["profile", "job", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert told in err
    assert list(tmp_path.iterdir()) == []


def test_help(capsys):
    assert main(["profile", "job", "--help"]) == 0
    out = capsys.readouterr().out
    assert "profile job --output FOLDER [--check] -- COMMAND" in out
    assert "torchrun --nproc-per-node 4 train.py" in out
