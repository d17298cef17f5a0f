"""What reaches inductor, by a recorder in its place; and one real compilation."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from strategy_models import Images, assert_equal_calls, images, stack

from kernel_pytorch.advice.sample import Sample
from kernel_pytorch.advice.strategy.attention import AttentionToSDPA
from kernel_pytorch.advice.strategy.checkpointing import MemoryBudget
from kernel_pytorch.advice.strategy.compile import Compile, CompileBlocks, CompileDynamic
from kernel_pytorch.advice.strategy.compiling import is_marked
from kernel_pytorch.advice.strategy.cuda_graphs import CudaGraphs
from kernel_pytorch.advice.strategy.freezing import Freezing
from kernel_pytorch.advice.strategy.graph_passes import add_pass
from kernel_pytorch.advice.strategy.max_autotune import MaxAutotune


def tokens(length: int = 7) -> torch.Tensor:
    return torch.randn(2, length, 16, generator=torch.Generator().manual_seed(length))


def changed(model, *strategies, x=None):
    model = copy.deepcopy(model)
    for strategy in strategies:
        model = strategy.apply(model, Sample.of(tokens() if x is None else x))
    return model


@pytest.fixture
def compiled(monkeypatch):
    """What inductor is given: tensors a graph takes, its settings, the budget of activations."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on import
        import torch._functorch.config as functorch
        import torch._inductor.compile_fx as inductor
    graphs = []

    def record(graph, inputs, config_patches=None, **_):
        takes = sum(isinstance(given, torch.Tensor) for given in inputs)
        graphs.append((takes, config_patches or {}, functorch.activation_memory_budget))
        return graph.forward

    monkeypatch.setattr(inductor, "compile_fx", record)
    torch._dynamo.reset()
    yield graphs
    torch._dynamo.reset()


def test_the_whole_model(compiled):
    model = stack().eval()
    other = changed(model, Compile())
    with torch.no_grad():
        assert_equal_calls(model, other, tokens())
    parameters = len(list(model.parameters()))
    assert compiled == [(1 + parameters, {}, 1.0)]
    assert other.state_dict().keys() == model.state_dict().keys()


def test_blocks_share_one_compilation(compiled):
    model = stack(4).eval()
    other = changed(model, Compile(), CompileBlocks())
    with torch.no_grad():
        assert_equal_calls(model, other, tokens())
    assert len(compiled) == 1
    assert compiled[0][0] == 1 + len(list(model.blocks[0].parameters()))


def test_the_whole_model_after_blocks(compiled):
    other = changed(stack(3).eval(), CompileBlocks(), Compile())
    with torch.no_grad():
        other(tokens())
    assert [graph[0] for graph in compiled] == [1 + len(list(other.parameters()))]


def test_any_length(compiled):
    other = changed(stack().eval(), Compile(), CompileDynamic())
    with torch.no_grad():
        for length in (7, 11, 23):
            other(tokens(length))
    assert len(compiled) == 1


def test_candidates_that_differ_in_settings_only_run_their_own_code(compiled):
    model = stack().eval()
    with torch.no_grad():
        for strategies in ([Compile()], [MaxAutotune()], [CudaGraphs()], [MaxAutotune(), CudaGraphs()]):
            changed(model, *strategies)(tokens())
        changed(model, Compile(), Freezing())(tokens())
    tuned = {"max_autotune": True, "coordinate_descent_tuning": True}
    graphs = {"triton.cudagraphs": True}
    assert [settings for _, settings, _ in compiled] == [{}, tuned, graphs, {**tuned, **graphs}, {}]
    assert compiled[-1][0] == 1  # frozen: the weights are part of the graph


def test_freezing_ends_with_the_call(compiled):
    import torch._inductor.config as config

    other = changed(stack().eval(), Freezing(), MaxAutotune())
    with torch.no_grad():
        other(tokens())
        other(tokens())
    assert [graph[0] for graph in compiled] == [1]
    assert not config.freezing
    assert compiled[0][1]["max_autotune"]


def test_a_budget_of_activations(compiled):
    changed(stack().train(), MemoryBudget(0.5))(tokens())
    changed(stack().train(), MaxAutotune(), MemoryBudget(0.2))(tokens())
    assert [graph[2] for graph in compiled] == [0.5, 0.2]
    assert compiled[1][1]["max_autotune"]
    assert torch._functorch.config.activation_memory_budget == 1.0


@pytest.mark.parametrize(
    ("strategies", "graphs"),
    [((Compile,), 1), ((MaxAutotune,), 1), ((CompileBlocks,), 1), ((lambda: MemoryBudget(0.5),), 1)],
    ids=["whole", "with options", "by block", "with a budget"],
)
def test_passes_run_before_inductor(compiled, strategies, graphs):
    model, seen = stack(3).eval(), []

    def note(graph):
        seen.append(graph)
        return graph

    add_pass(model, note)
    other = changed(model, *[make() for make in strategies])
    with torch.no_grad():
        other(tokens())
    assert (len(seen), len(compiled)) == (graphs, graphs)


@pytest.mark.parametrize("order", [(AttentionToSDPA, Compile), (Compile, AttentionToSDPA)])
def test_attention_is_rewritten_for_inductor_in_any_order(compiled, order):
    strategies = [make() for make in order]
    with torch.no_grad():
        changed(stack().eval(), *strategies)(tokens())
    assert len(compiled) == 1
    assert strategies[-1].source()[-2:] == [
        'backend = attention_backend("inductor")',
        "model.compile(backend=backend)",
    ]


def test_a_copy_is_no_longer_compiled_but_knows_how(compiled):
    other = changed(stack().eval(), MaxAutotune())
    twin = copy.deepcopy(other)
    twin(tokens())
    assert compiled == []
    assert is_marked(twin)
    Compile().apply(twin, Sample.of(tokens()))
    twin(tokens())
    assert compiled[0][1]["max_autotune"]


def test_no_blocks():
    with pytest.raises(ValueError, match="no equal blocks"):
        changed(images().eval(), CompileBlocks(), x=torch.zeros(1, 3, 4, 4))


def test_frozen_weights_are_constants_of_the_code():
    """The one compilation by inductor here: its settings are accepted, and freezing does what it says."""
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    model = images().eval()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # on inductor's import
        torch._dynamo.reset()
        frozen = changed(model, Freezing(), x=x)
        assert isinstance(frozen, Images)
        assert_equal_calls(model, frozen, x)
        right = frozen(x)
        frozen.conv1.weight.zero_()  # which is folded with the batch norm after it
        assert torch.equal(frozen(x), right)
    torch._dynamo.reset()
