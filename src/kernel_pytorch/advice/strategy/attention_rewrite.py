"""Write attention by hand as ``F.scaled_dot_product_attention``, in a graph that Dynamo recorded.

This file imports torch alone: its text runs without the package that it is from.

Legend: [*B, L, E] queries, [*B, S, E] keys, [*B, S, D] values, [*B, L, S] scores. Each dimension of the
scores has a label, as in an einsum, which follows it through transposes and views: B, L, S may be anywhere.

    product  scores = q @ k^T       matmul, bmm, baddbmm, einsum
    chain    scale, masks, casts    in any order
    anchor   softmax over S         or exp(x - max) / sum
    chain    casts, idle dropout
    product  weights @ v

A site is left alone unless the result and the gradients are equal in every case: also in rows whose keys are
all hidden, where a mask of -inf gives NaN (the fused call: 0) and a finite number the mean of all values.
"""

from __future__ import annotations

import copy
import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

Node = Any
"""An fx.Node, whose arguments may be of many kinds."""
HIDDEN = -1e3
"""A score that is filled with at most this has the weight 0 as soon as one key of its row is not hidden."""

SYNONYMS = {
    "iadd": "add", "isub": "sub", "imul": "mul", "itruediv": "truediv", "div": "truediv", "divide": "truediv",
    "true_divide": "truediv", "multiply": "mul", "subtract": "sub", "swapaxes": "transpose", "mm": "matmul",
    "linalg_matmul": "matmul", "bmm": "matmul", "swapdims": "transpose",
}  # fmt: skip
CASTS = {"to", "float", "double", "half", "bfloat16", "type", "type_as", "contiguous", "clone"}
TURNS = {"transpose", "permute", "T", "mT"}
REGROUPS = {"view", "reshape", "unflatten", "flatten"}
VIEWS = {"getitem", "unsqueeze", "expand", "expand_as", "squeeze"} | TURNS | REGROUPS
WEIGHED = CASTS | TURNS | REGROUPS | {"dropout"}
SCORED = CASTS | TURNS | REGROUPS | {"mul", "truediv", "add", "sub", "masked_fill", "where"}
CREATORS = {"ones": 1, "zeros": 0, "new_ones": 1, "new_zeros": 0, "ones_like": 1, "zeros_like": 0}
FILLERS = {"full": 1, "full_like": 1, "new_full": 2, "tensor": 0, "scalar_tensor": 0}
ELEMENTWISE = CASTS | {
    "eq", "ne", "lt", "le", "gt", "ge", "logical_not", "invert", "bitwise_not", "bool", "int", "long", "neg",
    "mul", "add", "sub", "rsub", "truediv", "pow", "sqrt", "rsqrt", "where", "masked_fill", "and", "or",
    "bitwise_and", "bitwise_or", "logical_and", "logical_or", "detach",
}  # fmt: skip
PURE = VIEWS | ELEMENTWISE | set(CREATORS) | set(FILLERS) | {"triu", "tril", "arange"}


def called(node: Any) -> str:
    """The method's or function's own name, with the underscore of one in place."""
    return str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "")


def name_of(node: Any) -> str:
    """The function or method of torch that a node calls, in place or not; "": none."""
    if not isinstance(node, fx.Node) or node.op not in ("call_function", "call_method"):
        return ""
    module = "torch" if node.op == "call_method" else getattr(node.target, "__module__", None) or "torch"
    if module.split(".")[0] not in ("torch", "_operator", "builtins"):
        return ""
    name = str(node.args[1]) if called(node) == "getattr" else called(node)  # x.T, x.mT
    name = name if name.endswith("__") else name.removesuffix("_")
    return SYNONYMS.get(name, name)


def written(node: Node) -> Node:
    """The tensor that a node changes, or None."""
    name = called(node) if node.op in ("call_function", "call_method") else ""
    own = name.endswith("_") and not name.endswith("__") and name not in ("and_", "or_", "not_", "is_")
    own = own or node.kwargs.get("inplace") is True or (name == "dropout" and argument(node, 3) is True)
    own = own or name in ("iadd", "isub", "imul", "itruediv", "iand", "ior", "setitem")
    target = node.args[0] if own and node.args else node.kwargs.get("out")
    return target if example(target) is not None else None


def argument(node: Node, position: int, *names: str, default: Any = None) -> Any:
    """An argument of a call, by position or by one of its names."""
    if position < len(node.args):
        return node.args[position]
    return next((node.kwargs[name] for name in names if name in node.kwargs), default)


def example(node: Any) -> Any:
    """The fake tensor that Dynamo computed for a node, or None."""
    found = node.meta.get("example_value") if isinstance(node, fx.Node) else None
    return found if isinstance(found, torch.Tensor) else None


def shape(node: Any) -> tuple[Any, ...]:
    """Of a node's tensor; sizes may be symbols."""
    return tuple(example(node).shape)


def storage(node: Any) -> int:
    """Tells whether two nodes' tensors share memory."""
    return int(example(node).untyped_storage()._cdata)


def same(a: Any, b: Any) -> bool:
    """Whether two sizes are equal at every length. Adds no guard."""
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return bool(statically_known_true(a == b))


def is_one(size: Any) -> bool:
    """Whether a size is 1, for certain."""
    return isinstance(size, int) and size == 1  # Dynamo never makes the size 1 a symbol


def aligned(a: Any, b: Any) -> bool:
    """Whether the last two dimensions are of equal sizes."""
    sizes = list(zip(shape(a)[-2:], shape(b)[-2:], strict=False))
    return len(sizes) == 2 and all(same(*pair) for pair in sizes)


