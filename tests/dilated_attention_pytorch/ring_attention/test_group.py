"""Who takes part in a ring is never a guess."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from worlds import World

from dilated_attention_pytorch import dilated_attention
from dilated_attention_pytorch.ring_attention import (
    RingAttentionConfig,
    RingDilatedAttention,
    RingDilatedAttentionHilbert,
    RingDistributedDilatedAttention,
    unshard_sequence,
)
from dilated_attention_pytorch.ring_attention.group import Shared

Worlds = Callable[[int], World]
CONFIG = RingAttentionConfig(segment_lengths=[8], dilation_rates=[1])
SIMULATED = RingAttentionConfig(segment_lengths=[8], dilation_rates=[1], ring_size=2)
CLASSES = (RingDilatedAttention, RingDilatedAttentionHilbert)


def message(call: Callable[[], object]) -> str:
    """What a call that must raise says, with the type."""
    try:
        call()
    except (TypeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def doubtful_rank(group) -> list[str]:
    """What each doubt is answered with."""
    not_mine = [dist.new_group([rank]) for rank in range(2)][1 - group.rank()]
    mesh = init_device_mesh("cpu", (2,))
    other = DeviceMesh("cpu", [1 - group.rank()], _init_backend=False)
    shard = torch.zeros(1, 4)
    earlier = RingDilatedAttention(CONFIG, "local")
    earlier._process_group = Shared("", None)  # as if made before the world was initialised
    qkv = [torch.zeros(1, 8, 1, 4)] * 3
    calls = [
        *(lambda ring=ring: ring(CONFIG) for ring in CLASSES),
        *(lambda ring=ring: ring(SIMULATED, "local") for ring in CLASSES),
        lambda: RingDilatedAttention(CONFIG, "WORLD"),
        lambda: RingDilatedAttention(CONFIG, 2),
        lambda: RingDilatedAttention(CONFIG, mesh),
        lambda: RingDilatedAttention(CONFIG, not_mine),
        lambda: RingDistributedDilatedAttention(CONFIG, other),
        lambda: earlier(*qkv),
        lambda: unshard_sequence(shard, None),
        lambda: unshard_sequence(shard, mesh),
        lambda: unshard_sequence(shard, not_mine),
    ]
    return [message(call) for call in calls]


def test_every_doubt_is_an_error_that_says_what_to_pass(world: Worlds):
    given = (
        "ValueError: process_group must be given in a world of 2 ranks: dist.group.WORLD for a ring of all, "
        "a group for a ring of some, 'local' for one device; got None"
    )
    simulated = (
        "ValueError: process_group='local' in a world of 2 ranks needs ring_size=None or 1, got ring_size=2; "
        "for a ring of several ranks pass their group"
    )
    must = "process_group must be a ProcessGroup, 'local' or None, got"
    mesh = (
        f"TypeError: {must} a DeviceMesh: pass mesh.get_group(), or the mesh to "
        "RingDistributedDilatedAttention"
    )
    stranger = f"ValueError: {must} NON_GROUP_MEMBER: this rank is not in the group, and takes no part"
    for rank, answers in enumerate(world(2).results(doubtful_rank)):
        assert answers == [
            *[given] * 2,
            *[simulated] * 2,
            f"ValueError: {must} 'WORLD'",
            f"TypeError: {must} int",
            mesh,
            stranger,
            "ValueError: device_mesh must contain this rank, got a mesh of size 1 without rank "
            f"{rank}, which takes no part",
            given,
            given,
            mesh,
            stranger,
        ]


def local_rank(group) -> list[bool]:
    torch.manual_seed(group.rank())  # on each rank other numbers: nothing is shared
    q, k, v = (torch.randn(1, 8, 1, 4) for _ in range(3))
    expected = dilated_attention(q, k, v, [8], [1])
    return [
        *(torch.equal(ring(CONFIG, "local")(q, k, v), expected) for ring in CLASSES),
        torch.equal(unshard_sequence(q, "local"), q),
    ]


def test_local_is_one_device_in_any_world(world: Worlds):
    for size in (1, 2):
        assert world(size).results(local_rank) == [[True] * 3] * size
    q = torch.randn(1, 8, 1, 4)
    assert torch.equal(RingDilatedAttention(CONFIG, "local")(q, q, q), dilated_attention(q, q, q, [8], [1]))


def alone_rank(group) -> list[bool]:
    q, k, v = (torch.randn(1, 8, 1, 4, dtype=torch.float64) for _ in range(3))
    expected = dilated_attention(q, k, v, [8], [1])
    outs = [RingDilatedAttention(config)(q, k, v) for config in (CONFIG, SIMULATED)]
    return [*(torch.allclose(out, expected, atol=1e-12) for out in outs), unshard_sequence(q, None).equal(q)]


def test_a_world_of_one_rank_leaves_no_doubt(world: Worlds):
    assert world(1).results(alone_rank) == [[True] * 3]
