"""Random modules with old imports: after the rewriting they bind the same objects, without a warning."""

from __future__ import annotations

import contextlib
import importlib
import re
import sys
import textwrap
import types
import warnings
from collections.abc import Iterator

from hypothesis import given, settings
from hypothesis import strategies as st
from old_names import spelled_out

from kernel_pytorch.legacy import MOVED
from kernel_pytorch.migrate.rewrite import changes_of
from kernel_pytorch.migrate.source import Source
from kernel_pytorch.migrate.table import WORDS, package_of

# A statement and expressions that use it; N is a number of its own.
FORMS = [
    ("from SCALE.orchestration import JobState as aN, ResourceType", "aN ResourceType"),
    ("from SCALE.hardware_adaptation import (  # (\n    DeviceInfo as aN,  # ,\n    HealthState\n)", "aN"),
    ("from SCALE.communication_optimization \\\n    import \\\n  NetworkTopology as aN", "aN"),
    ("from UTILS.compiler_optimization_assistant import CodeAnalyzer", "CodeAnalyzer"),
    ("import SCALE.hardware_adaptation", "SCALE.hardware_adaptation.DeviceInfo SCALE.hardware_adaptation"),
    ("import SCALE.orchestration as mN, os as oN", "mN mN.JobState mN.JobState.RUNNING oN"),
    ("import SCALE . orchestration, UTILS", "SCALE.orchestration.JobStatus UTILS"),
    ("from SCALE import orchestration as mN, JobState as jN", "mN.JobStatus jN"),
    ("from SCALE import JobState as jN, \\\n  orchestration as mN", "mN.JobStatus jN"),
    ("from SCALE import (orchestration as mN)", "mN"),
    ("from SCALE import (\n    orchestration as mN,\n    # both\n    JobState as jN,\n)", "mN jN"),
    ("from kernel_pytorch import distributed_scale as dN", "dN"),
    ("from LONG import RingDilatedAttentionHybrid as rN, UnifiedMemoryPool as uN", "rN uN"),
    ("from LONG.ring_attention import RingDilatedAttentionTrue", "RingDilatedAttentionTrue"),
    (
        "from LONG.ring_attention import MemoryPool as pN, shard_sequence as sN, MemoryPool",
        "pN sN MemoryPool",
    ),
    ("from LONG.core import (MemoryPool as pN,)", "pN"),
    ("from LONG import MemoryPool", "MemoryPool MemoryPool.__name__"),
    ("import LONG as dN", "dN.MemoryPool dN.core.MemoryPool dN.ring_attention.MemoryPool dN.LongNetLM"),
    ("import LONG.ring_attention", "LONG.ring_attention.RingDilatedAttentionTrue"),
    ("from LONG import core as cN", "cN.MemoryPool f'{cN.MemoryPool.__name__}'"),
    ("from LONG import ring_attention as qN", "qN.MemoryPool qN.RingDilatedAttentionTrue qN.MemoryPool"),
    ("import importlib as iN", "iN.import_module('SCALE.orchestration').JobState"),
    ("from importlib import import_module as iN", "iN('UTILS.compiler_optimization_assistant')"),
]
SHADOWS = """
class Any:
    def __getattr__(self, name):
        seen.append(name)
        return self
def shadow(kernel_pytorch, MemoryPool, LONG):
    seen.append((MemoryPool, "MemoryPool", 'orchestration'))
    kernel_pytorch.distributed_scale.orchestration.JobState
    return [LONG.MemoryPool for orchestration in "ab" for LONG in [Any()]]
shadow(Any(), 2, 3)[0].orchestration.MemoryPool
"""
AROUND = [
    "{}",
    "if True:\n    {}\n",
    "try:\n    {}\nexcept ImportError:\n    raise\n",
    "def fN():\n\t{}\nfN()\n",
    "class CN:  # naïve\n    x = 1\n\n    {}\n",
    "if True:\n  class CN:\n    def f(self):\n      {}\n  CN().f()\n",
]


@st.composite
def modules(draw: st.DrawFn) -> str:
    """Source with old names, of any of the forms, in any of the surroundings."""
    parts = ["seen = []\n"]
    drawn = st.lists(st.tuples(st.sampled_from(FORMS), st.sampled_from(AROUND)), min_size=1, max_size=6)
    for number, ((statement, uses), around) in enumerate(draw(drawn)):
        used = [use for use in spelled_out(uses).split(" ") if draw(st.booleans())]
        lines = [spelled_out(statement), *(f"seen.append({use})  # naïve" for use in used)]
        before, after = around.split("{}")
        indent = before[before.rfind("\n") + 1 :]
        body = textwrap.indent("\n".join(lines), indent)[len(indent) :]
        parts.append(_numbered(f"{before}{body}{after}\n", number))
        parts.append(draw(st.sampled_from(["", "\n", "\n\n# orchestration, naïve\n", spelled_out(SHADOWS)])))
    return "".join(parts)


def _numbered(text: str, number: int) -> str:
    """``text`` with the number for each N that ends a name of ours."""
    return re.sub(r"\b([a-zC])N\b", rf"\g<1>{number}", text)


@contextlib.contextmanager
def unloaded() -> Iterator[None]:
    """Without the moved modules, which warn when they are loaded."""
    for moved in MOVED:
        sys.modules.pop(moved, None)
        vars(importlib.import_module(package_of(moved))).pop(moved.rpartition(".")[2], None)
    yield


def run(source: bytes, action: str) -> dict[str, object]:
    namespace: dict[str, object] = {"__name__": "made_up"}
    with unloaded(), warnings.catch_warnings():
        warnings.simplefilter(action)
        exec(compile(source, "made_up", "exec"), namespace)
    return {name: value for name, value in namespace.items() if not name.startswith("__")}


def assert_same(before: object, after: object) -> None:
    if isinstance(before, types.ModuleType) and before.__name__ in MOVED:
        assert after is importlib.import_module(package_of(before.__name__))
        for name in vars(before):
            assert name.startswith("_") or getattr(after, name) is getattr(before, name)
    elif isinstance(before, list):
        assert len(before) == len(after)
        for one, other in zip(before, after, strict=True):
            assert_same(one, other)
    elif getattr(before, "__module__", None) == "made_up":  # defined anew by each run
        for name in [name for name in vars(before) if not name.startswith("__")]:
            assert_same(vars(before)[name], vars(after)[name])
    else:
        assert before is after or before == after


@settings(max_examples=60)
@given(modules(), st.sampled_from(["\n", "\r\n"]), st.sampled_from(["utf-8", "utf-8-sig", "latin-1"]))
def test_a_rewritten_module_binds_the_same_objects(text, newline, encoding):
    cookie = "# -*- coding: latin-1 -*-\n" if encoding == "latin-1" else ""
    before = (cookie + text).replace("\n", newline).encode(encoding)
    source = Source.decode(before)
    changes = changes_of(source.text)
    assert [note for note in changes.notes if "is not rewritten" in note.text] == []
    after = source.encode(changes.result())
    old, new = run(before, "ignore"), run(after, "error")
    assert set(old) <= set(new) <= {*old, "UnifiedMemoryPool"}
    for name, value in old.items():
        assert_same(value, new[name])
    again = Source.decode(after)
    assert changes_of(again.text).edits == []
    lines = [line for line in before.split(b"\n") if b"# na" in line and not WORDS.search(line)]
    assert lines == [line for line in after.split(b"\n") if line in lines]
