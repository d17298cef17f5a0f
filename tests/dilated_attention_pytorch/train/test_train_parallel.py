"""How a step is computed must not change what it computes: parts of a batch, recomputation, compilation."""

import json
import random
import textwrap

import pytest
import torch
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode
from worlds import World

from dilated_attention_pytorch.models import LongNetConfig, LongNetLM
from dilated_attention_pytorch.train.batch_parts import part_of_batch
from dilated_attention_pytorch.train.data import read_corpus
from dilated_attention_pytorch.train.device import check_compile
from dilated_attention_pytorch.train.loop import training_steps
from dilated_attention_pytorch.train.options import TrainOptions
from dilated_attention_pytorch.train.parallel import Parallel, parallelize, wrap_blocks
from dilated_attention_pytorch.train.ranks import Ranks

pytestmark = [
    pytest.mark.xdist_group("worlds"),
    # torch's own: of importing inductor, and of Dynamo's look at the second block's input.
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),
]

OPTIONS = {"seq_len": 64, "batch_size": 4, "steps": 3, "eval_windows": 2, "eval_every": 3, "lr": 0.5}


@pytest.fixture(scope="module")
def world():
    with World(2) as world:
        yield world


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    for module in (json, random, textwrap):
        with open(module.__file__) as file:
            (folder / f"{module.__name__}.py").write_text(file.read())
    return str(folder)


def small_model():
    torch.manual_seed(0)
    return LongNetLM(
        LongNetConfig(
            embed_dim=16, num_layers=2, num_heads=2, segment_lengths=(16, 64), dilation_rates=(1, 2)
        )
    )


def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, torch.distributed.tensor.DTensor) else tensor


def trained(text, group=None, num_context=1, backend=None, scaler=None, steepness=1.0, **changes):
    """Bits per byte of each step and weights after the last."""
    options = TrainOptions(**OPTIONS | changes)
    model = small_model()
    with torch.no_grad():
        model.head.weight.mul_(steepness)
    names = list(model.state_dict())
    wrap_blocks(model, recompute=options.recompute, backend=backend)
    parallel = Parallel()
    if group is not None:
        ranks = Ranks(group.rank(), group.size(), group=group)
        part = part_of_batch(ranks, options, num_context, "zigzag", any_size=True)
        parallel = parallelize(model, ranks, part, torch.device("cpu"))
    # Adam would divide a gradient by its size, and so enlarge the rounding of small ones.
    optimizer = torch.optim.SGD(model.parameters())
    corpus = read_corpus(text, options.seq_len)
    rows = list(training_steps(model, optimizer, corpus, options, 0, parallel, scaler))
    weights = {name: whole(weight) for name, weight in model.state_dict().items()}
    assert list(weights) == names
    bits = [row[name] for row in rows for name in row if name.endswith("bits_per_byte")]
    assert len(bits) == options.steps + 1
    return bits, weights


def assert_same(one, other):
    assert one[0] == other[0]
    for name, weight in one[1].items():
        assert torch.equal(weight, other[1][name]), name


def assert_close(one, other):
    assert one[0] == pytest.approx(other[0], rel=1e-5)
    for name, weight in one[1].items():
        torch.testing.assert_close(weight, other[1][name], rtol=1e-5, atol=1e-6)


def all_ways(group, text):
    """How two ranks train, by what they share; each against the plain way of the same two."""
    plain = {}
    for num_context in (1, 2):
        plain[num_context] = trained(text, group, num_context)
        assert_same(plain[num_context], trained(text, group, num_context, recompute=True))
        parts = trained(text, group, num_context, grad_accumulation=2)
        assert_close(plain[num_context], parts)
        assert_same(parts, trained(text, group, num_context, grad_accumulation=2, recompute=True))
    # The ring is no part of what is compiled; its functions would be dozens of graphs.
    counters.clear()
    compiled = trained(text, group, 2, "eager", recompute=True, grad_accumulation=2)
    assert counters["stats"]["unique_graphs"] < 8
    assert_close(plain[2], compiled)
    return plain


def test_two_ranks_recompute_accumulate_and_compile(world, text):
    alone = trained(text)
    for plain in world.results(all_ways, text):
        assert_close(alone, plain[1])
        assert_close(alone, plain[2])


def padded(group, text):
    """How two ranks train on batches of three rows, and of three parts of one row."""
    return [trained(text, group, batch_size=3, grad_accumulation=parts) for parts in (1, 3)]


def test_rows_of_padding_weigh_nothing(world, text):
    alone = trained(text, batch_size=3)
    for of_rank in world.results(padded, text):
        for of_three in of_rank:
            assert_close(alone, of_three)


def scaled(group, text):
    """The scale after a step from each of many: where it is halved, a gradient did not fit."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    assert_same(trained(text, group), trained(text, group, scaler=scaler))
    factors = []
    for exponent in range(100, 120):
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**exponent)
        trained(text, group, scaler=scaler, steps=1, eval_every=1, steepness=1e4)
        factors.append(scaler.get_scale() / 2.0**exponent)
    return factors


def test_ranks_skip_together(world, text):
    factors, of_other = world.results(scaled, text)
    assert factors == of_other == sorted(factors, reverse=True)
    assert set(factors) == {1.0, 0.5}


class ReduceScatters(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += "reduce_scatter" in str(function)
        return function(*args, **kwargs or {})


def reduce_scatters_of_a_step(group, text, parts):
    with ReduceScatters() as seen:
        trained(text, group, steps=1, batch_size=8, grad_accumulation=parts)
    return seen.count


def test_gradients_are_sent_once_whatever_the_parts(world, text):
    for parts in (1, 4):
        # Of two blocks, and of what is outside of them.
        assert world.results(reduce_scatters_of_a_step, text, parts) == [3, 3]


def test_one_process_recomputes_and_accumulates(text):
    plain = trained(text)
    assert_same(plain, trained(text, recompute=True))
    assert_close(plain, trained(text, grad_accumulation=4))
    assert_close(plain, trained(text, grad_accumulation=2, recompute=True))


def test_nothing_inside_a_block_is_kept_for_the_backward():
    def kept(recompute):
        model, tokens, saved = small_model(), torch.zeros(1, 64).long(), {}
        wrap_blocks(model, recompute=recompute)

        def save(tensor):
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
            hidden = model.hidden(model.embedding(tokens), torch.arange(64))
        assert hidden.requires_grad
        return sum(saved.values())

    of_a_position = 16 * 4
    # The last block's output at least, and little beside the blocks' inputs.
    assert 3 * 64 * of_a_position <= kept(True) <= 6 * 64 * of_a_position < kept(False) / 5


def test_blocks_are_compiled_for_training_only(text):
    # Starting processes that compile takes longer than this little.
    with torch._inductor.config.patch(compile_threads=1):
        check_compile(torch.device("cpu"))
        counters.clear()
        compiled = trained(text, backend="inductor", recompute=True)
    # One graph for both blocks, none for the evaluation.
    assert counters["stats"]["unique_graphs"] == 1
    assert_close(trained(text), compiled)