def given(node: Node) -> list[Any]:
    """The sizes or dimensions given to a view or a permute."""
    rest = node.args[1:]
    return list(rest[0]) if len(rest) == 1 and isinstance(rest[0], (tuple, list)) else list(rest)


def permutation(node: Node, rank: int) -> list[int]:
    """The order into which one of TURNS puts the dimensions; empty: not known."""
    name, order = name_of(node), list(range(rank))
    if name == "permute":
        return [int(dim) % rank for dim in given(node) or node.kwargs.get("dims", ())]
    first, second = argument(node, 1, "dim0", "axis0"), argument(node, 2, "dim1", "axis1")
    if name == "mT" or (name == "T" and rank == 2):
        first, second = -2, -1
    if not isinstance(first, int) or not isinstance(second, int):
        return []
    order[first], order[second] = order[second], order[first]
    return order


def keeps_origin(index: Any, rank: int) -> bool:
    """Whether an index keeps the last two dimensions and takes their first rows and columns."""
    index = list(index) if isinstance(index, tuple) else [index]
    if not all(i is None or i is Ellipsis or isinstance(i, (int, slice)) for i in index):
        return False
    index += [] if Ellipsis in index else [Ellipsis]
    at, taken = index.index(Ellipsis), sum(isinstance(i, (int, slice)) for i in index)
    index[at : at + 1] = [slice(None)] * (rank - taken)
    return all(isinstance(i, slice) and i.start in (None, 0) and i.step in (None, 1) for i in index[-2:])


# --- What is known of masks before the graph runs: constants, and triangles of two constants.


@dataclass(frozen=True, eq=False)
class Triangle:
    """A tensor that holds one value where column - row < ``at`` and another elsewhere, at every size."""

    at: int
    values: torch.Tensor
    """[2]: below and above; equal for a constant tensor, of any rank."""
    inputs: frozenset[int] = frozenset()
    """The inputs of the graph whose values were looked at."""

    @property
    def constant(self) -> bool:
        return bool(self.values[0] == self.values[1])

    def turned(self) -> Triangle:
        """With rows and columns exchanged."""
        return Triangle(1 - self.at, self.values.flip(0), self.inputs)

    def equals(self, other: Triangle | None) -> bool:
        return other is not None and self.at == other.at and torch.equal(self.values, other.values)


@dataclass(frozen=True)
class Count:
    """A tensor that counts 0, 1, 2 ... along one dimension (from the last: -1, -2 ...); all others are 1."""

    axis: int


def triangle_of(tensor: Any) -> Triangle | None:
    """Read a triangle from the values of a tensor, which may hold several equal matrices, or one number."""
    if not isinstance(tensor, torch.Tensor) or tensor.is_inference():  # has no version: a change is not seen
        return None
    tensor = tensor.detach()
    if tensor.dim() == 0:
        return Triangle(0, tensor.cpu().expand(2))
    if tensor.dim() < 2 or tensor.numel() == 0 or min(tensor.shape[-2:]) < 2:
        return None
    matrix = tensor.reshape(-1, *tensor.shape[-2:])[0]
    low, high = matrix[-1, 0], matrix[0, -1]
    at = int((matrix[0] != high).sum())
    row, column = (torch.arange(size, device=tensor.device) for size in matrix.shape)
    expected = torch.where(column - row[:, None] >= at, high, low)
    return Triangle(at, torch.stack([low, high]).cpu()) if bool((tensor == expected).all()) else None


