"""``kernel-pytorch profile collectives`` as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys

import jsonschema
import msgspec
import pytest

from kernel_pytorch.cli import main
from kernel_pytorch.cli.profile.collectives import CollectivesReport
from kernel_pytorch.links.methods import PATTERNS

PROFILE = [sys.executable, "-m", "kernel_pytorch.cli", "profile", "collectives"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)


def test_the_schema(capsys):
    """A change of it is a change of what scripts read: add fields freely, else count ``version`` up."""
    assert main(["profile", "collectives", "--schema"]) == 0
    schema = msgspec.json.schema(CollectivesReport)
    assert json.loads(capsys.readouterr().out) == json.loads(msgspec.json.encode(schema)), (
        "write cli/profile/collectives.schema.json anew: python -c "
        '"import msgspec; from kernel_pytorch.cli.profile.collectives import CollectivesReport as R; '
        'print(msgspec.json.format(msgspec.json.encode(msgspec.json.schema(R)), indent=1).decode())"'
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "no process group: start this with torchrun --nproc-per-node N -m kernel_pytorch.cli profile "),
        (["--nproc", "1"], "--nproc must be at least 2, got 1"),
        (["--nproc", "2", "--calls", "0"], "--calls must be at least 1, got 0"),
        (["--sizes", "16M:64K"], "--sizes must be a size or FROM:TO, such as 64K:16M, got 16M:64K"),
        (["--sizes", "0"], "--sizes must be a size or FROM:TO, such as 64K:16M, got 0"),
        (["--sizes", "1K:2K:4K"], "--sizes must be a size or FROM:TO, such as 64K:16M, got 1K:2K:4K"),
        (["--operations", "broadcast"], "invalid choice: 'broadcast'"),
    ],
)
def test_a_mistake_is_one_line(capsys, arguments, says):
    assert main(["profile", "collectives", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert says in err
    assert err.count("\n") == 1


def test_every_operation_by_every_pattern():
    command = [*PROFILE, "--nproc", "2", "--sizes", "1K:5K", "--calls", "1", "--seconds", "0.5"]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True, timeout=240)
    found = json.loads(done.stdout)
    jsonschema.validate(found, msgspec.json.schema(CollectivesReport))
    assert found["hosts"] == [[0, 1]]
    by: dict[tuple[str, int], list[dict]] = {}
    for each in found["collectives"]:
        by.setdefault((each["operation"], each["nbytes"]), []).append(each)
    names = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all")
    assert list(by) == [(name, size) for name in names for size in (1024, 4096)]
    for (operation, nbytes), each in by.items():
        patterns = [None] if operation == "all_to_all" else [pattern.value for pattern in PATTERNS]
        assert [one["pattern"] for one in each] == patterns
        assert [one["chosen"] for one in each].count(True) == 1
        for one in each:
            assert one["expected_s"] > 0
            assert one["algbw_gbyte_s"] == pytest.approx(nbytes / one["seconds"] * 1e-9)
            factor = 1.0 if operation == "all_reduce" else 0.5
            assert one["busbw_gbyte_s"] == pytest.approx(factor * one["algbw_gbyte_s"])


def test_the_table():
    command = [*PROFILE, "--nproc", "2", "--sizes", "2M", "--calls", "1", "--seconds", "0.5"]
    command += ["--operations", "all_reduce", "all_to_all"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=240)
    head, columns, *rows = done.stdout.splitlines()
    assert head == "  float32, 2 ranks on 1 host"
    assert columns.split()[:4] == ["operation", "size", "pattern", "ms"]
    assert [row.split()[:4] for row in rows] == [
        *(["all_reduce", "2", "MB", pattern.value] for pattern in PATTERNS),
        ["all_to_all", "2", "MB", "direct"],
    ]
    assert [row.endswith("chosen") for row in rows].count(True) == 1
