from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from faulty_traces import findings, make_day
from hypothesis import given
from hypothesis import strategies as st
from topologies import dgx_h100, eight_pcie, mig

from kernel_pytorch.machine.facts import ClusterTopology
from kernel_pytorch.machine.readings import DeviceReading, DiskReading, HostReading, NicReading, Snapshot
from kernel_pytorch.watch.telemetry import EndOfTrace, Telemetry
from kernel_pytorch.watch.trace import ReplaySource, TraceWriter, read_trace

NUMBERS = st.none() | st.floats(0, 1e12)
COUNTS = st.none() | st.integers(0, 1 << 62).filter(lambda count: count != (1 << 32) - 1)
READINGS = st.builds(
    DeviceReading,
    temperature_c=st.none() | st.floats(0, 150),
    utilization=st.none() | st.floats(0, 1),
    energy_j=NUMBERS,
    ecc_corrected=COUNTS,
    remap_failed=st.none() | st.booleans(),
    throttle_reasons=st.none() | st.lists(st.sampled_from(["hw_thermal", "power_cap"])).map(tuple),
    xids=st.lists(st.integers(1, 200), max_size=3).map(tuple),
)
SPACE = st.integers(0, 1 << 50)
NAMES = st.text(min_size=1, max_size=5)
HOSTS = st.builds(
    HostReading,
    memory_stall_s=NUMBERS,
    oom_kills=COUNTS,
    nics=st.dictionaries(
        NAMES, st.builds(NicReading, carrier=st.none() | st.booleans(), errors=COUNTS), max_size=2
    ),
    disks=st.dictionaries(NAMES, st.builds(DiskReading, total_bytes=SPACE, free_bytes=SPACE), max_size=2),
)
SNAPSHOTS = st.builds(
    Snapshot,
    time_s=st.floats(0, 4e9),
    devices=st.dictionaries(st.integers(0, 10**6), READINGS, max_size=3),
    host=st.none() | HOSTS,
)
EMPTY = ClusterTopology(nodes={})


def record(path: Path, snapshots: list[Snapshot], topology: ClusterTopology = EMPTY) -> Path:
    with TraceWriter(path, topology) as writer:
        for snapshot in snapshots:
            writer.write(snapshot)
    return path


def some(count: int) -> list[Snapshot]:
    return [
        Snapshot(time_s=float(time_s), devices={0: DeviceReading(power_w=100.0 + time_s)})
        for time_s in range(count)
    ]


@given(snapshots=st.lists(SNAPSHOTS, max_size=5))
def test_what_was_written_is_read(snapshots: list[Snapshot], tmp_path_factory: pytest.TempPathFactory):
    path = record(tmp_path_factory.mktemp("trace") / "trace.jsonl", snapshots)
    trace = read_trace(path)
    assert list(trace) == snapshots
    assert list(trace) == snapshots  # again from the start
    assert not trace.truncated
    lines = path.read_bytes().splitlines()
    assert [msgspec.json.decode(line)["time_s"] for line in lines[1:]] == [s.time_s for s in snapshots]


@pytest.mark.parametrize(
    "topology", [dgx_h100(), eight_pcie(), mig(), EMPTY], ids=["dgx", "pcie", "mig", "empty"]
)
def test_topology_is_read_as_it_was(topology: ClusterTopology, tmp_path: Path):
    assert read_trace(record(tmp_path / "t.jsonl", [], topology)).topology == topology


def test_the_topology_of_one_node(tmp_path: Path):
    node = dgx_h100().nodes[0]
    with TraceWriter(tmp_path / "t.jsonl", node):
        pass
    assert read_trace(tmp_path / "t.jsonl").topology.nodes == {0: node}


def test_each_line_is_on_disk_before_the_next(tmp_path: Path):
    with TraceWriter(tmp_path / "t.jsonl", EMPTY) as writer:
        for count, snapshot in enumerate(some(3), 1):
            writer.write(snapshot)
            assert len(list(read_trace(tmp_path / "t.jsonl"))) == count


@given(cut=st.integers(0, 10**6))
def test_a_recording_cut_anywhere_is_read_to_its_last_whole_line(
    cut: int, tmp_path_factory: pytest.TempPathFactory
):
    path = record(tmp_path_factory.mktemp("trace") / "t.jsonl", some(4))
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    left = first + cut % (len(whole) + 1 - first)
    path.write_bytes(whole[:left])
    trace = read_trace(path)
    assert list(trace) == some(whole[first:left].count(b"\n"))
    assert trace.truncated == (whole[left - 1 : left] != b"\n")


def test_replay_is_a_source_of_telemetry(tmp_path: Path):
    path = record(tmp_path / "t.jsonl", some(3))
    telemetry = Telemetry(ReplaySource(path), [0])
    assert [telemetry.sample() for _ in range(3)] == some(3)
    for _ in range(2):
        with pytest.raises(EndOfTrace, match=r"end of .*t\.jsonl$"):
            telemetry.sample()
    assert telemetry.history.series("power_w").tolist() == [[100], [101], [102]]


def test_replay_tells_where_the_recording_was_cut_off(tmp_path: Path):
    path = record(tmp_path / "t.jsonl", some(2))
    path.write_bytes(path.read_bytes()[:-5])
    source = ReplaySource(path)
    assert source.read() == some(1)[0]
    with pytest.raises(EndOfTrace, match="whose last line is cut off"):
        source.read()


