from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

import numpy as np
import pytest

from kernel_pytorch.machine.readings import DeviceReading, Snapshot
from kernel_pytorch.watch.telemetry import EndOfTrace, Telemetry

SOON_S = 30.0
"""Longer than any wait that ends well takes."""


def snapshot(time_s: float, *celsius: float | None) -> Snapshot:
    readings = {index: DeviceReading(temperature_c=value) for index, value in enumerate(celsius)}
    return Snapshot(time_s=time_s, devices=readings)


class Script:
    """A source that plays functions and snapshots, then ends."""

    def __init__(self, steps: Iterable[Snapshot | Callable[[], Snapshot]]) -> None:
        self._steps = iter(steps)

    def read(self) -> Snapshot:
        for step in self._steps:
            return step if isinstance(step, Snapshot) else step()
        raise EndOfTrace("over")


class Endless:
    """A source whose n-th reading shows n degrees."""

    def __init__(self) -> None:
        self.reads = 0

    def read(self) -> Snapshot:
        self.reads += 1
        return snapshot(self.reads, self.reads)


def watchers(telemetry: Telemetry, count: int) -> threading.Event:
    """Set once the telemetry has told of ``count`` more snapshots."""
    done, seen = threading.Event(), iter(range(1, count + 1))

    def listen(_: Snapshot) -> None:
        if next(seen, count) == count:
            done.set()

    telemetry.listeners.append(listen)
    return done


Threads = Callable[[], list[threading.Thread]]


@pytest.fixture
def threads() -> Threads:
    """The telemetry threads that this test started and that still run."""
    before = set(threading.enumerate())
    return lambda: [
        thread for thread in threading.enumerate() if thread.name == "telemetry" and thread not in before
    ]


def test_sampling_by_hand():
    heard: list[Snapshot] = []
    telemetry = Telemetry(Script([snapshot(5, 40), snapshot(6, None)]), [0, 7])
    telemetry.listeners.append(heard.append)
    assert telemetry.latest is None
    first, second = telemetry.sample(), telemetry.sample()
    assert heard == [first, second]
    assert telemetry.latest is second
    np.testing.assert_array_equal(telemetry.history.times(), [5, 6])
    np.testing.assert_array_equal(telemetry.history.series("temperature_c"), [[40, np.nan], [np.nan, np.nan]])
    with pytest.raises(EndOfTrace, match="over"):
        telemetry.sample()
    assert len(telemetry.history) == 2


def test_a_thread_samples_until_it_is_stopped(threads: Threads):
    source = Endless()
    telemetry = Telemetry(source, [0], interval_s=1e-4)
    done = watchers(telemetry, 20)
    telemetry.start()
    assert done.wait(SOON_S)
    (thread,) = threads()
    assert thread.daemon
    assert telemetry.running
    assert telemetry.stop()
    assert not thread.is_alive()
    assert not telemetry.running
    assert telemetry.cpu_seconds > 0
    kept = len(telemetry.history)
    assert kept >= 20
    assert source.reads - kept in (0, 1)  # one that was read while it was stopped is not kept
    np.testing.assert_array_equal(telemetry.history.series("temperature_c")[:, 0], np.arange(1, kept + 1))


def test_stop_does_not_wait_for_the_interval(threads: Threads):
    telemetry = Telemetry(Endless(), [0], interval_s=1e6)
    done = watchers(telemetry, 1)
    telemetry.start()
    assert done.wait(SOON_S)
    assert telemetry.stop()
    assert threads() == []


def test_it_starts_again_after_a_stop(threads: Threads):
    source = Endless()
    telemetry = Telemetry(source, [0], interval_s=1e6)
    for runs in (1, 2, 3):
        done = watchers(telemetry, 1)
        telemetry.start()
        telemetry.start()  # changes nothing: one thread
        assert done.wait(SOON_S)
        assert len(threads()) == 1
        assert telemetry.stop()
        assert telemetry.stop()
        assert source.reads == runs


def test_cpu_time_goes_on_after_a_new_start():
    telemetry = Telemetry(Endless(), [0], interval_s=1e6)
    spent = [0.0]
    for _ in range(3):
        done = watchers(telemetry, 1)
        telemetry.start()
        assert done.wait(SOON_S)
        telemetry.stop()
        spent.append(telemetry.cpu_seconds)
    assert spent == sorted(set(spent))


def test_the_thread_ends_with_the_trace(threads: Threads):
    telemetry = Telemetry(Script([snapshot(1, 1), snapshot(2, 2)]), [0], interval_s=1e-4)
    telemetry.start()
    for thread in threads():
        thread.join(SOON_S)
    assert not telemetry.running
    assert telemetry.error is None
    assert len(telemetry.history) == 2
    assert telemetry.stop()


