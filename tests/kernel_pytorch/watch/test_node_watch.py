"""One watch for all who ask: questions while the thread samples, while others sample, after a stop."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import topologies

from kernel_pytorch.machine.readings import DeviceReading, Snapshot
from kernel_pytorch.watch.health import HealthState
from kernel_pytorch.watch.node_watch import NodeWatch
from kernel_pytorch.watch.telemetry import EndOfTrace

SOON_S = 30.0
FINE = DeviceReading(temperature_c=50.0, remap_failed=False)
BROKEN = DeviceReading(temperature_c=50.0, remap_failed=True)


class Steps:
    """A source with a reading of two GPUs each second; ``before`` is called with the number of each read."""

    def __init__(self, *readings: DeviceReading, before: Callable[[int], None] = lambda number: None) -> None:
        self._readings, self._before, self.reads = readings or (FINE,) * 1000, before, 0

    def read(self) -> Snapshot:
        number, self.reads = self.reads, self.reads + 1
        self._before(number)
        if number >= len(self._readings):
            raise EndOfTrace
        return Snapshot(time_s=float(number), devices={0: self._readings[number], 1: FINE})


class Gate:
    """Holds the reads of other threads than the test's until the test's thread asks for a lock."""

    def __init__(self) -> None:
        self.reached, self.open = threading.Event(), threading.Event()
        self._test, self._lock = threading.current_thread(), threading.RLock()

    def __call__(self, number: int) -> None:
        if threading.current_thread() is not self._test:
            self.reached.set()
            assert self.open.wait(SOON_S)

    def __enter__(self) -> None:
        if threading.current_thread() is self._test:
            self.open.set()
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def watch_of(source: Steps, interval_s: float = 1000.0) -> NodeWatch:
    return NodeWatch([topologies.gpu(0), topologies.gpu(1)], source, interval_s=interval_s)


def with_clock(watch: NodeWatch) -> list[float]:
    """The list whose only item is the time of the watch's telemetry."""
    now = [0.0]
    watch.telemetry._clock = lambda: now[0]
    return now


def test_a_question_does_not_take_the_last_reading_because_another_thread_takes_one():
    gate = Gate()
    watch = watch_of(Steps(before=gate))
    watch.telemetry._lock = gate  # type: ignore[assignment]
    assert watch.now().time_s == 0
    gate.open.clear()
    other = threading.Thread(target=watch.telemetry.sample, daemon=True)
    other.start()
    try:
        assert gate.reached.wait(SOON_S)
        assert watch.now().time_s == 2
    finally:
        gate.open.set()
        other.join(SOON_S)


def test_after_a_new_start_the_reading_before_it_is_none_of_now():
    gate = Gate()
    watch = watch_of(Steps(before=gate))
    now = with_clock(watch)
    watch.telemetry._lock = gate  # type: ignore[assignment]
    watch.now()
    gate.open.clear()
    now[0] = 10_000.0
    watch.start("owner")
    try:
        assert gate.reached.wait(SOON_S)
        assert not watch.telemetry.stale
        assert (watch.now().time_s, watch.telemetry.up_to_date) == (2, True)
    finally:
        gate.open.set()
        watch.stop("owner")


def test_a_source_that_never_answered_is_unknown():
    gate = Gate()
    watch = watch_of(Steps(before=gate), interval_s=1.0)
    now = with_clock(watch)
    watch.start("owner")
    try:
        assert gate.reached.wait(SOON_S)
        now[0] = 3.5
        assert watch.now().devices == {}
        assert watch.states() == {0: None, 1: None}
        assert watch.health()["gpu:0"].reason == "no reading so far"
    finally:
        gate.open.set()
        watch.stop("owner")


def test_a_question_does_not_wait_for_a_read_that_hung_before_the_stop():
    gate = Gate()
    watch = watch_of(Steps(before=gate), interval_s=1.0)
    now = with_clock(watch)
    watch.now()
    gate.open.clear()
    watch.start("owner")
    try:
        assert gate.reached.wait(SOON_S)
        watch.stop("owner")
        now[0] = 3.5
        assert not watch.telemetry.running
        assert watch.now().devices == {}
    finally:
        gate.open.set()


def test_what_had_failed_has_failed_while_the_source_is_silent():
    def fail(number: int) -> None:
        if number:
            raise OSError("gone")

    watch = watch_of(Steps(BROKEN, before=fail))
    now = with_clock(watch)
    assert watch.states() == {0: HealthState.FAILED, 1: HealthState.HEALTHY}
    watch.start("owner")
    try:
        now[0] = 3001.0
        assert watch.states() == {0: HealthState.FAILED, 1: None}
        assert watch.health()["gpu:1"].reason == "no reading for 3001 s"
    finally:
        watch.stop("owner")


def test_a_listener_that_asks_gets_the_snapshot_that_it_hears_of():
    source = Steps()
    watch, heard = watch_of(source), []
    now = with_clock(watch)

    def ask(snapshot: Snapshot) -> None:
        now[0] += 10_000  # a listener that takes its time
        heard.append(watch.now() is snapshot and watch.states()[0] is HealthState.HEALTHY)

    watch.telemetry.listeners.append(ask)
    assert [watch.now().time_s, watch.now().time_s] == [0, 1]
    assert (heard, source.reads) == ([True, True], 2)


def test_the_latest_snapshot_is_one_that_the_health_knows(monkeypatch: pytest.MonkeyPatch):
    watch = watch_of(Steps())
    first = watch.now()

    def fail(snapshot: Snapshot) -> None:
        raise ValueError("rule")

    monkeypatch.setattr(watch._health, "update", fail)
    with pytest.raises(ValueError, match="rule"):
        watch.now()
    assert watch.latest is first


def test_the_end_of_a_trace():
    watch = watch_of(Steps(FINE, BROKEN))
    assert [watch.now().time_s for _ in range(4)] == [0, 1, 1, 1]
    watch = watch_of(Steps(before=lambda _: (_ for _ in ()).throw(EndOfTrace)))
    with pytest.raises(EndOfTrace, match="the source has no snapshot"):
        watch.now()
    assert watch.states() == {0: None, 1: None}


def test_who_starts_during_a_stop_has_a_thread(monkeypatch: pytest.MonkeyPatch):
    watch = watch_of(Steps())
    watch.start("first")
    stop = watch.telemetry.stop
    second = threading.Thread(target=watch.start, args=("second",), daemon=True)

    def stop_while_another_starts() -> bool:
        monkeypatch.undo()
        second.start()
        second.join(0.05)  # as far as it comes
        return stop()

    monkeypatch.setattr(watch.telemetry, "stop", stop_while_another_starts)
    watch.stop("first")
    second.join(SOON_S)
    assert watch.telemetry.running
    watch.stop("second")
    assert not watch.telemetry.running


def test_closing_forgets_the_owners():
    watch = watch_of(Steps())
    watch.start("first")
    watch.close()
    assert not watch.telemetry.running
    watch.start("second")
    assert watch.telemetry.running
    watch.stop("second")
    assert not watch.telemetry.running


def test_thresholds_change_and_what_was_seen_is_kept():
    watch = watch_of(Steps(BROKEN))
    watch.now()
    watch.change_thresholds(temperature_c=70)
    watch.change_thresholds(silent_s=7)
    assert (watch.thresholds.temperature_c, watch.thresholds.silent_s) == (70, 7)
    assert watch.device_health()[0].state is HealthState.FAILED
    with pytest.raises(KeyError):
        watch.reset_device(2)
    watch.reset_device(0)
    assert watch.device_health()[0].state is None
