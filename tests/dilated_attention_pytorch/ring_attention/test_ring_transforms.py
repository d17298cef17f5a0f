"""What cannot travel between ranks is refused by name: transforms of torch.func, tensors without numbers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.functional import jacobian
from torch.distributed.device_mesh import DeviceMesh
from torch.func import grad, jacfwd, jacrev, jvp, vmap
from worlds import World

from dilated_attention_pytorch.ring_attention import (
    RingAttentionConfig,
    RingDilatedAttention,
    RingDilatedAttentionHilbert,
    RingDistributedDilatedAttention,
    unshard_sequence,
)
from dilated_attention_pytorch.ring_attention.utils.communication import RingError

Worlds = Callable[[int], World]
CONFIG = RingAttentionConfig(segment_lengths=[16], dilation_rates=[1])


def dual(function: Callable[[Tensor], Tensor], x: Tensor) -> None:
    with forward_ad.dual_level():
        function(forward_ad.make_dual(x, x))


TRANSFORMS: dict[str, Callable[[Callable[[Tensor], Tensor], Tensor], Any]] = {
    "grad": lambda f, x: grad(lambda x: f(x).sum())(x),
    "vmap": lambda f, x: vmap(f)(x[None]),
    "vmap(grad)": lambda f, x: vmap(grad(lambda x: f(x).sum()))(x[None]),
    "jacrev": lambda f, x: jacrev(f)(x),
    "jacfwd": lambda f, x: jacfwd(f)(x),
    "jvp": lambda f, x: jvp(f, (x,), (x,)),
    "dual level": dual,
    "batched gradients": lambda f, x: jacobian(f, x, vectorize=True),
    "meta": lambda f, x: f(x.to("meta")),
}


def function_of(group, which: str) -> Callable[[Tensor], Tensor]:
    if which == "unshard_sequence":
        return lambda x: unshard_sequence(x, group)
    if which == "mesh":
        ring = RingDistributedDilatedAttention(CONFIG, DeviceMesh("cpu", [[0, 1]]))
    elif which == "hilbert":
        ring = RingDilatedAttentionHilbert(CONFIG, group, grid_shape=(2, 4))
    else:
        ring = RingDilatedAttention(CONFIG, group)
    return lambda x: ring(x, x, x)


def refused_rank(group, which: str) -> list[str]:
    """What each transform of a function says, and then the function itself."""
    function, x = function_of(group, which), torch.randn(1, 4, 2, 4)
    answers = []
    for transform in TRANSFORMS.values():
        try:
            answers.append(str(transform(function, x)))
        except NotImplementedError as error:
            answers.append(str(error))
    assert function(x).isfinite().all()  # nothing is left of them
    return answers


@pytest.mark.parametrize("which", ["ring", "hilbert", "mesh", "unshard_sequence"])
def test_refused_by_name(world: Worlds, which: str):
    for answers in world(2).results(refused_rank, which):
        named = dict(zip(TRANSFORMS, answers, strict=True))
        assert named.pop("meta").startswith("tensors on the device 'meta' do not go through ring attention")
        for name, answer in named.items():
            assert answer.startswith("torch.func, batched gradients and forward-mode AD do not go"), name


def one_transforms_rank(group, which: str, name: str) -> None:
    function, x = function_of(group, which), torch.randn(1, 4, 2, 4, requires_grad=True)
    if group.rank() == 1:
        TRANSFORMS[name](function, x.detach())
    else:
        function(x).sum().backward()


@pytest.mark.parametrize("name", ["grad", "jvp", "vmap", "meta"])
@pytest.mark.parametrize("which", ["ring", "mesh", "unshard_sequence"])
def test_the_other_ranks_are_told(world: Worlds, which: str, name: str):
    other, refused = world(2).run(one_transforms_rank, which, name)
    assert type(refused) is NotImplementedError
    assert isinstance(other, RingError)
    assert f"rank 1 of 2 cannot go on: NotImplementedError: {refused}" in str(other)


def test_batched_gradients_of_simulated_ranks():
    ring = RingDilatedAttention(RingAttentionConfig(segment_lengths=[16], dilation_rates=[1], ring_size=2))
    with pytest.raises(NotImplementedError, match=r"batched gradients .* do not go through ring attention"):
        jacobian(lambda x: ring(x, x, x), torch.randn(1, 8, 1, 2), vectorize=True)


def test_a_grid_first_seen_under_a_transform_or_by_the_compiler():
    """Its order is kept: a tensor of the transform would be of no use after it."""
    x = torch.randn(1, 21, 2)
    ring = RingDilatedAttentionHilbert(CONFIG, grid_shape=(3, 7))
    gradient = grad(lambda x: (ring.apply_hilbert_ordering(x) ** 2).sum())(x)
    torch.testing.assert_close(gradient, 2 * x)
    expected = ring.apply_hilbert_ordering(x)
    assert torch.equal(copy.deepcopy(ring).apply_hilbert_ordering(x), expected)
    ring = RingDilatedAttentionHilbert(CONFIG, grid_shape=(7, 3))
    assert torch.equal(
        torch.compile(ring.apply_hilbert_ordering, backend="eager")(x), ring.apply_hilbert_ordering(x)
    )
