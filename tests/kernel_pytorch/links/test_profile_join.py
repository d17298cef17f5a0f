"""Matching the records of all ranks, against jobs whose times are known."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up_runs import ALL, Line, calls_of, changed, made_up_run, saved_run

from kernel_pytorch.links.profile.join import bus_factor, join, named
from kernel_pytorch.links.profile.read import read_folder, read_rank
from kernel_pytorch.links.profile.record import CallRecord, EndRecord, RankRecords
from kernel_pytorch.links.profile.statistics import median, operation_stats, step_stats


@given(
    late=st.lists(st.floats(0, 100), min_size=2, max_size=5), moving=st.floats(1, 50), seed=st.integers(0, 99)
)
def test_moving_and_waiting(late, moving, seed):
    """The last rank waits for nobody, the others by how much they came earlier, whatever the clocks show."""
    run = made_up_run(
        Line(compute_ms=0, moving_ms=moving),
        ranks=len(late),
        steps=3,
        late_ms=dict(enumerate(late)),
        noise=0,
        seed=seed,
    )
    for each in join(run).collectives:
        assert each.complete
        # 0.05 ms of each rank's own, which it takes to leave.
        assert each.moving_s == pytest.approx(1e-3 * (moving + 0.05), abs=1e-6)
        waiting = [1e3 * each.waiting_s(rank) for rank in range(len(late))]
        assert waiting == pytest.approx(max(late) - np.array(late), abs=1e-3)


def test_a_call_counts_from_the_end_of_the_one_before():
    """Of two calls posted at once, the second one is not late for the time that the first one took."""
    run = made_up_run(Line(times=2, compute_ms=0, moving_ms=10), steps=1, late_ms={2: 50.0}, noise=0)
    for rank in run:
        first, second = calls_of(rank)
        second.posted = first.posted  # posted behind it at once, as DDP posts its buckets
    first, second = join(run).collectives
    assert [round(1e3 * first.waiting_s(rank)) for rank in range(4)] == [50, 50, 0, 50]
    assert [round(1e3 * second.waiting_s(rank)) for rank in range(4)] == [0, 0, 0, 0]
    assert 1e3 * second.moving_s == pytest.approx(10, abs=0.1)


def test_a_small_call_that_overtakes_counts_from_its_own_beginning():
    run = made_up_run(Line(times=2, compute_ms=0, moving_ms=10), steps=1, noise=0)
    for rank in run:
        first, second = calls_of(rank)
        second.posted, second.done = first.posted + 1e-3, first.done - 2e-3
    _, second = join(run).collectives
    assert 1e3 * second.moving_s == pytest.approx(7.05, abs=0.01)


@pytest.mark.parametrize(
    ("operation", "factor"),
    [
        ("all_reduce", 1.5),
        ("all_gather", 0.75),
        ("reduce_scatter", 0.75),
        ("all_to_all", 0.75),
        ("broadcast", 1),
    ],
)
def test_bandwidths(operation, factor):
    """algbw = bytes / time; busbw = algbw * factor, of 4 ranks: nccl-tests, PERFORMANCE."""
    line = Line(operation=operation, nbytes=10_000_000, moving_ms=10)
    for each in join(made_up_run(line, steps=2, noise=0)).collectives:
        assert bus_factor(operation, 4) == factor
        assert each.algbw == pytest.approx(10_000_000 / each.seconds)
        assert each.busbw == pytest.approx(each.algbw * factor)


def test_operations_that_do_not_wait_for_all_have_durations_only():
    run = join(made_up_run(Line(operation="broadcast", moving_ms=10), steps=2, noise=0, late_ms={1: 30.0}))
    each = run.collectives[0]
    assert each.moving_s is None
    assert each.waiting_s(0) is None
    assert 1e3 * each.seconds == pytest.approx(40.05, abs=0.01)  # the longest call


def test_figures_of_operations_and_steps():
    lines = Line(compute_ms=20, moving_ms=8), Line(site="b.py:1", nbytes=1 << 10, compute_ms=10, moving_ms=2)
    run = join(made_up_run(*lines, noise=0, late_ms={2: 55.0}))
    stats = operation_stats(run.collectives)
    assert [(s.operation, s.nbytes, s.calls, s.failed) for s in stats] == [
        ("all_reduce", 25 << 20, 30, 0),
        ("all_reduce", 1 << 10, 30, 0),
    ]
    assert stats[0].ms.value == pytest.approx(8.05, abs=0.01)
    assert stats[0].busbw_mb_s == pytest.approx(1.5 * (25 << 20) / 8.05e-3 / 1e6, rel=1e-3)
    assert stats[0].waiting_ms.value == pytest.approx(55 * 3 / 4, abs=0.01)
    steps = step_stats(run)
    assert steps.steps == 29  # the end of the last one is not known
    assert steps.ms.value == pytest.approx(20 + 8 + 55 + 10 + 2 + 0.1, abs=0.05)
    assert steps.waiting_ms.value == pytest.approx(55 * 3 / 4, abs=0.01)
    assert steps.collectives_ms.value == pytest.approx(10.1 + 55 * 3 / 4, abs=0.01)
    assert steps.hidden_share == pytest.approx(0, abs=1e-6)


def test_what_the_caller_did_not_stand_in_wait_is_hidden():
    run = made_up_run(Line(moving_ms=10), noise=0)
    for rank in run:
        for call in calls_of(rank):
            call.waited = 0.25 * (call.done - call.posted)
    assert step_stats(join(run)).hidden_share == pytest.approx(0.75)
    (stats,) = operation_stats(join(run).collectives)
    assert stats.hidden_share == pytest.approx(0.75)


@given(st.lists(st.floats(0.1, 1e3), min_size=1, max_size=40))
def test_the_interval_holds_the_median(values):
    figure = median(values)
    assert figure.low <= figure.value <= figure.high
    assert figure.value == pytest.approx(float(np.median(values)))
    assert min(values) <= figure.low
    assert figure.high <= max(values)
    assert figure.samples == len(values)


def test_the_interval_covers_the_true_median_19_times_in_20():
    random = np.random.default_rng(0)
    figures = [median(random.lognormal(0, 0.5, 41)) for _ in range(300)]
    assert 0.9 < np.mean([f.low <= 1 <= f.high for f in figures]) < 0.99


def test_sends_and_receives_have_numbers_of_their_own():
    run = made_up_run(steps=2)
    for rank in run:
        rank.records.insert(1, message(rank, "send", 0))
        rank.records.insert(3, message(rank, "recv", 0))
    found = join(run)
    assert [each.complete for each in found.collectives] == [True, True]
    assert [call.operation for call in found.point_to_point[1]] == ["send", "recv"]
    assert not found.notes


def message(rank: RankRecords, operation: str, number: int) -> CallRecord:
    call = calls_of(rank)[0]
    changes = {"operation": operation, "number": number, "peer": 1 - rank.header.rank % 2}
    return msgspec.structs.replace(call, **changes)


def test_files_are_read_as_they_were_saved_run(tmp_path):
    run = made_up_run(steps=3)
    saved_run(tmp_path, run)
    (tmp_path / "flight-0.json").write_text("{}")
    assert read_folder(tmp_path) == (run, [])
    assert read_rank(tmp_path / "rank-1.jsonl") == run[1]


def test_damage_is_told_and_the_rest_is_read(tmp_path):
    run = made_up_run(steps=3)
    saved_run(tmp_path, run)
    damaged = tmp_path / "rank-1.jsonl"
    lines = damaged.read_bytes().splitlines(keepends=True)
    lines[4] = b'{"type":"over","id":\xff\n'  # the end of the first call
    damaged.write_bytes(b"".join(lines)[:-9])  # and it was killed in its last line
    (tmp_path / "rank-2.jsonl").write_bytes(b"\x00\x00")
    (tmp_path / "rank-3.jsonl").unlink()
    ranks, notes = read_folder(tmp_path)
    found = join(ranks, notes)
    assert sorted(found.headers) == [0, 1]
    assert [each.complete for each in found.collectives] == [False] * 3
    assert found.collectives[0].calls[1].done is None
    assert found.collectives[1].calls[1].done is not None
    assert found.ends[1] is None
    assert isinstance(found.ends[0], EndRecord)
    told = "\n".join(found.notes)
    assert "rank-1.jsonl: lines 5, 12 cannot be read" in told
    assert "rank-2.jsonl has no records of a rank" in told
    assert "no records of ranks 2 and 3" in told


@given(st.data())
def test_no_damage_raises(tmp_path_factory, data):
    """A file that is cut off, or in which bytes are something else, is read as far as it goes."""
    folder = tmp_path_factory.mktemp("run")
    saved_run(folder, made_up_run(steps=2, ranks=2))
    path = folder / "rank-1.jsonl"
    content = bytearray(path.read_bytes())
    for at, byte in data.draw(
        st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), max_size=4)
    ):
        content[at] = byte
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    found = join(*read_folder(folder))
    assert 0 in found.headers
    operation_stats(found.collectives)
    step_stats(found)


def test_the_last_start_of_a_rank_counts(tmp_path):
    before, after = made_up_run(steps=5), made_up_run(steps=2)
    saved_run(tmp_path, before)
    for rank in after:
        rank.header.restart = 1
    saved_run(tmp_path, after)
    ranks, notes = read_folder(tmp_path)
    assert ranks == after
    assert notes == ["the ranks were started again 1 time: only the last start is read"]
    (tmp_path / "rank-3.restart-1.jsonl").unlink()  # what rank 3 did before says nothing of the last start
    assert read_folder(tmp_path)[0] == after[:3]


def test_unequal_numbers_of_calls_are_told():
    run = made_up_run(steps=4)
    short = changed(run, 1, lambda calls: None)
    short[1].records = [r for r in short[1].records if not isinstance(r, CallRecord) or r.number < 3]
    found = join(short)
    assert found.counts[ALL] == {0: 4, 1: 3, 2: 4, 3: 4}
    assert found.notes == (
        "group 'all': the ranks have unequal numbers of calls (rank 0: 4, rank 1: 3, rank 2: 4, rank 3: 4)",
    )


def test_nothing_is_joined_to_nothing():
    found = join([])
    assert (found.world_size, found.collectives, found.notes) == (0, (), ())
    assert step_stats(found) is None
    assert operation_stats(found.collectives) == ()


@pytest.mark.parametrize(
    ("nbytes", "text"), [(None, "barrier"), (0, "barrier"), (12, "barrier 12 B"), (65536, "barrier 64 KB")]
)
def test_names(nbytes, text):
    assert named("barrier", nbytes) == text
