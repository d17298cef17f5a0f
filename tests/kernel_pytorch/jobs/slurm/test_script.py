"""The script as text: golden files, what of a specification becomes which option, and what is refused."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from kernel_pytorch.jobs.manage import Jobs
from kernel_pytorch.jobs.read import spec_of
from kernel_pytorch.jobs.slurm.options import flag_of, indices_of, options_of
from kernel_pytorch.jobs.slurm.script import quoted, script_of
from kernel_pytorch.jobs.slurm.target import SlurmTarget

GOLDEN = Path(__file__).with_name("golden")
FULL = {
    "name": "books & more",
    "nodes": "2:4",
    "gpus_per_node": 8,
    "time": "90m30s",
    "resources": {"cpu_cores": 130, "memory_gb": 100, "required_gpu_types": ["a100"]},
    "options": {
        "slurm": {
            "partition": "main",
            "account": "lab",
            "qos": "high",
            "constraint": "ib&nvme",
            "gres": "lustre:1",
            "exclude": "n[1-2]",
            "dependency": "afterok:7",
            "array": "0-2%1",
            "reservation": "maintenance",
            "sbatch": ["--exclusive", "--mail-type=END", "--mail-user=a b", "-L matlab:1"],
        }
    },
}


def script(fields: dict[str, Any] | None = None, folder: str = "/jobs/books-7f3a", **more: Any) -> str:
    spec = spec_of({"name": "books", "command": ["true"], **(fields or {})})
    return script_of(spec, Path(folder), **{"python": "/venv/bin/python", "lead_s": 60, **more})


def header(fields: dict[str, Any], **more: Any) -> list[str]:
    lines = script(fields, **more).splitlines()
    return [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("small.sh", script()),
        ("full.sh", script(FULL, "/my jobs/it's/books-7f3a", lead_s=93.2, inherit_env=False)),
    ],
)
def test_golden(name: str, text: str):
    assert text == (GOLDEN / name).read_text()
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)


def test_the_body_is_constant_but_for_two_paths():
    def body(text: str) -> list[str]:
        lines = text.partition("\n\n")[2].splitlines()
        return [line for line in lines if not line.startswith(("folder=", "python="))]

    assert body(script()) == body(script({"name": "$(x)", "time": "3h"}, "/`y`", python="/p y"))


@pytest.mark.parametrize(
    ("fields", "lines"),
    [
        ({"time": "61s"}, ["--time=2"]),
        ({"time": "10s"}, ["--time=1"]),
        ({"resources": {"memory_gb": 1}}, ["--mem=954M"]),
        ({"nodes": 3, "resources": {"memory_gb": 3, "cpu_cores": 7}}, ["--mem=954M", "--cpus-per-task=3"]),
        ({"resources": {"gpu_count": 2}}, ["--gpus-per-node=2"]),
        ({"gpus_per_node": 2, "options": {"slurm": {"gres": "gpu:t4:2"}}}, ["--gres=gpu:t4:2"]),
        ({"restart_policy": "Never"}, ["--no-requeue"]),
        ({"options": {"slurm": {"sbatch": ["-p big", "--qos=high"]}}}, ["--partition=big", "--qos=high"]),
    ],
)
def test_options(fields: dict[str, Any], lines: list[str]):
    assert set(lines) <= set(header(fields))


def test_options_that_are_left_out():
    few = " ".join(header({}))
    assert not any(
        name in few for name in ("--mem", "--gpus", "--cpus", "--no-kill", "--partition", "--array")
    )
    assert "--gpus-per-node" not in " ".join(header({"options": {"slurm": {"gres": "gpu:1"}}}))
    # Slurm may signal a minute early: a short attempt would be stopped as it begins.
    assert "--signal=B:USR1@60" in header({"time": "4m"})
    assert "--signal" not in " ".join(header({"time": "3m"}))


@pytest.mark.parametrize(
    ("text", "line"),
    [("a.b-c_d", "a.b-c_d"), ("a b", '"a b"'), ('"\\', '"\\"\\\\"'), ("é", '"é"'), ("a#b", '"a#b"')],
)
def test_quoted(text: str, line: str):
    assert quoted(text) == line


def test_names_that_are_no_line():
    assert header({"name": "a\nb\t\x07c"})[0] == '--job-name="a b c"'
    assert header({"name": "é" * 200})[0] == f'--job-name="{"é" * 100}"'
    assert header({"name": "x" * 199 + "é"})[0] == f"--job-name={'x' * 199}"


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"image": "pytorch:2"}, "image='pytorch:2'.*apptainer exec"),
        ({"volumes": [{"path": "/x"}]}, "volumes=.*mounts nothing"),
        (
            {"resources": {"required_gpu_types": ["a100", "h100"]}},
            "choose one, or set options.slurm.constraint",
        ),
        ({"resources": {"node_selector": {"disk": "ssd"}}}, "have features, not labels"),
        ({"options": {"slurm": {"partion": "x"}}}, "unknown key 'partion' in options.slurm.*'partition'"),
        ({"options": {"slurm": {"qos": "a\n#SBATCH --x"}}}, "options.slurm.qos must be one line"),
        ({"options": {"slurm": {"array": "0-"}}}, "array must be indices"),
        ({"options": {"slurm": {"sbatch": ["rm -rf"]}}}, "must be options such as"),
        ({"options": {"slurm": {"sbatch": ["--nice=1\n--x"]}}}, "must be options such as"),
        ({"options": {"slurm": {"sbatch": ["--nodes=3"]}}}, "must not have '--nodes=3': use the job's nodes"),
        ({"options": {"slurm": {"sbatch": ["--outp=x"]}}}, "must not have '--outp=x': the job needs its own"),
        ({"options": {"slurm": {"sbatch": ["-N 3"]}}}, "must not have '-N 3': use the job's nodes"),
        ({"options": {"slurm": {"sbatch": ["-N3"]}}}, "write '-N3' with a blank after -N"),
    ],
)
def test_refused(fields: dict[str, Any], told: str):
    with pytest.raises(ValueError, match=told):
        script(fields)


@pytest.mark.parametrize("folder", ["/a\\b/x", "/a\nb/x"])
def test_folders_that_slurm_takes_in_no_path(folder: str):
    with pytest.raises(ValueError, match=r"which Slurm takes in no path.*--job-dir"):
        script({}, folder)


@pytest.mark.parametrize(
    ("array", "indices"), [("3", (3,)), ("0-2", (0, 1, 2)), ("1,4-10:3%2", (1, 4, 7, 10)), ("7-7", (7,))]
)
def test_indices(array: str, indices: tuple[int, ...]):
    assert indices_of(array) == indices


@pytest.mark.parametrize("array", ["", "a", "1,", "2-1", "1-5:0", "1%0", "1%", "1,1", "0-20000", "-1", "1 2"])
def test_no_indices(array: str):
    with pytest.raises(ValueError, match="array must"):
        indices_of(array)


def test_flags():
    assert flag_of("--exclusive") == ("--exclusive", "", None)
    assert flag_of("--mail-type=END") == ("--mail-type", "=", "END")
    assert flag_of("--mail-type  a b") == ("--mail-type", " ", "a b")
    spec = spec_of(
        {"name": "x", "command": ["x"], "options": {"slurm": {"sbatch": ["--exclusive", "-A lab"]}}}
    )
    assert options_of(spec).common() == {"account": "lab"}
    assert options_of(spec).sbatch == ("--exclusive",)


def test_a_dry_run_needs_no_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "")
    spec = spec_of({"name": "x", "command": ["a", "\n#SBATCH --x"], "env_vars": {"TOKEN": "hush"}})
    (submitted,) = Jobs(tmp_path / "jobs").submit(spec, SlurmTarget(), dry_run=True)
    lines = submitted.rendered.splitlines()
    assert lines[0] == "#!/bin/bash"
    assert lines[1] == f"# submitted by: sbatch --parsable {submitted.folder}/script.sh"
    assert any('"\\n#SBATCH --x"' in line and line.startswith("#  ") for line in lines)
    assert "hush" not in submitted.rendered
    assert not (tmp_path / "jobs").exists()


def test_an_array_has_a_folder_by_index(tmp_path: Path):
    spec = spec_of({"name": "x", "command": ["x"], "options": {"slurm": {"array": "5,7"}}, "job_id": "it"})
    first, second = Jobs(tmp_path).submit(spec, SlurmTarget(), dry_run=True)
    assert (first.job_id, second.job_id) == ("it-5", "it-7")
    assert first.rendered == second.rendered
    assert f'folder={tmp_path}/it"-$SLURM_ARRAY_TASK_ID"' in first.rendered
    assert f"--output={tmp_path}/it-%a/logs/slurm-%A_%a.out" in first.rendered
    assert "--comment=kernel-pytorch:it\n" in first.rendered
