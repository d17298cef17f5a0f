"""Writes the tables of docs/migration.md from those in the code: ``python docs/write_migration.py``."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from dilated_attention_pytorch.legacy import METHODS
from kernel_pytorch.legacy import MOVED, RENAMED

PAGE = Path(__file__).with_name("migration.md")
TABLE = re.compile(r"(?<=^<!-- begin table: )(\w+)( -->\n).*?(?=^<!-- end -->$)", re.M | re.S)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def code(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def modules() -> str:
    """Each moved module, and which of its names live where."""
    rows = [
        (code([old]), code([home]), code(importlib.import_module(home).__all__))
        for old, homes in MOVED.items()
        for home in homes
    ]
    return table(("old module", "new module", "names"), rows)


def names() -> str:
    """Each renamed class and function."""
    rows = [
        (
            code([old]),
            code(now.modules),
            code([f"from {now.home} import {now.new}"]),
            "the same object" if now.same else "its calls mean something else",
        )
        for old, now in RENAMED.items()
    ]
    return table(("old name", "in", "new", ""), rows)


def methods() -> str:
    """Each old method of the ring modules."""
    return table(("old method", "new"), [(code([f"{old}()"]), code([new])) for old, new in METHODS.items()])


def written(text: str) -> str:
    """The page with its tables as they should be."""
    tables = {make.__name__: make for make in (modules, names, methods)}
    return TABLE.sub(lambda found: found[1] + found[2] + tables[found[1]](), text)


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
