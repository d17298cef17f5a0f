"""Random operations on a pool, against a plain model of it: contents, overlaps, statistics."""

from __future__ import annotations

import math
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from torch import Tensor

from dilated_attention_pytorch.core.memory import UnifiedMemoryPool
from dilated_attention_pytorch.core.memory.strategies import (
    AdaptiveStrategy,
    BucketedStrategy,
    FragmentAwareStrategy,
    NUMAStrategy,
    SimpleStrategy,
    numa,
)

CELL = 512
SLAB_CELLS = 8
WINDOW = 4
CLASSES = sorted(64 * n for n in (1, 2, 3)) + [2**k * n // 4 for k in range(8, 40) for n in (4, 5, 6, 7)]
DTYPES = (torch.float32, torch.bfloat16, torch.float8_e4m3fnuz, torch.complex64, torch.int8, torch.bool)


def class_of(nbytes: int) -> int:
    return next(size for size in CLASSES if size >= nbytes)


@dataclass
class Held:
    """What all models of one pool share."""

    most: int | None
    held: int = 0
    evictions: int = 0


@dataclass
class Lists:
    """Free blocks (size, node), in order of their return."""

    shared: Held
    size_of: object
    free: list[tuple[int, int]] = field(default_factory=list)

    def take(self, nbytes: int, node: int) -> tuple[bool, object]:
        block = self.size_of(nbytes), node
        if block not in self.free:
            return False, block
        del self.free[max(i for i, other in enumerate(self.free) if other == block)]
        self.shared.held -= block[0]
        return True, block

    def give(self, block: tuple[int, int]) -> None:
        others = self.shared.held - self.cached()
        most = math.inf if self.shared.most is None else self.shared.most
        if others + block[0] > most:
            return
        while self.shared.held + block[0] > most:
            self.shared.held -= self.free.pop(0)[0]
            self.shared.evictions += 1
        self.free.append(block)
        self.shared.held += block[0]

    def forget(self, block: tuple[int, int]) -> None:
        pass

    def cached(self) -> int:
        return sum(size for size, _ in self.free)

    def clear(self) -> None:
        self.shared.held -= self.cached()
        self.free = []


@dataclass
class Slabs:
    """Each slab a string of cells: ``.`` free, ``L`` lent, ``x`` forgotten. In order of the last return."""

    shared: Held
    slabs: list[list[str]] = field(default_factory=list)

    def take(self, nbytes: int, node: int) -> tuple[bool, object]:
        cells = -(-nbytes // CELL)
        best = None
        for slab in self.slabs:
            for run in self.runs(slab):
                if len(run) >= cells and (best is None or len(run) < len(best[1])):
                    best = slab, run
        hit = best is not None
        if best is None:
            usual = SLAB_CELLS if self.shared.most is None else min(SLAB_CELLS, self.shared.most // CELL)
            for size in (max(cells, usual), cells):
                if self.fits(size):
                    best = ["."] * size, range(size)
                    self.slabs.append(best[0])
                    self.shared.held += size * CELL
                    break
            else:
                return False, None
        slab, run = best
        region = slab, run[:cells]
        self.mark(region, "L")
        return hit, region

    @staticmethod
    def runs(slab: list[str]):
        starts = [i for i in range(len(slab)) if slab[i] == "." and (i == 0 or slab[i - 1] != ".")]
        for start in starts:
            stop = next((i for i in range(start, len(slab)) if slab[i] != "."), len(slab))
            yield range(start, stop)

    def fits(self, cells: int) -> bool:
        if self.shared.most is None:
            return True
        idle = [slab for slab in self.slabs if "L" not in slab]
        if self.shared.held - CELL * sum(map(len, idle)) + CELL * cells > self.shared.most:
            return False
        while self.shared.held + CELL * cells > self.shared.most:
            self.drop(idle.pop(0))
            self.shared.evictions += 1
        return True

    @staticmethod
    def mark(region, letter: str) -> None:
        slab, run = region
        for cell in run:
            slab[cell] = letter

    def drop(self, slab: list[str]) -> None:
        self.slabs = [other for other in self.slabs if other is not slab]
        self.shared.held -= CELL * len(slab)

    def leave(self, slab: list[str]) -> None:
        if "L" not in slab and "x" in slab:
            self.drop(slab)

    def give(self, region) -> None:
        self.mark(region, ".")
        self.slabs = [slab for slab in self.slabs if slab is not region[0]] + [region[0]]
        self.leave(region[0])

    def forget(self, region) -> None:
        self.mark(region, "x")
        self.leave(region[0])

    def cached(self) -> int:
        return CELL * sum(slab.count(".") for slab in self.slabs)

    def clear(self) -> None:
        for slab in list(self.slabs):
            if "L" not in slab:
                self.drop(slab)


class Adaptive:
    def __init__(self, shared: Held) -> None:
        self.children = {
            "simple": Lists(shared, int),
            "bucketed": Lists(shared, class_of),
            "fragment_aware": Slabs(shared),
        }
        self.chosen = "simple"
        self.seen: list[tuple[int, bool]] = []

    def take(self, nbytes: int, node: int) -> tuple[bool, object]:
        if len(self.seen) == WINDOW:
            sizes = [size for size, _ in self.seen]
            old = self.chosen
            if sum(hit for _, hit in self.seen) / WINDOW < 0.75:
                repeats = {
                    name: sum(n - 1 for n in Counter(map(size_of, sizes)).values()) / WINDOW
                    for name, size_of in (("simple", int), ("bucketed", class_of))
                }
                enough = [name for name, share in repeats.items() if share >= 0.75]
                self.chosen = [*enough, "fragment_aware"][0]
            if self.chosen != old:
                self.children[old].clear()
            self.seen = []
        hit, block = self.children[self.chosen].take(nbytes, node)
        self.seen.append((nbytes, hit))
        return hit, None if block is None else (self.chosen, block)

    def give(self, block) -> None:
        name, inner = block
        self.children[name].give(inner)
        if name != self.chosen:
            self.children[name].clear()

    def forget(self, block) -> None:
        self.children[block[0]].forget(block[1])

    def cached(self) -> int:
        return self.children[self.chosen].cached()

    def clear(self) -> None:
        self.children[self.chosen].clear()


@dataclass
class Out:
    """A buffer that is lent, or what is left of a forgotten one."""

    tensor: Tensor
    byte: int
    nbytes: int
    block: object

    def raw(self) -> Tensor:
        return self.tensor.detach().reshape(-1).view(torch.uint8)

    def range(self) -> range:
        start = self.tensor.data_ptr()
        return range(start, start + self.nbytes)


class PoolMachine(RuleBasedStateMachine):
    def __init__(self, name: str, nodes, cpu: list[int]) -> None:
        super().__init__()
        self.name, self.nodes, self.cpu = name, nodes, cpu
        self.byte = 0

    @initialize(most=st.sampled_from([None, None, 0, 1500, 3000, 8192, 20000]), debug=st.booleans())
    def start(self, most, debug):
        shared = Held(most)
        strategy, self.model = {
            "simple": lambda: (SimpleStrategy(), Lists(shared, int)),
            "bucketed": lambda: (BucketedStrategy(), Lists(shared, class_of)),
            "numa": lambda: (NUMAStrategy(self.nodes), Lists(shared, class_of)),
            "fragment_aware": lambda: (FragmentAwareStrategy(SLAB_CELLS * CELL), Slabs(shared)),
            "adaptive": lambda: (AdaptiveStrategy(WINDOW, SLAB_CELLS * CELL), Adaptive(shared)),
        }[self.name]()
        self.pool = UnifiedMemoryPool(strategy, max_bytes=most, debug=debug)
        self.shared, self.debug = shared, debug
        self.lent: list[Out] = []
        self.views: list[Out] = []
        self.stale: list[Tensor] = []
        self.hits = self.misses = self.forgotten = 0

    @rule(
        shape=st.one_of(
            st.sampled_from([(100,), (25, 4), (130,), (3, 50), (), (0, 3), (700,)]),
            st.lists(st.integers(0, 12), max_size=3).map(tuple),
            st.integers(1, 6000).map(lambda n: (n,)),
        ),
        dtype=st.sampled_from(DTYPES),
    )
    def get(self, shape, dtype):
        tensor = self.pool.get_buffer(shape, dtype)
        assert (tensor.shape, tensor.dtype, tensor.device.type) == (shape, dtype, "cpu")
        assert tensor.is_contiguous()
        assert not tensor.requires_grad
        assert tensor.data_ptr() % 64 == 0
        nbytes = math.prod(shape) * dtype.itemsize
        block = None
        if nbytes:
            hit, block = self.model.take(nbytes, self.cpu[0] if self.name == "numa" else 0)
            self.hits += hit
            self.misses += not hit
        self.byte = self.byte % 255 + 1
        out = Out(tensor, self.byte, nbytes, block)
        assert not any(set(out.range()) & set(other.range()) for other in self.lent + self.views)
        out.raw().fill_(self.byte)
        self.lent.append(out)

    def pick(self, data) -> Out:
        return self.lent.pop(data.draw(st.integers(0, len(self.lent) - 1)))

    @rule(data=st.data())
    def give_back(self, data):
        if self.lent:
            out = self.pick(data)
            self.pool.return_buffer(out.tensor)
            if out.block is not None:
                self.model.give(out.block)
            self.stale.append(out.tensor)
            if self.debug and out.nbytes:
                if out.tensor.is_floating_point() or out.tensor.is_complex():
                    assert out.tensor.to(torch.complex64).isnan().all()
                else:
                    assert (out.raw() == (1 if out.tensor.dtype == torch.bool else 0xA5)).all()

    @rule(data=st.data())
    def give_back_twice(self, data):
        if self.stale:
            with pytest.raises(ValueError, match="not lent by this pool"):
                self.pool.return_buffer(self.stale[data.draw(st.integers(0, len(self.stale) - 1))])

    @rule(data=st.data())
    def give_back_a_foreign_one(self, data):
        other = torch.ones(3)
        if self.lent:
            other = self.lent[data.draw(st.integers(0, len(self.lent) - 1))].tensor.view(-1)
        with pytest.raises(ValueError, match="not lent by this pool"):
            self.pool.return_buffer(other)

    @rule(data=st.data(), keep_view=st.booleans())
    def forget(self, data, keep_view):
        if self.lent:
            out = self.pick(data)
            if keep_view:  # detached: a plain view would keep the buffer itself alive
                self.views.append(Out(out.tensor.detach(), out.byte, out.nbytes, None))
            out.tensor = None
            self.forgotten += 1
            if out.block is not None:
                self.model.forget(out.block)

    @rule()
    def drop_views(self):
        self.views = []

    @rule()
    def clear(self):
        self.pool.clear()
        self.model.clear()

    @rule(node=st.sampled_from([0, 1]))
    def move_thread(self, node):
        self.cpu[0] = node

    @invariant()
    def contents_are_intact(self):
        for out in self.lent + self.views:
            assert (out.raw() == out.byte).all()

    @invariant()
    def statistics_are_true(self):
        stats = self.pool.get_stats()
        assert stats.pop("strategy") == self.name
        if self.name == "adaptive":
            assert stats.pop("chosen") == self.model.chosen
        if self.name == "numa":
            assert stats.pop("numa_nodes") == 2
        assert stats == {
            "max_bytes": self.shared.most,
            "buffers_lent": len(self.lent),
            "bytes_lent": sum(out.nbytes for out in self.lent),
            "bytes_cached": self.model.cached(),
            "bytes_held": self.shared.held,
            "hits": self.hits,
            "misses": self.misses,
            "evictions": self.shared.evictions,
            "forgotten": self.forgotten,
        }
        assert self.shared.most is None or stats["bytes_held"] <= self.shared.most


@contextmanager
def two_nodes(folder, patch):
    for node in (0, 1):
        (folder / f"node{node}").mkdir()
        (folder / f"node{node}" / "cpulist").write_text(f"{node}\n")
    cpu = [0]
    patch.setattr(numa, "current_cpu", lambda: cpu[0])
    yield folder, cpu


@pytest.mark.parametrize("name", ["simple", "bucketed", "fragment_aware", "numa", "adaptive"])
def test_a_pool_does_what_its_model_does(name, tmp_path, monkeypatch):
    with two_nodes(tmp_path, monkeypatch) as (nodes, cpu):
        run_state_machine_as_test(
            lambda: PoolMachine(name, nodes, cpu),
            settings=settings(max_examples=60, stateful_step_count=40, deadline=None),
        )
