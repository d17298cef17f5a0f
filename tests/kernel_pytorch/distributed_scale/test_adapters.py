"""The inherited names only adapt: arguments in, our objects called, dicts out."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from kernel_pytorch import distributed_scale

FILES = sorted(Path(distributed_scale.__file__).parent.glob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_an_adapter_has_no_threads_and_no_long_functions(path: Path):
    tree = ast.parse(path.read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not names & {"threading", "logging", "time", "_thread", "concurrent.futures"}
    loops = [node for node in ast.walk(tree) if isinstance(node, (ast.For, ast.While))]
    assert loops == []
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    assert {node.name: len(node.body) for node in functions if len(node.body) > 5} == {}
