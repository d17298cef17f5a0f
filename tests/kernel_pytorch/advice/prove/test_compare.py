import dataclasses
import math
from collections import OrderedDict, namedtuple
from decimal import Decimal

import numpy
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kernel_pytorch.advice.prove.compare import compare_gradients, compare_outputs, tensors_of
from kernel_pytorch.advice.prove.leaves import leaves

EPS = torch.finfo(torch.float32).eps


@dataclasses.dataclass
class Output:
    logits: torch.Tensor
    past: tuple = ()


class ModelOutput(OrderedDict):
    """As of Hugging Face: a dict whose items are attributes too, and that refuses changes."""

    def __init__(self, **items):
        super().__init__(items)
        vars(self).update(items)


class Cache:
    def __init__(self, keys):
        self.keys = keys
        self.owner = self  # a cycle


Pair = namedtuple("Pair", "first second")


def nested(x):
    return {
        "output": Output(x, (x + 1, None, "text", 3)),
        "pair": Pair([x * 2], 0.5),
        "model output": ModelOutput(logits=x),
        "cache": Cache(x * 3),
        "empty": [],
    }


def test_leaves_have_paths_in_any_nesting():
    x = torch.ones(2)
    assert [path for path, _ in leaves(nested(x))] == [
        "['output'].logits",
        "['output'].past[0]",
        "['output'].past[1]",
        "['output'].past[2]",
        "['output'].past[3]",
        "['pair'].first[0]",
        "['pair'].second",
        "['model output']['logits']",
        "['cache'].keys",
        "['empty']",
    ]
    assert [t.tolist() for t in tensors_of(nested(x))] == [[1, 1], [2, 2], [2, 2], [1, 1], [3, 3]]
    assert list(leaves(x)) == [("", x)]


def test_equal_nestings_are_equal():
    x = torch.randn(5)
    found = compare_outputs(nested(x.double()), nested(x), nested(x))
    assert (found.equal, found.reason) == (True, "")
    assert found.error == found.original_error


@pytest.mark.parametrize(
    ("candidate", "reason"),
    [
        ({"a": torch.ones(3)}, "['b'] is missing"),
        ({"a": torch.ones(3), "b": 1, "c": 2}, "['c'] is not in the original's output"),
        ({"a": torch.ones(1, 3), "b": 1}, "['a']: shape (1, 3) instead of (3,)"),
        ({"a": torch.ones(3).double(), "b": 1}, "['a']: torch.float64 instead of torch.float32"),
        ({"a": torch.ones(3).int(), "b": 1}, "['a']: torch.int32 instead of torch.float32"),
        ({"a": None, "b": 1}, "['a']: NoneType instead of Tensor"),
        ({"a": torch.ones(3), "b": 2}, "['b']: 2 instead of 1"),
        ({"a": torch.ones(3), "b": "1"}, "['b']: '1' instead of 1"),
        ({"a": [torch.ones(3)], "b": 1}, "['a'] is missing"),
        ({"a": torch.ones(3) * 1.1, "b": 1}, "['a']: error 0.1, allowed 1.9e-06"),
        ({"a": torch.tensor([1, 1, math.nan]), "b": 1}, "['a']: NaN or infinite in other places"),
        (torch.ones(3), "['a'] is missing"),
    ],
)
def test_what_differs_is_named_with_its_path(candidate, reason):
    found = compare_outputs(None, {"a": torch.ones(3), "b": 1}, candidate)
    assert (found.equal, found.reason) == (False, reason)


class Slotted:
    __slots__ = ("__hidden", "shown")

    def __init__(self, shown, hidden):
        self.shown, self.__hidden = shown, hidden


class Base:
    __slots__ = "first"


class Derived(Base):
    def __init__(self, first, second):
        self.first, self.second = first, second


ONES = numpy.ones(3)


