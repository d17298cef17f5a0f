"""The inherited calls, without a process group."""

from __future__ import annotations

import json
import time

import msgspec
import pytest

from kernel_pytorch.distributed_scale import CommunicationProfiler, create_communication_profiler
from kernel_pytorch.links.facts import Figure, HostLink, MeasuredLinks, RankPair
from kernel_pytorch.links.profile.join import join
from kernel_pytorch.links.profile.record import CallRecord, GroupRecord, Header, RankRecords, StepRecord


@pytest.fixture
def profiler():
    profiler = create_communication_profiler()
    assert type(profiler) is CommunicationProfiler
    return profiler


def some(profiler, count=12, operation="allreduce"):
    for _ in range(count):
        with profiler.profile_operation(operation, participants=[0, 1, 2, 3]):
            time.sleep(0.001)


def test_an_operation_is_timed(profiler):
    with profiler.profile_operation("allreduce", [0, 1]):
        time.sleep(0.01)
    (entry,) = profiler.operation_history
    assert entry["type"] == "allreduce"
    assert entry["participants"] == [0, 1]
    assert entry["duration_ms"] >= 10
    assert entry["bytes"] is None
    assert (entry["failed"], entry["error"]) == (False, None)
    assert isinstance(entry["memory_delta_mb"], float)
    assert profiler.identify_bottlenecks() == []
    assert profiler.get_optimization_recommendations() == []


def test_a_failed_operation_is_recorded_as_failed(profiler):
    with pytest.raises(ZeroDivisionError), profiler.profile_operation("allreduce", [0], nbytes=8):
        _ = 1 / 0
    (entry,) = profiler.operation_history
    assert (entry["failed"], entry["error"], entry["bytes"]) == (
        True,
        "ZeroDivisionError: division by zero",
        8,
    )
    stats = profiler.generate_performance_report()["performance_stats"]["allreduce"]
    assert (stats["count"], stats["failed"], stats["avg_duration_ms"]) == (0, 1, None)


def test_patterns_and_memory(profiler):
    assert profiler.analyze_communication_patterns() == {"error": "No operation history available"}
    assert profiler.get_memory_profile() == {"error": "No operation history available"}
    some(profiler)
    some(profiler, 3, "broadcast")
    found = profiler.analyze_communication_patterns()
    assert found["operation_patterns"] == {
        "most_common_type": "allreduce",
        "type_distribution": {"allreduce": 12, "broadcast": 3},
    }
    assert found["participant_analysis"]["total_unique_participants"] == 4
    assert found["participant_analysis"]["most_active_participants"][0] == (0, 15)
    assert found["time_analysis"]["avg_duration_ms"] >= 1
    assert found["temporal_patterns"]["total_windows"] == 1
    memory = profiler.get_memory_profile()
    assert memory["total_operations"] == 15
    assert set(memory) == {"total_operations", "memory_statistics", "memory_efficiency", "memory_trend"}


@pytest.mark.parametrize(
    ("durations", "trend"),
    [
        ([1] * 8, "stable"),
        ([1, 1.1, 1, 5, 5.1, 5], "increasing"),
        ([3, 3, 1, 1], "decreasing"),
        ([1], "insufficient_data"),
    ],
)
def test_trends(profiler, durations, trend):
    for duration in durations:
        some(profiler, 1)
        profiler.operation_history[-1]["duration_ms"] = duration
    assert profiler.analyze_communication_patterns()["time_analysis"]["duration_trend"] == trend


def test_clearing_the_history(profiler):
    some(profiler, 2)
    profiler.operation_history[0]["timestamp"] -= 2 * 3600
    profiler.clear_history()
    assert len(profiler.operation_history) == 1
    profiler.clear_history(keep_recent_hours=0)
    assert profiler.operation_history == []


def test_the_report_and_its_file(profiler, tmp_path):
    some(profiler)
    report = profiler.generate_performance_report()
    assert report["total_operations"] == 12
    assert report["operation_breakdown"] == {"allreduce": 12}
    stats = report["performance_stats"]["allreduce"]
    times = [stats[f"{name}_ms"] for name in ("min_duration", "median", "p95_duration", "max_duration")]
    assert times == sorted(times)
    assert report["bottlenecks"] == report["recommendations"] == []
    assert report["profile"] is None
    path = tmp_path / "profile.json"
    assert profiler.export_detailed_profile(str(path), include_history=True)
    content = json.loads(path.read_text())
    assert len(content["operation_history"]) == content["metadata"]["total_operations"] == 12
    assert content["performance_report"]["performance_stats"]["allreduce"] == stats
    assert [each.name for each in tmp_path.iterdir()] == ["profile.json"]
    assert profiler.export_detailed_profile(path)
    assert "operation_history" not in json.loads(path.read_text())
    with pytest.raises(FileNotFoundError):
        profiler.export_detailed_profile(tmp_path / "nowhere" / "profile.json")


