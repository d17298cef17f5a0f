"""What docs/hardware.md shows is what happens."""

from __future__ import annotations

import re
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

from kernel_pytorch.cli import main

DOCS = (Path(__file__).parents[3] / "docs/hardware.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_example(faulty, monkeypatch, number):
    monkeypatch.chdir(faulty.parent)
    printed = StringIO()
    with redirect_stdout(printed):
        exec(compile(EXAMPLES[number], f"example {number} of docs/hardware.md", "exec"), {})
    assert printed.getvalue()
    if "ReplaySource" in EXAMPLES[number] or "record_measurement" in EXAMPLES[number]:
        assert printed.getvalue().strip() in DOCS


def test_replay(faulty, capsys, monkeypatch):
    monkeypatch.chdir(faulty.parent)
    assert main(["probe", "--replay", faulty.name]) == 0
    assert capsys.readouterr().out.rstrip() in DOCS
