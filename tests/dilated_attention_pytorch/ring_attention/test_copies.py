"""Copies of ring modules: on the same group, with memory of their own."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.optim.swa_utils import AveragedModel
from worlds import World

from dilated_attention_pytorch.ring_attention import (
    RingAttentionConfig,
    RingDilatedAttention,
    RingDilatedAttentionHilbert,
    RingDistributedDilatedAttention,
)

Worlds = Callable[[int], World]
CONFIG = RingAttentionConfig(segment_lengths=[8, 16], dilation_rates=[1, 2], memory_pool_strategy="simple")


class Model(nn.Module):
    """Attention with something to train before it."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.project = nn.Linear(4, 4)
        self.attention = attention

    def forward(self, x):
        return self.attention(*[self.project(x)] * 3, is_causal=True)


def copied_rank(group):
    """For each class: do copies give the same, on the same group, with their own pool; how pickle ends."""
    torch.manual_seed(0)
    x = torch.randn(2, 16, 2, 4).chunk(2, 1)[group.rank()]
    mesh = init_device_mesh("cpu", (2,))
    answers = []
    for ring in (
        RingDilatedAttention(CONFIG, group),
        RingDilatedAttentionHilbert(CONFIG, group, (4, 4)),
        RingDistributedDilatedAttention(CONFIG, mesh),
    ):
        model = Model(ring)
        expected = model(x)
        averaged = AveragedModel(model)
        averaged.update_parameters(model)
        for twin in (copy.deepcopy(model), averaged.module, copy.copy(model)):
            answers.append(twin(x).equal(expected))
        twin = copy.deepcopy(ring)
        members = [getattr(x, "device_mesh", None) or x.process_group for x in (ring, twin)]
        answers += [members[0] is members[1], ring.memory_pool is not twin.memory_pool]
        try:
            answers.append(pickle.dumps(model))
        except TypeError as error:
            answers.append(str(error))
    return answers


def test_copies_are_on_the_same_group_which_is_never_pickled(world: Worlds):
    refusal = (
        "{0} is a {1}, which cannot be pickled: save the model's state_dict(), and build the model with a "
        "group of its own where it is loaded"
    )
    expected = [
        item
        for what in (
            ("RingDilatedAttention.process_group", "ProcessGroup"),
            ("RingDilatedAttentionHilbert.process_group", "ProcessGroup"),
            ("RingDistributedDilatedAttention.device_mesh", "DeviceMesh"),
        )
        for item in (*[True] * 5, refusal.format(*what))
    ]
    assert world(2).results(copied_rank) == [expected] * 2


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
@pytest.mark.parametrize(
    "make",
    [
        lambda: RingDilatedAttention(CONFIG),
        lambda: RingDilatedAttention(CONFIG, "local"),
        lambda: RingDilatedAttentionHilbert(CONFIG, grid_shape=(4, 4)),
    ],
    ids=["ring", "local", "hilbert"],
)
def test_without_a_group_a_module_can_be_pickled(make, copied):
    ring = make()
    x = torch.randn(1, 16, 2, 4)
    model = Model(ring)
    expected = model(x)
    twin = copied(model)
    assert twin(x).equal(expected)
    assert twin.attention.process_group == ring.process_group
    assert twin.attention.memory_pool is not ring.memory_pool
    assert repr(twin) == repr(model)
