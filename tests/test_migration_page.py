"""The page for those who come from earlier versions: its tables are those of the code, its examples run."""

from __future__ import annotations

import re
import warnings
from contextlib import ExitStack
from types import ModuleType

import pytest
import torch
from docs import write_migration
from old_modules import not_imported

from dilated_attention_pytorch import UnifiedMemoryPool
from kernel_pytorch.legacy import MOVED, REMOVED_IN, RENAMED

TEXT = write_migration.PAGE.read_text()
BLOCK = r":\n\n```python\n(.*?)^```$"
PAIRS = re.findall(f"^Before{BLOCK}\n\nAfter{BLOCK}", TEXT, flags=re.M | re.S)
REFUSED = "  # TypeError\n"


def test_the_tables_are_those_of_the_code():
    assert write_migration.written(TEXT) == TEXT, "write them anew: python docs/write_migration.py"
    assert len(write_migration.TABLE.findall(TEXT)) == 3
    tables = "".join(line for line in TEXT.splitlines(keepends=True) if line.startswith("|"))
    assert [old for old in (*MOVED, *RENAMED) if f"| `{old}` |" not in tables] == []
    assert f"{REMOVED_IN.removeprefix('v')} removes them" in TEXT


def test_every_example_is_one_of_a_pair():
    assert len(PAIRS) == TEXT.count("```python") / 2 >= 6


def run(code: str) -> dict[str, object]:
    names: dict[str, object] = {}
    exec(compile(code, str(write_migration.PAGE), "exec"), names)
    del names["__builtins__"]
    return names


def same(before: object, after: object) -> bool:
    """Whether both are one class or function, equal results, or modules of one kind."""
    if isinstance(before, torch.Tensor):
        return torch.equal(before, after)
    if isinstance(before, (torch.nn.Module, UnifiedMemoryPool)):
        return type(before) is type(after)
    return before == after


@pytest.mark.parametrize(("before", "after"), PAIRS, ids=range(len(PAIRS)))
def test_an_example_warns_or_is_refused_and_its_replacement_gives_the_same(before: str, after: str):
    new = run(after)
    with ExitStack() as stack:
        for module in MOVED:
            stack.enter_context(not_imported(module))
        caught = stack.enter_context(warnings.catch_warnings(record=True))
        warnings.simplefilter("always")
        if REFUSED in before:
            with pytest.raises(TypeError):
                run(before)
            return
        old = run(before)
    assert caught
    assert all(str(warning.message).endswith(f" in {REMOVED_IN}") for warning in caught)
    shared = [name for name in old.keys() & new.keys() if not isinstance(old[name], ModuleType)]
    assert shared
    for name in shared:
        assert same(old[name], new[name]), name
