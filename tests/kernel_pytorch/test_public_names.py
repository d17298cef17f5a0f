"""The names that kernel_pytorch offers, and that each says what it is."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import kernel_pytorch

SOURCES = Path(kernel_pytorch.__file__).parent
OFFERED = [
    "ClusterView",
    "EnergyMeter",
    "HealthState",
    "JobDevices",
    "KernelPytorchError",
    "Machine",
    "NodeWatch",
    "PlacementRequest",
    "PowerLimits",
    "Thresholds",
    "TraceWriter",
    "Unavailable",
    "assess",
    "launch_hints",
    "place",
    "read_trace",
]
# Public functions and classes by module, but for the command and the inherited names.
PINNED = Path(__file__).with_name("public_names.txt")


def test_what_the_package_offers():
    assert kernel_pytorch.__all__ == OFFERED
    assert set(OFFERED) <= set(dir(kernel_pytorch))
    for name in OFFERED:
        assert inspect.getdoc(getattr(kernel_pytorch, name)), name
    with pytest.raises(AttributeError, match="module 'kernel_pytorch' has no attribute 'Nothing'"):
        _ = kernel_pytorch.Nothing


def test_importing_the_package_loads_none_of_it():
    script = "import sys, kernel_pytorch; print([m for m in sys.modules if m.startswith('kernel_pytorch.')])"
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "['kernel_pytorch._lazy']\n"), done.stderr


def public_names() -> dict[str, list[str]]:
    """By module: the functions and classes whose name has no underscore."""
    found = {}
    for path in sorted(SOURCES.rglob("*.py")):
        module = ".".join(path.relative_to(SOURCES).with_suffix("").parts).removesuffix(".__init__")
        if module.split(".")[0] in ("cli", "distributed_scale", "legacy", "utils", "__init__"):
            continue
        names = [
            node.name
            for node in ast.parse(path.read_text()).body
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")
        ]
        if names:
            found[module] = sorted(names)
    return found


def test_our_own_names_are_pinned():
    lines = [f"{module}: {' '.join(names)}" for module, names in public_names().items()]
    assert lines == PINNED.read_text().splitlines()


def test_our_own_names_are_documented():
    undocumented = []
    for module, names in public_names().items():
        path = SOURCES.joinpath(*module.split("."))
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        undocumented += [
            f"{module}.{node.name}"
            for node in ast.parse(path.read_text()).body
            if isinstance(node, (ast.FunctionDef, ast.ClassDef))
            and node.name in names
            and not ast.get_docstring(node)
        ]
    assert undocumented == []
