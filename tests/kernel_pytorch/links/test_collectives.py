"""Collectives of real groups by every pattern, against what one process computes from all inputs."""

from __future__ import annotations

import functools
import math
import operator
import os
from collections.abc import Iterator
from itertools import pairwise, product
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from made_up_links import made_up
from tests.support.worlds import World
from torch import Tensor

from kernel_pytorch.groups import GroupError
from kernel_pytorch.links.collectives import carry as carry_module
from kernel_pytorch.links.collectives import groups as groups_module
from kernel_pytorch.links.collectives.collectives import Collectives
from kernel_pytorch.links.collectives.counters import Call, Counters
from kernel_pytorch.links.collectives.groups import timeout_of
from kernel_pytorch.links.collectives.run import program
from kernel_pytorch.links.collectives.settings import Settings
from kernel_pytorch.links.collectives.steps import plan
from kernel_pytorch.links.methods import CommunicationPattern, CompressionMethod, Operation

PATTERNS = [pattern for pattern in CommunicationPattern if pattern is not CommunicationPattern.ADAPTIVE]
HOSTS = {1: ((0,),), 2: ((0,), (1,)), 3: ((0, 2), (1,)), 4: ((0, 2), (1, 3))}
FLOATS = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
INTEGERS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]
COMPLEX = [torch.complex64]
OPS = {
    "sum": operator.add,
    "mean": operator.add,
    "max": torch.maximum,
    "min": torch.minimum,
    "product": operator.mul,
}


@pytest.fixture(scope="module", params=[1, 2, 3, 4])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    with World(request.param) as world:
        yield world


@pytest.fixture(scope="module")
def four() -> Iterator[World]:
    with World(4) as world:
        yield world


def made(size: int, **settings) -> Collectives:
    """With hosts that are no hosts, and chunks of at most 32 bytes."""
    return Collectives(links=made_up(HOSTS[size], {}), settings=Settings(**{"chunk_bytes": 32, **settings}))


