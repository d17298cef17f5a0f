"""What is written of a run: JSON, a Chrome trace, a page; clocks, and the comparison with an earlier run."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from importlib import resources

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up_links import made_up
from made_up_runs import Line, calls_of, made_up_run, saved_run

from kernel_pytorch.links import saved
from kernel_pytorch.links.facts import Figure
from kernel_pytorch.links.profile.baseline import compare, compare_with_baseline
from kernel_pytorch.links.profile.chrome import trace
from kernel_pytorch.links.profile.clocks import combined, offsets
from kernel_pytorch.links.profile.join import join
from kernel_pytorch.links.profile.report import ProfileReport, report, write_report
from kernel_pytorch.links.profile.statistics import median, operation_stats

LINES = Line(), Line(site="/me/eval.py:9", operation="broadcast", nbytes=1 << 16, moving_ms=2)
LINKS = made_up(tuple((r,) for r in range(4)), {(0, 1): 0.19, (1, 0): 0.19, (2, 3): 0.02, (3, 2): 0.19})


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return saved_run(tmp_path / "run", made_up_run(*LINES, late_ms={2: 55.0}, noise=0.01))


def test_the_schema():
    """A change of it is a change of what scripts read: add fields freely, else count ``version`` up."""
    path = resources.files("kernel_pytorch.links.profile").joinpath("profile.schema.json")
    schema = msgspec.json.encode(msgspec.json.schema(ProfileReport))
    assert json.loads(path.read_text()) == json.loads(schema), (
        "write links/profile/profile.schema.json anew: "
        'python -c "import msgspec; from kernel_pytorch.links.profile.report import ProfileReport as P; '
        'print(msgspec.json.format(msgspec.json.encode(msgspec.json.schema(P)), indent=1).decode())"'
    )


def test_what_is_told_and_written(folder):
    lines = write_report(folder, LINKS).splitlines()
    numbers = (
        r"step (\S+) ms: (\S+) ms of collectives, 0 % hidden behind compute, (\S+) ms spent waiting for "
    )
    step, collectives, waiting = map(float, re.match(numbers, lines[0]).groups())
    assert step == pytest.approx(20 + 55 + 8 + 20 + 2, rel=0.02)
    assert collectives == pytest.approx(55 * 3 / 4 + 8 + 2, rel=0.05)
    assert waiting == pytest.approx(55 * 3 / 4, rel=0.05)
    late = r"rank 2 comes (\S+) ms late to all_reduce 25 MB \(train\.py:88\): (\S+) ms of each step"
    assert list(map(float, re.fullmatch(late, lines[1]).groups())) == pytest.approx([55, 55], rel=0.02)
    assert lines[2].startswith("from rank 2 to rank 3: 20 Mbit/s, other links 190 Mbit/s (measured)")
    assert lines[-1] == f"{folder}/profile.json  {folder}/trace.json (Perfetto)  {folder}/report.html"
    assert {path.name for path in folder.iterdir()} == {
        *(f"rank-{rank}.jsonl" for rank in range(4)),
        "profile.json",
        "trace.json",
        "report.html",
    }
    found = msgspec.json.decode((folder / "profile.json").read_bytes(), type=ProfileReport)
    assert [each.kind for each in found.findings] == ["late_rank", "slow_link"]
    assert found.findings[0].site == "/home/me/train.py:88"
    assert found.links == LINKS
    assert [each.calls for each in found.ranks] == [60] * 4


def test_links_that_were_measured_earlier_are_used(folder):
    links = made_up(((0, 1, 2, 3),), {(0, 0): 12.0})
    saved.save(links, saved.key_of(["a"] * 4), 1.7e9)
    write_report(folder)
    found = msgspec.json.decode((folder / "profile.json").read_bytes(), type=ProfileReport)
    assert found.links.basis == "saved"
    assert found.links.gbit_s(0, 0) == 12.0


def test_a_report_of_what_a_killed_job_left(folder):
    (folder / "rank-3.jsonl").unlink()
    damaged = folder / "rank-1.jsonl"
    damaged.write_bytes(damaged.read_bytes()[:-500])
    told = write_report(folder)
    assert "note: no records of rank 3" in told
    assert "note: rank-1.jsonl: line" in told
    assert "no records of rank 3" in (folder / "report.html").read_text()


def test_where_ranks_of_a_hung_job_stood_is_read(folder):
    for rank in range(4):
        path = folder / f"rank-{rank}.jsonl"
        lines = path.read_bytes().splitlines(keepends=True)  # ..., the last call, its end, that of the rank
        path.write_bytes(b"".join(lines[: -3 if rank == 2 else -2]))
    assert "never came" not in write_report(folder)
    hang = {"why": "", "missing": [], "answers": [{"rank": 2, "main": "/me/train.py:120", "stack": []}]}
    (folder / "hang.json").write_text(json.dumps(hang))
    told = write_report(folder)
    assert re.search(r"rank 2 never came to broadcast 64 KB .* and it stood at train\.py:120\n", told)
    (folder / "hang.json").write_text("{")
    assert "never came" not in write_report(folder)


def test_nothing_is_written_where_there_is_nothing(tmp_path):
    (tmp_path / "other.jsonl").write_text('{"format": "kernel-pytorch trace", "version": 1}\n')
    message = r"has a process group; other\.jsonl has no records of a rank: its format is"
    with pytest.raises(ValueError, match=message):
        write_report(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["other.jsonl"]
    with pytest.raises(FileNotFoundError):
        write_report(tmp_path / "nowhere")


def test_where_few_steps_tell_nothing_more_are_asked_for():
    few = report(join(made_up_run(*LINES, late_ms={2: 50.0}, steps=6)))
    assert (few.findings, few.notes) == (
        (),
        ("5 steps are too few to tell whom the ranks wait for: record 20 or more",),
    )
    assert report(join(made_up_run(*LINES, late_ms={2: 50.0}, steps=25))).notes == ()
    assert report(join(made_up_run(*LINES, steps=6, noise=0.01))).notes == ()


def test_a_run_without_steps_or_calls():
    assert report(join(made_up_run(marked=False))).steps is None
    nothing = report(join([made_up_run(steps=0)[0]]))
    assert (nothing.operations, nothing.findings) == ((), ())


class Page(HTMLParser):
    """Text, titles, and everything that may refer to something else."""

    def __init__(self) -> None:
        super().__init__()
        self.references, self.text, self.classes, self.open = [], [], [], []

    def handle_starttag(self, tag, attributes):
        assert tag not in ("script", "iframe", "object", "embed", "img"), tag
        self.references += [
            v for k, v in attributes if k in ("src", "href", "srcset", "xlink:href", "action")
        ]
        self.classes += [value for key, value in attributes if key == "class"]
        if tag not in ("meta", "link", "rect", "line", "circle", "polyline") or tag == "rect":
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag == "rect":
            self.open.pop()

    def handle_endtag(self, tag):
        if tag != "circle":
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_refers_to_nothing_outside(folder):
    write_report(folder, LINKS)
    content = (folder / "report.html").read_text()
    page = Page()
    page.feed(content)
    assert page.open == []
    assert page.references == ["data:,"]
    assert not re.search(r"https?:|//|@import|url\(", content)


def test_the_page_shows_what_it_should(folder):
    told = write_report(folder, LINKS).splitlines()
    page = Page()
    page.feed((folder / "report.html").read_text())
    text = "\n".join(page.text)
    for line in told[:3]:
        assert line in text
    shown = [kind for kind in page.classes if kind in ("moving", "waiting", "call")]
    # One step: three ranks wait for rank 2, whose own bar only moves; a broadcast has durations only.
    assert (shown.count("moving"), shown.count("call")) == (4, 4)
    assert shown.count("waiting") == 4  # of rank 2 a bar without a width
    assert "rank 2: all_reduce 25 MB (train.py:88) of step" in text
    assert "all_reduce, 4 ranks\n25 MB:" in text
    assert "ranks (2,) to ranks (3,): 0.02 Gbit/s" in text
    assert "ranks (0,) to ranks (2,): not measured" in text


def test_what_records_say_is_escaped(tmp_path):
    run = made_up_run(Line(site="<script>.py:1"), late_ms={1: 90.0})
    for rank in run:
        rank.header.host = "<img src=x>"
    folder = saved_run(tmp_path, run)
    write_report(folder)
    Page().feed((folder / "report.html").read_text())


def test_the_chrome_trace(folder):
    run = made_up_run(*LINES, late_ms={2: 55.0}, noise=0)
    found = trace(run := join(run), offsets(run))
    found = json.loads(json.dumps(found))  # plain JSON
    events = found["traceEvents"]
    names = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    assert names == {rank: f"rank {rank} (a)" for rank in range(4)}
    spans = [e for e in events if e["ph"] == "X"]
    assert all(e["dur"] >= 0 and e["ts"] >= -1e-6 for e in spans)
    assert len([e for e in spans if e["cat"] == "step" and e["pid"] == 1]) == 30
    for rank, ms in {0: 55, 1: 55, 2: 0, 3: 55}.items():
        waited = [e["dur"] for e in spans if e["cat"] == "waiting" and e["pid"] == rank]
        assert sum(waited) == pytest.approx(30 * 1e3 * ms, abs=1)
        assert sum(e["dur"] for e in spans if e["cat"] == "moving" and e["pid"] == rank) == pytest.approx(
            30 * 8050, rel=1e-6
        )
    for rank in range(4):  # spans of a thread are nested or apart
        threads = {e["tid"] for e in spans if e["pid"] == rank}
        for thread in threads:
            own = sorted((e["ts"], -e["dur"]) for e in spans if (e["pid"], e["tid"]) == (rank, thread))
            ends: list[float] = []
            for begin, length in own:
                while ends and ends[-1] <= begin + 1e-3:
                    ends.pop()
                assert not ends or begin - length <= ends[-1] + 1e-3
                ends.append(begin - length)
    assert found["otherData"]["clock_error_s"]["rank 0"] == 0


def test_calls_that_overlap_are_on_lanes_of_their_own():
    run = made_up_run(Line(times=2, compute_ms=0), steps=1)
    for rank in run:
        first, second = calls_of(rank)
        second.posted, second.done = first.posted + 1e-4, None
    joined = join(run)
    spans = [e for e in trace(joined, offsets(joined))["traceEvents"] if e["ph"] == "X" and e["pid"] == 0]
    tids = {e["tid"] for e in spans if e["cat"] == "all_reduce"}
    assert len(tids) == 2
    assert any(e["name"] == "all_reduce 25 MB (not done)" for e in spans)


def test_clocks_that_drift():
    offset = combined([(0.0, 1.0), (2.0, 2.5)])
    assert (offset.seconds, offset.error_s) == (2.25, 0.25)


@given(clocks=st.lists(st.floats(-1e5, 1e5), min_size=2, max_size=5), seed=st.integers(0, 99))
def test_collectives_tell_how_far_clocks_are_apart(clocks, seed):
    run = made_up_run(ranks=len(clocks), steps=5, clocks=clocks, seed=seed)
    for rank, offset in offsets(join(run)).items():
        assert abs(offset.seconds - (clocks[rank] - clocks[0])) <= offset.error_s + 1e-9
        assert offset.error_s < 0.05


def test_clocks_of_ranks_that_meet_only_through_others():
    clocks = [0.0, 7.0, -3.0, 100.0]
    run = made_up_run(groups={"a": (0, 1), "b": (1, 2)}, clocks=clocks)
    found = offsets(join(run))
    assert abs(found[2].seconds - -3) <= found[2].error_s < 0.1
    assert found[3].error_s is None
    assert found[3].seconds == 100.0  # by the clocks of the hosts


def test_baseline():
    random = np.random.default_rng(0)

    def figures(**factors):
        return {name: median(factor * random.lognormal(0, 0.05, 40)) for name, factor in factors.items()}

    now = figures(same=1, slow=1.5, fast=0.5, slight=1.05, new=1)
    found = compare(now, figures(same=1, slow=1, fast=1, slight=1, old=1))
    assert {each.operation: each.change for each in found} == {
        "slow": "regression",
        "fast": "improvement",
        "same": "none",
        "slight": "none",
        "new": "new",
        "old": "gone",
    }
    assert found[0].operation == "slow"


def test_a_regression_within_the_noise_is_none():
    wide = Figure(value=1.3, low=1.0, high=1.6, samples=5)
    (found,) = compare({"x": wide}, {"x": Figure(value=1.0, low=0.99, high=1.01, samples=50)})
    assert found.change == "none"
    assert found.ratio.low == pytest.approx(1.3 * math.exp(-math.hypot(math.log(1.3), math.log(1.01))))


def test_the_interval_of_a_ratio_covers_the_true_one_19_times_in_20():
    random = np.random.default_rng(1)
    covered = []
    for _ in range(300):
        now, before = (median(random.lognormal(0, 0.3, 31)) for _ in range(2))
        (found,) = compare({"x": now}, {"x": before})
        covered.append(found.ratio.low <= 1 <= found.ratio.high)
    assert 0.9 < np.mean(covered) < 0.99


def test_runs_are_compared_by_operation_and_size():
    def stats(moving_ms):
        return operation_stats(join(made_up_run(Line(moving_ms=moving_ms), LINES[1])).collectives)

    found = {each.operation: each.change for each in compare_with_baseline(stats(12), stats(8))}
    assert found == {"all_reduce 25 MB of 4": "regression", "broadcast 64 KB of 4": "none"}
