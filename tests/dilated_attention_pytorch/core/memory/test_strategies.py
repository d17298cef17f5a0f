from __future__ import annotations

import logging
import math
import mmap
import weakref
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dilated_attention_pytorch.core.memory import UnifiedMemoryPool
from dilated_attention_pytorch.core.memory.strategies import (
    AdaptiveStrategy,
    BucketedStrategy,
    FragmentAwareStrategy,
    NUMAStrategy,
    SimpleStrategy,
    Strategy,
    numa,
)
from dilated_attention_pytorch.core.memory.strategies.base import Arena, Budget
from dilated_attention_pytorch.core.memory.strategies.bucketed import size_class


def recycle(pool: UnifiedMemoryPool, *sizes: int) -> None:
    for size in sizes:
        pool.return_buffer(pool.get_buffer(size, torch.int8))


def test_simple_serves_exactly_as_many_bytes():
    pool = UnifiedMemoryPool("simple")
    pool.return_buffer(pool.get_buffer((4, 8), torch.float32))
    for shape, dtype, hits in (((127,), torch.int8, 0), ((129,), torch.int8, 0), ((2, 32), torch.int16, 1)):
        pool.get_buffer(shape, dtype)
        assert pool.get_stats()["hits"] == hits


@given(st.integers(1, 2**45))
def test_a_size_class_wastes_less_than_a_quarter(nbytes: int):
    size = size_class(nbytes)
    assert nbytes <= size < max(1.25 * nbytes, nbytes + 64)
    assert size_class(size) == size
    assert size % 64 == 0


