"""What all demos share: their options, and a section in `docs/demos.md` with what they printed."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DEMOS = sorted(path.stem for path in (ROOT / "demos").glob("*.py"))


@pytest.mark.parametrize("name", DEMOS)
def test_an_output_that_is_a_file_is_refused_in_one_line(name: str, tmp_path: Path, monkeypatch, capsys):
    (tmp_path / "taken").touch()
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--output", str(tmp_path / "taken")])
    with pytest.raises(SystemExit) as end:
        importlib.import_module(f"demos.{name}").main()
    assert end.value.code == 2
    assert f"error: --output {tmp_path / 'taken'}" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("name", DEMOS)
def test_a_demo_is_short_and_has_a_section_with_its_output(name: str):
    assert len((ROOT / f"demos/{name}.py").read_text().splitlines()) < 250
    section = (ROOT / "docs/demos.md").read_text().partition(f"\npython demos/{name}.py\n```\n")[2]
    assert "AMD EPYC" in section.partition("\n```\n")[0], "machine and date"
    assert len(section.partition("\n```\n")[2].partition("\n```\n")[0].splitlines()) > 5
