from __future__ import annotations

import copy
import gc
import pickle
import threading
import weakref

import pytest
import torch
from torch import Tensor

from dilated_attention_pytorch.core.memory import UnifiedMemoryPool
from dilated_attention_pytorch.core.memory.strategies import (
    AdaptiveStrategy,
    FragmentAwareStrategy,
    SimpleStrategy,
    base,
)
from dilated_attention_pytorch.core.memory.unified_pool import STRATEGIES

NAMES = list(STRATEGIES)
DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2fnuz,
    torch.complex64,
    torch.complex128,
    torch.bool,
    torch.int8,
    torch.uint8,
    torch.uint16,
    torch.int32,
    torch.int64,
]
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_any_dtype_is_served_again_and_filled_in_debug_mode(name: str, dtype: torch.dtype, device: str):
    pool = UnifiedMemoryPool(name, debug=True)
    first = pool.get_buffer((3, 5), dtype, device)
    assert (first.shape, first.stride(), first.dtype) == ((3, 5), (5, 1), dtype)
    assert first.device.type == device
    assert first.data_ptr() % 64 == 0
    first.view(torch.uint8).fill_(1)
    pool.return_buffer(first)
    second = pool.get_buffer((5, 3), dtype, device)
    assert second.data_ptr() == first.data_ptr()
    assert pool.get_stats()["hits"] == 1
    if dtype.is_floating_point or dtype.is_complex:
        assert second.to(torch.complex128).isnan().all()
    elif dtype == torch.bool:
        assert second.all()
    else:
        assert (second.view(torch.uint8) == 0xA5).all()


@pytest.mark.parametrize("name", NAMES)
def test_without_debug_contents_are_left(name: str):
    pool = UnifiedMemoryPool(name)
    with pool.lease(7, torch.int64) as buffer:
        buffer.fill_(3)
    assert (pool.get_buffer(7, torch.int64) == 3).all()


@pytest.mark.parametrize("shape", [(0,), (3, 0, 2), 0])
def test_an_empty_buffer_needs_no_memory(shape):
    pool = UnifiedMemoryPool("simple", max_bytes=0)
    with pool.lease(shape, torch.float32) as buffer:
        assert buffer.numel() == 0
        assert buffer.shape == ((0,) if shape == 0 else shape)
        assert pool.get_stats()["buffers_lent"] == 1
    assert {pool.get_stats()[key] for key in ("buffers_lent", "bytes_held", "hits", "misses")} == {0}
    with pytest.raises(ValueError, match="not lent by this pool"):
        pool.return_buffer(buffer)


def test_a_scalar_buffer():
    with UnifiedMemoryPool().lease((), torch.float32) as buffer:
        assert buffer.fill_(2.0).item() == 2.0


@pytest.mark.parametrize("name", NAMES)
def test_only_the_very_tensor_comes_back_and_only_once(name: str):
    pool, other = UnifiedMemoryPool(name), UnifiedMemoryPool(name)
    buffer = pool.get_buffer(10, torch.float32)
    for foreign in (torch.empty(10), buffer.view(2, 5), buffer.detach(), other.get_buffer(10, torch.float32)):
        with pytest.raises(ValueError, match="not lent by this pool"):
            pool.return_buffer(foreign)
    pool.return_buffer(buffer)
    with pytest.raises(ValueError, match="has been returned already"):
        pool.return_buffer(buffer)
    with pytest.raises(TypeError, match=r"tensor must be a .*Tensor, got int"):
        pool.return_buffer(3)  # type: ignore[arg-type]


def test_a_buffer_returned_and_dropped_by_one_call_is_not_forgotten():
    pool = UnifiedMemoryPool("simple")
    for _ in range(3):
        pool.return_buffer(pool.get_buffer(10, torch.float32))
    stats = pool.get_stats()
    assert (stats["forgotten"], stats["buffers_lent"], stats["hits"]) == (0, 0, 2)


@pytest.mark.parametrize("name", NAMES)
def test_what_takes_part_in_autograd_is_refused_and_stays_lent(name: str):
    pool = UnifiedMemoryPool(name)
    leaf = pool.get_buffer(4, torch.float32).requires_grad_()
    copied = pool.get_buffer(4, torch.float32)
    copied.copy_(torch.ones(4, requires_grad=True))
    for buffer in (leaf, copied):
        with pytest.raises(ValueError, match="takes part in autograd"):
            pool.return_buffer(buffer)
    assert pool.get_stats()["buffers_lent"] == 2
    pool.return_buffer(leaf.requires_grad_(False))
    assert not pool.get_buffer(4, torch.float32).requires_grad