def test_a_baseline(profiler):
    some(profiler)
    some(profiler, 6, "broadcast")
    stats = json.loads(json.dumps(profiler.generate_performance_report()["performance_stats"]))
    assert profiler.compare_with_baseline({})["overall_performance_change"] == "unknown"
    found = profiler.compare_with_baseline(stats)
    assert {each["operation_type"]: each["status"] for each in found["operations_compared"]} == {
        "allreduce": "stable",
        "broadcast": "stable",
    }
    assert found["overall_performance_change"] == "stable"
    mixed = {**stats, "allreduce": {"avg_duration_ms": 0.1}}  # one that degraded decides
    assert profiler.compare_with_baseline(mixed)["overall_performance_change"] == "degraded"
    # As an older version left it: a mean without an interval.
    older = {
        "allreduce": {"avg_duration_ms": 0.1, "count": 9},
        "reduce": {"avg_duration_ms": 1.0, "count": 9},
    }
    found = profiler.compare_with_baseline(older)
    assert {each["operation_type"]: each["status"] for each in found["operations_compared"]} == {
        "allreduce": "degraded",
        "broadcast": "new_operation",
        "reduce": "removed_operation",
    }
    assert found["overall_performance_change"] == "degraded"


def test_without_a_group_it_says_what_to_call(profiler):
    profiler.step()
    with pytest.raises(RuntimeError, match="nothing is recorded: wrap a process group first"):
        profiler.collect()


def collected(profiler, steps=20, late_s=0.05):
    """As :meth:`collect` would, of two ranks of which one is late."""
    ranks = []
    for rank in range(2):
        header = Header(
            rank=rank, world_size=2, host="ab"[rank], boot_id="ab"[rank], network_namespace="n", pid=1,
            started_at=0.0, started=0.0,
        )  # fmt: skip
        records = [GroupRecord(name="all", ranks=[0, 1], backend="gloo")]
        for step in range(steps):
            begin, done = step * 0.2, step * 0.2 + 0.19
            records.append(StepRecord(step=step + 1, at=begin))
            posted = begin + 0.1 + late_s * rank
            records.append(
                CallRecord(
                    id=step, group="all", number=step, operation="all_reduce", reduce="sum", shape=[1 << 18],
                    dtype="float32", nbytes=1 << 20, step=step + 1, site="train.py:7", posted=posted,
                    done=done, waited=done - posted,
                )
            )  # fmt: skip
        ranks.append(RankRecords(header=header, records=records))
    profiler._run = join(ranks)


def test_collected_ranks(profiler, tmp_path):
    collected(profiler)
    (finding,) = profiler.identify_bottlenecks()
    assert finding.text == "rank 1 comes 50 ms late to all_reduce 1 MB (train.py:7): 50 ms of each step"
    assert profiler.get_optimization_recommendations() == []
    found = profiler.analyze_communication_patterns()
    assert found["collectives"][0]["operation"] == "all_reduce"
    assert found["steps"]["steps"] == 19
    profiler.export_detailed_profile(tmp_path / "p.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.html", "p.json", "p.trace.json"]
    report = json.loads((tmp_path / "p.json").read_text())["performance_report"]
    assert report["performance_stats"]["all_reduce 1 MB of 2"]["count"] == 20
    assert report["bottlenecks"][0]["evidence"]["kind"] == "late_rank"
    assert report["profile"]["findings"] == report["bottlenecks"]
    profiler.clear_history(0)
    assert profiler.identify_bottlenecks() == []


def test_measured_links_are_used_as_soon_as_they_are_set(profiler):
    collected(profiler, late_s=0)
    assert profiler.identify_bottlenecks() == []
    rates = {(0, 1): 0.01, (1, 0): 0.2}
    profiler.links = MeasuredLinks(
        hosts=((0,), (1,)),
        basis="measured",
        links=tuple(HostLink(source=a, target=b, gbit_s=figure(rate)) for (a, b), rate in rates.items()),
        pairs=(RankPair(a=0, b=1, round_trip_us=figure(100.0)),),
    )
    assert [each.kind for each in profiler.identify_bottlenecks()] == ["slow_link"]


def figure(value):
    return Figure(value=value, low=value, high=value, samples=9)


def test_runs_are_compared(profiler):
    collected(profiler)
    stats = profiler.generate_performance_report()["performance_stats"]
    collected(profiler, late_s=0.02)
    found = profiler.compare_with_baseline(msgspec.json.decode(msgspec.json.encode(stats)))
    assert [each["status"] for each in found["operations_compared"]] == ["degraded"]