class Known:
    """What is known of the tensors of a graph.

    A triangle made in the graph (tril, triu, a comparison of aranges) is one at every length, because slices
    are followed only from the first row and column. The values of an input, such as a buffer, may change
    between calls: what relies on them names it, and :func:`attention_backend` checks at each call that it is
    the same tensor at the same version, or else an equal triangle; if not, the graph runs as it was written.
    """

    def __init__(self, graph: fx.Graph, inputs: Sequence[Any]) -> None:
        placeholders = [node for node in graph.nodes if node.op == "placeholder"]
        self.inputs = dict(zip(placeholders, enumerate(inputs), strict=False))
        self.found: dict[Node, Triangle | Count | None] = {}
        self.unstable: set[int] = set()
        families: dict[int, list[Node]] = {}
        for node in graph.nodes:
            if example(node) is not None:
                families.setdefault(storage(node), []).append(node)
            target = written(node)
            if target is not None:
                family = families[storage(target)]
                linear = all(list(a.users) == [b] for a, b in pairwise(family))
                if not linear or family[-1] is not node or family[0].op != "call_function":
                    self.unstable.add(storage(target))

    def __getitem__(self, node: Any) -> Triangle | Count | None:
        if isinstance(node, (bool, int, float)):
            return Triangle(0, torch.tensor([node, node]))
        if example(node) is None or storage(node) in self.unstable:
            return None
        if node not in self.found:
            self.found[node] = self.conclude(node, name_of(node))
        return self.found[node]

    def triangle(self, node: Any) -> Triangle | None:
        found = self[node]
        return found if isinstance(found, Triangle) else None

    def number(self, node: Any) -> float | None:
        """The value of a number, or of a constant tensor that the graph makes."""
        found = self.triangle(node)
        return float(found.values[0]) if found and found.constant and not found.inputs else None

    def rate(self, node: Any) -> Triangle | None:
        """A rate of dropout, which Dynamo makes an input where shapes are dynamic."""
        return self.triangle(node.args[0] if name_of(node) == "item" else node)

    def conclude(self, node: Node, name: str) -> Triangle | Count | None:
        if node in self.inputs:
            index, value = self.inputs[node]
            read = triangle_of(value)
            return read and Triangle(read.at, read.values, frozenset([index]))
        if name in CREATORS or name in FILLERS:
            value = CREATORS.get(name)
            value = argument(node, FILLERS[name], "fill_value", "data") if value is None else value
            plain = isinstance(value, (bool, int, float))
            return Triangle(0, torch.tensor([value, value], dtype=example(node).dtype)) if plain else None
        if name == "arange":
            plain = len(node.args) == 1 or (len(node.args) == 2 and node.args[0] == 0)
            return Count(-1) if plain and not {"start", "end", "step"} & set(node.kwargs) else None
        if name in ("tril", "triu"):
            of, diagonal = self.triangle(node.args[0]), argument(node, 1, "diagonal", default=0)
            if of is None or not of.constant or not isinstance(diagonal, int):
                return None
            kept = torch.where(torch.tensor([name == "tril", name == "triu"]), of.values, 0)
            return Triangle(diagonal + (name == "tril"), kept, of.inputs)
        return self.viewed(node, name) if name in VIEWS else self.computed(node, name)

    def viewed(self, node: Node, name: str) -> Triangle | Count | None:
        base = node.args[0]
        of, rank = self[base], len(shape(base))
        if isinstance(of, Count):  # still counts, if one dimension of the same size is left
            wide = [dim - len(shape(node)) for dim, size in enumerate(shape(node)) if not is_one(size)]
            equal = len(wide) == 1 and same(shape(node)[wide[0]], shape(base)[of.axis])
            return Count(wide[0]) if equal else None
        if of is None or of.constant:
            return of
        if name in TURNS:
            last = permutation(node, rank)[-2:]
            of = of.turned() if last == [rank - 1, rank - 2] else of
            return of if {*last} == {rank - 2, rank - 1} else None
        kept = keeps_origin(node.args[1], rank) if name == "getitem" else aligned(base, node)
        return of if kept else None

    def computed(self, node: Node, name: str) -> Triangle | None:
        operands = [self[a] for a in node.all_input_nodes]
        axes = [of.axis for of in operands if isinstance(of, Count)]
        if name in ("lt", "le", "gt", "ge") and sorted(axes) == [-2, -1]:
            rows_first = axes[0] == -2
            above = name in (("lt", "le") if rows_first else ("gt", "ge"))  # true where row < column
            on = name in ("le", "ge")  # true where row == column
            return Triangle(int(on != above), torch.tensor([not above, above]))
        triangles = [of for of in operands if isinstance(of, Triangle)]
        if name not in ELEMENTWISE or not triangles or len(triangles) < len(operands):
            return None
        varying = [(of, a) for of, a in zip(triangles, node.all_input_nodes, strict=True) if not of.constant]
        if len({of.at for of, _ in varying}) > 1 or not all(aligned(a, node) for _, a in varying):
            return None
        values_of = {a: of.values for a, of in zip(node.all_input_nodes, triangles, strict=True)}
        args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), lambda a: values_of[a].clone())
        function = getattr(torch.Tensor, node.target) if node.op == "call_method" else node.target
        values = function(*args, **kwargs).cpu().expand(2)
        inputs = frozenset(index for of in triangles for index in of.inputs)
        return Triangle(varying[0][0].at if varying else 0, values, inputs)


# --- Products, softmax and the chains between them.


@dataclass(frozen=True)
class Product:
    """A product of two tensors, with the letters of their dimensions as in einsum."""

    node: Node
    operands: tuple[Node, Node]
    labels: tuple[tuple[str, ...], tuple[str, ...]]
    """Of the operands' dimensions."""
    out: tuple[str, ...]


def product_of(node: Node) -> Any:
    """The :class:`Product` that a node computes, or None."""
    name, equation = name_of(node), "...ic,...cj->...ij"
    if name == "einsum":
        equation, *operands = node.args
        operands = operands[0] if operands and isinstance(operands[0], (list, tuple)) else operands
    elif name in ("matmul", "baddbmm"):
        operands = node.args[:2] if name == "matmul" else node.args[1:3]
    else:
        return None
    terms = equation.replace(" ", "").replace("->", ",").split(",") if isinstance(equation, str) else []
    if len(operands) != 2 or len(terms) != 3 or any(example(of) is None for of in (*operands, node)):
        return None
    ranks = [len(shape(of)) for of in (*operands, node)]
    left, right, out = (labels_of(term, rank) for term, rank in zip(terms, ranks, strict=True))
    if any(len(set(term)) != rank for term, rank in zip((left, right, out), ranks, strict=True)):
        return None
    return Product(node, (operands[0], operands[1]), (left, right), out)


def labels_of(term: str, rank: int) -> tuple[str, ...]:
    """A label for each dimension; those of "..." are numbered from the last."""
    before, dots, after = term.partition("...")
    number = rank - len(before) - len(after) if dots else 0
    return (*before, *(f".{n}" for n in range(number, 0, -1)), *after)


