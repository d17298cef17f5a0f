import pytest
import torch
from benchmarks import pool
from benchmarks.registry import Options


def test_a_tiny_run_compares_every_strategy(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pool, "SIZES", {"4 KiB": 4096})
    monkeypatch.setattr(pool, "MIXED", (1024, 4096, 8192))
    monkeypatch.setattr(pool, "MIXED_LIVE", 2)
    monkeypatch.setattr(pool, "WORK", 8192)
    options = Options(device=torch.device("cpu"), pairs=3)
    (table,) = pool.pool(options)
    names = ["simple", "bucketed", "fragment_aware", "numa", "adaptive"]
    assert [row[0] for row in table.rows] == [
        f"{case}, {name}" for case in ("4 KiB", "mixed") for name in names
    ]
    for row in table.rows:
        assert len(row) == len(table.columns)
        low, high = map(float, row[4].split(" to "))
        assert low <= float(row[3]) <= high


def test_every_buffer_is_taken_from_the_pool_and_returned(monkeypatch: pytest.MonkeyPatch):
    pools = []

    class Recorded(pool.UnifiedMemoryPool):
        def __init__(self, strategy):
            super().__init__(strategy)
            pools.append(self)

    monkeypatch.setattr(pool, "UnifiedMemoryPool", Recorded)
    pool._against_empty(Options(device=torch.device("cpu"), pairs=1), "simple", [1024] * 6, live=2)
    (recorded,) = pools
    stats = recorded.get_stats()
    assert (stats["buffers_lent"], stats["forgotten"], stats["misses"]) == (0, 0, 2)
    assert stats["hits"] >= 22