def test_size_classes_are_quarter_steps_between_powers_of_two():
    classes = sorted({size_class(nbytes) for nbytes in range(1, 4097)})
    quarters = [2**k * n // 4 for k in range(8, 12) for n in (4, 5, 6, 7)]
    assert classes == [64, 128, 192, *quarters, 4096]


def test_bucketed_serves_its_class():
    pool = UnifiedMemoryPool("bucketed")
    recycle(pool, 1000)
    for size, hits in ((1025, 0), (1024, 1), (897, 2), (896, 2)):
        recycle(pool, size)
        assert pool.get_stats()["hits"] == hits


def test_slabs_fit_best_and_join_free_neighbours():
    pool = UnifiedMemoryPool(FragmentAwareStrategy(slab_bytes=10 * 512))
    cells = [pool.get_buffer(512, torch.int8) for _ in range(10)]
    start = cells[0].data_ptr()
    assert [cell.data_ptr() - start for cell in cells] == [512 * i for i in range(10)]
    for i in (0, 1, 2, 5, 7, 8):  # free: three, one, two
        pool.return_buffer(cells[i])
    one, two, three = (pool.get_buffer(512 * n, torch.int8) for n in (1, 2, 3))
    assert [(x.data_ptr() - start) // 512 for x in (one, two, three)] == [5, 7, 0]
    for x in (two, one, three, *(cells[i] for i in (6, 3, 9, 4))):
        pool.return_buffer(x)
    whole = pool.get_buffer(5120, torch.int8)
    assert whole.data_ptr() == start
    assert (pool.get_stats()["misses"], pool.get_stats()["bytes_held"]) == (1, 5120)


def test_a_forgotten_region_is_not_used_until_its_slab_goes():
    pool = UnifiedMemoryPool(FragmentAwareStrategy(slab_bytes=1024))
    first, second = (pool.get_buffer(512, torch.int8) for _ in range(2))
    remains = first.detach().fill_(7)
    del first
    third = pool.get_buffer(512, torch.int8).fill_(8)
    assert pool.get_stats()["bytes_held"] == 2048
    assert (remains == 7).all()
    pool.return_buffer(second)
    assert pool.get_stats()["bytes_held"] == 1024
    assert (remains == 7).all()
    pool.return_buffer(third)


def test_the_slab_of_the_oldest_return_is_evicted_first():
    pool = UnifiedMemoryPool(FragmentAwareStrategy(slab_bytes=1024), max_bytes=3584)
    older, newer = pool.get_buffer(1024, torch.int8), pool.get_buffer(1536, torch.int8)
    pool.return_buffer(newer)
    pool.return_buffer(older)
    large = pool.get_buffer(2048, torch.int8)
    stats = pool.get_stats()
    assert (stats["evictions"], stats["bytes_held"], stats["bytes_cached"]) == (1, 3072, 1024)
    pool.return_buffer(large)


@pytest.mark.parametrize("strategy", [SimpleStrategy, BucketedStrategy, FragmentAwareStrategy])
def test_memory_of_one_arena_never_serves_another(strategy: type[Strategy]):
    kept = strategy()
    kept.attach(Budget(max_bytes=None))
    here, there = (Arena(torch.device("cpu"), node=node) for node in (0, 1))
    block, storage = kept.take(512, here)
    kept.give(block, storage)
    assert not kept.take(512, there)[0].hit
    assert kept.take(512, here)[0].hit


@pytest.mark.parametrize("slab_bytes", [0, 100, -512])
def test_bad_slab_sizes(slab_bytes: int):
    with pytest.raises(ValueError, match=f"multiple of 512, got {slab_bytes}"):
        FragmentAwareStrategy(slab_bytes)


def nodes_in(folder: Path, *cpulists: str) -> Path:
    for node, cpulist in enumerate(cpulists):
        (folder / f"node{node}").mkdir()
        (folder / f"node{node}" / "cpulist").write_text(cpulist + "\n")
    (folder / "has_cpu").write_text("0\n")
    return folder


def test_nodes_are_read_with_their_cpus(tmp_path: Path):
    assert numa.read_nodes(nodes_in(tmp_path, "0-1,4", "2-3", "")) == {0: 0, 1: 0, 4: 0, 2: 1, 3: 1}
    assert numa.read_nodes(tmp_path / "none") == {}


@pytest.mark.parametrize(("cpulists", "count"), [((), None), (("0-3",), 1), (("0-3", ""), 1)])
def test_one_node_passes_through_and_says_so(tmp_path: Path, caplog, cpulists, count):
    with caplog.at_level(logging.INFO):
        pool = UnifiedMemoryPool(NUMAStrategy(nodes_in(tmp_path, *cpulists)))
    (line,) = caplog.messages
    assert line.startswith("one NUMA node" if count else "NUMA nodes cannot be read")
    recycle(pool, 100, 100)
    stats = pool.get_stats()
    assert (stats["numa_nodes"], stats["hits"], stats["bytes_cached"]) == (count, 1, 128)


def test_several_nodes_keep_their_memory_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pool = UnifiedMemoryPool(NUMAStrategy(nodes_in(tmp_path, "0-1", "2-3")))
    assert pool.get_stats()["numa_nodes"] == 2
    mapped: list[weakref.ref[mmap.mmap]] = []
    real = mmap.mmap

    def spy(*arguments):
        memory = real(*arguments)
        mapped.append(weakref.ref(memory))
        return memory

    monkeypatch.setattr(mmap, "mmap", spy)
    for cpu, hits in ((0, 0), (2, 0), (1, 1), (3, 2)):
        monkeypatch.setattr(numa, "current_cpu", lambda cpu=cpu: cpu)
        recycle(pool, 10_000)
        assert pool.get_stats()["hits"] == hits
    assert [memory() is not None for memory in mapped] == [True, True]
    pool.clear()
    assert [memory() for memory in mapped] == [None, None]


def test_pages_of_fresh_node_memory_are_touched_by_the_caller(tmp_path: Path, monkeypatch):
    resident = Path("/proc/self/smaps")
    if not resident.exists():
        pytest.skip("needs /proc/self/smaps")
    monkeypatch.setattr(numa, "current_cpu", lambda: 0)
    pool = UnifiedMemoryPool(NUMAStrategy(nodes_in(tmp_path, "0", "1")))
    buffer = pool.get_buffer(64 * mmap.PAGESIZE, torch.int8)
    start, size = buffer.data_ptr(), None
    for line in resident.read_text().splitlines():
        first, _, last = line.partition(" ")[0].partition("-")
        if last and math.prod(int(x, 16) - start - (x == last) for x in (first, last)) <= 0:
            size = 0
        elif size == 0 and line.startswith("Rss:"):
            size = int(line.split()[1]) * 1024
            break
    assert size is not None
    assert size >= buffer.nbytes


def test_the_calling_threads_cpu_is_known_here_or_minus_one():
    cpu = numa.current_cpu()
    assert cpu == -1 or cpu in (numa.read_nodes(numa.NODES) or {cpu: 0})


@pytest.mark.parametrize(
    ("sizes", "chosen"),
    [
        ([1000, 2000] * 4, "simple"),
        ([1000, 1001, 1002, 1003, 1004, 1005, 1006, 1007], "bucketed"),
        ([1000 * 2**i for i in range(8)], "fragment_aware"),
    ],
    ids=["repeated", "alike", "varied"],
)
def test_adaptive_chooses_by_the_sizes_of_a_window_without_hits(sizes: list[int], chosen: str):
    pool = UnifiedMemoryPool(AdaptiveStrategy(window=8))
    lent = [pool.get_buffer(size, torch.int8) for size in sizes]  # none returned: no hits
    assert pool.get_stats()["chosen"] == "simple"
    lent.append(pool.get_buffer(8, torch.int8))
    assert pool.get_stats()["chosen"] == chosen


def test_adaptive_stays_while_it_hits_and_releases_what_it_leaves():
    pool = UnifiedMemoryPool(AdaptiveStrategy(window=4, slab_bytes=4096))
    recycle(pool, 100, 300, 500, 700, 900)
    assert pool.get_stats()["chosen"] == "fragment_aware"
    assert pool.get_stats()["bytes_held"] == 4096
    early = UnifiedMemoryPool(AdaptiveStrategy(window=4, slab_bytes=4096))
    old = early.get_buffer(100, torch.int8)
    recycle(early, 300, 500, 700, 900)
    early.return_buffer(old)  # lent by the strategy that was left
    assert early.get_stats()["bytes_held"] == 4096
    recycle(pool, *[100] * 12)  # exact sizes would do now, but it hits
    assert pool.get_stats()["chosen"] == "fragment_aware"
    with pytest.raises(ValueError, match="window must be at least 1, got 0"):
        AdaptiveStrategy(window=0)


def test_adaptive_counts_the_hits_of_each_window_anew():
    pool = UnifiedMemoryPool(AdaptiveStrategy(window=4, slab_bytes=4096))
    recycle(pool, 100, 100, 100, 100)
    recycle(pool, 200, 300, 500, 900)
    assert pool.get_stats()["chosen"] == "simple"
    recycle(pool, 10)
    assert pool.get_stats()["chosen"] == "fragment_aware"