def softmax_of(node: Node) -> tuple[Node, int, list[Node], bool] | None:
    """The scores, the dimension, the nodes that compute it, and whether the maximum is subtracted."""
    if name_of(node) == "softmax":
        dim = argument(node, 1, "dim")
        return (node.args[0], dim, [node], True) if isinstance(dim, int) else None
    if name_of(node) != "truediv" or [*map(name_of, node.args)] != ["exp", "sum"]:
        return None
    power, total = node.args
    scores, dim = power.args[0], reduced(total)
    if total.args[0] is not power or dim is None:
        return None
    if name_of(scores) != "sub":
        return scores, dim, [power, total, node], False
    shift = [scores, scores.args[1]]
    scores = scores.args[0]
    while name_of(shift[-1]) in ("detach", "getitem"):
        shift.append(shift[-1].args[0])
    if (
        name_of(shift[-1]) not in ("max", "amax")
        or shift[-1].args[0] is not scores
        or reduced(shift[-1]) != dim
    ):
        return None
    return scores, dim, [*shift[::-1], power, total, node], True


def reduced(node: Node) -> int | None:
    """The one dimension over which a node reduces and which it keeps."""
    dim = argument(node, 1, "dim", "axis")
    dim = dim[0] if isinstance(dim, (list, tuple)) and len(dim) == 1 else dim
    return dim if isinstance(dim, int) and argument(node, 2, "keepdim") is True else None


def climb(node: Node, depth: int = 16) -> list[Node] | None:
    """The nodes from a product up to this one, through what is done to scores."""
    if product_of(node):
        return [node]
    if depth == 0 or name_of(node) not in SCORED or example(node) is None:
        return None
    for source in node.all_input_nodes:
        if example(source) is not None and example(source).is_floating_point():
            kept = name_of(node) in REGROUPS | TURNS or str(shape(source)) == str(shape(node))
            chain = climb(source, depth - 1) if kept else None
            if chain:
                return [*chain, node]
    return None


def descend(node: Node, depth: int = 8) -> list[Node] | None:
    """The nodes after this one up to a product, through what keeps weights as they are."""
    for user in node.users:
        if product_of(user):
            return [user]
        chain = descend(user, depth - 1) if depth and name_of(user) in WEIGHED else None
        if chain:
            return [user, *chain]
    return None


