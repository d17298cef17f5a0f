from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel_pytorch.machine.readings import DeviceReading, Snapshot
from kernel_pytorch.power.condition import DeviceCondition, with_past
from kernel_pytorch.watch.health.performance import performance_of
from kernel_pytorch.watch.history import METRICS, History


def hot(time_s: float, *temperatures_c: float) -> Snapshot:
    readings = [DeviceReading(temperature_c=celsius) for celsius in temperatures_c]
    return Snapshot(time_s=time_s, devices=dict(enumerate(readings)))


def test_a_metric_that_is_none():
    with pytest.raises(ValueError, match=r"metric must be one of temperature_c, .*, got 'throttle_reasons'"):
        History([0], 3).series("throttle_reasons")


VALUES = {
    "temperature_c": st.floats(-40, 150),
    "energy_j": st.floats(0, 1e12),
    "memory_used_bytes": st.integers(0, 1 << 40),
    "ecc_corrected": st.integers(0, 1 << 50),
    "remap_failed": st.booleans(),
}
READINGS = st.fixed_dictionaries(
    {}, optional={name: st.none() | value for name, value in VALUES.items()}
).map(lambda values: DeviceReading(**values))


@given(
    rows=st.lists(st.dictionaries(st.integers(0, 3), READINGS), max_size=12),
    capacity=st.integers(1, 14),
    device_ids=st.permutations(range(4)).flatmap(lambda ids: st.integers(0, 4).map(lambda n: ids[:n])),
)
def test_history_is_the_last_snapshots(
    rows: list[dict[int, DeviceReading]], capacity: int, device_ids: list[int]
):
    history = History(device_ids, capacity)
    for time_s, devices in enumerate(rows):
        history.append(Snapshot(time_s=time_s, devices=devices))
    kept = list(enumerate(rows))[-capacity:]
    assert len(history) == len(kept)
    assert history.times().tolist() == [time_s for time_s, _ in kept]

    def expected(metric: str) -> Iterator[list[float]]:
        for _, devices in kept:
            values = [getattr(devices.get(number), metric, None) for number in device_ids]
            yield [np.nan if value is None else float(value) for value in values]

    for metric in METRICS:
        table = np.array(list(expected(metric))).reshape(len(kept), len(device_ids))
        np.testing.assert_array_equal(history.series(metric), table)


def test_what_a_history_gives_does_not_change_with_it():
    history = History([0], 2)
    history.append(hot(1, 1))
    series = history.series("temperature_c")
    history.append(hot(2, 2))
    history.append(hot(3, 3))
    assert series.tolist() == [[1]]
    assert history.series("temperature_c").tolist() == [[2], [3]]


@pytest.mark.parametrize("jump_s", [-100.0, 3600.0])
def test_the_clock_is_set_while_one_device_is_steady_and_another_heats_up(jump_s: float):
    """A steady 58 C has no slope, 18 C a minute are 18 C a minute, and people see the clock's times."""
    history = History([0, 1], 400)
    stamps = [1e9 + second + (jump_s if second > 60 else 0) for second in range(121)]
    for second, stamp in enumerate(stamps):
        history.append(hot(stamp, 58.0 + second % 2, 45 + 0.3 * second))
    assert history.times().tolist() == stamps
    times, _ = history.timed_series(["temperature_c"])
    np.testing.assert_array_equal(times, [1e9 + second - (second > 60) for second in range(121)])
    conditions = [DeviceCondition(device_id=number) for number in range(2)]
    steady, rising = with_past(conditions, history, 85, {})
    assert steady.slope_c_min == pytest.approx(0, abs=0.05)
    assert rising.slope_c_min == pytest.approx(18, rel=0.02)
    report = performance_of(history, 1, hours=1)
    assert report["temperature_trend_c_per_hour"] == pytest.approx(18 * 60, rel=0.02)
    assert (report["samples"], report["covered_s"]) == (121, 119)