@pytest.mark.parametrize("name", NAMES)
def test_writing_to_one_buffer_leaves_the_graph_of_another_valid(name: str):
    pool = UnifiedMemoryPool(name)
    weight = torch.ones(4, requires_grad=True)
    saved, other = pool.get_buffer(4, torch.float32), pool.get_buffer(4, torch.float32)
    product = (weight * saved.fill_(2.0)).sum()
    other.fill_(3.0)
    product.backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [2.0] * 4


def test_a_backward_that_needs_a_returned_buffer_raises():
    pool = UnifiedMemoryPool()
    with pool.lease(4, torch.float32) as saved:
        product = (torch.ones(4, requires_grad=True) * saved.fill_(2.0)).sum()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


def test_a_buffer_got_in_inference_mode_serves_outside():
    pool = UnifiedMemoryPool("simple")
    with torch.inference_mode():
        pool.return_buffer(pool.get_buffer(4, torch.float32))
        inside = pool.get_buffer(4, torch.float32)
    assert pool.get_stats()["hits"] == 1
    inside.fill_(1.0)
    (inside * torch.ones(4, requires_grad=True)).sum().backward()


def test_a_buffer_whose_memory_was_replaced_is_refused():
    pool = UnifiedMemoryPool("simple")
    replaced, grown = pool.get_buffer(4, torch.float32), pool.get_buffer(4, torch.float32)
    replaced.set_(torch.zeros(4))
    grown.resize_(4000)
    for buffer in (replaced, grown):
        with pytest.raises(ValueError, match="memory was replaced"):
            pool.return_buffer(buffer)
    with pool.lease((2, 3), torch.float32) as buffer:
        buffer.t_()  # other strides on the same memory are no harm
    assert pool.get_stats()["bytes_cached"] == 24


@pytest.mark.parametrize("name", NAMES)
def test_a_forgotten_buffer_is_freed_at_once_and_nothing_leaks(name: str):
    gc.disable()  # freed by reference counts alone
    try:
        pool = UnifiedMemoryPool(name)
        buffer = pool.get_buffer(1000, torch.float32)
        storage = weakref.ref(buffer.untyped_storage())
        assert pool.get_stats()["bytes_held"] == (64 << 20 if name == "fragment_aware" else 0)
        kept = buffer.untyped_storage()
        del buffer
        assert pool._budget.held_bytes == 0  # without another call
        assert pool._leases == {}
        del kept
        assert storage() is None
        stats = pool.get_stats()
        assert (stats["forgotten"], stats["bytes_lent"], stats["bytes_cached"]) == (1, 0, 0)
    finally:
        gc.enable()


@pytest.mark.parametrize("name", NAMES)
def test_buffers_outlive_their_pool_and_its_free_memory_does_not(name: str):
    gc.disable()
    try:
        pool = UnifiedMemoryPool(name)
        buffer, free = pool.get_buffer(10, torch.float32).fill_(5.0), pool.get_buffer(10, torch.float32)
        pool.return_buffer(free)
        del free
        alive = weakref.ref(pool)
        del pool
        assert alive() is None
        assert (buffer == 5.0).all()
        del buffer
    finally:
        gc.enable()


def test_a_buffer_that_only_a_graph_holds_is_not_forgotten():
    pool = UnifiedMemoryPool("fragment_aware")
    buffer = pool.get_buffer(4, torch.float32).fill_(2.0)
    product = (torch.ones(4, requires_grad=True) * buffer).sum()
    del buffer
    assert pool.get_stats()["buffers_lent"] == 1
    del product
    assert pool.get_stats()["forgotten"] == 1


def test_the_least_recently_returned_is_evicted_first():
    pool = UnifiedMemoryPool("simple", max_bytes=300)
    sizes = {"a": 100, "b": 150, "c": 120}
    buffers = {name: pool.get_buffer(size, torch.int8) for name, size in sizes.items()}
    for name in ("b", "a", "c"):
        pool.return_buffer(buffers[name])
    stats = pool.get_stats()
    assert (stats["bytes_cached"], stats["evictions"]) == (220, 1)
    again = [pool.get_buffer(size, torch.int8) for size in (100, 120, 150)]
    assert (pool.get_stats()["hits"], len(again)) == (2, 3)


