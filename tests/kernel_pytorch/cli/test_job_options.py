"""What ``kernel-pytorch submit`` makes of its command line, without a job being started."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from kernel_pytorch.cli import main
from kernel_pytorch.cli.jobs import submit
from kernel_pytorch.jobs.spec import TrainingJobSpec

FILE = {
    "name": "wiki",
    "command": ["longnet", "train"],
    "nodes": "2",
    "gpus_per_node": 8,
    "time": "12h",
    "env_vars": {"A": "file", "B": "file"},
    "options": {"slurm": {"partition": "gpu", "account": "me"}},
}


@pytest.fixture(autouse=True)
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KERNEL_PYTORCH_JOBS", str(tmp_path / "jobs"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "jobs"


def spec_of(*arguments: str, command: list[str] | None = None) -> TrainingJobSpec:
    parser = argparse.ArgumentParser()
    submit.add_arguments(parser)
    args = parser.parse_args(arguments)
    args.user_command = command
    return submit._request(args)[0]


def test_what_is_not_given_is_not_asked_for():
    assert spec_of(command=["longnet", "train", "--data", "books"]) == TrainingJobSpec(
        job_id=None,
        name="books",
        image=None,
        command=["longnet", "train", "--data", "books"],
        resources=spec_of(command=["x"]).resources,
        world_size=1,
    )


def test_every_option_has_its_place(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TOKEN_FROM_HERE", "a=b")
    monkeypatch.delenv("DEBUG", raising=False)
    line = (
        "--nodes 2:4 --gpus-per-node 8 --ranks-per-node 4 --time 4h --checkpoint-every 10m --name n1 "
        "--env A=x=y --env TOKEN_FROM_HERE --env EMPTY= --secret KEY=file:/k --secret OTHER=env:O "
        "--max-retries 5 --memory 64G --cpus 16 --partition p --account a --qos q --constraint c --gres g "
        "--exclude e --dependency d --array 0-3 --reservation r --sbatch=--exclusive --sbatch=-M=x --to slurm"
    )
    spec = spec_of(*line.split(), command=["train", "--time", "--", ""])
    assert (spec.nodes, spec.gpus_per_node, spec.ranks_per_node, spec.world_size) == ((2, 4), 8, 4, 16)
    assert (spec.max_runtime_hours, spec.checkpoint_interval_minutes) == (4, 10)
    assert (spec.name, spec.max_retries, spec.command) == ("n1", 5, ["train", "--time", "--", ""])
    assert spec.env_vars == {"A": "x=y", "TOKEN_FROM_HERE": "a=b", "EMPTY": ""}
    assert spec.secrets == {"KEY": "file:/k", "OTHER": "env:O"}
    assert (spec.resources.memory_gb, spec.resources.cpu_cores) == (64, 16)
    names = "partition account qos constraint gres exclude dependency reservation"
    expected = {name: name[0] for name in names.split()}
    assert spec.options == {"slurm": {**expected, "array": "0-3", "sbatch": ["--exclusive", "-M=x"]}}


def test_the_command_line_wins_over_the_file(tmp_path: Path):
    (tmp_path / "job.json").write_text(json.dumps(FILE))
    spec = spec_of("job.json", "--to", "slurm")
    assert (spec.name, spec.world_size, spec.max_runtime_hours) == ("wiki", 16, 12)
    line = "job.json --nodes 3 --time 1h --env B=line --partition big --to slurm"
    spec = spec_of(*line.split(), command=["other"])
    assert (spec.name, spec.command, spec.world_size, spec.max_runtime_hours) == ("wiki", ["other"], 24, 1)
    assert spec.env_vars == {"A": "file", "B": "line"}
    assert spec.options == {"slurm": {"partition": "big", "account": "me"}}


@pytest.mark.parametrize(
    ("in_file", "line", "target"),
    [
        ({"to": "slurm"}, "", "slurm"),
        ({"to": "slurm"}, "--partition big", "slurm"),
        ({"to": "slurm"}, "--to local", "local"),
        ({"to": "local"}, "--to slurm", "slurm"),
        ({"to": "local"}, "", "local"),
        ({}, "--to slurm", "slurm"),
        ({}, "--to local", "local"),
        ({"options": {"slurm": {}}}, "", "local"),
    ],
)
def test_where_a_file_runs(tmp_path: Path, capsys, in_file: dict, line: str, target: str):
    (tmp_path / "job.json").write_text(json.dumps({**FILE, **in_file}))
    assert main(["submit", "job.json", "--dry-run", "--json", *line.split()]) == 0
    assert json.loads(capsys.readouterr().out)["target"] == target


def test_a_file_for_slurm_does_not_run_here_by_chance(jobs: Path, tmp_path: Path, capsys):
    (tmp_path / "job.json").write_text(json.dumps(FILE))
    assert main(["submit", "job.json"]) == 2
    line = (
        "kernel-pytorch submit: error: job.json has options.slurm and does not say where the job runs: "
        "give --to slurm or --to local, or write 'to: slurm' there\n"
    )
    assert (*capsys.readouterr(), jobs.exists()) == ("", line, False)


@pytest.mark.parametrize(
    ("in_file", "line", "inherits"),
    [
        ({}, "", True),
        ({"inherit_env": False}, "", False),
        ({"inherit_env": False}, "--inherit-env", True),
        ({"inherit_env": True}, "--no-inherit-env", False),
    ],
)
def test_whether_the_environment_of_a_file_is_inherited(
    tmp_path: Path, capsys, in_file: dict, line: str, inherits: bool
):
    (tmp_path / "job.json").write_text(json.dumps({**FILE, "to": "slurm", **in_file}))
    assert main(["submit", "job.json", "--dry-run", *line.split()]) == 0
    assert f"--export={'ALL' if inherits else 'NIL'}\n" in capsys.readouterr().out


def test_how_a_file_is_submitted_is_no_part_of_the_job(tmp_path: Path):
    job = tmp_path / "job.json"
    job.write_text(json.dumps({**FILE, "to": "slurm", "inherit_env": False}))
    assert TrainingJobSpec.load(job).name == "wiki"
    for key, value, told in (
        ("to", "slrum", "to must be local or slurm, got 'slrum'"),
        ("inherit_env", "no", "inherit_env must be true or false, got a string"),
    ):
        job.write_text(json.dumps({**FILE, key: value}))
        with pytest.raises(ValueError, match=f"job.json: {told}"):
            TrainingJobSpec.load(job)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "the command is missing: give it after --, or as 'command' in a file"),
        ("longnet train", "'longnet train' is no file of a job (.yaml, .json): a command comes after --"),
        ("longnet train --data x", "unrecognized arguments: --data x; a command comes after --"),
        ("a.json b.json", "'a.json b.json' is no file of a job"),
        ("none.json", "none.json: No such file or directory"),
        ("--node 2", "unrecognized arguments: --node; did you mean --nodes?"),
        ("--to slrum", "argument --to: invalid choice: 'slrum' (choose from"),
        ("--nodes 4:2", "argument --nodes: nodes must be at least 1, and min not more than max, got '4:2'"),
        ("--time 4", "argument --time: time must be such as 4h"),
        ("--checkpoint-every soon", "argument --checkpoint-every: time must be such as"),
        ("--memory 64", "argument --memory: size must be a number and a unit"),
        ("--gpus-per-node many", "argument --gpus-per-node: invalid int value: 'many'"),
        ("--gpus-per-node 2 --ranks-per-node 4", "4 ranks on a node of 2 GPUs"),
        ("--max-retries -1", "max_retries must be at least 0, got -1"),
        ("--partition gpu", "--partition is for --to slurm, and this job is --to local"),
        ("--sbatch=--exclusive", "--sbatch is for --to slurm, and this job is --to local"),
        ("--env PATHH", "--env PATHH: no such variable in this shell: did you mean PATH?"),
        ("--env =x", "env_vars: '' is not the name of a variable"),
        ("--env RANK=1", "env_vars must not have RANK: the launcher sets it for each rank"),
        ("--secret hunter2", "--secret must be NAME=file:PATH or NAME=env:NAME"),
        ("--secret KEY=hunter2", "--secret must be NAME=file:PATH or NAME=env:NAME"),
        ("--secret K=env:A --no-inherit-env", "secret K is in the environment, which the ranks do not get"),
        ("--to slurm --array 0-1 --follow", "--follow follows one job, and --array makes several"),
    ],
)
def test_a_mistake_is_one_line_and_starts_nothing(line: str, message: str, jobs: Path, capsys):
    command = [] if not line or line[0] in "lan" else ["--", "true"]
    assert main(["submit", *line.split(), *command]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n"), jobs.exists()) == ("", 1, False)
    assert err.replace(" submit", "").startswith(f"kernel-pytorch: error: {message}")
    assert "hunter2" not in err


def test_a_mistake_in_a_file_names_the_nearest_key(tmp_path: Path, capsys):
    (tmp_path / "job.json").write_text(json.dumps({**FILE, "nodez": 3}))
    assert main(["submit", "job.json"]) == 2
    line = "kernel-pytorch submit: error: job.json: unknown key 'nodez': did you mean 'nodes'?\n"
    assert capsys.readouterr() == ("", line)


def test_a_dry_run_prints_what_would_be_submitted_and_touches_nothing(jobs: Path, tmp_path: Path, capsys):
    (tmp_path / "key").write_text("hunter2")
    line = ["submit", "--dry-run", "--env", "WORD=hunter3", "--secret", "KEY=file:key", "--follow"]
    command = ["--", "echo", "$(x);\n'"]
    assert main([*line, *command]) == 0
    out, err = capsys.readouterr()
    assert (err, jobs.exists()) == ("", False)
    assert "kernel_pytorch.jobs.local.supervise" in out
    assert '"file:key"' in out
    assert "hunter" not in out
    assert main([*line, "--json", *command]) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["native_id"], data["target"], data["plan"]["restarts"]) == (None, "local", 3)
    assert '"WORD"' in data["rendered"]
    assert "hunter" not in data["rendered"]


def test_help_has_an_example(capsys):
    for command in ("submit", "status", "list", "logs", "events", "cancel", "requeue"):
        assert main([command, "--help"]) == 0
        out = capsys.readouterr().out
        assert "--job-dir" in out
        assert "--json" in out
        assert f"\n  kernel-pytorch {command}" in out


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("submit", "such as 4h or 1-12:00:00 (default: 24h)"),
        ("submit", "CPU cores of the whole job; for Slurm"),
        (
            "requeue",
            "With --exclude a job that runs on Slurm is requeued by Slurm itself, which leaves it",
        ),
        ("logs", "If no rank has begun, what node programs and Slurm have printed"),
    ],
)
def test_help_says_what_is_done(capsys, command: str, said: str):
    assert main([command, "--help"]) == 0
    assert said in " ".join(capsys.readouterr().out.split())
