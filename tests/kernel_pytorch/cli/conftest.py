from __future__ import annotations

import pytest
import topologies

from kernel_pytorch.machine.readings import DeviceReading, HostReading, NicReading, Snapshot
from kernel_pytorch.watch.trace import TraceWriter


@pytest.fixture
def faulty(tmp_path):
    """Eight GPUs: number 3 is hot from 30 s on, 5 reports Xid 79 at 60 s, a cable goes at 90 s."""
    path = tmp_path / "faulty.jsonl"
    with TraceWriter(path, topologies.dgx_h100()) as writer:
        for second in range(120):
            writer.write(
                Snapshot(
                    time_s=1e9 + second,
                    devices={
                        number: DeviceReading(
                            temperature_c=95 if number == 3 and second >= 30 else 60,
                            throttle_reasons=(),
                            xids=(79,) if number == 5 and second == 60 else (),
                        )
                        for number in range(8)
                    },
                    host=HostReading(nics={"ib0": NicReading(carrier=second < 90, errors=0)}),
                )
            )
    return path
