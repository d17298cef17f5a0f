"""Every name of the page of public names is there, at its new home and at its old one."""

from __future__ import annotations

import ast
import builtins
import importlib
import inspect
import re
from functools import cache
from pathlib import Path

import api_page
import pytest
from old_modules import not_imported

from kernel_pytorch.legacy import MOVED, RENAMED

# The page stands beside the checkout; what was read from it is kept here.
PAGE = Path(__file__).parents[2] / "shared/API.md"
KEPT = Path(__file__).with_name("api_names.txt")
NAMES = KEPT.read_text().splitlines()
# Jobs on Kubernetes and jobs that grow and shrink: promised, and not written yet.
NOT_YET = (
    "AutoScalingManager",
    "KubernetesDistributedOrchestrator",
    "create_auto_scaling_manager",
    "create_kubernetes_orchestrator",
)
# What the page calls a parameter for short, and its names in full.
SHORT = {
    "id": {"job_id", "device_id"},
    "rec": {"recommendation"},
    "t": {"tensor"},
    "type": {"type", "operation_type"},
}


def split(entry: str) -> tuple[str, str, str, list[str]]:
    """Module, name, member or "", parameters."""
    module, _, rest = entry.partition(":")
    path, _, given = rest.partition("(")
    name, _, member = path.partition(".")
    return module, name, member, re.findall(r"\w+", given)


THERE = [entry for entry in NAMES if split(entry)[1] not in NOT_YET]
TOP = sorted({split(entry)[:2] for entry in THERE})


@cache
def home(module: str):
    if module not in MOVED:
        return importlib.import_module(module)
    with not_imported(module), pytest.warns(FutureWarning, match=f"^{re.escape(module)} is now "):
        return importlib.import_module(module)


def set_by_methods(cls: type) -> set[str]:
    """Attributes that the methods of a class of ours assign to self."""
    return {
        node.attr
        for base in cls.__mro__
        if base.__module__.startswith((api_page.LOWER, api_page.UPPER))
        for node in ast.walk(ast.parse(inspect.getsource(base).lstrip()))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
    }


NOT_OURS = {"DeviceMesh", "MultiheadAttention", "NaN", "OnFailure", "ProcessGroup", "prod"}
NOT_OURS |= {"DeprecationWarning", "FutureWarning", "TypeError", "ValueError"}
# What functions return: links, a handle of a collective and the state of a hook, none of which users make.
RETURNED = {"MeasuredLinks", "wait", "is_completed", "result", "state_dict", "load_state_dict"}
with_page = pytest.mark.skipif(not PAGE.exists(), reason=f"{PAGE} is not part of the repository")


@with_page
def test_the_kept_names_are_those_of_the_page():
    page = api_page.read(PAGE.read_text())
    assert sorted(page.names) == NAMES, (
        'write tests/api_names.txt anew: PYTHONPATH=tests/support python -c "import api_page, pathlib as p; '
        "print(*sorted(api_page.read(p.Path('../shared/API.md').read_text()).names), sep='\\n')\""
    )
    assert sorted(page.moved) == sorted(MOVED)
    assert {old: RENAMED[old].new for old in page.renamed} == page.renamed
    assert all(RENAMED[old].same for old in page.renamed)


@with_page
def test_no_name_of_the_page_is_overlooked():
    """Found another way: words in mixed case, words that open a bracket, and words after a dot."""
    page = PAGE.read_text()
    words = re.findall(r"\b[A-Z][a-z0-9]+[A-Z]\w*|(?<![\w.])[a-z_]+(?=\()|(?<=\s\.)[a-z_]+", page)
    kept = re.findall(r"\w+", KEPT.read_text())
    assert set(words) - set(kept) - set(RENAMED) == NOT_OURS | RETURNED


@pytest.mark.parametrize("entry", THERE, ids=THERE)
def test_a_promised_name_is_there_with_its_members_and_parameters(entry: str):
    module, name, member, given = split(entry)
    found = getattr(home(module), name)
    if member and inspect.getattr_static(found, member, None) is None:
        fields = {field for base in found.__mro__ for field in vars(base).get("__annotations__", ())}
        assert member in fields | set_by_methods(found)
        assert not given
        return
    bases = tuple(vars(builtins)[base] for base in given if base in vars(builtins) and base[0].isupper())
    if bases:
        assert issubclass(found, bases)
    elif given:
        taken = inspect.signature(getattr(found, member) if member else found).parameters.values()
        by_keyword = {one.name for one in taken if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)}
        assert [one for one in given if not SHORT.get(one, {one}) & by_keyword] == []


@pytest.mark.parametrize(("module", "name"), TOP, ids=[f"{module}.{name}" for module, name in TOP])
def test_a_name_is_the_same_object_in_its_package_and_in_its_old_module(module: str, name: str):
    package = module.rpartition(".")[0]
    others = [old for old, homes in MOVED.items() if module in homes]
    if package in {old.rpartition(".")[0] for old in MOVED}:
        others.append(package)
    for other in others:
        assert getattr(home(other), name) is getattr(home(module), name), other


@pytest.mark.parametrize("name", NOT_YET)
def test_what_is_not_there_yet_is_not_there(name: str):
    """Otherwise it belongs no longer to NOT_YET."""
    (module,) = {split(entry)[0] for entry in NAMES if split(entry)[1] == name}
    assert not hasattr(home(module), name)
