"""The grammar of ``--input``. An input is parsed, never evaluated."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from typing import Any

from .target import Named, TargetError, names_a_file

GRAMMAR = """\
--input is one of
  randn(1, 1024, 256)           normal; also rand (uniform in [0, 1)), ones, zeros
  randint(0, 1000, (1, 1024))   whole numbers from 0 to 999
  ones(1, 1024, dtype=bool)     dtype: float32 (default), float16, bfloat16, float64, complex64, complex128,
                                int64 (default of randint), int32, int16, int8, uint8, bool
  3, 0.5, True, None, 'text'    the value itself
  inputs.py:make                what the function make of that file returns: a tensor or an array of NumPy, a
                                tuple (positional) or a dict (by keyword); it may take length=
or NAME= and one of these, which is passed by that keyword. Others are passed by position, in order.
"""
KINDS = ("randn", "rand", "ones", "zeros", "randint")
FLOATING = ("float32", "float16", "bfloat16", "float64", "complex64", "complex128")
INTEGERS = ("int64", "int32", "int16", "int8", "uint8")
DTYPES = (*FLOATING, *INTEGERS, "bool")
_KEYWORD = re.compile(r"\s*([A-Za-z_]\w*)\s*=(?!=)\s*(.*)", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Input:
    """One ``--input``."""

    keyword: str | None = None
    """None: positional."""
    kind: str
    """One of :data:`KINDS`, "value" or "function"."""
    shape: tuple[int, ...] = ()
    dtype: str = ""
    low: int = 0
    high: int = 0
    """Of randint: less than this."""
    value: Any = None
    named: Named | None = None


def parse_input(text: str) -> Input:
    """Parse an ``--input``; see :data:`GRAMMAR`.

    Raises:
        TargetError: it is not of the grammar, or names a file that does not exist.
    """
    keyword, rest = None, text.strip()
    if found := _KEYWORD.fullmatch(rest):
        keyword, rest = found[1], found[2]
    if names_a_file(rest):
        return Input(keyword=keyword, kind="function", named=Named.of(rest, "--input"))
    try:
        tree = ast.parse(rest, mode="eval").body
        if isinstance(tree, ast.Call):
            return _parse_call(tree, keyword)
        value = _literal(tree)
        if not isinstance(value, (bool, int, float, str, type(None))):
            raise ValueError("a value is a number, True, False, None or a quoted text")
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        why = "it does not parse" if isinstance(error, (SyntaxError, RecursionError, MemoryError)) else error
        shown = text if len(text) <= 80 else text[:77] + "..."
        raise TargetError(
            f"--input {shown!r}: {why}; as 'randn(1, 1024, 256)', 'mask=ones(1, 1024, dtype=bool)' or "
            "inputs.py:make"
        ) from None
    return Input(keyword=keyword, kind="value", value=value)


def _literal(tree: ast.expr) -> Any:
    try:
        return ast.literal_eval(tree)
    except (ValueError, TypeError):
        raise ValueError(
            f"{ast.unparse(tree)[:40]!r} is no number, text or call of {', '.join(KINDS)}"
        ) from None


def _parse_call(tree: ast.Call, keyword: str | None) -> Input:
    kind = ast.unparse(tree.func).removeprefix("torch.")
    if kind not in KINDS:
        raise ValueError(f"{kind[:40]!r} is none of {', '.join(KINDS)}")
    dtype = "int64" if kind == "randint" else "float32"
    for option in tree.keywords:
        if option.arg != "dtype":
            raise ValueError(f"the only option is dtype=, got {ast.unparse(option)[:40]}")
        dtype = ast.unparse(option.value).removeprefix("torch.")
    allowed = {"randn": FLOATING, "randint": INTEGERS, "rand": (*FLOATING, "bool")}.get(kind, DTYPES)
    if dtype not in allowed:
        raise ValueError(f"dtype of {kind} is one of {', '.join(allowed)}, got {dtype[:40]}")
    values = [_literal(argument) for argument in tree.args]
    low = high = 0
    if kind == "randint":
        if len(values) != 3 or not all(type(value) is int for value in values[:2]):
            raise ValueError(
                "randint takes the least number, the end and a shape: randint(0, 1000, (1, 1024))"
            )
        low, high, *values = values
        if low >= high:
            raise ValueError(f"randint's end must be greater than its least number, got {low} and {high}")
    shape = values[0] if len(values) == 1 and isinstance(values[0], (tuple, list)) else values
    if not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError(f"a shape is whole numbers from 0, got {tuple(shape)}")
    return Input(keyword=keyword, kind=kind, shape=tuple(shape), dtype=dtype, low=low, high=high)


def check_keywords(inputs: tuple[Input, ...]) -> None:
    """Refuse a keyword that is given twice.

    Raises:
        TargetError: it is.
    """
    given = [one.keyword for one in inputs if one.keyword is not None]
    for name in given:
        if given.count(name) > 1:
            raise TargetError(f"--input {name}= is given twice")