def test_of_one_size_the_oldest_is_evicted_and_the_newest_served():
    pool = UnifiedMemoryPool("simple", max_bytes=310)
    buffers = [pool.get_buffer(size, torch.int8) for size in (100, 101, 100, 102, 103)]
    for buffer in buffers:  # the last two each evict one: the first 100, then 101
        pool.return_buffer(buffer)
    assert (pool.get_stats()["bytes_cached"], pool.get_stats()["evictions"]) == (305, 2)
    assert pool.get_buffer(100, torch.int8).data_ptr() == buffers[2].data_ptr()
    pool = UnifiedMemoryPool("simple")
    first, second = (pool.get_buffer(100, torch.int8) for _ in range(2))
    pool.return_buffer(first)
    pool.return_buffer(second)
    assert pool.get_buffer(100, torch.int8).data_ptr() == second.data_ptr()


@pytest.mark.parametrize("name", NAMES)
def test_a_request_beyond_max_bytes_is_served_and_not_kept(name: str):
    pool = UnifiedMemoryPool(name, max_bytes=10_000)
    pool.return_buffer(pool.get_buffer(512, torch.int8))
    held = pool.get_stats()["bytes_held"]
    with pool.lease(10_001, torch.int8) as large:
        large.fill_(1)
        assert pool.get_stats()["bytes_held"] == held
    stats = pool.get_stats()
    assert (stats["bytes_held"], stats["evictions"], stats["misses"]) == (held, 0, 2)


def test_out_of_memory_gives_up_what_is_free_and_tries_again(monkeypatch: pytest.MonkeyPatch):
    pool = UnifiedMemoryPool("simple")
    pool.return_buffer(pool.get_buffer(100, torch.int8))
    real, free = base.new_storage, iter([False, True, False])

    def scarce(nbytes, device):
        if not next(free):
            raise torch.OutOfMemoryError("none left")
        return real(nbytes, device)

    monkeypatch.setattr(base, "new_storage", scarce)
    lent = pool.get_buffer(200, torch.int8)
    stats = pool.get_stats()
    assert (stats["bytes_held"], stats["evictions"], lent.numel()) == (0, 1, 200)
    with pytest.raises(torch.OutOfMemoryError):
        pool.get_buffer(300, torch.int8)
    assert pool.get_stats()["misses"] == 2


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("max_bytes", [None, 20_000])
def test_threads_do_not_disturb_each_other(name: str, max_bytes: int | None):
    pool = UnifiedMemoryPool(name, max_bytes=max_bytes, debug=True)
    wrong: list[object] = []
    handed_over: list[Tensor] = []
    counts = {"got": 0, "forgotten": 0}
    counting = threading.Lock()

    def work(number: int) -> None:
        generator = torch.Generator().manual_seed(number)
        mine: list[tuple[Tensor, int]] = []
        got = forgotten = 0
        try:
            for step in range(300):
                size, choice = torch.randint(1, 3000, (2,), generator=generator).tolist()
                mine.append((pool.get_buffer(size, torch.int64), number * 1000 + step))
                got += 1
                mine[-1][0].fill_(mine[-1][1])
                if len(mine) > 4:
                    buffer, value = mine.pop(choice % 5)
                    if not (buffer == value).all():
                        wrong.append((number, step))
                    if choice % 3:
                        pool.return_buffer(buffer)
                    else:
                        forgotten += 1
                    del buffer
        except Exception as error:
            wrong.append(error)
        with counting:
            handed_over.extend(buffer for buffer, _ in mine)
            counts["got"] += got
            counts["forgotten"] += forgotten

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    for buffer in handed_over:  # in another thread than that which got them
        pool.return_buffer(buffer)
    stats = pool.get_stats()
    assert stats["hits"] + stats["misses"] == counts["got"] == 1800
    assert (stats["forgotten"], stats["buffers_lent"], stats["bytes_lent"]) == (counts["forgotten"], 0, 0)
    pool.clear()
    assert pool.get_stats()["bytes_held"] == 0


def test_a_buffer_dropped_while_the_pool_is_busy_is_accounted_for_later():
    pool = UnifiedMemoryPool("fragment_aware")
    buffer = pool.get_buffer(10, torch.float32)
    with pool._lock:  # where a garbage collection inside a method may drop it
        del buffer
        assert len(pool._leases) == 1
    again = pool.get_buffer(10, torch.float32)  # as likely as not with the id of the one dropped
    stats = pool.get_stats()
    assert (stats["forgotten"], stats["bytes_lent"], stats["bytes_held"]) == (1, again.nbytes, 64 << 20)


