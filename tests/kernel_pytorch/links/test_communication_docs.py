"""What docs/communication.md shows is what happens, on shaped links."""

from __future__ import annotations

import re
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
import torch.distributed as dist
from benchmarks.links import Links, why_no_links
from tests.support.worlds import HostWorld

DOCS = (Path(__file__).parents[3] / "docs/communication.md").read_text()
STEP, TURNS, SLOW = re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL)
NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e-?\d+)?")
PATTERN = re.compile(r": (ring|tree|butterfly|hierarchical)$")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> None:
    if (why := why_no_links()) is not None:
        pytest.skip(why)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def printed_by(group: dist.ProcessGroup, code: str) -> str:
    printed = StringIO()
    with redirect_stdout(printed):
        exec(compile(code, "docs/communication.md", "exec"), {})
    return printed.getvalue()


def printed_on(hosts: list[int], links: Links, code: str) -> str:
    with HostWorld(links, hosts) as world:
        return world.results(printed_by, STEP + code)[0]


def words(text: str) -> set[str]:
    """Of each line the words, without numbers and names of hosts."""
    lines = (NUMBER.sub("N", PATTERN.sub(": P", line)) for line in text.splitlines())
    return {re.sub(r"vm#N|\b[ab]\b(?!yte)", "H", " ".join(line.split())) for line in lines}


def shown_after(code: str) -> set[str]:
    """The words of the output that follows an example."""
    return words(DOCS.split(f"```python\n{code}```\n")[1].split("```")[1])


def expected_ms(text: str) -> tuple[float, float]:
    """In the better way, and as it was: from the rates that were measured."""
    found = re.search(r"(?:: |expected )([\d.]+)(?: ms)? instead of ([\d.]+)", text)
    return float(found[1]), float(found[2])


def test_ranks_that_take_turns():
    with Links(2) as links:
        links.shape(200e6)
        printed = printed_on([0, 1, 0, 1], links, TURNS)
    assert {line for line in shown_after(TURNS) if "Gbit/s" not in line} - {""} <= words(printed)
    better, before = expected_ms(printed)
    assert better == pytest.approx(before / 2, rel=0.1), "half of the bytes go between hosts"


def test_a_slow_pair():
    with Links(4) as links:
        links.shape(200e6)
        links.shape_pair(0, 1, 20e6)
        printed = printed_on([0, 1, 2, 3], links, SLOW)
    assert "from rank 0 to rank 1 and from rank 1 to rank 0: " in printed
    assert shown_after(SLOW) - {""} <= words(printed)
    better, before = expected_ms(printed)
    assert better < before / 5, "the slow pair is left out"
