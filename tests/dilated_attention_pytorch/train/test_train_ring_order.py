"""Ranks around rings of a training on several hosts: who holds which shard, and nothing else."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from benchmarks.links import Links, why_no_links
from test_train_distributed import curves, end_of, torchrun
from tiny import TINY
from worlds import HostWorld

from dilated_attention_pytorch.models import LongNetConfig, LongNetLM
from dilated_attention_pytorch.train.batch_parts import part_of_batch
from dilated_attention_pytorch.train.options import TrainOptions
from dilated_attention_pytorch.train.parallel import parallelize
from dilated_attention_pytorch.train.ranks import Ranks
from dilated_attention_pytorch.train.ring_order import choose_ring_order
from kernel_pytorch.links.hosts import RankHome

can_order = pytest.mark.skipif(
    "sort_ranks" not in inspect.signature(dist.new_group).parameters,
    reason="this PyTorch sorts the ranks of a group",
)


@dataclass(frozen=True)
class OnHosts(Ranks):
    """Ranks on hosts such as a b a b."""

    hosts: str = ""
    asked: list[int] = field(default_factory=list)

    def gather(self, value):
        self.asked.append(self.rank)
        return [RankHome(boot_id=host, network_namespace="1") for host in self.hosts]


def chosen(hosts: str, num_context: int, segment_lengths: tuple[int, ...], **changes):
    ranks = OnHosts(0, len(hosts), hosts=hosts)
    options = TrainOptions(seq_len=64, batch_size=4, **changes)
    rates = (1,) * len(segment_lengths)
    config = LongNetConfig(embed_dim=16, num_heads=2, segment_lengths=segment_lengths, dilation_rates=rates)
    part = part_of_batch(ranks, options, num_context, "contiguous")
    return choose_ring_order(ranks, part, config, options), ranks.asked


@pytest.mark.parametrize(
    ("hosts", "num_context", "segment_lengths", "order", "words"),
    [
        # Keys and values go to later ranks twice, gradients to earlier ones: 7 shards in the busiest
        # direction of a b a b, 6 in that of a b b a.
        ("abab", 4, (64,), (0, 1, 3, 2), "the busiest link between hosts carries 14% less"),
        ("abab", 4, (32,), (0, 2, 1, 3), "the busiest link between hosts carries 100% less"),
        ("abab", 2, (64,), (0, 2, 1, 3), "the busiest link between hosts carries 100% less"),
    ],
    ids=["all four", "segments of two shards", "two rings"],
)
def test_the_order_in_which_hosts_send_each_other_least(hosts, num_context, segment_lengths, order, words):
    found, _ = chosen(hosts, num_context, segment_lengths)
    assert found.ranks == order
    if found.possible:
        assert found.words == f"in the order {' '.join(map(str, order))}: {words}"


def test_the_dtype_of_what_travels_counts():
    """In bfloat16 as many bytes of gradients come back as go."""
    found, _ = chosen("abab", 4, (64,), dtype="bfloat16")
    assert found is None  # 8 shards in both directions, in any order


@pytest.mark.parametrize(
    ("hosts", "num_context", "segment_lengths", "num_exchanges"),
    [("aaaa", 4, (64,), 1), ("abba", 4, (64,), 1), ("aabb", 2, (64,), 1), ("abab", 1, (64,), 0)],
    ids=["one host", "best already", "rings within hosts", "no ring"],
)
def test_otherwise_ranks_stay_in_order(hosts, num_context, segment_lengths, num_exchanges):
    found, asked = chosen(hosts, num_context, segment_lengths)
    assert found is None
    assert len(asked) == num_exchanges


def test_an_older_pytorch_keeps_the_order_and_says_so(monkeypatch):
    monkeypatch.setattr("torch.distributed.new_group", lambda ranks: None)
    found, _ = chosen("abab", 4, (32,))
    assert not found.possible
    assert found.words == (
        "in the order 0 2 1 3 the busiest link between hosts would carry 100% less, "
        "but PyTorch before 2.13 sorts the ranks of a group"
    )


# Real processes.

ON_HOSTS = """
import os, sys
from dilated_attention_pytorch.cli import main
from dilated_attention_pytorch.train import ring_order
from kernel_pytorch.links.hosts import RankHome
host = "abab"[int(os.environ["RANK"])]
ring_order.home_of_this_rank = lambda: RankHome(boot_id=host, network_namespace="1")
sys.exit(main(["train", *sys.argv[1:]]))
"""


@can_order
def test_a_run_in_another_order_has_the_same_numbers_and_goes_on_in_any(text, longnet):
    options = [
        *("--data", text, *TINY, "--segment-lengths", "16,64", "--dilation-rates", "1,1"),
        *("--schedule", "constant", "--warmup-steps", 1, "--eval-every", 3),
    ]
    assert longnet("train", *options, "--steps", 6, "--run", "whole")[0] == 0
    Path("on_hosts.py").write_text(ON_HOSTS)
    four = ["--context-parallel", 4, "--steps", 3, "--run", "spread"]
    with torchrun(4, *options, *four, program=["on_hosts.py"]) as child:
        out, err = end_of(child)
    assert (child.returncode, err) == (0, "")
    assert "ranks  4: 1 data parallel x 4 context parallel (contiguous)\n       in the order 0 1 3 2: " in out
    with torchrun(2, "--resume", "spread", "--context-parallel", 2, "--steps", 6) as child:  # on one host
        out, err = end_of(child)
    assert (child.returncode, err) == (0, "")
    assert "in the order" not in out
    for values, expected in zip(curves("spread"), curves("whole"), strict=True):
        assert values == pytest.approx(expected, rel=1e-5)


def attend(group, in_order: bool):
    """One forward around the ring of a model, in the chosen order or in ascending order."""
    ranks = Ranks(group.rank(), group.size(), group=group)
    options = TrainOptions(seq_len=8192, batch_size=1)
    config = LongNetConfig(
        embed_dim=16, num_layers=1, num_heads=2, segment_lengths=(8192,), dilation_rates=(1,)
    )
    part = part_of_batch(ranks, options, 4, "contiguous")
    order = choose_ring_order(ranks, part, config, options)
    assert order is not None
    model = LongNetLM(config)
    parallel = parallelize(model, ranks, part, torch.device("cpu"), order if in_order else None)
    q, k, v = torch.ones(3, 1, 2048, 2, 8)
    return order.ranks, parallel.part.context_rank, parallel.attend(0, q, k, v).sum().item()


@can_order
@pytest.mark.xdist_group("worlds")
@pytest.mark.skipif(why_no_links() is not None, reason=f"hosts: {why_no_links()}")
def test_interfaces_of_two_hosts_carry_less():
    """Causal over all four ranks on hosts a b a b: two shards each way instead of three and one."""
    shard = 2048 * 2 * 2 * 8 * 4  # bytes of keys and values
    with Links(2) as links, HostWorld(links, [0, 1, 0, 1]) as world:
        world.results(attend, True)  # connections are made
        sent = {}
        for in_order in (False, True):
            before = links.traffic()
            answers = world.results(attend, in_order)
            after = links.traffic()
            sent[in_order] = [b.sent_bytes - a.sent_bytes for a, b in zip(before, after, strict=True)]
            places = [0, 1, 3, 2] if in_order else [0, 1, 2, 3]
            assert [answer[:2] for answer in answers] == [((0, 1, 3, 2), place) for place in places]
            assert sum(answer[2] for answer in answers) == 4 * 2048 * 2 * 8
    assert sent[False] == pytest.approx([3 * shard, shard], rel=0.2)
    assert sent[True] == pytest.approx([2 * shard, 2 * shard], rel=0.2)
