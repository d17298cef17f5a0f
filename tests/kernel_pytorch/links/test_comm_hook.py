"""Compressed gradients of real DDP models, against the mean of the gradients of each rank by itself."""

from __future__ import annotations

import copy
import io
import math
import os
from collections.abc import Iterator
from contextlib import nullcontext
from datetime import timedelta
from itertools import pairwise
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from tests.support.worlds import World
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from kernel_pytorch.links.compress import hook_state
from kernel_pytorch.links.compress.hooks import register_comm_hook

LOSSY = ("fp16", "bf16", "quantized_8bit", "topk", "powersgd")
METHODS = ("none", *LOSSY)
BUCKETS_MB = {2: 0.07, 8: 0.01}
SIZES = (40, 64, 50, 130, 33, 70, 31, 90, 45, 80)
"""Of the layers: buckets of different sizes, none a multiple of a block, some parameters too small."""


@pytest.fixture(scope="module")
def three() -> Iterator[World]:
    with World(3) as world:
        yield world


class Net(nn.Module):
    """Layers that each rank and step takes another time for."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(SIZES))
        self.tiny = nn.Parameter(torch.ones(3, 5))
        self.long = nn.Parameter(torch.ones(1500))
        self.delay = 0

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.tiny.dtype)
        for layer in self.layers:
            x = torch.tanh(layer(x))
            x.register_hook(self._work)
        return 10 * x.mean(1) * self.tiny.mean() * self.long.mean()

    def _work(self, gradient: Tensor) -> Tensor:
        self.delay = (1103515245 * self.delay + 12345) % 2**31
        busy = torch.ones(60, 60)
        for _ in range(self.delay % 12):
            busy @ busy
        return gradient


def batch(rank: int, step: int) -> Tensor:
    return torch.randn(8, SIZES[0], generator=torch.Generator().manual_seed(1000 * step + rank))


def made(group, method, buckets_mb=None, dtype=torch.float32, views=False, **options):
    net = Net().to(dtype)
    net.delay = 7 + dist.get_rank(group)
    ddp = DistributedDataParallel(
        net, process_group=group, bucket_cap_mb=buckets_mb, gradient_as_bucket_view=views
    )
    return ddp, register_comm_hook(ddp, method, **options)


def own_gradients(ddp: DistributedDataParallel, x: Tensor) -> list[Tensor]:
    """Of this rank by itself."""
    net = copy.deepcopy(ddp.module)
    net.zero_grad()
    net(x).mean().backward()
    return [parameter.grad for parameter in net.parameters()]


def averages(ddp: DistributedDataParallel, x: Tensor) -> list[Tensor]:
    ddp.zero_grad()
    ddp(x).mean().backward()
    return [parameter.grad.clone() for parameter in ddp.parameters()]


def of_all(group, tensor: Tensor) -> list[Tensor]:
    found = [torch.empty_like(tensor) for _ in range(dist.get_world_size(group))]
    dist.all_gather(found, tensor, group=group)
    return found


def flat(tensors) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def same_everywhere(group, tensor: Tensor) -> bool:
    return all(torch.equal(other, tensor) for other in of_all(group, tensor))


def num_buckets(ddp: DistributedDataParallel) -> int:
    return len(ddp._get_ddp_logging_data()["rebuilt_bucket_sizes"].split(","))


# What ranks do. Each returns what the test judges.


def compare(group, method, buckets_mb):
    """Number of buckets; the average and the gradients of all ranks, of three steps, by parameter."""
    rank = dist.get_rank(group)
    ddp, _ = made(group, method, buckets_mb, error_feedback=False)
    results = []
    for step in range(3):
        x = batch(rank, step)
        mine = own_gradients(ddp, x)
        mean = averages(ddp, x)
        assert same_everywhere(group, flat(mean))
        for parameter, found in zip(mine, mean, strict=True):
            results.append((found.double(), torch.stack(of_all(group, parameter)).double()))
    return num_buckets(ddp), results


def in_order(group, method, buckets_mb):
    """Whether the averages have the bits of sums in the order of the ranks."""
    ddp, _ = made(group, method, buckets_mb)
    same = []
    for step in range(3):
        x = batch(dist.get_rank(group), step)
        mine = flat(own_gradients(ddp, x))
        total = torch.zeros_like(mine)
        for other in of_all(group, mine):
            total += other
        same.append(torch.equal(flat(averages(ddp, x)), total / dist.get_world_size(group)))
    return same


def delivered(group, method, buckets_mb, dtype):
    """Sums of the averages and what is left, of the gradients; what is left; of which parameters."""
    ddp, state = made(group, method, buckets_mb, dtype, seed=3)
    applied = expected = 0.0
    for step in range(5):
        x = batch(dist.get_rank(group), step)
        expected += torch.stack(of_all(group, flat(own_gradients(ddp, x)))).double().mean(0)
        applied += flat(averages(ddp, x)).double()
    left = state.state_dict()["left"]
    mine = flat(left.get(name, torch.zeros_like(p)) for name, p in ddp.module.named_parameters())
    mean_left = torch.stack(of_all(group, mine)).double().mean(0)
    return applied + mean_left, expected, mean_left, sorted(left)


def mean_error(group, steps):
    """Root of the mean square error of one average, and of the mean of as many averages as steps."""
    ddp, _ = made(group, "quantized_8bit", BUCKETS_MB[8], error_feedback=False)
    x = batch(dist.get_rank(group), 0)
    expected = torch.stack(of_all(group, flat(own_gradients(ddp, x)))).mean(0)
    errors = torch.stack([flat(averages(ddp, x)) for _ in range(steps)]) - expected
    errors /= expected.abs().clamp(min=1e-9)
    return errors.square().mean().sqrt().item(), errors.mean(0).square().mean().sqrt().item()


def train(ddp, optimizer, rank, steps):
    for step in steps:
        optimizer.zero_grad()
        (ddp(batch(rank, step)) - 1).square().mean().backward()
        optimizer.step()


def resume(group, method):
    """Whether a run that was stopped after three steps has the bits of one that was not, its hook's state
    too, and whether without that state it has them.
    """
    rank = dist.get_rank(group)
    ddp, state = made(group, method, BUCKETS_MB[8], seed=5)
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1, momentum=0.9)
    train(ddp, optimizer, rank, range(3))
    file = io.BytesIO()
    torch.save((ddp.module.state_dict(), optimizer.state_dict(), state.state_dict()), file)
    train(ddp, optimizer, rank, range(3, 6))

    def go_on(with_state):
        file.seek(0)
        weights, momentum, hook = torch.load(file, weights_only=True)
        again, again_state = made(group, method, BUCKETS_MB[8], seed=5)
        again.module.load_state_dict(weights)
        optimizer = torch.optim.SGD(again.parameters(), lr=0.1, momentum=0.9)
        optimizer.load_state_dict(momentum)
        if with_state:
            again_state.load_state_dict(hook)
        train(again, optimizer, rank, range(3, 6))
        return torch.equal(flat(ddp.parameters()), flat(again.parameters())), again_state.state_dict()

    same, found = go_on(with_state=True)
    same_without, _ = go_on(with_state=False)
    return same, equal(state.state_dict(), found), same_without


def equal(a, b) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[name], b[name]) for name in a)
    return torch.equal(a, b) if isinstance(a, Tensor) else a == b


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.branches = nn.ModuleList(nn.Linear(40, 40) for _ in range(3))

    def forward(self, x: Tensor, chosen: int) -> Tensor:
        return self.branches[chosen](x)


def unused(group, method):
    """Sums as of :func:`delivered`; in each step the ranks use a branch, and not all branches are used."""
    rank = dist.get_rank(group)
    ddp = DistributedDataParallel(
        Branches(), process_group=group, find_unused_parameters=True, bucket_cap_mb=0.005
    )
    state = register_comm_hook(ddp, method)
    applied = expected = 0.0
    for step, branches in enumerate([(0, 1, 1), (1, 1, 1), (2, 2, 2), (0, 1, 0), (1, 1, 1)]):
        x, chosen = torch.randn(8, 40, generator=torch.Generator().manual_seed(step + rank)), branches[rank]
        net = copy.deepcopy(ddp.module)
        net.zero_grad()
        net(x, chosen).square().mean().backward()
        mine = [torch.zeros_like(p) if p.grad is None else p.grad for p in net.parameters()]
        expected += torch.stack(of_all(group, flat(mine))).double().mean(0)
        ddp.zero_grad()
        ddp(x, chosen).square().mean().backward()
        found = [torch.zeros_like(p) if p.grad is None else p.grad for p in ddp.parameters()]
        assert same_everywhere(group, flat(found))
        applied += flat(found).double()
    left = state.state_dict()["left"]
    mine = flat(left.get(name, torch.zeros_like(p)) for name, p in ddp.module.named_parameters())
    return applied + torch.stack(of_all(group, mine)).double().mean(0), expected


def accumulated(group, views):
    """Largest error of an average of gradients accumulated under ``no_sync``, and steps counted."""
    rank = dist.get_rank(group)
    ddp, state = made(group, "bf16", BUCKETS_MB[8], views=views)
    worst = 0.0
    for step in range(2):
        x = [batch(rank, 10 * step + part) for part in range(3)]
        mine = sum(flat(own_gradients(ddp, part)).double() for part in x)
        expected = torch.stack(of_all(group, mine)).mean(0)
        ddp.zero_grad()
        for number, part in enumerate(x):
            with ddp.no_sync() if number < 2 else nullcontext():
                ddp(part).mean().backward()
        error = flat(p.grad for p in ddp.parameters()).double() - expected
        worst = max(worst, (error.abs().max() / expected.abs().max()).item())
    return worst, state.step


def poisoned(group, method, bad):
    """A gradient that is not finite on one rank: who sees it, what is left, and the next step."""
    rank = dist.get_rank(group)
    ddp, state = made(group, method, BUCKETS_MB[8])
    averages(ddp, batch(rank, 0))
    x = batch(rank, 1)
    handle = ddp.module.layers[2].weight.register_hook(
        lambda g: g.index_put((torch.tensor(1), torch.tensor(2)), torch.tensor(bad)) if rank == 1 else g
    )
    averages(ddp, x)
    seen = bool(ddp.module.layers[2].weight.grad.isfinite().all())
    handle.remove()
    kept = state.state_dict()
    finite = all(bool(x.isfinite().all()) for name in ("left", "factors") for x in kept[name].values())
    return seen, finite, bool(flat(averages(ddp, x)).isfinite().all())


def refusals(group):
    """What registering and loading raise."""
    rank = dist.get_rank(group)
    net = Net()
    ddp = DistributedDataParallel(net, process_group=group)
    raised = []
    cases = [
        lambda: register_comm_hook(net, "bf16"),
        lambda: register_comm_hook(ddp, "adaptive"),
        lambda: register_comm_hook(ddp, "bf16", share=1),
        lambda: register_comm_hook(ddp, "topk", ratio=0),
        lambda: register_comm_hook(ddp, "powersgd", rank=0),
        lambda: register_comm_hook(ddp, "topk", ratio=(1 + rank) / 10),
    ]
    state = register_comm_hook(ddp, "topk").state_dict()
    other = register_comm_hook(DistributedDataParallel(Net(), process_group=group), "topk")
    cases += [
        lambda: other.load_state_dict({**state, "world_size": 8}),
        lambda: other.load_state_dict({**state, "rank": 9}),
        lambda: other.load_state_dict({**state, "left": {"layers.0.weight": torch.ones(3)}}),
        lambda: other.load_state_dict({**state, "factors": {"gone": torch.ones(3, 4)}}),
    ]
    for case in cases:
        with pytest.raises(Exception) as caught:  # noqa: PT011  (its text is judged by the test)
            case()
        raised.append((caught.type.__name__, str(caught.value)))
    return raised


def counted(group, method, options):
    """Bytes that this rank sent in a step, and numbers in compressed and in other parameters."""
    ddp, state = made(group, method, BUCKETS_MB[8], **options)
    averages(ddp, batch(dist.get_rank(group), 0))
    sizes = [(p.numel(), p.ndim == 2 and p.numel() >= 1024) for p in ddp.parameters()]
    return state.bytes_sent, sum(n for n, big in sizes if big), sum(n for n, big in sizes if not big)


def alone(group):
    """Ranks 0 and 1 in a group, rank 2 in one of its own, where nothing is lost."""
    rank = dist.get_rank(group)
    groups = [dist.new_group([0, 1]), dist.new_group([2])]
    own = groups[rank // 2]
    ddp, state = made(own, "topk")
    x = batch(rank, 0)
    mine, mean = flat(own_gradients(ddp, x)), flat(averages(ddp, x))
    return torch.equal(mine, mean), same_everywhere(own, mean), state.bytes_sent, state.step


def from_step(group):
    """Whether the averages of steps are exact, with ``start_step=2``."""
    ddp, _ = made(group, "topk", start_step=2)
    exact = []
    for step in range(3):
        x = batch(dist.get_rank(group), step)
        expected = torch.stack(of_all(group, flat(own_gradients(ddp, x)))).mean(0)
        exact.append(torch.allclose(flat(averages(ddp, x)), expected, rtol=1e-4, atol=1e-7))
    return exact


def failing(group):
    """What backward raises where averaging fails on one rank, and where the others wait for it."""
    impatient = dist.new_group(timeout=timedelta(seconds=3))
    rank = dist.get_rank(group)
    ddp, _ = made(impatient, "bf16", BUCKETS_MB[8])
    averages(ddp, batch(rank, 0))
    send = hook_state.send_coded

    def broken(*arguments):
        if rank == 1:
            raise MemoryError("made up")
        return send(*arguments)

    with patch.object(hook_state, "send_coded", broken):
        try:
            averages(ddp, batch(rank, 1))
        except RuntimeError as error:
            return str(error)
    return None


def dying(group):
    """What backward raises where a rank ends in it."""
    rank = dist.get_rank(group)
    ddp, _ = made(group, "powersgd", BUCKETS_MB[8])
    averages(ddp, batch(rank, 0))
    if rank == 3:
        ddp.module.layers[2].weight.register_hook(lambda _: os._exit(1))
    try:
        averages(ddp, batch(rank, 1))
    except RuntimeError as error:
        return str(error)
    return None


# The tests.


@pytest.mark.parametrize("buckets", [2, 8])
@pytest.mark.parametrize("method", METHODS)
def test_averages_are_within_the_formats_error(three: World, method: str, buckets: int):
    for num_buckets, results in three.results(compare, method, BUCKETS_MB[buckets]):
        assert num_buckets == buckets
        for found, gradients in results:
            expected, largest = gradients.mean(0), gradients.abs().mean(0)
            error = found - expected
            sent_whole = method == "none" or expected.ndim < 2 or expected.numel() < 1024
            if sent_whole:
                assert (error.abs() <= 2e-7 * largest + 1e-12).all()
            elif method in ("fp16", "bf16"):
                unit, least = (2.0**-11, 2.0**-25) if method == "fp16" else (2.0**-8, 0.0)
                # Each gradient is rounded, and then their mean.
                assert (error.abs() <= 1.01 * unit * (largest + expected.abs()) + 2 * least).all()
            elif method == "quantized_8bit":
                assert error.abs().max() <= (largest.max() * 3 + expected.abs().max()) / 127
            elif method == "topk":
                kept = gradients.flatten(1)
                least = kept.abs().sort().values[:, -math.ceil(0.01 * kept.shape[1])]
                sent = kept * (kept.abs() >= least[:, None])
                torch.testing.assert_close(found.flatten(), sent.mean(0), rtol=1e-6, atol=1e-12)
            else:  # a projection of the mean
                assert 1 <= torch.linalg.matrix_rank(found, rtol=1e-5) <= 4
                assert (error * found).sum().abs() < 1e-6 * expected.square().sum()


def test_none_sums_in_the_order_of_the_ranks(three: World):
    assert three.results(in_order, "none", BUCKETS_MB[8]) == [[True] * 3] * 3


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float32, 1e-6), (torch.float64, 1e-13)], ids=str)
@pytest.mark.parametrize("method", LOSSY)
def test_what_was_sent_and_what_is_left_are_the_gradients(
    three: World, method: str, dtype: torch.dtype, rounding: float
):
    for total, expected, left, names in three.results(delivered, method, BUCKETS_MB[8], dtype):
        assert (total - expected).norm() < rounding * expected.norm()
        assert left.norm() > 1e-6 * expected.norm()
        assert "layers.0.weight" in names
        assert not {"layers.0.bias", "tiny", "long"} & set(names)


def test_8_bits_have_no_bias_in_averages(three: World):
    steps = 60
    for once, mean in three.results(mean_error, steps):
        assert mean < 1.1 * once / math.sqrt(steps)


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_has_the_same_bits(three: World, method: str):
    assert three.results(resume, method) == [(True, True, method == "none")] * 3


@pytest.mark.parametrize("method", LOSSY)
def test_parameters_that_are_not_used(three: World, method: str):
    for total, expected in three.results(unused, method):
        assert (total - expected).norm() < 1e-6 * expected.norm()


@pytest.mark.parametrize("views", [False, True])
def test_accumulated_gradients(three: World, views: bool):
    """Whether the gradients share the memory of the buckets or not."""
    for worst, steps in three.results(accumulated, views):
        assert worst < 2**-7
        assert steps == 2


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("method", LOSSY)
def test_what_is_not_finite_reaches_all_ranks_and_no_later_step(three: World, method: str, bad: float):
    assert three.results(poisoned, method, bad) == [(False, True, True)] * 3


def test_refused(three: World):
    for raised in three.results(refusals):
        assert [kind for kind, _ in raised] == ["TypeError", "ValueError", "TypeError", *["ValueError"] * 2,
                                                "GroupError", *["ValueError"] * 4]  # fmt: skip
        for (_, message), part in zip(
            raised,
            [
                "ddp must be a DistributedDataParallel, got Net",
                "method must be one of none, fp16, bf16, quantized_8bit, topk, powersgd, got adaptive",
                "unknown option share; options: error_feedback, min_elements, rank, ratio, seed, start_step",
                "ratio must be above 0 and at most 1, got 0",
                "rank must be at least 1, got 0",
                "ratio is 0.1 on rank 0 and 0.2 on rank 1",
                "the state has world_size 8, the hook 3",
                "the state has rank 9, the hook ",
                "the state has 3 numbers of layers.0.weight, the model has not",
                "the state has a factor of 3 rows for gone, the model has not",
            ],
            strict=True,
        ):
            assert part in message


@pytest.mark.parametrize(
    ("method", "options", "bytes_each"),
    [
        ("none", {}, 4),
        ("fp16", {}, 2),
        ("quantized_8bit", {}, 1 + 4 / 256),
        ("topk", {"ratio": 0.01}, 0.08 * 3 / 2),  # an all-gather
    ],
)
def test_bytes_are_those_of_the_format(three: World, method: str, options: dict, bytes_each: float):
    """Two thirds of all on the way to the sums, and again on the way back; blocks are filled up to 256."""
    found = three.results(counted, method, options)
    total = sum(sent for sent, _, _ in found)
    _, compressed, others = found[0]
    expected = 3 * 2 * 2 / 3 * (compressed * bytes_each + others * 4)
    assert expected * 0.999 <= total <= expected * (1 if method == "none" else 1.06)


def test_a_group_of_some_ranks_and_one_of_one(three: World):
    *two, (same_as_own, _, sent, step) = three.results(alone)
    for same_as_own_of_two, same_everywhere_of_two, sent_by_two, _ in two:
        assert (same_as_own_of_two, same_everywhere_of_two) == (False, True)
        assert sent_by_two > 0
    assert (same_as_own, sent, step) == (True, 0, 1)


def test_the_first_steps_whole(three: World):
    assert three.results(from_step) == [[True, True, False]] * 3


def test_a_failure_is_an_error_on_all_ranks(three: World):
    """Within the timeout of DDP's group."""
    for rank, message in enumerate(three.results(failing)):
        assert f"rank {rank} of 3 could not average its gradients in step 1: " in message
        assert ("MemoryError: made up" in message) == (rank == 1)


def test_four_ranks_and_then_one_dies():
    with World(4, timeout_s=10) as world:
        assert world.results(in_order, "none", BUCKETS_MB[2]) == [[True] * 3] * 4
        *others, dead = world.run(dying)
    assert isinstance(dead, EOFError)
    for rank, message in enumerate(others):
        assert f"rank {rank} of 4 could not average its gradients in step 1: " in message