class Unequal(Exception):  # noqa: N818 (an outcome)
    """It is attention, but the fused call would not be equal or not be fused: why."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """What happens to the scores between the product and the softmax, other than scaling by numbers."""

    kind: str
    """factor (a tensor or symbol that scales all keys alike), add, fill."""
    operand: Any
    labels: tuple[str, ...]
    number: float
    """Exponent of a factor, 1 or -1; factor of what is added; value that is filled in."""
    keep: bool = False
    """Whether the mask is true where the scores are kept."""


@dataclass(frozen=True, kw_only=True)
class Attention:
    """Attention by hand, found in a graph."""

    nodes: tuple[Node, ...]
    """From the first product to the second."""
    softmax: Node
    q: Operand
    k: Operand
    v: Operand
    batch: tuple[str, ...]
    query: str
    key: str
    width: str
    out: tuple[str, ...]
    """Labels of the second product; "D": the width of the values."""
    split: tuple[str, list[Any]] | None
    """The batch dimension of the product that a view splits in two, and into which sizes."""
    steps: tuple[Step, ...]
    scale: float
    causal: bool = False
    """Whether its mask hides the keys after the query and nothing else."""
    inputs: frozenset[int] = frozenset()
    """The inputs of the graph whose values this relies upon."""
    empty: str = ""
    """What a row is whose keys are all hidden: the "mean" of the values where scores are filled with a finite
    number, "NaN" where with -inf, in both cases without gradients of its scores; "added": NaN where -inf is
    added, with gradients of NaN."""

    @property
    def masks(self) -> list[Step]:
        return [step for step in self.steps if step.kind != "factor"]


Operand = tuple[Node, tuple[str, ...]]
Layout = tuple[tuple[str, ...], tuple[str, list[Any]] | None]
"""Labels, and the split."""


def moved(layout: Layout, before: Node, node: Node) -> Layout | None:
    """Follow the labels through a transpose or view, which may split the first dimension of 3, or join."""
    (labels, split), name = layout, name_of(node)
    if name in TURNS:
        order = permutation(node, len(labels))
        return (tuple(labels[dim] for dim in order), split) if order else None
    ranks = len(labels), len(shape(node))
    if name in CASTS or (ranks[0] == ranks[1] and all(map(same, shape(before), shape(node)))):
        return layout
    if not aligned(before, node):
        return None
    if ranks == (3, 4) and split is None:
        sizes = argument(node, 2, "sizes") if name == "unflatten" else given(node)[:2]
        return ("<", ">", *labels[1:]), (labels[0], list(sizes))
    return (
        ((split[0], *labels[2:]), split) if ranks == (4, 3) and split and labels[:2] == ("<", ">") else None
    )


def read(chain: list[Node], known: Known) -> tuple[Layout, list[Step], float] | None:
    """What the nodes from the product to the softmax do, and the scale; None: what no attention does."""
    layout: Layout | None = (product_of(chain[0]).out, None)
    steps: list[Step] = []
    scale = 1.0
    if called(chain[0]) == "baddbmm":
        alpha, beta = (known.number(chain[0].kwargs.get(name, 1)) for name in ("alpha", "beta"))
        if alpha is None or beta is None:
            return None
        scale, bias = alpha, chain[0].args[0]
        labels = product_of(chain[0]).out[3 - len(shape(bias)) :]
        steps += [Step(kind="add", operand=bias, labels=labels, number=beta)] if beta else []
    for before, node in pairwise(chain):
        name, others = name_of(node), [a for a in node.args if a is not before]
        first = node.args[0] is before
        if name in CASTS | TURNS | REGROUPS:
            layout = moved(layout, before, node) if layout else None
            continue
        if (
            layout is None
            or len(node.args) - len(others) != 1
            or node.kwargs
            or written(node) not in (None, before)
        ):
            return None
        if name in ("masked_fill", "where"):  # x.where(mask, y) is torch.where(mask, x, y)
            kind = "fill"
            operand, value = others if first or others[0] is node.args[0] else others[::-1]
            number = known.number(value)
            if number is None or example(operand) is None:
                return None
        elif name in ("mul", "add") or first:
            kind, (operand,) = "add" if name in ("add", "sub") else "factor", others
            number = 1.0 if name in ("mul", "add") else -1.0
            constant = known.number(operand)
            if constant is not None and kind == "factor":
                if not constant or (steps and constant < 0):
                    return None
                rate = constant**number
                scale *= rate
                steps = [s if s.kind == "factor" else replace(s, number=s.number * rate) for s in steps]
            if constant is not None:  # a softmax ignores what is added to all scores
                continue
            if kind == "factor" and any(step.kind != "factor" for step in steps):
                return None
        else:
            return None
        rank = len(shape(operand)) if example(operand) is not None else 0
        labels, keep = layout[0][len(layout[0]) - rank :], name == "where" and node.args.index(before) < 2
        steps.append(Step(kind=kind, operand=operand, labels=labels, number=number, keep=keep))
    return (layout, steps, scale) if layout else None


def match(anchor: Node, known: Known) -> Attention | None:
    """Attention around a softmax; None: it is not attention.

    Raises:
        Unequal: it is, but must be left alone.
    """
    soft = softmax_of(anchor)
    chain, after = (climb(soft[0]), descend(anchor)) if soft else (None, None)
    found = read(chain, known) if chain and after else None
    if not soft or not chain or not after or not found:
        return None
    _, dim, inner, shifted = soft
    first, second, weights = product_of(chain[0]), product_of(after[-1]), [anchor, *after][-2]
    layout, steps, scale = found
    scores, key = layout[0], layout[0][dim]
    moving: Layout | None = layout
    for before, node in pairwise([anchor, *after[:-1]]):
        moving = moving and moved(moving, before, node)
    if moving is None or called(second.node) == "baddbmm" or second.operands[0] is second.operands[1]:
        return None
    labels, split = moving
    ours = second.operands.index(weights)
    name = dict(zip(second.labels[ours], labels, strict=True))
    v_labels, out = (
        tuple(name.get(label, "D") for label in of) for of in (second.labels[1 - ours], second.out)
    )
    mine = 0 if key in first.labels[1] else 1
    q_labels, k_labels = first.labels[mine], first.labels[1 - mine]
    width = {*q_labels} & {*k_labels} - {*first.out}
    queries = [at for at in labels if at in q_labels and at not in k_labels and at not in v_labels]
    parts = {*scores} - {key, *queries[-1:]}
    batch = ("<", ">") if split else tuple(at for at in scores if at in parts)
    if (
        key not in k_labels or key in q_labels or len(width) != 1 or not queries
        or {*q_labels, *k_labels} != {*first.out, *width} or parts not in ({*batch}, {split and split[0]})
        or v_labels.count("D") != 1 or key not in v_labels or {*out} != {*labels, "D"} - {key}
    ):  # fmt: skip
        return None
    q, k, v = first.operands[mine], first.operands[1 - mine], second.operands[1 - ours]
    site = Attention(
        nodes=(*chain, *inner, *after), softmax=anchor, q=(q, q_labels), k=(k, k_labels), v=(v, v_labels),
        batch=batch, query=queries[-1], key=key, width=width.pop(), out=out, split=split, steps=tuple(steps),
        scale=scale,
    )  # fmt: skip
    operands = {q, k, v, *(step.operand for step in steps)}
    if operands & {*site.nodes}:
        return None
    check_operands(site, operands)
    return check_masks(check_nodes(site, known), known, shifted)


def check_nodes(site: Attention, known: Known) -> Attention:
    """Nothing else sees the scores or the weights, and none of them is rounded more than the queries."""
    last, dtype, inputs = site.nodes[-1], example(site.q[0]).dtype, site.inputs
    for node in site.nodes:
        tensor = example(node)
        if name_of(node) == "dropout" and argument(node, 2, "training", "train", default=True) is not False:
            rate = known.rate(argument(node, 1, "p", default=0.5))
            if rate is None or not rate.constant or rate.values[0] != 0:
                raise Unequal(f"dropout {rate.values[0]:g} in training" if rate else "dropout in training")
            inputs |= rate.inputs
        if tensor is not None and torch.promote_types(tensor.dtype, dtype) != tensor.dtype:
            raise Unequal(f"scores or weights are rounded to {str(tensor.dtype).removeprefix('torch.')}")
        for user in node.users if node is not last else ():
            only_shape = name_of(user).endswith("_like") and {*user.users} <= {*site.nodes}
            if user not in site.nodes and not only_shape:
                raise Unequal("the scores or weights are used elsewhere")
    return replace(site, inputs=inputs)


def check_operands(site: Attention, operands: set[Any]) -> None:
    """Sizes, types and devices suit a fused call, and operands are not changed before the second product."""
    tensors = [example(node) for node, _ in (site.q, site.k, site.v)]
    kinds = {(tensor.dtype, tensor.device) for tensor in (*tensors, example(site.nodes[-1]))}
    if len(kinds) > 1 or not tensors[0].dtype.is_floating_point:
        raise Unequal("the types of its tensors differ")
    q, k, v = (dict(zip(labels, shape(node), strict=True)) for node, labels in (site.q, site.k, site.v))
    if tensors[0].device.type == "cpu" and not same(q[site.width], v["D"]):
        raise Unequal("keys and values of different widths are not fused on a CPU")
    repeated = [
        b for b in site.batch if not is_one(v.get(b, 1)) and is_one(q.get(b, 1)) and is_one(k.get(b, 1))
    ]
    if not site.split and repeated:
        raise Unequal("one row of weights is used for several values")
    if is_one(k[site.key]) != is_one(v[site.key]) or is_one(q[site.width]) != is_one(k[site.width]):
        raise Unequal("a dimension of size 1 is repeated")
    if site.split and any(site.split[0] in step.labels for step in site.steps):
        raise Unequal("its mask is joined over batch and heads")
    storages = {storage(node) for node in operands if example(node) is not None}
    node = site.nodes[0]
    while (node := node.next) is not site.nodes[-1]:
        target = None if node in site.nodes else written(node)
        if target is not None and storage(target) in storages:
            raise Unequal("an operand is changed in place")


def check_masks(site: Attention, known: Known, shifted: bool) -> Attention:
    """Decide how masks are given to the fused call."""
    dtype, masks, trains = example(site.q[0]).dtype, site.masks, example(site.nodes[-1]).requires_grad
    for step in site.steps:
        tensor = example(step.operand)
        if step.kind == "fill" and step.number > HIDDEN:
            raise Unequal(f"a mask fills in {step.number:g}")
        if (
            step.kind == "factor"
            and site.key in step.labels
            and not is_one(shape(step.operand)[step.labels.index(site.key)])
        ):
            raise Unequal("each score has a scale of its own")
        if tensor is not None and step.kind != "fill" and torch.promote_types(tensor.dtype, dtype) != dtype:
            raise Unequal("the type of a mask differs")
    causal = causal_triangle(site, masks[0], known) if len(masks) == 1 else None
    if causal:
        return replace(site, causal=True, inputs=site.inputs | causal.inputs)
    adds = [example(step.operand) for step in masks if step.kind == "add"]
    if any(tensor is None or tensor.dtype == torch.bool for tensor in adds):
        raise Unequal("the type of a mask differs")
    gradient = any(tensor.requires_grad and tensor.device.type == "cpu" for tensor in adds)
    if gradient and trains:
        raise Unequal("a mask that needs a gradient is not fused on a CPU")
    fills = {step.number for step in masks if step.kind == "fill"}
    if not adds and len(fills) == 1:  # naively, exp of all scores is 0, and 0 / 0 is NaN
        return replace(site, empty="NaN" if math.isinf(min(fills)) or not shifted else "mean")
    if adds and (not shifted or dtype == torch.float16 or trains):
        # A finite number can hide all keys of a row: the fused backward takes its weights for 1, since the
        # logarithm of their sum is lost in that number; and float16 has none that would absorb the scores.
        raise Unequal("a mask that is added could hide all keys of a row")
    if fills and not (adds and all(number <= torch.finfo(dtype).min for number in fills)):
        raise Unequal("masks of several kinds")
    return replace(site, empty="added" if adds else "")


def causal_triangle(site: Attention, step: Step, known: Known) -> Triangle | None:
    """The mask, if it hides the keys after the query and nothing else."""
    found = known.triangle(step.operand)
    if found is None or {*step.labels[-2:]} != {site.query, site.key}:
        return None
    lengths = [
        shape(node)[labels.index(at)] for (node, labels), at in ((site.q, site.query), (site.k, site.key))
    ]
    if not all(same(size, lengths[0]) for size in (*shape(step.operand)[-2:], lengths[1])):
        return None
    if step.labels[-1] == site.query:
        found = found.turned()
    low, high = found.values.tolist()
    filled = step.kind == "fill" and bool(low) is step.keep and bool(high) is not step.keep
    added = step.kind == "add" and low == 0 and high * step.number <= HIDDEN
    return found if found.at == 1 and (filled or added) else None


def sites(graph_module: fx.GraphModule, inputs: Sequence[Any] = ()) -> Iterator[tuple[Node, Attention | str]]:
    """The softmax of each attention by hand, with what was found or why it must be left alone."""
    graph = graph_module.graph
    follow_writes(graph)
    known = Known(graph, inputs)
    for node in list(graph.nodes):
        try:
            site = match(node, known) if name_of(node) in ("softmax", "truediv") else None
        except Unequal as why:
            yield node, str(why)
        else:
            if site:
                yield node, site


def follow_writes(graph: fx.Graph) -> None:
    """Let what follows ``x.add_(y)`` use its result instead of ``x``, so that steps form a chain."""
    order = {node: number for number, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        target = written(node)
        if target is not None and called(node) != "setitem" and "out" not in node.kwargs:
            target.replace_all_uses_with(node, lambda user, at=order[node]: order[user] > at)


# --- The fused call.


class Writer:
    """Writes one attention as the fused call, before the second product."""

    def __init__(self, graph: fx.Graph, site: Attention) -> None:
        self.graph, self.site = graph, site
        self.sources: dict[str, tuple[Node, int]] = {}
        for node, labels in (site.q, site.k, site.v):
            for dim, label in enumerate(labels):
                if label not in self.sources or not is_one(shape(node)[dim]):
                    self.sources[label] = (node, dim)

    def call(self, function: Any, *args: Any, **kwargs: Any) -> Node:
        make = self.graph.call_method if isinstance(function, str) else self.graph.call_function
        return make(function, args, kwargs)

    def size(self, label: str) -> Any:
        node, dim = self.sources[label]
        size = shape(node)[dim]
        return size if isinstance(size, int) else self.call("size", node, dim)

    def ordered(self, node: Node, labels: Sequence[str], order: Sequence[str]) -> Node:
        """The dimensions in this order; those missing have size 1."""
        here = [label for label in order if label in labels]
        if here != list(labels):
            node = self.call("permute", node, *map(list(labels).index, here))
        for dim, label in enumerate(order):
            node = node if label in here else self.call("unsqueeze", node, dim)
        return node

    def operand(self, of: Operand, row: str, column: str) -> Node:
        """[*B, row, column], with each batch dimension at its full size, and the last contiguous."""
        (node, labels), split, batch = of, self.site.split, self.site.batch
        sizes = dict(zip(labels, shape(node), strict=True))
        stride = example(node).stride(labels.index(column))
        if split and split[0] in labels:
            node = self.ordered(node, labels, (split[0], row, column))
            node = self.call("reshape", node, *split[1], self.size(row), self.size(column))
        else:
            node = self.ordered(node, labels, (*batch, row, column))
            full = [self.size(b) if is_one(sizes.get(b, 1)) and b in self.sources else -1 for b in batch]
            if any(size not in (-1, 1) for size in full):
                node = self.call("expand", node, *full, -1, -1)
        contiguous = is_one(sizes[column]) or same(stride, 1)
        return node if contiguous else self.call("contiguous", node)

    def four(self, node: Node, spread: bool = True) -> Node:
        """With four dimensions, as fused kernels need. spread: all batch dimensions are full or all are 1."""
        number = len(self.site.batch)
        for _ in range(2 - number):
            node = self.call("unsqueeze", node, number)
        if number > 2 and not spread:
            node = self.call("expand", node, *map(self.size, self.site.batch[:-1]), -1, -1, -1)
        return self.call("flatten", node, 0, number - 2) if number > 2 else node

    def bias(self, q: Node) -> Node:
        """All masks as what is added to the scores, [B or 1, H or 1, L or 1, S or 1]."""
        bias, site, dtype = None, self.site, example(self.site.q[0]).dtype
        for step in site.masks:
            mask = self.ordered(step.operand, step.labels, (*site.batch, site.query, site.key))
            if step.kind == "add":
                mask = mask if example(step.operand).dtype == dtype else self.call("to", mask, dtype)
                mask = mask if step.number == 1 else self.call(torch.mul, mask, step.number)
                bias = mask if bias is None else self.call(torch.add, bias, mask)
                continue
            hidden = self.call("new_full", q, (), step.number if site.empty == "added" else -math.inf)
            shown = self.call("new_zeros", q, ()) if bias is None else bias
            bias = self.call(torch.where, mask, *((shown, hidden) if step.keep else (hidden, shown)))
        leading = [(s, b) for s in site.masks for b in site.batch[:-1] if b in s.labels]
        bias = self.four(bias, all(is_one(shape(s.operand)[s.labels.index(b)]) for s, b in leading))
        # A parameter says that it needs a gradient also where none is computed, and would not be fused then.
        return bias if example(site.nodes[-1]).requires_grad else self.call("detach", bias)

    def write(self) -> Node:
        site = self.site
        q = self.operand(site.q, site.query, site.width)
        for step in site.steps:
            if step.kind == "factor":
                order = (*site.batch, site.query, site.key)
                factor = self.ordered(step.operand, step.labels, order) if step.labels else step.operand
                q = self.call(torch.mul if step.number > 0 else torch.div, q, factor)
        k, v = self.operand(site.k, site.key, site.width), self.operand(site.v, site.key, "D")
        q, k, v = map(self.four, (q, k, v))
        bias = self.bias(q) if site.masks and not site.causal else None
        if site.empty:
            empty = self.call(torch.eq, self.call("amax", bias, -1, True), -math.inf)
            nan, one, zero = (self.call("new_full", q, (), value) for value in (math.nan, 1.0, 0.0))
        if site.empty in ("NaN", "mean"):  # scores of 0, which give no gradient to the query and the keys
            q, bias = (self.call(torch.where, empty, zero, of) for of in (q, bias))
        how = {"attn_mask": bias, "is_causal": site.causal, "scale": site.scale}
        out = self.call(F.scaled_dot_product_attention, q, k, v, **how)
        if site.empty == "added":
            out = self.call(torch.mul, out, self.call(torch.where, empty, nan, one))
        if site.empty == "NaN":  # and in the gradients of all values
            rows = self.call(torch.where, empty, nan, zero)
            out = self.call(torch.add, out, self.call(torch.mul, rows, self.call("sum", v, -2, True)))
        return self.result(out)

    def result(self, out: Node) -> Node:
        """From [B, H, L, D] to the dimensions of the second product."""
        batch, split, labels = self.site.batch, self.site.split, self.site.out
        for _ in range(2 - len(batch)):
            out = self.call("squeeze", out, len(batch))
        if len(batch) > 2:
            out = self.call("unflatten", out, 0, tuple(map(self.size, batch[:-1])))
        if split and split[0] in labels:
            batch = (split[0],)
            out = self.call("reshape", out, *map(self.size, (split[0], self.site.query, "D")))
        order = (*batch, self.site.query, "D")
        return out if order == labels else self.call("permute", out, *map(order.index, labels))


def lift(graph: fx.Graph, node: Node) -> None:
    """Give a fused call of three dimensions a fourth, without which no fused kernel runs."""
    operands, mask = node.args[:3], argument(node, 3, "attn_mask")
    if len(operands) < 3 or any(example(of) is None or example(of).dim() != 3 for of in operands):
        return
    if len({str(shape(of)[0]) for of in operands}) > 1 or (mask is not None and example(mask) is None):
        return
    with graph.inserting_before(node):
        lifted = [graph.call_method("unsqueeze", (of, 1)) for of in operands]
        if mask is not None and example(mask).dim() == 3:
            mask = graph.call_method("unsqueeze", (mask, 1))
        names = ("attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")
        how = {**dict(zip(names, node.args[3:], strict=False)), **node.kwargs, "attn_mask": mask}
        call = graph.call_function(F.scaled_dot_product_attention, tuple(lifted), how)
        out = graph.call_method("squeeze", (call, 1))
    out.meta = dict(node.meta)
    node.replace_all_uses_with(out)
    graph.erase_node(node)


def is_seen(node: Node, names: set[str]) -> bool:
    """Whether a tensor leaves the graph or is written to, itself or after functions of these names."""
    return any(
        user.op == "output" or written(user) is not None or (name_of(user) in names and is_seen(user, names))
        for user in node.users
    )


def loosen(node: Node) -> None:
    """Let views of a result that is no longer contiguous be reshapes."""
    for user in node.users:
        if user.op == "call_method" and user.target == "view":
            user.target = "reshape"
        if name_of(user) in VIEWS:
            loosen(user)


def sweep(graph: fx.Graph, nodes: Sequence[Node]) -> None:
    """Erase these nodes and what was computed for them alone."""
    for node in nodes:
        if not node.users and node in graph.nodes:
            sources = node.all_input_nodes
            graph.erase_node(node)
            sweep(
                graph, [source for source in sources if name_of(source) in PURE and written(source) is None]
            )


def rewrite_attention(graph_module: fx.GraphModule) -> fx.GraphModule:
    """Replace attention by hand in a graph of Dynamo's, in place, and return it.

    Triangles in the graph's inputs are looked at only if ``graph_module.meta["inputs"]`` holds them; those
    relied upon are in ``meta["assumed"]`` then, and the caller must check them (see :class:`Known`).
    """
    for child in graph_module.children():  # the bodies of checkpoints
        if isinstance(child, fx.GraphModule):
            rewrite_attention(child)
    graph, inputs = graph_module.graph, graph_module.meta.get("inputs", ())
    for node in list(graph.nodes):
        if node.target is F.scaled_dot_product_attention:
            lift(graph, node)
    for _, site in sites(graph_module, inputs):
        if isinstance(site, str):
            continue
        last = site.nodes[-1]
        with graph.inserting_before(last):
            out = Writer(graph, site).write()
            if example(last).requires_grad and is_seen(last, VIEWS | CASTS):  # the backward pass needs it too
                out = graph.call_method("clone", (out,), {"memory_format": torch.contiguous_format})
            elif is_seen(last, VIEWS):
                out = graph.call_method("contiguous", (out,))
            else:
                loosen(last)
        out.meta = dict(last.meta)
        last.replace_all_uses_with(out)
        sweep(graph, site.nodes[::-1])
        graph_module.meta.setdefault("assumed", {}).update({i: triangle_of(inputs[i]) for i in site.inputs})
    graph_module.recompile()
    return graph_module


Pass = Callable[[fx.GraphModule], fx.GraphModule]


def attention_backend(
    inner: str | Callable[..., Any] = "eager", passes: Sequence[Pass] = (rewrite_attention,)
) -> Callable[..., Any]:
    """A backend of torch.compile that rewrites attention and hands the graph to another.

    inner: the other's name or itself. "inductor" takes ``mode`` and ``options`` as torch.compile does.
    passes: what is done to each graph, in this order.
    """

    def attention_to_sdpa(graph_module: fx.GraphModule, inputs: Any, **settings: Any) -> Any:
        from torch._dynamo import lookup_backend

        unchanged = fx.GraphModule(graph_module, copy.deepcopy(graph_module.graph))
        graph_module.meta["inputs"] = inputs
        for change in passes:
            graph_module = change(graph_module)
        graph_module.meta.pop("inputs", None)
        assumed = graph_module.meta.pop("assumed", {})
        if inner == "inductor" and settings:
            from torch._inductor import list_mode_options

            patches = list_mode_options(settings.get("mode") or "default") | (settings.get("options") or {})
            settings = {"config_patches": {name.replace("-", "_"): value for name, value in patches.items()}}
        backend = lookup_backend(inner) if isinstance(inner, str) else inner
        compiled = backend(graph_module, inputs, **settings)
        return checked(compiled, unchanged, assumed) if assumed else compiled

    return attention_to_sdpa


def checked(compiled: Any, unchanged: fx.GraphModule, assumed: dict[int, Triangle]) -> Callable[..., Any]:
    """Run the rewritten graph while the inputs are the triangles that were seen, else the unchanged one."""
    seen: dict[int, tuple[Any, int]] = {}

    def holds(inputs: Sequence[Any]) -> bool:
        for index, triangle in assumed.items():
            tensor = inputs[index]
            known, version = seen.get(index, (None, -1))
            if known is None or known() is not tensor or version != tensor._version:
                if not triangle.equals(triangle_of(tensor)):
                    return False
                seen[index] = (weakref.ref(tensor), tensor._version)
        return True

    return lambda *inputs: compiled(*inputs) if holds(inputs) else unchanged(*inputs)
