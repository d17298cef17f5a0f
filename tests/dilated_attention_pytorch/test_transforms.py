"""torch.func, forward mode, tensors without numbers: computed right, or refused by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import oracle
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.func import (
    functional_call,
    functionalize,
    grad,
    hessian,
    jacfwd,
    jacrev,
    jvp,
    stack_module_state,
    vmap,
)
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from dilated_attention_pytorch import (
    DilatedPattern,
    LongNetConfig,
    LongNetEncoder,
    LongNetLM,
    MultiheadDilatedAttention,
    dilated_attention,
)
from dilated_attention_pytorch.core.masks import _ignored_by_value
from dilated_attention_pytorch.core.validation import checked_positions
from dilated_attention_pytorch.kernels.operator import refuse_transforms
from dilated_attention_pytorch.ring_attention import (
    RingAttentionConfig,
    RingDilatedAttention,
    RingDilatedAttentionHilbert,
    shard_sequence,
    unshard_sequence,
)

# torch itself warns the first time that a tensor gets a tangent.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")

SEGMENTS, RATES = (4, 16), (1, 3)
BRANCHES = tuple(zip(SEGMENTS, RATES, strict=True))
BACKENDS = ["sdpa", "reference"]
CONFIG = LongNetConfig(
    vocab_size=11, embed_dim=8, num_heads=2, num_layers=1, segment_lengths=(4, 16), dilation_rates=(1, 2)
)
NO_SECOND_DERIVATIVE = r"differentiated twice with backend='sdpa'; backend='reference' can"
NOT_IN_A_GRAPH = "do not go through dilated_attention in an exported program or beside functionalize"
NO_FORWARD_MODE = r"no forward-mode derivative.*backend='sdpa'; backend='reference' has"


def attend(query: Tensor, key: Tensor, value: Tensor, **arguments: Any) -> Tensor:
    return dilated_attention(query, key, value, SEGMENTS, RATES, **arguments)


def exact(query: Tensor, key: Tensor, value: Tensor, **arguments: Any) -> Tensor:
    return oracle.attention(query, key, value, BRANCHES, **arguments)[0]


def draw(*leading: int, seq: int = 7, width: int = 2) -> list[Tensor]:
    return [torch.randn(*leading, 2, seq, heads, width, dtype=torch.float64) for heads in (4, 2, 2)]


def of_one(function: Callable[..., Tensor], **arguments: Any) -> Callable[[Tensor], Tensor]:
    """A function of one ``x [b, n, h, d]`` that all of query, key and value depend on."""
    return lambda x: function(x, x.cos(), 2 * x, **arguments)


def gradients(function: Callable[..., Tensor], *inputs: Tensor) -> tuple[Tensor, ...]:
    leaves = [x.detach().requires_grad_() for x in inputs]
    return torch.autograd.grad(function(*leaves), leaves)


def close(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


MASKED = {
    "is_causal": True,
    "padding": torch.tensor([[False] * 5 + [True] * 2, [False] * 7]),
    "positions": torch.tensor([[3, 0, 9, 1, 2, 20, 5], [6, 5, 4, 3, 2, 1, 0]]),
}


def renamed(arguments: dict[str, Any]) -> dict[str, Any]:
    """The oracle's arguments as those of ``dilated_attention``."""
    return {{"padding": "key_padding_mask"}.get(name, name): x for name, x in arguments.items()}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("arguments", [{}, MASKED], ids=["plain", "masked"])
def test_grad(arguments: dict[str, Any], backend: str):
    qkv = draw()
    actual = grad(lambda *qkv: attend(*qkv, **renamed(arguments), backend=backend).sin().sum(), (0, 1, 2))
    close(actual(*qkv), gradients(lambda *qkv: exact(*qkv, **arguments).sin().sum(), *qkv))


@pytest.mark.parametrize("backend", BACKENDS)
def test_jacrev(backend: str):
    x = torch.randn(1, 5, 2, 2, dtype=torch.float64)
    expected = torch.autograd.functional.jacobian(of_one(exact, is_causal=True), x)
    function = of_one(attend, is_causal=True, backend=backend)
    close(jacrev(function)(x), expected)
    close(jacrev(function, chunk_size=3)(x), expected)
    close(torch.autograd.functional.jacobian(function, x, vectorize=True), expected)


