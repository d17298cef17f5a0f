import dataclasses
import re
import subprocess
import sys

import pytest
import torch
from benchmarks import attention
from benchmarks.registry import BENCHMARKS, Options, Table, UsageError
from benchmarks.report import markdown, slug
from benchmarks.run import main
from benchmarks.verify import REPOSITORY, failure_of

CPU = torch.device("cpu")
PASSING = "def test_right():\n    assert 1 + 1 == 2\n"
FAILING = "def test_wrong():\n    assert 1 + 1 == 3, 'the numbers are wrong'\n"


@pytest.fixture
def numerics(tmp_path, monkeypatch):
    """Put a file of one's own in the place of the numerics tests of ``attention``."""

    def put(source):
        file = tmp_path / "test_numerics.py"
        file.write_text(source)
        entry = dataclasses.replace(BENCHMARKS["attention"], numerics=(str(file),))
        monkeypatch.setitem(BENCHMARKS, "attention", entry)

    return put


def test_list_names_every_benchmark():
    command = [sys.executable, "-m", "benchmarks.run", "--list"]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert sorted(line.split()[0] for line in result.stdout.splitlines()) == sorted(BENCHMARKS)
    assert BENCHMARKS["attention"].summary in result.stdout


def test_the_numerics_tests_of_every_benchmark_exist():
    for entry in BENCHMARKS.values():
        assert entry.numerics
        for path in entry.numerics:
            assert (REPOSITORY / path).exists(), path


def test_nothing_but_the_failure_is_printed_when_numerics_fail(numerics, tmp_path, capfd):
    numerics(FAILING)
    output = tmp_path / "result.md"
    assert main(["attention", "--seq", "8", "--pairs", "3", "--output", str(output)]) == 1
    out, err = capfd.readouterr()
    assert "the numbers are wrong" in out
    assert "ratio" not in out
    assert "|" not in out
    assert err == ""
    assert not output.exists()


@pytest.mark.parametrize("source", [None, ""], ids=["missing", "empty"])
def test_tests_that_are_missing_or_empty_count_as_failed(source, tmp_path):
    file = tmp_path / "test_numerics.py"
    if source is not None:
        file.write_text(source)
    assert failure_of((str(file),)) is not None


def test_a_tiny_run_prints_and_writes_every_table(numerics, tmp_path, capfd):
    numerics(PASSING)
    output = tmp_path / "new" / "result.md"
    arguments = ["attention", "--seq", "8", "--pairs", "3", "--device", "cpu", "--output", str(output)]
    assert main(arguments) == 0
    out, err = capfd.readouterr()
    text = output.read_text()
    assert out == text + "\n"
    assert "[1/33] forward-large-float32-full\n" in err

    facts = dict(line[2:].split(": ", 1) for line in text.splitlines() if line.startswith("* "))
    assert facts["command"] == f"`python -m benchmarks.run {' '.join(arguments)}`"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", facts["date"])
    assert torch.__version__ in facts["torch"]
    assert torch.backends.cpu.get_cpu_capability() in facts["torch"]
    assert facts["hardware"]
    assert re.fullmatch(r"\d+\.\d GB", facts["memory"])

    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line[:1] == "|"]
    by_name = {row[0]: row for row in rows}
    timed = by_name["forward+backward-large-bfloat16-causal"]
    assert timed[5] == "3"
    low, high = map(float, timed[4].split(" to "))
    assert low <= float(timed[3]) <= high
    assert re.fullmatch(r"1\.15 (met|missed) 1\.05 (met|missed)", " ".join(timed[6:]))
    assert by_name["forward+backward-small-float32-full"][6:] == ["none", "none"]
    assert float(by_name["memory-backward-bfloat16-full"][3]) >= 0.5
    for name in (
        "scaling-large-float32-full",
        "dense-32-float32-causal",
        "gather-pad-scatter-small-float32-full",
    ):
        assert name in by_name


def test_cases_limit_what_is_run():
    options = Options(device=CPU, seq=8, pairs=1, cases=("forward-small-float32", "dense-8-float32-full"))
    tables = attention.attention(options)
    assert [[row[0] for row in table.rows] for table in tables] == [
        ["forward-small-float32-full", "forward-small-float32-causal"],
        ["dense-8-float32-full"],
    ]


def test_a_length_that_the_bound_cannot_take_is_refused():
    with pytest.raises(UsageError, match="--seq 3000: the bound needs a multiple of 2048"):
        attention.attention(Options(device=CPU, seq=3000))


def test_a_sequence_that_does_not_fit_is_reported_as_not_measured():
    (table,) = attention.attention(Options(device=CPU, seq=2**26, cases=("scaling",)))
    (row,) = table.rows
    assert row[1].startswith("not measured: 43980.5 GB needed")
    assert len(row) == len(table.columns)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name one or more of the benchmarks attention"),
        (["speed"], "got speed"),
        (["attention", "--cases", "sideways"], "--cases sideways: no case"),
        (["attention", "--pairs", "0"], "must be at least 1, got 0"),
        (["attention", "--output", "."], "is a folder"),
        (
            ["attention", "ring", "--output", "x.md"],
            "--output x.md: takes one benchmark, got attention, ring",
        ),
    ],
)
def test_bad_usage_is_one_line_and_status_2(arguments, message, numerics, tmp_path, capsys):
    numerics(PASSING)
    if "--output" not in arguments:
        arguments = [*arguments, "--output", str(tmp_path / "result.md")]
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    captured = capsys.readouterr()
    assert message in captured.err.splitlines()[-1]
    assert captured.out == ""


@pytest.mark.parametrize(
    ("value", "cells"),
    [
        (1.05, ["1.15 met", "1.05 met"]),
        (1.051, ["1.15 met", "1.05 missed"]),
        (1.151, ["1.15 missed", "1.05 missed"]),
    ],
)
def test_a_target_is_met_up_to_its_value(value, cells):
    assert attention._verdicts(value, (1.15, 1.05)) == cells


def test_select_keeps_the_order_and_refuses_to_select_nothing():
    options = Options(device=CPU, cases=("y", "z"))
    assert options.select(["xz", "x", "yx"]) == ["xz", "yx"]
    with pytest.raises(UsageError, match="cases: a, b"):
        options.select(["a", "b"])


def test_markdown_is_aligned_to_be_read_as_text():
    table = Table(title="T", columns=("a", "long name"), rows=[["value", "1"]], note="N.")
    assert (
        markdown(table) == "## T\nN.\n\n| a     | long name |\n|-------|-----------|\n| value | 1         |"
    )


def test_slug_is_part_of_a_file_name():
    assert slug("Intel(R) Xeon(R) CPU @ 2.60GHz") == "intel-r-xeon-r-cpu-2-60ghz"


def test_the_numerics_of_each_benchmark_are_there():
    missing = [
        path for entry in BENCHMARKS.values() for path in entry.numerics if not (REPOSITORY / path).exists()
    ]
    assert missing == []