def whole_numbers(rank: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Whose sums and products are exact in any dtype."""
    generator = torch.Generator().manual_seed(rank + 10 * math.prod(shape))
    return torch.randint(0 if dtype is torch.bool else 1, 3, shape, generator=generator).to(dtype)


def laid_out(layout: str, values) -> tuple[Tensor, Tensor]:
    """A tensor, and the memory that it is in."""
    shape = {"empty": (0,), "scalar": (), "one": (1,), "odd": (7, 3), "strided": (11,), "transposed": (5, 3)}
    dense = values(shape[layout])
    if layout == "strided":
        memory = torch.zeros(22, dtype=dense.dtype)
        memory[::2] = dense
        return memory[::2], memory
    if layout == "transposed":
        memory = dense.t().contiguous()
        return memory.t(), memory
    return dense, dense


LAYOUTS = ["empty", "scalar", "one", "odd", "strided", "transposed"]


def reduced(op: str, inputs: list[Tensor]) -> Tensor:
    total = functools.reduce(OPS[op], inputs)
    return total / len(inputs) if op == "mean" else total.to(inputs[0].dtype)


def compare(group, dtypes, ops):
    """What differs from the expected result, and this rank's results as bytes."""
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    in_chunks, whole = made(size), made(size, chunk_bytes=1 << 20)
    wrong, bits = [], []
    calls = [(op, "odd") for op in ops] + [(ops[0], layout) for layout in LAYOUTS if layout != "odd"]
    for dtype, (op, layout) in product(dtypes, calls):
        for pattern in CommunicationPattern:
            tensor, memory = laid_out(layout, lambda shape, dtype=dtype: whole_numbers(rank, shape, dtype))
            gaps = memory[1::2].clone() if layout == "strided" else None
            inputs = [whole_numbers(other, tuple(tensor.shape), dtype) for other in range(size)]
            collectives = in_chunks if dtype is dtypes[0] else whole
            result = collectives.all_reduce(tensor, op, pattern=pattern).result()
            right = result is tensor and torch.equal(tensor, reduced(op, inputs))
            if not right or (gaps is not None and not torch.equal(memory[1::2], gaps)):
                wrong.append((dtype, op, layout, pattern))
            bits.append(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return wrong, bits


@pytest.mark.parametrize(
    ("dtypes", "ops"),
    [
        (FLOATS, list(OPS)),
        (INTEGERS, ["sum", "max", "min", "product"]),
        (COMPLEX, ["sum", "mean", "product"]),
        ([torch.bool], ["max", "min"]),
    ],
    ids=["floats", "integers", "complex", "bool"],
)
def test_every_pattern_gives_what_all_inputs_give(world: World, dtypes, ops):
    found = world.results(compare, dtypes, ops)
    assert [wrong for wrong, _ in found] == [[]] * world.size
    assert all(bits == found[0][1] for _, bits in found)


def booleans(group):
    """As torch's own: a sum is whether any is true, a product whether all are."""
    collectives = made(dist.get_world_size(group))
    rank, found = dist.get_rank(group), []
    for op in ("sum", "product"):
        tensor = torch.tensor([True, rank == 0, False])
        found.append(collectives.all_reduce(tensor, op).result().tolist())
    return found


def test_booleans(four: World):
    assert four.results(booleans) == [[[True, True, False], [True, False, False]]] * 4


def numbers(rank: int, count: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(rank), dtype=torch.float64).to(dtype)


def rounding(group, dtype, op, settings):
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    collectives = made(size, chunk_bytes=1 << 10, **settings)
    inputs = torch.stack([numbers(other, 999, dtype).double() for other in range(size)])
    exact = inputs.sum(0) / (size if op == "mean" else 1)
    worst, bits = 0.0, []
    for pattern in PATTERNS:
        found = collectives.all_reduce(numbers(rank, 999, dtype), op, pattern=pattern).result()
        bits.append(found.view(torch.uint8).numpy().tobytes())
        error = (found.double() - exact).abs() / inputs.abs().sum(0)
        worst = max(worst, float(error.max()) * (size if op == "mean" else 1))
    return worst, bits


@pytest.mark.parametrize("op", ["sum", "mean"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_other_floats_are_right_within_rounding(world: World, dtype, op):
    """Each addition rounds once, and a mean's division: the error is at most so many halves of an ulp."""
    found = world.results(rounding, dtype, op, {})
    assert all(bits == found[0][1] for _, bits in found)
    assert all(worst <= world.size * torch.finfo(dtype).eps / 2 * 1.01 for worst, _ in found)


def test_chunks_one_after_the_other_give_the_same(four: World):
    found = four.results(rounding, torch.float32, "sum", {"overlap": False})
    assert found == four.results(rounding, torch.float32, "sum", {})


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_step_begins_when_the_one_before_it_has_ended(pattern, overlap):
    pieces = plan(Operation.ALL_REDUCE, pattern, [64], HOSTS[4], chunks=3)
    found = [program(pieces, place, overlap=overlap) for place in range(4)]
    begins = {t: turn for each in found for turn, sends in enumerate(each.sends) for t in sends}
    ends = {t: turn for each in found for turn, receives in enumerate(each.receives) for t in receives}
    assert begins == ends, "both sides in the same turn"
    assert len(begins) == sum(len(step) for steps in pieces for step in steps)
    chunks = [[{begins[transfer] for transfer in step} for step in steps] for steps in pieces]
    for steps in chunks:
        assert all(len(turns) == 1 for turns in steps)
        assert all(min(b) >= max(a) + found[0].patience for a, b in pairwise(steps))
    if not overlap:
        assert all(min(after[0]) > max(before[-1]) for before, after in pairwise(chunks))


@pytest.mark.parametrize("method", ["bf16", "fp16"])
def test_compressed_sums_are_right_within_the_format(four: World, method):
    """What is sent rounds once on the way to its owner, and once on the way back."""
    found = four.results(rounding, torch.float32, "sum", {"compression": CompressionMethod(method)})
    eps = torch.finfo({"bf16": torch.bfloat16, "fp16": torch.float16}[method]).eps
    assert all(bits == found[0][1] for _, bits in found)
    assert all(worst <= eps * 1.01 for worst, _ in found)
    assert found[0][0] > torch.finfo(torch.float32).eps, "nothing was compressed"


def sent(group, pattern, compression, count):
    collectives = made(4, chunk_bytes=1 << 20, compression=CompressionMethod(compression))
    collectives.all_reduce(torch.ones(count), pattern=CommunicationPattern(pattern)).result()
    stats = collectives.stats()
    return stats["bytes_on_wire"], stats["bytes_between_hosts"]


def test_what_is_sent(four: World):
    """Bytes of each rank, of 4 N: a ring sends 3/2 N numbers; HIERARCHICAL N, half of them between hosts."""
    count = 1 << 14

    def of(pattern, compression="none"):
        return four.results(sent, pattern, compression, count)

    assert sorted(of("ring")) == [(6 * count, 0)] * 2 + [(6 * count, 6 * count)] * 2
    assert of("hierarchical") == [(6 * count, 2 * count)] * 4
    assert of("hierarchical", "bf16") == [(5 * count, count)] * 4
    assert [all_bytes for all_bytes, _ in of("ring", "bf16")] == [3 * count] * 4
    eighth = (1 + 4 / 256) / 4  # a byte for each number, a float32 for 256 of them
    assert of("hierarchical", "quantized_8bit")[0][1] == 2 * count * eighth


def compressed_on_one_host(group):
    settings = Settings(compression=CompressionMethod.BF16)
    collectives = Collectives(links=made_up((tuple(range(4)),), {}), settings=settings)
    exact = torch.tensor([1 + 2**-20])
    collectives.all_reduce(exact, "mean", pattern=CommunicationPattern.HIERARCHICAL).result()
    return exact.tolist(), collectives.last.compression, collectives.last.reason


def test_what_stays_on_a_host_is_not_said_to_be_compressed(four: World):
    reason = "as asked for; not compressed: all ranks are on one host"
    wanted = [1 + 2**-20], CompressionMethod.NONE, reason
    assert four.results(compressed_on_one_host) == [wanted] * 4


def int8_sums(group):
    """The mean of many, and whether all ranks have the same."""
    collectives = made(4, compression=CompressionMethod.QUANTIZED_8BIT, chunk_bytes=1 << 12)
    rank, total = dist.get_rank(group), torch.zeros(3000)
    for _ in range(100):
        total += collectives.all_reduce(
            numbers(rank, 3000, torch.float32), pattern=CommunicationPattern.HIERARCHICAL
        ).result()
    exact = sum(numbers(other, 3000, torch.float64) for other in range(4))
    return float((total / 100 - exact).abs().max()), total.numpy().tobytes()


def test_eight_bits_have_no_bias(four: World):
    found = four.results(int8_sums)
    assert len({bits for _, bits in found}) == 1
    # A step is about 5/127; the error of one sum has a deviation below one step.
    assert found[0][0] < 5 * (5 / 127) / math.sqrt(100)


def gathered(group):
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    collectives, wrong = made(size), []
    dtypes = [torch.float32, torch.bool, torch.int16]
    for pattern, dtype, rows in product(PATTERNS, dtypes, ([2] * size, list(range(size)))):
        parts = [whole_numbers(r, (n, 3), dtype) for r, n in enumerate(rows)]
        outs = [torch.empty(n, 3, dtype=dtype) for n in rows]
        transposed = parts[rank].t().contiguous().t()
        for out in (None, outs):
            found = collectives.all_gather(transposed, out, pattern=pattern).result()
            if not all(map(torch.equal, found, parts)) or (out and found[0] is not out[0]):
                wrong.append((pattern, dtype, rows, "gather"))
        whole = [whole_numbers(r, (sum(rows), 3), dtype) for r in range(size)]
        if dtype is torch.bool:
            continue
        mine = whole[rank].clone()
        found = collectives.reduce_scatter(mine, "sum", rows, pattern=pattern).result()
        expected = reduced("sum", whole)[sum(rows[:rank]) : sum(rows[: rank + 1])]
        if not torch.equal(found, expected) or not torch.equal(mine, whole[rank]):
            wrong.append((pattern, dtype, rows, "scatter"))
    return wrong


def test_gather_and_scatter_of_uneven_rows(world: World):
    assert world.results(gathered) == [[]] * world.size


def small_ones(group):
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    collectives = made(size)
    scalars = [int(each) for each in collectives.all_gather(torch.tensor(rank)).result()]
    mean = collectives.reduce_scatter(torch.arange(10.0), "mean").result().tolist()
    rows = torch.arange(size) + 10 * rank
    even = collectives.all_to_all(rows).result().tolist()
    uneven = collectives.all_to_all(torch.full((size * rank, 2), rank), input_sizes=[rank] * size).result()
    told = collectives.all_to_all(
        torch.full((size * rank, 2), rank), output_sizes=list(range(size)), input_sizes=[rank] * size
    ).result()
    assert torch.equal(uneven, told)
    return scalars, mean, even, uneven[:, 1].tolist()


def test_what_is_told_and_shared(world: World):
    size = world.size
    found = world.results(small_ones)
    for rank, (scalars, _, even, uneven) in enumerate(found):
        assert scalars == list(range(size))
        assert even == [rank + 10 * other for other in range(size)]
        assert uneven == [other for other in range(size) for _ in range(other)]
    assert [value for _, mean, _, _ in found for value in mean] == list(range(10))


def many(group):
    collectives = made(4)
    kept = torch.ones(100)
    for _ in range(200):
        collectives.all_reduce(kept, "mean", pattern=CommunicationPattern.HIERARCHICAL)  # dropped
    dropped = torch.full((5,), 2.0)
    collectives.all_reduce(dropped)
    handle = collectives.all_reduce(torch.ones(()))
    assert handle.wait()
    assert handle.is_completed()
    return kept.tolist(), dropped.tolist(), float(handle.result()), collectives.stats()["choices"][0]["calls"]


def test_dropped_handles_lose_nothing(four: World):
    assert four.results(many) == [([1.0] * 100, [8.0] * 5, 4.0, 200)] * 4


def refused(group):
    collectives = made(4)
    vector = torch.ones(4)
    calls = [
        (lambda: collectives.all_reduce([1.0]), TypeError, "tensor must be a tensor, got list"),
        (
            lambda: collectives.all_reduce(vector.to_sparse()),
            TypeError,
            "must be dense, got torch.sparse_coo",
        ),
        (lambda: collectives.all_reduce(vector.to("meta")), ValueError, "must have data, got a meta tensor"),
        (lambda: collectives.all_reduce(vector, "avg"), ValueError, "one of sum, mean, max, min, product"),
        (lambda: collectives.all_reduce(torch.ones(2).int(), "mean"), TypeError, "needs floating-point"),
        (lambda: collectives.all_reduce(torch.ones(2).cfloat(), "max"), TypeError, "have an order"),
        (lambda: collectives.all_reduce(torch.ones(1).expand(3)), ValueError, "elements that share memory"),
        (lambda: collectives.all_reduce(torch.ones(9).unfold(0, 3, 1)), ValueError, "share memory"),
        (lambda: collectives.all_reduce(torch.ones(2).to(torch.float8_e5m2)), TypeError, "cannot be reduced"),
        (lambda: collectives.reduce_scatter(torch.tensor(1.0)), ValueError, "must have rows"),
        (lambda: collectives.reduce_scatter(vector, "sum", [4]), ValueError, "for each of 4 ranks"),
        (lambda: collectives.reduce_scatter(vector, "sum", [3, 0, 0, 0]), ValueError, "sum to the rows"),
        (lambda: collectives.all_to_all(torch.ones(3)), ValueError, "cannot share equally"),
        (lambda: collectives.all_to_all(vector, [2] * 4), ValueError, r"must have 1 for this rank.*\[2, 2"),
        (lambda: collectives.measure(seconds=0), ValueError, "seconds must be positive, got 0"),
        (lambda: collectives.all_gather(vector, [vector]), ValueError, "a tensor for each rank, 4, got 1"),
        (lambda: collectives.all_gather(vector, [torch.ones(3)] * 4), ValueError, "this rank's shape"),
        (lambda: collectives.all_gather(vector, [vector.int()] * 4), ValueError, "the dtype of tensor"),
    ]
    for call, kind, message in calls:
        with pytest.raises(kind, match=message):
            call()
    return collectives.all_reduce(torch.ones(2)).result().tolist()


def test_what_cannot_be_done_is_refused_before_anything_is_sent(four: World):
    assert four.results(refused) == [[4.0, 4.0]] * 4


def disagreeing(group):
    rank, messages = dist.get_rank(group), []
    collectives = made(4)
    for tensor in (torch.ones(2, 3 if rank == 2 else 4), torch.ones(3).int() if rank == 1 else torch.ones(3)):
        with pytest.raises(GroupError) as raised:
            collectives.all_gather(tensor).result()
        messages.append(str(raised.value))
    return messages, len(collectives.all_gather(torch.ones(rank)).result())


def test_shapes_that_do_not_fit_together_are_told(four: World):
    for messages, count in four.results(disagreeing):
        assert "float32 [2, 4] on rank 0 and float32 [2, 3] on rank 2" in messages[0]
        assert "float32 [3] on rank 0 and int32 [3] on rank 1" in messages[1]
        assert count == 4, "and the group goes on"


def of_two(group):
    """A group of ranks 3 and 1, in this order if this PyTorch can."""
    two = dist.new_group([1, 3])
    if dist.get_rank(group) not in (1, 3):
        return None
    collectives = Collectives(two)
    result = collectives.all_gather(torch.tensor([dist.get_rank(group)])).result()
    assert timeout_of(collectives.group.group) == timeout_of(two)
    return [int(each) for each in result], collectives.communication_groups["ring"]


def test_a_group_of_some_ranks(four: World):
    assert four.results(of_two) == [None, ([1, 3], [1, 3]), None, ([1, 3], [1, 3])]


def chosen(group):
    collectives, size = made(4), dist.get_world_size(group)
    for _ in range(150):
        tensor = torch.full((999,), 1.0)
        assert float(collectives.all_reduce(tensor).result()[0]) == size
    return [(each["pattern"], each["calls"], each["reason"][:7]) for each in collectives.stats()["choices"]]


def test_ranks_choose_alike(four: World):
    first, *others = four.results(chosen)
    assert others == [first] * 3
    assert {pattern for pattern, _, _ in first} == {"ring", "tree", "butterfly", "hierarchical"}
    assert sum(calls for _, calls, _ in first) == 150


def test_reasons_with_other_times_are_counted_together():
    counters = Counters()
    for number in range(1000):
        counters.add(
            Call(
                operation=Operation.ALL_REDUCE,
                dtype="float32",
                nbytes=1000,
                pattern=CommunicationPattern.RING,
                compression=CompressionMethod.NONE,
                reason=f"tried: ring takes {number} ms" if number % 2 else "as asked for",
                seconds=1.0,
                expected_s=None,
                sent_bytes=10,
                sent_between_hosts_bytes=0,
            )
        )
    found = [(each["reason"], each["calls"]) for each in counters.stats()["choices"]]
    assert found == [("as asked for", 500), ("tried: ring takes 999 ms", 500)]


def measured(group):
    collectives = Collectives()
    before = collectives.group.links
    collectives.all_reduce(torch.ones(10)).result()
    links = collectives.measure(seconds=0.3)
    result = float(collectives.all_reduce(torch.ones(10)).result()[0])
    last = collectives.last
    return before.basis, links.basis, collectives.group.links == links, result, last.expected_s is not None


def test_measured_links_are_what_is_chosen_by(four: World):
    assert four.results(measured) == [("default", "measured", True, 4.0, True)] * 4


def measured_of_given_hosts(group):
    """By hosts that are no hosts, before and after measuring."""
    collectives = made(4)
    collectives.measure(seconds=0.3)
    collectives.all_to_all(torch.ones(4)).result()
    return (
        collectives.group.links.hosts,
        collectives.group.order,
        collectives.stats()["choices"][-1]["pattern"],
    )


def test_given_hosts_are_believed_after_measuring_too(four: World):
    assert four.results(measured_of_given_hosts) == [(HOSTS[4], (0, 2, 1, 3), None)] * 4


def ring_without_order(group):
    """As with a PyTorch that sorts the ranks of groups."""
    with mock.patch.object(groups_module, "keeps_order", return_value=False):
        collectives = made(4, chunk_bytes=1 << 20)
    tensor = torch.full((8,), float(dist.get_rank(group)))
    collectives.all_reduce(tensor, pattern=CommunicationPattern.RING).result()
    with mock.patch.object(carry_module, "run", side_effect=carry_module.run) as own:
        collectives.all_reduce(torch.ones(8), pattern=CommunicationPattern.RING).result()
    return tensor.tolist(), collectives.group.order, collectives.group.seats, own.call_count


def test_a_ring_is_in_the_order_of_the_links_where_groups_are_not(four: World):
    order, seats = (0, 2, 1, 3), (0, 1, 2, 3)
    assert four.results(ring_without_order) == [([6.0] * 8, order, seats, 1)] * 4


def one_asks_for_feedback(group):
    topk = dist.get_rank(group) == 1
    with pytest.raises((ValueError, GroupError)) as raised:
        Collectives(settings=Settings(compression=CompressionMethod.TOPK if topk else CompressionMethod.NONE))
    return str(raised.value)


def test_what_one_rank_cannot_make_the_others_are_told(four: World):
    found = four.results(one_asks_for_feedback)
    assert all("rank 1 of 4 cannot make its collectives: ValueError: " in found[rank] for rank in (0, 2, 3))


def made_by_all_but_one(group):
    if dist.get_rank(group) == 1:
        return ""
    with pytest.raises(GroupError) as raised:
        Collectives()
    return str(raised.value)


def test_a_rank_that_is_missing_at_construction_is_named():
    with World(3, timeout_s=8) as world:
        found = world.run(made_by_all_but_one)
        assert all("rank 1 of 3" in found[rank] for rank in (0, 2)), found


def given_other_settings(group):
    with pytest.raises(GroupError, match=r"settings is .* on rank 0 and .* on rank 1") as raised:
        Collectives(settings=Settings(chunk_bytes=1 + dist.get_rank(group)))
    return str(raised.value)


def test_settings_must_be_the_same(four: World):
    first, *others = four.results(given_other_settings)
    assert others == [first] * 3


def killed(group):
    collectives = made(3)
    collectives.all_reduce(torch.ones(3)).result()
    if dist.get_rank(group) == 1:
        os._exit(1)

    def go_on() -> None:
        for _ in range(100):
            collectives.all_reduce(torch.ones(3), pattern=CommunicationPattern.HIERARCHICAL).result()

    messages = []
    for _ in range(2):
        with pytest.raises(GroupError) as raised:
            go_on()
        messages.append(str(raised.value))
    return messages


def test_a_rank_that_dies_is_an_error_on_the_others():
    with World(3, timeout_s=20) as world:
        found = world.run(killed)
    assert isinstance(found[1], EOFError)
    for first, second in (found[0], found[2]):
        assert first.startswith("all_reduce of float32 [3] among global ranks [0, 1, 2]: rank ")
        assert "failed or did not answer" in first
        assert "an earlier call failed" in second
        assert first in second


def test_a_world_of_one_has_no_group():
    assert not dist.is_initialized()
    collectives = Collectives()
    tensor = torch.ones(2, 2)
    assert collectives.all_reduce(tensor, "mean").result() is tensor
    (found,) = collectives.all_gather(tensor).result()
    assert torch.equal(found, tensor)
    assert found.data_ptr() != tensor.data_ptr()
    assert torch.equal(collectives.reduce_scatter(tensor).result(), tensor)
    assert torch.equal(collectives.all_to_all(tensor).result(), tensor)
    assert collectives.group.group is None
    with pytest.raises(TypeError, match="needs floating-point"):
        collectives.all_reduce(tensor.int(), "mean")


def test_formats_that_need_feedback_are_for_hooks():
    with pytest.raises(ValueError, match=r"topk needs error feedback.*register_comm_hook"):
        Collectives(settings=Settings(compression=CompressionMethod.TOPK))