HEADER = msgspec.json.encode({"format": "kernel-pytorch trace", "version": 1, "topology": {"nodes": {}}})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a trace: its first line is no header"),
        (b"time,temperature\n1,2\n", "is not a trace: its first line is no header"),
        (b"\x89PNG\r\n\x1a\n", "is not a trace: its first line is no header"),
        (HEADER[: len(HEADER) // 2], "is not a trace: its first line is no header"),
        (b'{"format": "other", "version": 1}\n', "is not a trace: its format is 'other'"),
        (HEADER.replace(b":1", b":2") + b"\n", "is a trace of version 2; only 1 is read"),
        (HEADER.replace(b'{"nodes":{}}', b"7") + b"\n", "line 1 is damaged: .*topology"),
    ],
    ids=["empty", "csv", "png", "half", "format", "version", "topology"],
)
def test_no_trace(content: bytes, message: str, tmp_path: Path):
    path = tmp_path / "t.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_trace(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "damage", [b"{", b"", b"\xff\xfe", b'{"time_s":"noon","devices":{}}', b'{"time_s":1}']
)
def test_a_damaged_line(damage: bytes, tmp_path: Path):
    path = record(tmp_path / "t.jsonl", some(3))
    lines = path.read_bytes().splitlines()
    lines[2] = damage
    path.write_bytes(b"\n".join(lines) + b"\n")
    reader = iter(read_trace(path))
    assert next(reader) == some(1)[0]
    with pytest.raises(ValueError, match=r"t\.jsonl: line 3 is damaged: [^\n]+$"):
        next(reader)


@pytest.mark.parametrize("end", [b"\n", b"\n\n", b"\r\n", b" \n", b"  "], ids=repr)
def test_empty_lines_at_the_end_are_read(end: bytes, tmp_path: Path):
    path = record(tmp_path / "t.jsonl", some(3))
    path.write_bytes(path.read_bytes() + end)
    trace = read_trace(path)
    assert (list(trace), trace.truncated) == (some(3), False)


def test_lines_that_end_as_on_windows(tmp_path: Path):
    path = record(tmp_path / "t.jsonl", some(3))
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert list(read_trace(path)) == some(3)


@pytest.mark.parametrize("lost", [b"", b"\r", b"  "], ids=repr)
def test_an_empty_line_between_others_is_damage(lost: bytes, tmp_path: Path):
    """A snapshot was there, or two files were joined."""
    path = record(tmp_path / "t.jsonl", some(2))
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([*lines[:2], lost, lost, lines[2], b"", b""]))
    reader = iter(read_trace(path))
    assert next(reader) == some(1)[0]
    with pytest.raises(ValueError, match=r"t\.jsonl: line 3 is damaged: it is empty$"):
        next(reader)


def test_no_file(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        read_trace(tmp_path / "none")


def test_a_replay_gives_the_same_verdicts_as_the_readings(tmp_path: Path):
    day, injected = make_day(np.random.default_rng(3), ("ECC storm", "lost NIC"))
    snapshots = list(day.snapshots())
    path = record(tmp_path / "t.jsonl", snapshots)
    assert list(read_trace(path)) == snapshots
    assert injected.keys() == findings(read_trace(path)).keys()


def test_impossible_values_are_unknown_and_noted_once(tmp_path: Path):
    topology = eight_pcie()
    garbage = {
        0: DeviceReading(power_w=4294967.295, temperature_c=40.0),
        9: DeviceReading(temperature_c=255.0),
    }
    snapshots = [Snapshot(time_s=float(time_s), devices=garbage) for time_s in range(3)]
    trace = read_trace(record(tmp_path / "t.jsonl", snapshots, topology))
    assert trace.missing == ()
    right = {0: DeviceReading(temperature_c=40.0), 9: DeviceReading()}
    assert [snapshot.devices for snapshot in trace] == [right] * 3
    assert [(note.what, note.why) for note in trace.missing] == [
        ("gpu:0: power_w", "4294967.295 is not a possible value"),
        ("device 9: temperature_c", "255.0 is not a possible value"),
    ]
    replayed = ReplaySource(tmp_path / "t.jsonl")
    assert replayed.read().devices == right


def test_text_for_a_number_is_unknown_and_nothing_else_is_lost(tmp_path: Path):
    path = record(tmp_path / "t.jsonl", [Snapshot(time_s=1.0, devices={})])
    line = {
        "time_s": 2.0,
        "devices": {"0": {"power_w": "N/A", "utilization": 0.5, "throttle_reasons": ["power_cap"], "new": 1}},
        "host": {"oom_kills": 3},
    }
    path.write_bytes(path.read_bytes() + msgspec.json.encode(line) + b"\n")
    trace = read_trace(path)
    assert list(trace)[1] == Snapshot(
        time_s=2.0,
        devices={0: DeviceReading(utilization=0.5, throttle_reasons=("power_cap",))},
        host=HostReading(oom_kills=3),
    )
    assert [note.what for note in trace.missing] == ["device 0: power_w"]


def test_impossible_facts_of_a_recorded_machine(tmp_path: Path):
    node = eight_pcie().nodes[0]
    devices = (replace(node.devices[0], memory_bytes=(1 << 64) - 1), *node.devices[1:])
    trace = read_trace(
        record(tmp_path / "t.jsonl", [], ClusterTopology(nodes={0: replace(node, devices=devices)}))
    )
    assert next(iter(trace.topology.devices)) == replace(node.devices[0], memory_bytes=None)
    assert [note.what for note in trace.missing] == ["gpu:0: memory_bytes"]
