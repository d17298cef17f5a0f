"""What the rewriting relies on, checked on the packages themselves."""

from __future__ import annotations

import importlib
import warnings

import pytest

from kernel_pytorch.legacy import MOVED, RENAMED
from kernel_pytorch.migrate.table import WORDS, Now, home_of, lookup, package_has, package_of

SAME = [(module, old) for old, now in RENAMED.items() if now.same for module in now.modules]
CHANGED = [(module, old) for old, now in RENAMED.items() if not now.same for module in now.modules]


def old_object(module: str, name: str):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(importlib.import_module(module), name)


@pytest.mark.parametrize("moved", MOVED)
def test_the_package_has_every_public_name_of_a_moved_module(moved):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        old = importlib.import_module(moved)
    package = importlib.import_module(package_of(moved))
    names = [name for name in vars(old) if not name.startswith("_")]
    assert len(names) > 5
    for name in names:
        assert package_has(moved, name)
        assert getattr(package, name) is getattr(old, name)
        assert lookup(f"{moved}.{name}") == Now(module=package_of(moved), name=name)
    assert lookup(moved) == Now(module=package_of(moved), name=None)
    assert lookup(f"{moved}.Nothing") is None


@pytest.mark.parametrize(("module", "old"), SAME)
def test_a_renamed_name_is_where_it_is_looked_up(module, old):
    now = lookup(f"{module}.{old}")
    found = importlib.import_module(now.module)
    assert getattr(found, now.name) is old_object(module, old)
    assert now.module == module or now.name not in vars(importlib.import_module(module))


def test_a_home_below_its_module_is_loaded_with_it():
    """So ``core.MemoryPool`` may become ``core.memory.UnifiedMemoryPool`` without an import."""
    below = {(m, home) for m, old in SAME if (home := home_of(m, RENAMED[old])).startswith(f"{m}.")}
    assert below == {("dilated_attention_pytorch.core", "dilated_attention_pytorch.core.memory")}
    assert "memory" in vars(importlib.import_module("dilated_attention_pytorch.core"))


@pytest.mark.parametrize(("module", "old"), CHANGED)
def test_a_name_whose_calls_changed_is_not_looked_up(module, old):
    assert old_object(module, old) is not None
    assert lookup(f"{module}.{old}") is None


@pytest.mark.parametrize("path", ["numpy.MemoryPool", "orchestration", "kernel_pytorch.utils", ""])
def test_other_paths_are_not_in_the_table(path):
    assert lookup(path) is None


def test_every_old_name_is_among_the_words():
    for path in (*MOVED, *RENAMED):
        assert WORDS.search(f"x = {path}".encode())
    assert not WORDS.search(b"from kernel_pytorch.distributed_scale import JobState")
