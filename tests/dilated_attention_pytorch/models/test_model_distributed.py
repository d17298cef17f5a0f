"""Models under FSDP2 and DDP: the numbers of one process."""

from __future__ import annotations

import pytest
import torch
from small_models import initial
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from worlds import World

from dilated_attention_pytorch.models import LongNetEncoder, LongNetLM

TOKENS = torch.arange(44).view(2, 22) % 11
IGNORED = torch.arange(22) < torch.tensor([[5], [0]])


def step(model: nn.Module) -> dict[str, Tensor]:
    """The output of a padded batch and the gradients of its squares' sum."""
    out = model(TOKENS, key_padding_mask=IGNORED)
    out[~IGNORED].square().sum().backward()
    grads = {name: parameter.grad for name, parameter in model.named_parameters()}
    grads = {name: getattr(grad, "full_tensor", lambda grad=grad: grad)() for name, grad in grads.items()}
    return {"out": out.detach(), **grads}


def sharded_step(group: ProcessGroup, model_class: type[nn.Module], what: str) -> dict[str, Tensor]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh, model = init_device_mesh("cpu", (group.size(),)), initial(model_class).double()
    for block in model.blocks:
        if "attention" in what:
            fully_shard(block.attention, mesh=mesh)
        if "block" in what:
            fully_shard(block, mesh=mesh)
    if "root" in what:
        fully_shard(model, mesh=mesh)
    return step(model)


@pytest.mark.parametrize("model_class", [LongNetLM, LongNetEncoder])
@pytest.mark.parametrize("what", ["attention", "block-root", "attention-block-root"])
def test_sharded_modules_have_the_numbers_of_one_process(two_ranks: World, what, model_class):
    expected = step(initial(model_class).double())
    for result in two_ranks.results(sharded_step, model_class, what):
        for name, value in expected.items():
            torch.testing.assert_close(result[name], value, rtol=0, atol=1e-10, msg=name)


def sharded_generation(group: ProcessGroup) -> Tensor:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh, model = init_device_mesh("cpu", (group.size(),)), initial(LongNetLM).double()
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    register_fsdp_forward_method(model, "generate")
    return model.generate(TOKENS, 4, seed=0)


def test_a_sharded_model_generates(two_ranks: World):
    expected = initial(LongNetLM).double().generate(TOKENS, 4, seed=0)
    for result in two_ranks.results(sharded_generation):
        assert torch.equal(result, expected)


def train_on_embeddings(model: nn.Module, x: Tensor) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


def embeddings_encoder() -> tuple[nn.Module, Tensor]:
    return initial(LongNetEncoder, vocab_size=None).double(), torch.randn(2, 9, 16).double()


def ddp_steps(group: ProcessGroup) -> dict[str, Tensor]:
    model, x = embeddings_encoder()
    # It raises at its second step if a parameter is unused.
    train_on_embeddings(nn.parallel.DistributedDataParallel(model), x[group.rank()][None])
    return model.state_dict()


def test_an_encoder_of_embeddings_trains_under_ddp(two_ranks: World):
    model, x = embeddings_encoder()
    train_on_embeddings(model, x)
    for result in two_ranks.results(ddp_steps):
        for name, value in model.state_dict().items():
            torch.testing.assert_close(result[name], value, rtol=0, atol=1e-10, msg=name)