def test_a_source_that_raises_is_told_of_and_sampling_goes_on(
    caplog: pytest.LogCaptureFixture, threads: Threads
):
    errors = []

    def fail() -> Snapshot:
        errors.append(telemetry.error)
        raise OSError("the driver went away")

    def go_on() -> Snapshot:
        errors.append(telemetry.error)
        return snapshot(4, 44)

    telemetry = Telemetry(Script([fail, fail, go_on]), [0], interval_s=1e-4)
    telemetry.start()
    for thread in threads():
        thread.join(SOON_S)
    assert [str(error) for error in errors] == ["None", "the driver went away", "the driver went away"]
    assert telemetry.error is None
    assert len(telemetry.history) == 1
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "the driver went away" in caplog.text


def test_a_source_that_raises_raises_by_hand():
    def fail() -> Snapshot:
        raise OSError("gone")

    telemetry = Telemetry(Script([fail]), [0])
    with pytest.raises(OSError, match="gone"):
        telemetry.sample()
    assert len(telemetry.history) == 0


def test_a_listener_that_raises_does_not_keep_the_others_from_hearing():
    heard: list[Snapshot] = []

    def bad(_: Snapshot) -> None:
        raise ArithmeticError("no")

    telemetry = Telemetry(Script([snapshot(1, 1)]), [0])
    telemetry.listeners += [bad, heard.append]
    with pytest.raises(ArithmeticError, match="no"):
        telemetry.sample()
    assert len(heard) == 1
    assert len(telemetry.history) == 1


def test_a_read_that_hangs_delays_no_stop_and_is_not_kept(threads: Threads):
    entered, release = threading.Event(), threading.Event()

    def hang() -> Snapshot:
        entered.set()
        assert release.wait(SOON_S)
        return snapshot(1, 1)

    telemetry = Telemetry(Script([hang]), [0])
    telemetry.start()
    assert entered.wait(SOON_S)
    (thread,) = threads()
    assert not telemetry.stop()
    release.set()
    thread.join(SOON_S)
    assert telemetry.stop()
    assert len(telemetry.history) == 0
    assert telemetry.latest is None


@pytest.mark.parametrize(
    ("read_s", "pauses"),
    [(0.0, [0, 1, 1, 1]), (0.4, [0, 0.6, 0.6, 0.6]), (2.5, [0, 0, 0, 0])],
    ids=["at once", "in part of the interval", "in more than the interval"],
)
def test_samples_start_an_interval_apart_however_long_they_take(read_s: float, pauses: list[float]):
    now = 50.0
    telemetry = Telemetry(Endless(), [0], interval_s=1.0, clock=lambda: now)
    found = []
    for _, pause_s in zip(range(4), telemetry._pauses(), strict=False):
        found.append(pause_s)
        now += pause_s + read_s
    assert found == pytest.approx(pauses)


def test_the_age_of_the_latest_sample():
    now = 10.0
    telemetry = Telemetry(Endless(), [0], clock=lambda: now)
    assert telemetry.age_s is None
    telemetry.sample()
    now = 12.5
    assert telemetry.age_s == 2.5
    assert not telemetry.stale  # nobody promised another


def test_a_listener_that_takes_a_sample_gets_the_one_it_is_given():
    source = Endless()
    telemetry, heard = Telemetry(source, [0]), []
    telemetry.listeners.append(lambda snapshot: heard.append(telemetry.sample() is snapshot))
    telemetry.sample()
    telemetry.sample()
    assert (heard, source.reads, len(telemetry.history)) == ([True, True], 2, 2)


def test_a_listener_may_stop_it():
    telemetry = Telemetry(Endless(), [0], interval_s=1e-4)
    stopped = threading.Event()

    def stop(_: Snapshot) -> None:
        assert not telemetry.stop()  # it runs on until this has returned
        stopped.set()

    telemetry.listeners.append(stop)
    telemetry.start()
    assert stopped.wait(SOON_S)
    assert telemetry.stop()
    assert len(telemetry.history) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"interval_s": 0}, "interval_s must be positive, got 0"),
        ({"interval_s": float("nan")}, "interval_s must be positive, got nan"),
        ({"capacity": 0}, "capacity must be positive, got 0"),
        ({"device_ids": [1, 1]}, r"device_ids must be distinct, got \[1, 1\]"),
    ],
)
def test_bad_arguments(arguments: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message):
        Telemetry(Endless(), **{"device_ids": [0], **arguments})  # type: ignore[arg-type]