@pytest.mark.parametrize("in_dims", [(0, 0, 0), (0, None, None), (None, 2, None), (-1, None, 1)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_vmap_over_some_of_the_inputs(in_dims: tuple[int | None, ...], backend: str):
    mapped = [x[0] if dim is None else x.movedim(0, dim) for x, dim in zip(draw(3), in_dims, strict=True)]
    actual = vmap(lambda *qkv: attend(*qkv, is_causal=True, backend=backend), in_dims)(*mapped)
    rows = [
        [x if dim is None else x.select(dim, i) for x, dim in zip(mapped, in_dims, strict=True)]
        for i in range(3)
    ]
    close(actual, torch.stack([exact(*row, is_causal=True) for row in rows]))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
def test_vmap_over_masks_and_positions_alone(dtype: torch.dtype, backend: str):
    qkv = draw()
    padding = torch.rand(3, 2, 7) < 0.3
    positions = torch.stack([torch.randperm(12)[:7] for _ in range(3)])
    mask = padding.float() * -1e9 if dtype.is_floating_point else padding.to(dtype)
    actual = vmap(
        lambda mask, positions: attend(*qkv, key_padding_mask=mask, positions=positions, backend=backend)
    )(mask, positions)
    expected = [exact(*qkv, padding=p, positions=r) for p, r in zip(padding, positions, strict=True)]
    close(actual, torch.stack(expected))


@pytest.mark.parametrize(("items", "batch", "seq"), [(0, 1, 7), (3, 0, 7), (3, 2, 0)])
def test_vmap_of_nothing(items: int, batch: int, seq: int):
    x = torch.randn(items, batch, seq, 4, 2)
    assert vmap(of_one(attend))(x).shape == x.shape
    assert vmap(grad(lambda x: of_one(attend)(x).sum()))(x).shape == x.shape


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_nested_and_chunked_vmap(chunk_size: int | None):
    query, key, value = draw(2, 3)
    key = key[:, 0]
    inner = vmap(attend, (0, None, 0))
    actual = vmap(inner, chunk_size=chunk_size)(query, key, value)
    expected = [[exact(query[i, j], key[i], value[i, j]) for j in range(3)] for i in range(2)]
    close(actual, torch.stack([torch.stack(row) for row in expected]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_of_each_item_and_of_all(backend: str):
    query, key, value = draw(3)
    key = key[0]

    def loss(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return attend(query, key, value, is_causal=True, backend=backend).sin().sum()

    expected = [
        gradients(lambda *qkv: exact(*qkv, is_causal=True).sin().sum(), q, key, v)
        for q, v in zip(query, value, strict=True)
    ]
    expected_query, expected_key, expected_value = (torch.stack(x) for x in zip(*expected, strict=True))
    each = vmap(grad(loss, (0, 1, 2)), (0, None, 0))(query, key, value)
    close(each, (expected_query, expected_key, expected_value))

    def total(*qkv: Tensor) -> Tensor:
        return vmap(loss, (0, None, 0))(*qkv).sum()

    close(grad(total, (0, 1, 2))(query, key, value), (expected_query, expected_key.sum(0), expected_value))


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_one_full_branch_is_scaled_dot_product_attention_under_vmap_of_grad():
    qkv = [torch.randn(3, 1, 6, 2, 4, dtype=torch.float64) for _ in range(3)]

    def dilated(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return dilated_attention(query, key, value, [8], [1], is_causal=True).sin().sum()

    def plain(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        return F.scaled_dot_product_attention(query, key, value, is_causal=True).sin().sum()

    close(*(vmap(grad(function, (0, 1, 2)))(*qkv) for function in (dilated, plain)))


def test_triton_under_vmap_of_grad():
    pytest.importorskip("triton")
    device = "cuda" if torch.cuda.is_available() else "cpu"  # interpreted
    query, key, value = (torch.randn(2, 1, 8, 1, 16, device=device) for _ in range(3))

    def loss(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return dilated_attention(query, key, value, [8], [2], backend="triton").sin().sum()

    actual = vmap(grad(loss, (0, 1)), (0, 0, None))(query, key, value[0])
    for i in range(2):
        inputs = [x.cpu() for x in (query[i], key[i], value[0])]
        expected = gradients(lambda *qkv: oracle.attention(*qkv, [(8, 2)])[0].sin().sum(), *inputs)
        torch.testing.assert_close([x[i].cpu() for x in actual], list(expected[:2]), rtol=1e-5, atol=1e-5)
    with pytest.raises(NotImplementedError, match="backend='triton'; backend='reference' has"):
        jvp(loss, (query[0], key[0], value[0]), (query[0], key[0], value[0]))


def test_flops_are_counted_under_a_transform():
    forward = DilatedPattern(SEGMENTS, RATES, 4, num_kv_heads=2).flops(2, 7, 2)
    with FlopCounterMode(display=False) as counter:
        vmap(grad(lambda *qkv: attend(*qkv).sum()))(*draw(3))
    assert counter.get_total_flops() == 3 * 3.5 * forward


def test_forward_mode_is_refused():
    x = torch.randn(1, 5, 2, 2, dtype=torch.float64)
    function = of_one(attend)
    with pytest.raises(NotImplementedError, match=NO_FORWARD_MODE):
        jvp(function, (x,), (x,))
    with pytest.raises(NotImplementedError, match=NO_FORWARD_MODE):
        jacfwd(function)(x)
    with pytest.raises(NotImplementedError, match=NO_FORWARD_MODE):
        hessian(lambda x: function(x).sum())(x)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, x)
        with pytest.raises(NotImplementedError, match=NO_FORWARD_MODE):
            function(dual)
        with torch.no_grad(), pytest.raises(NotImplementedError, match=NO_FORWARD_MODE):
            attend(x, dual, x)
        close(function(x), exact(x, x.cos(), 2 * x))  # nothing to differentiate
    encoder = LongNetEncoder(CONFIG)
    embedded = torch.randn(1, 5, 8)
    with pytest.raises(NotImplementedError, match=NO_FORWARD_MODE):
        jvp(encoder, (embedded,), (embedded,))


def test_forward_mode_through_the_reference():
    x, tangent = torch.randn(2, 1, 5, 2, 2, dtype=torch.float64)
    function = of_one(attend, is_causal=True, backend="reference")
    expected = torch.autograd.functional.jacobian(of_one(exact, is_causal=True), x)
    close(jacfwd(function)(x), expected)
    close(jvp(function, (x,), (tangent,))[1], (expected * tangent).sum((-4, -3, -2, -1)))
    with forward_ad.dual_level():
        out = function(forward_ad.make_dual(x, tangent))
        close(forward_ad.unpack_dual(out).tangent, (expected * tangent).sum((-4, -3, -2, -1)))
    second = torch.autograd.functional.hessian(lambda x: of_one(exact, is_causal=True)(x).sin().sum(), x)
    close(hessian(lambda x: function(x).sin().sum())(x), second)


def test_second_derivatives_are_refused():
    x = torch.randn(1, 5, 2, 2, dtype=torch.float64)
    function = of_one(attend)
    with pytest.raises(
        RuntimeError, match=r"differentiated twice with backend='sdpa'; backend='reference' can"
    ):
        grad(lambda x: grad(lambda x: function(x).sin().sum())(x).sum())(x)
    with pytest.raises(
        RuntimeError, match=r"differentiated twice with backend='sdpa'; backend='reference' can"
    ):
        jacrev(jacrev(lambda x: function(x).sin().sum()))(x)


@pytest.mark.parametrize("backend", BACKENDS)
def test_values_are_checked_under_a_transform(backend: str):
    query, key, value = draw()
    with pytest.raises(ValueError, match="positions must be distinct, got 4 twice"):
        vmap(lambda p: attend(query, key, value, positions=p, backend=backend))(torch.full((3, 7), 4))
    with pytest.raises(ValueError, match=r"key_padding_mask must hold only 0 .*, got -5\.0"):
        vmap(lambda m: attend(query, key, value, key_padding_mask=m, backend=backend))(
            torch.full((3, 2, 7), -5.0)
        )
    with pytest.raises(ValueError, match="positions must not be negative, got -1"):
        grad(lambda q: attend(q, key, value, positions=torch.arange(-1, 6), backend=backend).sum())(query)


def test_opcheck_of_the_checks():
    torch.library.opcheck(checked_positions, (torch.randperm(6).view(2, 3),))
    torch.library.opcheck(_ignored_by_value, (torch.tensor([[0, float("-inf")]]), "mask"))


def test_the_gradients_of_a_functional_model():
    model = LongNetLM(CONFIG)
    tokens = torch.randint(11, (3, 1, 9))
    parameters = dict(model.named_parameters())

    def loss(parameters: dict[str, Tensor], tokens: Tensor) -> Tensor:
        logits = functional_call(model, parameters, (tokens[:, :-1],))
        return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())

    each = vmap(grad(loss), (None, 0))(parameters, tokens)
    for i, row in enumerate(tokens):
        expected = torch.autograd.grad(loss(parameters, row), list(parameters.values()))
        torch.testing.assert_close([x[i] for x in each.values()], list(expected))


def test_an_ensemble():
    models = [
        MultiheadDilatedAttention(8, 2, segment_lengths=[4, 16], dilation_rates=[1, 2]) for _ in range(3)
    ]
    x, padding = torch.randn(2, 7, 8), torch.rand(2, 7) < 0.3
    parameters, buffers = stack_module_state(models)

    def run(parameters: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
        out: Tensor = functional_call(
            models[0], (parameters, buffers), (x,), {"key_padding_mask": padding, "is_causal": True}
        )[0]
        return out

    expected = torch.stack([model(x, key_padding_mask=padding, is_causal=True)[0] for model in models])
    torch.testing.assert_close(vmap(run)(parameters, buffers), expected)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_meta_tensors_have_shapes(dtype: torch.dtype, backend: Any):
    query, key, value = (x.to("meta", dtype).requires_grad_() for x in draw())
    out, lse = dilated_attention(
        query, key, value, SEGMENTS, RATES, backend=backend, return_lse=True,
        key_padding_mask=torch.zeros(2, 7, device="meta"), positions=torch.arange(7, device="meta"),
    )  # fmt: skip
    assert out.is_meta
    assert out.shape == query.shape
    assert out.dtype == dtype
    assert lse.shape == (2, 4, 7)
    assert lse.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert [x.shape for x in torch.autograd.grad(out.sum(), [query, key])] == [query.shape, key.shape]


def test_a_model_on_meta():
    with torch.device("meta"):
        model = LongNetLM(CONFIG)
        logits = model(torch.zeros(1, 9, dtype=torch.int64))
    assert logits.is_meta
    assert logits.shape == (1, 9, 11)
    logits.sum().backward()
    assert all(x.grad is not None and x.grad.shape == x.shape for x in model.parameters())


@pytest.mark.parametrize("backend", BACKENDS)
def test_fake_tensors_have_shapes(backend: str):
    with FakeTensorMode():
        query, key, value = (x.requires_grad_() for x in draw())
        out = attend(
            query, key, value, key_padding_mask=torch.zeros(2, 7), positions=torch.arange(7), backend=backend
        )
        out.sum().backward()
    assert out.shape == query.shape
    assert key.grad is not None
    assert key.grad.shape == key.shape


def test_anomaly_mode():
    query, key, value = (x.requires_grad_() for x in draw())
    with pytest.warns(UserWarning, match="Anomaly Detection"), torch.autograd.detect_anomaly():
        actual = torch.autograd.grad(attend(query, key, value).sin().sum(), [query, key, value])
    close(actual, gradients(lambda *qkv: exact(*qkv).sin().sum(), query, key, value))


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpoint(use_reentrant: bool):
    qkv = [x.requires_grad_() for x in draw()]
    checkpoint(lambda *qkv: attend(*qkv).sin(), *qkv, use_reentrant=use_reentrant).sum().backward()
    close(tuple(x.grad for x in qkv), gradients(lambda *qkv: exact(*qkv).sin().sum(), *qkv))


@pytest.mark.parametrize("name", ["query", "key", "value"])
@pytest.mark.parametrize("layout", [torch.jagged, torch.strided])
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_are_refused(layout: torch.layout, name: str):
    inputs = dict.fromkeys(("query", "key", "value"), torch.randn(2, 5, 2, 4))
    inputs[name] = torch.nested.nested_tensor([torch.randn(n, 2, 4) for n in (5, 3)], layout=layout)
    with pytest.raises(TypeError, match=f"{name} must be a dense tensor, got a nested one: pad it"):
        attend(**inputs)


@pytest.mark.parametrize("layout", [torch.jagged, torch.strided])
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_are_refused_everywhere(layout: torch.layout):
    def nested(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        rows = [torch.ones(n, *shape, dtype=dtype) for n in (5, 3)]
        return torch.nested.nested_tensor(rows, layout=layout)

    ids, dense = nested(dtype=torch.int64), torch.ones(2, 5, dtype=torch.int64)
    attention = MultiheadDilatedAttention(8, 2, segment_lengths=[4], dilation_rates=[1])
    ring = RingAttentionConfig(segment_lengths=[4], dilation_rates=[1], ring_size=2)
    hilbert = RingDilatedAttentionHilbert(ring, grid_shape=(5,))
    x = torch.randn(2, 5, 2, 4)
    calls: dict[str, list[Callable[[], Any]]] = {
        "tokens": [
            lambda: LongNetLM(CONFIG)(ids),
            lambda: LongNetLM(CONFIG).generate(ids, 2),
        ],
        "inputs": [lambda: LongNetEncoder(CONFIG)(ids), lambda: LongNetEncoder(CONFIG)(nested(8))],
        "positions": [lambda: attend(x, x, x, positions=ids), lambda: LongNetLM(CONFIG)(dense, ids)],
        "key_padding_mask": [
            lambda: attend(x, x, x, key_padding_mask=ids),
            lambda: attention(torch.ones(2, 5, 8), key_padding_mask=nested()),
            lambda: LongNetLM(CONFIG)(dense, key_padding_mask=ids),
        ],
        "attn_mask": [lambda: attention(torch.ones(2, 5, 8), attn_mask=nested(5))],
        "query": [
            lambda: attention(nested(8)),
            lambda: RingDilatedAttention(ring)(*[nested(2, 4)] * 3),
            lambda: hilbert(*[nested(2, 4)] * 3),
        ],
        "key": [lambda: attention(torch.ones(2, 5, 8), nested(8))],
        "x": [lambda: shard_sequence(nested(8), 0, 2)],
        "shard": [lambda: unshard_sequence(nested(8), "local")],
    }
    for name, refused in calls.items():
        for call in refused:
            with pytest.raises(TypeError, match=f"^{name} must be a .*tensor, got a nested one"):
                call()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # the compiler's
def test_transforms_inside_torch_compile():
    x = torch.randn(1, 5, 2, 2, dtype=torch.float64)
    function = of_one(attend)

    def gradient(x: Tensor) -> Tensor:
        return grad(lambda x: function(x).sin().sum())(x)

    def tangent(x: Tensor) -> Tensor:
        return jvp(function, (x,), (x,))[1]

    (expected,) = gradients(lambda x: of_one(exact)(x).sin().sum(), x)
    close(torch.compile(gradient, backend="aot_eager")(x), expected)
    jacobian = torch.autograd.functional.jacobian(of_one(exact), x)
    close(torch.compile(lambda x: jacrev(function)(x), backend="aot_eager")(x), jacobian)
    # PyTorch's own: any break of the graph inside grad ends so with this backend, as the docstring says.
    with pytest.raises(AssertionError, match="False != True"):
        torch.compile(
            lambda x: grad(lambda x: torch.compiler.disable(torch.sin)(x).sum())(x), backend="eager"
        )(x)
    by_reference = of_one(attend, backend="reference")
    close(
        torch.compile(lambda x: grad(lambda x: by_reference(x).sin().sum())(x), backend="eager")(x), expected
    )
    with pytest.raises(NotImplementedError, match=NO_FORWARD_MODE):
        torch.compile(tangent, backend="aot_eager")(x)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="with backend='reference' only"):
        torch.compile(lambda x: vmap(function)(x), backend="eager", fullgraph=True)(x[None])
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match=NO_FORWARD_MODE):
        torch.compile(function, backend="aot_eager")(forward_ad.make_dual(x, x))


def test_an_exported_module_computes_the_same():
    module = MultiheadDilatedAttention(8, 2, segment_lengths=[4, 16], dilation_rates=[1, 2])
    x = torch.randn(2, 7, 8)
    exported = torch.export.export(_First(module), (x,)).module()
    assert torch.equal(exported(x), module(x)[0])


def exported(x: Tensor, **arguments: Any) -> Callable[[Tensor], Tensor]:
    class Module(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return of_one(attend, **arguments)(x)

    return torch.export.export(Module(), (x,)).module()


def test_an_exported_program_under_transforms():
    """Its graph calls the operator, whatever the function of the package would choose."""
    x = torch.randn(1, 5, 2, 2, dtype=torch.float64)
    program = exported(x)
    for forward_mode in (lambda: jvp(program, (x,), (x,)), lambda: jacfwd(program)(x)):
        with pytest.raises(NotImplementedError, match=NO_FORWARD_MODE):
            forward_mode()
    for reverse_mode in (grad(lambda x: program(x).sum()), jacrev(program), hessian(program)):
        with pytest.raises(NotImplementedError, match=NOT_IN_A_GRAPH):
            reverse_mode(x)
    with forward_ad.dual_level():
        for leaf in (x, x.clone().requires_grad_()):
            with pytest.raises(NotImplementedError, match=NO_FORWARD_MODE):
                program(forward_ad.make_dual(leaf, x))
        with torch.no_grad(), pytest.raises(NotImplementedError, match=NO_FORWARD_MODE):
            program(forward_ad.make_dual(x, x))
        close(program(x), of_one(exact)(x))  # nothing to differentiate
    close(
        gradients(lambda x: program(x).sin().sum(), x), gradients(lambda x: of_one(exact)(x).sin().sum(), x)
    )
    with torch.inference_mode():
        close(program(x), of_one(exact)(x))
    program = exported(x, backend="reference")
    tangent = torch.randn_like(x)
    jacobian = torch.autograd.functional.jacobian(of_one(exact), x)
    close(jvp(program, (x,), (tangent,))[1], (jacobian * tangent).sum((-4, -3, -2, -1)))


@pytest.mark.parametrize("backend", ["sdpa", "triton"])
def test_operators_refuse_forward_mode(backend: str):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    query, key, value = (x.to(device, torch.float32) for x in draw())
    arguments = ([4, 16], [1, 3], False, 0.5, None, None)
    operators = torch.ops.dilated_attention_pytorch
    forward, backward = (getattr(operators, name) for name in (backend, f"{backend}_backward"))
    lse = torch.zeros(2, 4, 7, device=device)
    refusal = f"no forward-mode derivative.*backend='{backend}'"
    with pytest.raises(NotImplementedError, match=refusal):
        jvp(lambda value: forward(query, key, value, *arguments)[0], (value,), (value,))
    with pytest.raises(NotImplementedError, match=refusal):
        jvp(lambda g: backward(g, query, key, value, query, lse, *arguments)[0], (query,), (query,))


def test_functionalize():
    x = torch.randn(2, 7, 4, 2, dtype=torch.float64)
    function, expected = of_one(attend, **renamed(MASKED)), of_one(exact, **MASKED)
    close(functionalize(function)(x), expected(x))
    close(functionalize(vmap(function))(x[None]), expected(x)[None])
    close(
        gradients(lambda x: functionalize(function)(x).sin().sum(), x),
        gradients(lambda x: expected(x).sin().sum(), x),
    )

    def loss(x: Tensor) -> Tensor:
        return function(x).sum()

    for reverse_mode in (functionalize(grad(loss)), grad(functionalize(loss))):
        with pytest.raises(NotImplementedError, match=NOT_IN_A_GRAPH):
            reverse_mode(x)
    for forward_mode in (
        lambda x: jvp(functionalize(function), (x,), (x,)),
        functionalize(lambda x: jvp(function, (x,), (x,))[1]),
    ):
        with pytest.raises(NotImplementedError, match=NO_FORWARD_MODE):
            forward_mode(x)
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match=NO_FORWARD_MODE):
        functionalize(function)(forward_ad.make_dual(x, x))


class _First(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.module(x, is_causal=False)[0]
        return out


def test_refuse_transforms():
    def through(x: Tensor) -> Tensor:
        refuse_transforms("the ring", x)
        return x.sin()

    x = torch.randn(3)
    assert torch.equal(through(x), x.sin())
    for transform in (vmap(through), jacrev(through), jacfwd(through)):
        with pytest.raises(NotImplementedError, match="do not go through the ring"):
            transform(x)
    with forward_ad.dual_level():
        assert torch.equal(through(x), x.sin())
        with pytest.raises(NotImplementedError, match="do not go through the ring"):
            through(forward_ad.make_dual(x, x))
