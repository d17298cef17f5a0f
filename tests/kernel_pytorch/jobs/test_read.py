"""Times, sizes and numbers of nodes in words; specifications in YAML and JSON files."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from test_spec import SPECS

from kernel_pytorch.errors import Unavailable
from kernel_pytorch.jobs.read import override, parse_nodes, parse_size, parse_time, read_file, spec_of
from kernel_pytorch.jobs.spec import TrainingJobSpec

FIELDS = {"name": "books", "command": ["longnet", "train"]}
YAML = """\
name: books
command: [longnet, train, --data, books, --steps, "20000"]
nodes: 2:4
gpus_per_node: 8
time: 4h
checkpoint_every: 10m
resources: {memory_gb: 64G}
env_vars: {A: on, B: 010, C: 2024-01-01, D: "1"}
options: {slurm: {partition: gpu, requeue: true, nice: 10, share: 0.5, qos: null}}
"""


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("4h", 14_400),
        ("90m", 5400),
        ("30s", 30),
        ("1.5h", 5400),
        ("1h30m", 5400),
        ("2d", 172_800),
        (" 4H ", 14_400),
        ("0.1s", 0.1),
        ("2:30:00", 9000),
        ("100:00:00", 360_000),
        ("1-12:00:00", 129_600),
        ("1-12:30", 131_400),
        ("1-12", 129_600),
        ("0-00:00:01", 1),
    ],
)
def test_times(text: str, seconds: float):
    assert parse_time(text) == seconds


@given(days=st.integers(0, 9999), rest=st.integers(1, 86_399))
def test_a_time_in_slurms_form_and_with_units(days: int, rest: int):
    clock = str(timedelta(seconds=rest))  # 3:25:45
    hours, minutes, seconds = clock.split(":")
    expected = timedelta(days=days, seconds=rest).total_seconds()
    assert parse_time(f"{days}-{clock}") == expected
    assert parse_time(f"{days}d{hours}h{minutes}m{seconds}s") == expected
    assert parse_time(f"{24 * days + int(hours)}:{minutes}:{seconds}") == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "time must be such as 4h, 90m, 1h30m, 2:30:00 or 1-12:00:00, got ''"),
        ("90", "got '90'; give it a unit, as in 90m"),
        ("2:30", "time '2:30' could be hours or minutes: write 2h30m or 2m30s"),
        ("4 hours", "got '4 hours'"),
        ("-4h", "got '-4h'"),
        ("30m1h", "got '30m1h'"),
        ("1e9h", "got '1e9h'"),
        ("٣h", "got '٣h'"),
        ("0h", "time must be positive, got '0h'"),
        ("0:00:00", "time must be positive"),
        ("1:60:00", "time '1:60:00' has more than 23 hours in a day, or 59 minutes or seconds"),
        ("1:00:60", "59 minutes or seconds"),
        ("1-24:00:00", "more than 23 hours in a day"),
    ],
)
def test_bad_times(text: str, message: str):
    with pytest.raises(ValueError, match=message):
        parse_time(text)


@given(text=st.text(alphabet="0123456789dhms:-. ", max_size=12))
def test_any_text_is_a_positive_time_or_an_error(text: str):
    try:
        assert parse_time(text) > 0
    except ValueError:
        assert not re.fullmatch("([0-9]+[dhm])?[1-9][0-9]*s", text)


@given(
    thousandths=st.integers(0, 10**9),
    unit=st.sampled_from(list(enumerate("KMGTP", 1))),
    binary=st.booleans(),
    lower=st.booleans(),
    byte=st.sampled_from(["", "B"]),
)
def test_sizes(thousandths: int, unit: tuple[int, str], binary: bool, lower: bool, byte: str):
    power, letter = unit
    whole, part = divmod(thousandths, 1000)
    letter = (letter.lower() if lower else letter) + "i" * binary + byte
    twice_exact = 2 * thousandths * (1024 if binary else 1000) ** power
    assert abs(1000 * 2 * parse_size(f"{whole}.{part:03}{letter}") - twice_exact) <= 1000
    assert parse_size(f"{whole}{letter}") == whole * (1024 if binary else 1000) ** power


@pytest.mark.parametrize("text", ["", "64", "G", "64X", "-1G", "6 4G", "1e3G", "64GG", "64iB"])
def test_bad_sizes(text: str):
    with pytest.raises(ValueError, match="size must be a number and a unit, such as 64G") as caught:
        parse_size(text)
    assert repr(text) in str(caught.value)


@given(least=st.integers(0, 10**6), more=st.integers(-3, 10))
def test_nodes(least: int, more: int):
    text = f"{least}:{least + more}"
    if least >= 1 and more >= 0:
        assert parse_nodes(text) == (least, least + more)
        assert parse_nodes(str(least)) == (least, least)
    else:
        with pytest.raises(ValueError, match=r"nodes must be .*got"):
            parse_nodes(text)


@pytest.mark.parametrize("text", ["", ":", "2:", ":4", "a", "1:2:3", "-1", "1.5"])
def test_bad_nodes(text: str):
    with pytest.raises(ValueError, match="nodes must be a number or min:max, such as 2 or 2:4, got"):
        parse_nodes(text)


def write(folder: Path, content: str | bytes | dict[str, Any], name: str = "job.json") -> Path:
    path = folder / name
    if isinstance(content, dict):
        content = json.dumps(content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_a_yaml_file(tmp_path: Path):
    spec = TrainingJobSpec.load(write(tmp_path, YAML, "job.yaml"))
    assert (spec.job_id, spec.name, spec.image) == (None, "books", None)
    assert spec.command == ["longnet", "train", "--data", "books", "--steps", "20000"]
    assert (spec.nodes, spec.gpus_per_node, spec.world_size) == ((2, 4), 8, 32)
    assert (spec.max_runtime_hours, spec.checkpoint_interval_minutes) == (4, 10)
    assert spec.env_vars == {"A": "on", "B": "010", "C": "2024-01-01", "D": "1"}
    assert spec.options == {
        "slurm": {"partition": "gpu", "requeue": True, "nice": 10, "share": 0.5, "qos": None}
    }
    asked = {name: value for name, value in vars(spec.resources).items() if value is not None}
    assert asked == {"memory_gb": 64}


@pytest.mark.parametrize("name", ["job.json", "JOB.YML"])
@given(made=SPECS)
def test_a_spec_survives_a_file(made: TrainingJobSpec, name: str, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.getbasetemp()
    dump = json.dumps if name == "job.json" else yaml.safe_dump
    assert TrainingJobSpec.load(write(folder, dump(made.to_dict()), name)) == made


@given(raw=st.binary(max_size=12).filter(lambda raw: not set(raw) & {*range(32), *b'"\\'}))
def test_undecodable_bytes_in_json_are_kept(raw: bytes, tmp_path_factory: pytest.TempPathFactory):
    content = b'{"name": "a", "command": ["a", "%s"]}' % raw.replace(b"%", b"%")
    spec = TrainingJobSpec.load(write(tmp_path_factory.getbasetemp(), content))
    assert spec.command[1].encode("utf-8", "surrogateescape") == raw


@pytest.mark.parametrize(
    ("values", "world", "nodes", "gpus"),
    [
        ({}, 1, (1, 1), None),
        ({"nodes": 3}, 3, (3, 3), None),
        ({"nodes": [2, 4], "ranks_per_node": 2}, 8, (2, 4), None),
        ({"gpus_per_node": 8}, 8, (1, 1), 8),
        ({"gpus_per_node": 0, "ranks_per_node": 2}, 2, (1, 1), 0),
        ({"resources": {"gpu_count": 16}, "nodes": "2"}, 16, (2, 2), 8),
    ],
)
def test_the_world_follows_from_nodes_and_ranks(
    values: dict[str, Any], world: int, nodes: tuple[int, int], gpus: int | None
):
    spec = spec_of({**FIELDS, **values})
    assert (spec.world_size, spec.num_nodes, spec.num_gpus_per_node) == (world, nodes, gpus)


def test_options_win_over_a_file(tmp_path: Path):
    values = read_file(write(tmp_path, YAML + "world_size: 32\nranks_per_node: 8\n", "job.yml"))
    merged = override(values, {"nodes": (1, 1), "name": "b", "env_vars": {"A": "off"}, "time": "1h"})
    with pytest.raises(ValueError, match="time and max_runtime_hours are the same: give one of them"):
        spec_of(merged)
    del merged["time"]
    spec = spec_of(merged)
    assert (spec.name, spec.nodes, spec.world_size, spec.max_runtime_hours) == ("b", (1, 1), 8, 4)
    assert spec.env_vars == {"A": "off", "B": "010", "C": "2024-01-01", "D": "1"}
    assert values["world_size"] == 32


WRONG = [
    ({"nodse": 2}, "unknown key 'nodse': did you mean 'nodes'?"),
    ({"gpus-per-node": 8}, "unknown key 'gpus-per-node': did you mean 'gpus_per_node'?"),
    ({"zzz": 8}, "unknown key 'zzz': the keys are checkpoint_every, "),
    ({"resources": {"gpu_cuont": 8}}, "unknown key 'gpu_cuont' in resources: did you mean 'gpu_count'?"),
    ({"options": {"slrum": {}}}, "unknown key 'slrum' in options: did you mean 'slurm'?"),
    ({"command": "longnet train"}, "command must be a list, got a string"),
    ({"command": ["longnet", 3]}, "command[1] must be a string, got an integer; quote it"),
    ({"env_vars": {"A B": True}}, "env_vars.A B must be a string, got true or false; quote it"),
    ({"env_vars": ["A=1"]}, "env_vars must be a mapping, got a list"),
    ({"env_vars": None}, "env_vars must be a mapping, got null"),
    ({"resources": 3}, "resources must be a mapping, got an integer"),
    ({"resources": {"gpu_count": "8"}}, "resources.gpu_count must be an integer, got a string"),
    (
        {"resources": {"node_selector": {"a": 1}}},
        "resources.node_selector.a must be a string, got an integer",
    ),
    ({"resources": {"memory_gb": "64"}}, "resources.memory_gb: size must be a number and a unit"),
    ({"options": {"slurm": 3}}, "options.slurm must be a mapping, got an integer"),
    ({"volumes": [3]}, "volumes[0] must be a mapping, got an integer"),
    ({"world_size": 1.5}, "world_size must be an integer, got a number"),
    ({"nodes": [1]}, "nodes: expected `array` of length 2, got 1"),
    ({"nodes": 0}, "nodes: nodes must be at least 1, and min not more than max, got '0'"),
    ({"nodes": [0, 0]}, "nodes must be at least 1, got 0"),
    ({"nodes": "4:2"}, "nodes: nodes must be at least 1, and min not more than max, got '4:2'"),
    ({"time": "4 hours"}, "time: time must be such as 4h"),
    ({"checkpoint_every": "10"}, "checkpoint_every: time must be such as 4h"),
    ({"time": "4h", "max_runtime_hours": 4}, "time and max_runtime_hours are the same: give one of them"),
    ({"gpus_per_node": -8}, "gpus_per_node must be at least 0, got -8"),
    ({"tensor_parallel_size": 3}, "world_size=1 must be a multiple of tensor_parallel_size=3"),
    ({"name": "a\ud800"}, "name has a surrogate that stands for no byte, got 'a\\ud800'"),
]


@pytest.mark.parametrize(("values", "message"), WRONG, ids=[message[:40] for _, message in WRONG])
def test_a_wrong_file_is_told_in_one_line(values: dict[str, Any], message: str, tmp_path: Path):
    path = write(tmp_path, {**FIELDS, **values})
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        TrainingJobSpec.load(path)
    assert str(caught.value).startswith(f"{path}: {message}")
    assert "\n" not in str(caught.value)


BROKEN = [
    ("job.json", "", "Expecting value: line 1 column 1 (char 0)"),
    ("job.json", "[]", "must be a mapping of names to values, got list"),
    ("job.json", '{"name": "a", "name": "b"}', "key 'name' is there twice"),
    ("job.json", '{"name": "a", "env_vars": {"A": "1", "A": "1"}}', "key 'A' is there twice"),
    ("job.json", '{"max_runtime_hours": NaN}', "NaN is not a number in JSON"),
    ("job.json", '{"name": "a"}', "command is missing"),
    ("job.json", '{"a": ' * 100_000, "it is nested too deeply"),
    ("job.json", '{"world_size": 1' + "0" * 5000 + "}", "Exceeds the limit (4300 digits)"),
    ("job.yaml", "", "must be a mapping of names to values, got NoneType"),
    ("job.yaml", "name: a\nname: b\n", "line 2, column 1: key 'name' is there twice"),
    ("job.yaml", "env_vars:\n  A: x\n  A: y\n", "line 3, column 3: key 'A' is there twice"),
    ("job.yaml", "name: [a\n", "line 2, column 1: expected ',' or ']', but got"),
    ("job.yaml", "a: &x [1]\nb: *x\n", "line 2, column 4: aliases are not supported"),
    (
        "job.yaml",
        "name: !!python/object:os.system {}\n",
        "line 1, column 7: could not determine a constructor",
    ),
    ("job.yaml", "? [a]\n: b\n", "line 1, column 3: found unhashable key"),
    ("job.yaml", "name: a\n---\nname: b\n", "line 2, column 1: but found another document"),
    ("job.yaml", b"name: \xff\n", "unacceptable character #x00ff: invalid start byte in"),
    ("job.yaml", "[" * 100_000, "it is nested too deeply"),
    ("job.yaml", "1: a\n", "unknown key 1: "),
    ("job.yaml", "env_vars: {1: a}\n", "a key of env_vars must be a string, got int (1)"),
    ("job.yaml", "name: a\ncommand: [a]\ntime: 10\n", "time must be a text with its unit, such as 4h"),
]


@pytest.mark.parametrize(("name", "content", "message"), BROKEN, ids=[message for *_, message in BROKEN])
def test_a_broken_file_is_told_in_one_line(name: str, content: str | bytes, message: str, tmp_path: Path):
    path = write(tmp_path, content, name)
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        TrainingJobSpec.load(path)
    assert str(caught.value).startswith(f"{path}: {message}")
    assert "\n" not in str(caught.value)


def test_a_file_of_another_kind(tmp_path: Path):
    with pytest.raises(ValueError, match=r"job.toml must end in .yaml, .yml or .json"):
        TrainingJobSpec.load(write(tmp_path, "", "job.toml"))
    with pytest.raises(FileNotFoundError):
        TrainingJobSpec.load(tmp_path / "none.yaml")


def test_secrets_are_not_in_a_message(tmp_path: Path):
    for wrong in (
        {"secrets": {"A": ["hunter2"]}},
        {"secrets": {"A": "hunter2"}},
        {"env_vars": {"A": ["hunter2"]}},
    ):
        with pytest.raises(ValueError, match="A must be") as caught:
            TrainingJobSpec.load(write(tmp_path, {**FIELDS, **wrong}))
        assert "hunter2" not in str(caught.value)


def test_without_pyyaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(
        Unavailable, match=r"^job\.yaml is YAML, and PyYAML is not installed: pip install pyyaml$"
    ):
        TrainingJobSpec.load(write(tmp_path, YAML, "job.yaml"))
    assert TrainingJobSpec.load(write(tmp_path, FIELDS)).name == "books"


def test_pyyaml_is_loaded_for_yaml_only(tmp_path: Path):
    script = (
        "import sys; from kernel_pytorch.jobs.spec import TrainingJobSpec\n"
        "TrainingJobSpec.load(sys.argv[1])\n"
        "print([name for name in ('yaml', 'torch', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, write(tmp_path, FIELDS)], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