@pytest.mark.parametrize(
    ("original", "candidate"),
    [
        (ONES, numpy.zeros(3)),
        (numpy.arange(3), numpy.arange(3) + 1),
        (numpy.float32(1), numpy.float32(2)),
        (numpy.array(["a"]), numpy.array(["b"])),
        (Decimal("0.1"), Decimal("0.2")),
        (Slotted(1, 2), Slotted(1, 3)),
        (Slotted(ONES, 2), Slotted(2 * ONES, 2)),
        (Derived(1, 2), Derived(0, 2)),
        (iter([1]), iter([1])),
        (ONES, torch.ones(3, dtype=torch.float64)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_objects_that_differ_or_cannot_be_compared(original, candidate):
    assert not compare_outputs(None, [original], [candidate], lossless=True).equal


@pytest.mark.parametrize(
    "make",
    [
        lambda: numpy.ones(3),
        lambda: numpy.array([True, False]),
        lambda: numpy.complex64(1j),
        lambda: Decimal("0.1"),
        lambda: Slotted(torch.ones(2), "text"),
        lambda: Derived(1, 2),
        lambda: {"cache": Cache([torch.ones(2)]), "where": torch.device("cpu"), "kind": torch.float32},
        lambda: lambda x: x,
        object,
    ],
)
def test_objects_made_alike_are_equal(make):
    assert compare_outputs(None, [make()], [make()], lossless=True).equal == (make is not object)


def test_one_tensor_has_no_path():
    assert (
        compare_outputs(None, torch.ones(2), torch.ones(3)).reason == "the output: shape (3,) instead of (2,)"
    )


def test_error_is_rms_of_the_difference_over_rms_of_the_reference():
    reference = torch.tensor([3.0, 4.0, 0.0, 0.0], dtype=torch.float64)
    original = reference.float() + torch.tensor([0.0, 0.0, 0.0, 0.005])
    candidate = reference.float() + torch.tensor([0.01, 0.0, 0.0, 0.0])
    found = compare_outputs(reference, original, candidate)
    assert (found.error, found.original_error) == pytest.approx((0.002, 0.001), rel=1e-4)
    assert found.equal  # within 4 times the original's


@pytest.mark.parametrize(("times", "equal"), [(3.9, True), (4.1, False)])
def test_lossless_is_within_four_times_the_errors_of_the_original(times, equal):
    reference = torch.full((100,), 1.0, dtype=torch.float64)
    found = compare_outputs(reference, reference.float() + 1e-5, reference.float() + times * 1e-5)
    assert found.equal is equal


@pytest.mark.parametrize(
    ("dtype", "eps"), [(torch.float32, 2**-23), (torch.bfloat16, 2**-7), (torch.float64, 2**-52)]
)
def test_lossless_is_within_16_eps_however_exact_the_original(dtype, eps):
    reference = torch.ones(8, dtype=dtype)
    assert compare_outputs(reference.double(), reference, reference + 16 * eps).equal
    assert not compare_outputs(reference.double(), reference, reference + 18 * eps).equal


def test_each_tensor_has_its_own_original_error():
    reference = torch.ones(2, 10, dtype=torch.float64)
    original = [reference[0].float() + 1e-4, reference[1].float()]
    swapped = [original[1], original[0]]
    found = compare_outputs(list(reference), original, swapped)
    assert not found.equal
    assert found.worst == "[1]"
    assert found.error == pytest.approx(1e-4, rel=1e-2)
    assert found.original_error == 0.0


@pytest.mark.parametrize(("error", "equal"), [(0.009, True), (0.011, False)])
def test_a_change_that_loses_precision_may_have_max_error_and_another_dtype(error, equal):
    x = torch.ones(10)
    assert compare_outputs(None, x, x + error, lossless=False, max_error=0.01).equal is equal
    half = compare_outputs(None, x / 3, (x / 3).bfloat16(), lossless=False)
    assert half.equal
    assert half.error == pytest.approx(abs(float((x / 3).bfloat16()[0]) * 3 - 1), rel=1e-3)
    assert not compare_outputs(None, x, x.int(), lossless=False).equal


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_non_finite_values_must_be_in_the_same_places(value):
    original = torch.tensor([1.0, value, 3.0])
    assert compare_outputs(None, original, original.clone()).equal
    assert compare_outputs(None, original, original.clone()).error == 0.0
    moved = torch.tensor([value, 1.0, 3.0])
    assert not compare_outputs(None, original, moved).equal
    assert not compare_outputs(None, original, torch.tensor([1.0, -1.0, 3.0])).equal
    off = compare_outputs(None, original, torch.tensor([1.1, value, 3.0]))
    assert off.error == pytest.approx(0.1 / math.sqrt(10), rel=1e-3)
    assert not off.equal


def test_infinities_of_the_other_sign_differ():
    assert not compare_outputs(None, torch.tensor([math.inf]), torch.tensor([-math.inf])).equal


def test_a_reference_that_is_finite_where_the_original_overflows_is_of_use_elsewhere():
    reference = torch.tensor([1.0, 1e60], dtype=torch.float64)
    assert compare_outputs(reference, reference.float(), reference.float()).equal
    wrong = torch.tensor([2.0, math.inf])
    assert not compare_outputs(reference, reference.float(), wrong).equal


def test_a_mask_that_depends_on_the_dtype_does_not_hide_a_difference():
    def masked(x):
        return torch.cat([x, torch.full((4,), torch.finfo(x.dtype).min, dtype=x.dtype)])

    x = torch.randn(4, dtype=torch.float64)
    original = masked(x.float())
    assert compare_outputs(masked(x), original, original.clone()).equal
    wrong = original.clone()
    wrong[4] /= 2
    found = compare_outputs(masked(x), original, wrong)
    assert not found.equal
    assert found.original_error is None  # the reference is another function


def test_integers_and_booleans_must_be_equal():
    original = (torch.arange(5), torch.tensor([True, False]))
    assert compare_outputs(None, original, (torch.arange(5), torch.tensor([True, False]))).equal
    found = compare_outputs(
        None, original, (torch.arange(5) // 4 * 4, torch.tensor([True, False])), lossless=False
    )
    assert found.reason == "[0]: 3 of 5 values differ"
    assert compare_outputs(None, original, (torch.arange(5), torch.tensor([True, True]))).reason.startswith(
        "[1]"
    )


def test_floats_of_python_are_compared_as_float32():
    assert compare_outputs(None, {"loss": 1.0}, {"loss": 1.0 + 1e-7}).equal
    assert not compare_outputs(None, {"loss": 1.0}, {"loss": 1.001}).equal
    assert compare_outputs(None, 1e300, 1e300).equal
    assert compare_outputs({"loss": 1.1}, {"loss": 1.0}, {"loss": 1.2}).equal  # as far off as the original


def test_complex_tensors():
    x = torch.randn(6, dtype=torch.complex64)
    assert compare_outputs(x.to(torch.complex128), x, x * (1 + 1e-7)).equal
    assert not compare_outputs(None, x, x * 1j).equal


def test_sparse_strided_and_empty_tensors():
    x = torch.eye(3)
    assert compare_outputs(None, x.to_sparse(), x.to_sparse()).equal
    assert not compare_outputs(None, x.to_sparse(), (2 * x).to_sparse()).equal
    assert compare_outputs(None, x.t(), x).equal
    assert compare_outputs(None, torch.empty(0, 3), torch.empty(0, 3)).equal


def test_no_tensor_at_all():
    assert compare_outputs(None, None, None).equal
    assert compare_outputs(None, None, None).error is None
    assert compare_outputs(None, {"a": "b"}, {"a": "c"}).reason == "['a']: 'c' instead of 'b'"


def test_the_original_may_be_given_as_the_reference():
    x = torch.randn(4)
    assert compare_outputs(x, None, x.clone(), max_error=0.0).original_error is None


def test_large_tensors_are_compared_in_pieces(monkeypatch):
    from kernel_pytorch.advice.prove import errors

    x, y = torch.randn(2, 1000)
    whole = compare_outputs(None, x, y).error
    monkeypatch.setattr(errors, "_CHUNK", 7)
    assert compare_outputs(None, x, y).error == pytest.approx(whole, rel=1e-12)


class Attention(nn.Module):
    def __init__(self, fused):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(32, 32) for _ in range(3))
        self.fused = fused

    def forward(self, x):
        q, k, v = (one(x).unflatten(-1, (4, 8)).transpose(1, 2) for one in (self.query, self.key, self.value))
        if self.fused:
            return F.scaled_dot_product_attention(q, k, v)
        return (q @ k.mT / 8**0.5).softmax(-1) @ v


def gradients(fused, dtype, seed, change=None):
    torch.manual_seed(seed)
    model, x = Attention(fused).to(dtype), torch.randn(2, 63, 32).to(dtype)
    model(x).square().mean().backward()
    found = {name: p.grad for name, p in model.named_parameters()}
    if change is not None:
        found[change] = 1.1 * found[change]
    return found


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("with_reference", [True, False])
def test_the_gradient_of_a_key_bias_reverts_nothing(seed, with_reference):
    original, fused = (gradients(fused, torch.float32, seed) for fused in (False, True))
    reference = gradients(False, torch.float64, seed) if with_reference else None
    far = (fused["key.bias"] - original["key.bias"]).norm() / original["key.bias"].norm()
    assert far > 0.1  # nothing but rounding
    found = compare_gradients(reference, original, fused)
    assert found.equal, found.reason


@pytest.mark.parametrize("name", ["query.weight", "key.weight", "value.bias", "query.bias"])
@pytest.mark.parametrize("with_reference", [True, False])
def test_a_gradient_that_is_a_tenth_off_differs(name, with_reference):
    reference = gradients(False, torch.float64, 0) if with_reference else None
    original, wrong = (gradients(False, torch.float32, 0, change) for change in (None, name))
    assert compare_gradients(reference, original, original).equal
    found = compare_gradients(reference, original, wrong)
    assert not found.equal
    assert found.reason.startswith(f"{name}: error 0.")


def test_gradients_relative_to_the_whole():
    original = {"large": torch.tensor([3.0, 4.0]), "small": torch.tensor([1e-6])}
    found = compare_gradients(None, original, {**original, "small": torch.tensor([2e-6])})
    assert found.error == pytest.approx(1e-6 / 5e-3, rel=1e-3)
    assert found.equal
    assert not compare_gradients(None, original, {**original, "small": torch.tensor([3e-5])}).equal


def test_a_gradient_that_is_missing_or_new_is_named():
    original = {"a": torch.ones(2), "b": torch.ones(2)}
    assert compare_gradients(None, original, {"a": torch.ones(2)}).reason == "b has no gradient"
    new = compare_gradients(None, {"a": torch.ones(2)}, original)
    assert new.reason == "b has a gradient, and none in the original"