def test_lease_returns_after_an_exception():
    pool = UnifiedMemoryPool()
    with pytest.raises(KeyError), pool.lease(4, torch.float32):
        raise KeyError
    stats = pool.get_stats()
    assert (stats["buffers_lent"], stats["forgotten"], stats["bytes_cached"]) == (0, 0, 16)


def test_older_names():
    pool = UnifiedMemoryPool("simple")
    pool.deallocate(pool.allocate((2, 2), torch.float32))
    assert pool.get_stats()["bytes_cached"] == 16


def test_clear_leaves_what_is_lent():
    pool = UnifiedMemoryPool("simple")
    lent, free = (pool.get_buffer(8, torch.int8).fill_(1) for _ in range(2))
    pool.return_buffer(free)
    pool.clear()
    stats = pool.get_stats()
    assert (stats["bytes_cached"], stats["bytes_lent"], stats["evictions"]) == (0, 8, 0)
    assert (lent == 1).all()
    pool.return_buffer(lent)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"strategy": "best"}, ValueError, "strategy must be one of simple, .* got 'best'"),
        ({"strategy": SimpleStrategy}, TypeError, "strategy must be a name or a Strategy"),
        ({"max_bytes": -1}, ValueError, "max_bytes must not be negative, got -1"),
        ({"max_bytes": 1.5}, TypeError, "max_bytes must be int or None, got 1.5"),
    ],
)
def test_bad_pools(arguments, error, message):
    with pytest.raises(error, match=message):
        UnifiedMemoryPool(**arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((-1, torch.int8), ValueError, r"shape must not hold negative sizes, got \(-1,\)"),
        ((1.5, torch.int8), TypeError, "shape must be int or a sequence of int, got 1.5"),
        ((1, "int8"), TypeError, "dtype must be a torch.dtype, got 'int8'"),
        ((1, torch.int8, "meta"), ValueError, "device must be a CPU or a CUDA device, got meta"),
        ((2**58, torch.float64), RuntimeError, "allocate"),
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_bad_requests_change_nothing(name, arguments, error, message):
    pool = UnifiedMemoryPool(name)
    before = pool.get_stats()
    with pytest.raises(error, match=message):
        pool.get_buffer(*arguments)
    assert pool.get_stats() == before


def test_a_strategy_serves_one_pool():
    strategy = SimpleStrategy()
    UnifiedMemoryPool(strategy)
    with pytest.raises(ValueError, match="strategy 'simple' serves a pool already"):
        UnifiedMemoryPool(strategy)


def test_devices_are_named_in_several_ways():
    pool = UnifiedMemoryPool("simple")
    pool.return_buffer(pool.get_buffer(4, torch.int8, "cpu:0"))
    assert pool.get_buffer(4, torch.int8, torch.device("cpu")).device == torch.device("cpu")
    assert pool.get_stats()["hits"] == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_devices_and_streams_are_kept_apart():
    pool = UnifiedMemoryPool("simple")
    pool.return_buffer(pool.get_buffer(512, torch.int8, "cuda"))
    other = torch.cuda.Stream()
    with torch.cuda.stream(other):
        pool.return_buffer(pool.get_buffer(512, torch.int8, "cuda"))
    pool.return_buffer(pool.get_buffer(512, torch.int8, "cpu"))
    assert pool.get_stats()["misses"] == 3
    current = torch.cuda.current_device()
    pool.return_buffer(pool.get_buffer(512, torch.int8, f"cuda:{current}"))
    assert pool.get_stats()["hits"] == 1


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
@pytest.mark.parametrize("strategy", [*STRATEGIES, AdaptiveStrategy(3, 512), FragmentAwareStrategy(512)])
def test_a_copy_is_an_empty_pool_of_the_same_kind(strategy, copied):
    pool = UnifiedMemoryPool(copy.deepcopy(strategy), max_bytes=1 << 20)
    buffer = pool.get_buffer(10, torch.float32)
    twin = copied(pool)
    assert type(twin._strategy) is type(pool._strategy)
    assert twin._strategy.arguments == pool._strategy.arguments
    stats = twin.get_stats()
    assert (stats["strategy"], stats["max_bytes"]) == (pool.get_stats()["strategy"], 1 << 20)
    assert (stats["buffers_lent"], stats["bytes_held"]) == (0, 0)
    twin.return_buffer(twin.get_buffer(10, torch.float32))
    pool.return_buffer(buffer)
