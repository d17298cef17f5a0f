"""The examples of docs/ring_attention.md on two ranks, against one process."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from ring_examples import run_example
from worlds import World

from dilated_attention_pytorch import LongNetConfig, LongNetLM, dilated_attention

Worlds = Callable[[int], World]
DOCS = (Path(__file__).parents[3] / "docs/ring_attention.md").read_text()
USE, TRAIN = re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL)


def used_rank(group) -> tuple[torch.Tensor, torch.Tensor]:
    return run_example(USE, "docs/ring_attention.md")


def test_use(world: Worlds):
    for whole, result in world(2).results(used_rank):
        expected = dilated_attention(whole, whole, whole, [256, 1024], [1, 2], is_causal=True)
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-12)


def trained_rank(group, wrapper: str):
    """The text, its loss, and the gradients by name."""
    code = TRAIN.replace("DistributedDataParallel(LongNetLM(config))", wrapper)
    model, text, loss = run_example(code, "docs/ring_attention.md")
    grads = {
        name.removeprefix("module."): getattr(x.grad, "full_tensor", lambda grad=x.grad: grad)()
        for name, x in model.named_parameters()
    }
    return text, loss.detach(), grads


WRAPPERS = {
    "DDP": "DistributedDataParallel(LongNetLM(config))",
    "FSDP2": "__import__('torch.distributed.fsdp').distributed.fsdp.fully_shard(LongNetLM(config))",
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_training_gives_the_gradients_of_one_process(world: Worlds, wrapper: str):
    assert WRAPPERS["DDP"] in TRAIN
    config = LongNetConfig(
        embed_dim=32, num_heads=2, num_layers=2, segment_lengths=(16, 64), dilation_rates=(1, 2)
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    try:
        model = LongNetLM(config)
    finally:
        torch.set_default_dtype(torch.float32)
    for text, loss, grads in world(2).results(trained_rank, WRAPPERS[wrapper]):
        model.zero_grad()
        expected = F.cross_entropy(model(text[:, :-1]).transpose(1, 2), text[:, 1:])
        expected.backward()
        torch.testing.assert_close(loss, expected.detach(), rtol=0, atol=1e-12)
        exact = {name: x.grad for name, x in model.named_parameters()}
        torch.testing.assert_close(grads, exact, rtol=0, atol=1e-12)
