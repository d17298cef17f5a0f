"""What is not rewritten: names that only look old, silently; the rest with a note."""

from __future__ import annotations

import libcst
import pytest
from old_names import spelled_out

from kernel_pytorch.migrate.rewrite import changes_of
from kernel_pytorch.migrate.source import NotReadableError

SILENT = {
    "comment and docstring": '"""SCALE.orchestration"""\n# from SCALE.orchestration import JobState\n',
    "relative import": "from .orchestration import JobState\nfrom . import orchestration, MemoryPool\n",
    "relative import of the same path": "from .SCALE.orchestration import JobState, orchestration\n",
    "import_module above the top": "import importlib as i\ni.import_module('...orchestration', 'a')\n",
    "other module": "from numpy import MemoryPool\nimport orchestration\nfrom mine import orchestration\n",
    "attribute of another object": "import mine\nx = mine.MemoryPool, self.orchestration, f().MemoryPool\n",
    "parameter": "import LONG as d\ndef f(d): return d.MemoryPool\ng = lambda d: d.MemoryPool\n",
    "local": "import LONG as d\ndef f():\n    d = g()\n    return d.MemoryPool\n",
    "comprehension": "import LONG as d\nx = [d.MemoryPool for d in y]\n",
    "loop": "def f():\n    for d in y: d.MemoryPool\n",
    "keyword": "import LONG as d\nf(MemoryPool=1, orchestration=d)\n",
    "definition": "class MemoryPool: ...\ndef orchestration(): ...\n",
    "star import of what is still there": "from LONG import *\nx = RingDilatedAttention\n",
    "name in __all__": "from mine import MemoryPool\n__all__ = ['MemoryPool', 'orchestration']\n",
    "new names": "from SCALE import JobState\nfrom LONG import UnifiedMemoryPool as MemoryPool\n",
}


@pytest.mark.parametrize("case", SILENT)
def test_silent(case):
    changes = changes_of(spelled_out(SILENT[case]))
    assert (changes.edits, changes.notes) == ([], [])


# By case: the source, and of each note the line and a part of its text.
NOTED = {
    "star import": ("from SCALE.orchestration import *\n", [(1, "import the names from SCALE")]),
    "star import of old names": (
        "from LONG import *\nx = MemoryPool()\n",
        [(2, "from LONG.core.memory import UnifiedMemoryPool as MemoryPool")],
    ),
    "meaning changed": (
        "import LONG as d\nfrom LONG.long_net import LongNetLM\nd.LongNet(256)\nd.get_global_memory_pool()\n",
        [
            (2, "LONG.long_net.LongNetLM means something else now: use LongNetLM of LONG.models"),
            (3, "use LongNetEncoder of LONG.models"),
            (4, "use UnifiedMemoryPool of LONG.core.memory"),
        ],
    ),
    "rebound": ("import LONG as d\nd = mine\nx = d.MemoryPool\n", [(3, "d may be something else here")]),
    "rebound by a global": (
        "import LONG as d\ndef f():\n    global d\n    d = 1\nx = d.MemoryPool\n",
        [(5, "d may be something else here")],
    ),
    "rebound by match": (
        "import LONG as d\ndef f(x):\n    match x:\n        case [d, *_]: return d.MemoryPool\n",
        [(4, "d may be something else here")],
    ),
    "rebound in a comprehension": (
        "import LONG as d\nx = [d for y in z if (d := y)]\nd.MemoryPool\n",
        [(3, "d may be something else here")],
    ),
    "set or deleted": (
        "import LONG as d\nd.RingDilatedAttentionTrue = x\ndel d.MemoryPool\n",
        [(2, "write from LONG import RingDilatedAttention"), (3, "write from LONG import UnifiedMemoryPool")],
    ),
    "its plain import then stays": (
        "import SCALE.orchestration\nif x: kernel_pytorch = y\nz = SCALE.orchestration.JobState\n",
        [(1, "stays: a use of it is not rewritten"), (3, "kernel_pytorch may be something else here")],
    ),
    "set through packages": (
        "import SCALE.orchestration\nSCALE.orchestration = x\n",
        [(1, "stays"), (2, "write SCALE")],
    ),
    "no such name": (
        "from SCALE.orchestration import JobState, Missing\n",
        [(1, "SCALE has no Missing: rewrite the import from SCALE.orchestration")],
    ),
    "imported for all functions": (
        "def f():\n    global r\n    from LONG import ring_attention as r\ndef g(): return r.MemoryPool\n",
        [(4, "from LONG.core.memory import UnifiedMemoryPool")],
    ),
    "set, where the new name has another home": (
        "from LONG import core\ncore.MemoryPool = 1\n",
        [(2, "from LONG.core.memory import UnifiedMemoryPool")],
    ),
    "set, where the new name needs an import": (
        "from LONG import ring_attention as r\nr.MemoryPool = 1\n",
        [(2, "from LONG.core.memory import UnifiedMemoryPool")],
    ),
    "over two lines, where the new name has another home": (
        "from LONG import core\nx = (core  # why\n  .MemoryPool)\n",
        [(2, "from LONG.core.memory import UnifiedMemoryPool")],
    ),
    "comment before a comma": (
        "from LONG.core import (MemoryPool  # why\n  , pattern)\n",
        [(1, "write from LONG.core.memory import UnifiedMemoryPool as MemoryPool")],
    ),
    "comment before as": (
        "from LONG.core import (MemoryPool  # why\n  as P, pattern)\n",
        [(1, "write from LONG.core.memory import UnifiedMemoryPool as P")],
    ),
    "comment in a chain": (
        "import SCALE.orchestration\nx = (SCALE.  # why\n  orchestration.JobState)\n",
        [(1, "stays"), (2, "write SCALE")],
    ),
    "hides a name": (
        "from LONG import ring_attention as r\ndef f(UnifiedMemoryPool): return r.MemoryPool\n",
        [(2, "from LONG.core.memory import UnifiedMemoryPool")],
    ),
    "string": (
        "x = 'SCALE.orchestration.JobState'\n",
        [(1, "SCALE.orchestration, which is now SCALE")],
    ),
    "f-string": ("x = f'{y} SCALE.orchestration'\n", [(1, "which is now SCALE")]),
    "string in an annotation": (
        "import LONG as d\nx: 'list[d.MemoryPool]' = []\n",
        [(2, "in a string: LONG.MemoryPool is now LONG.core.memory.UnifiedMemoryPool")],
    ),
    "annotation that needs its import": (
        "import SCALE.orchestration\nx: 'SCALE.orchestration.JobState'\n",
        [(1, "stays"), (2, "which is now SCALE")],
    ),
    "escaped": (
        "import importlib\nimportlib.import_module('SCALE\\x2eorchestration')\n",
        [(2, "which is now SCALE")],
    ),
    "other function": ("__import__('SCALE.orchestration')\n", [(1, "which is now SCALE")]),
    "own import_module": (
        "def import_module(x): ...\nimport_module('SCALE.orchestration')\n",
        [(2, "which is now SCALE")],
    ),
    "relative import_module": (
        "import importlib\nimportlib.import_module('.orchestration', 'SCALE')\n",
        [(2, "SCALE.orchestration is now SCALE")],
    ),
    "patch of a moved module": (
        "from unittest.mock import patch\npatch('SCALE.orchestration')\n",
        [(2, "which is now SCALE")],
    ),
    "patch.dict": (
        "from unittest.mock import patch\npatch.dict('sys.modules', {'SCALE.orchestration': x})\n",
        [(2, "which is now SCALE")],
    ),
    "patch of an attribute below": (
        "from unittest.mock import patch\npatch('SCALE.orchestration.JobState.RUNNING')\n",
        [(2, "which is now SCALE")],
    ),
    "monkeypatch that is no fixture": (
        "monkeypatch = make()\nmonkeypatch.setattr('SCALE.orchestration.JobState', 1)\n",
        [(2, "which is now SCALE")],
    ),
    "getattr": (
        "import LONG as d\nx = getattr(d, 'MemoryPool')\n",
        [(2, "LONG.MemoryPool is now LONG.core.memory.UnifiedMemoryPool")],
    ),
    "getattr of a module": (
        "import SCALE.orchestration\nx = getattr(SCALE, 'orchestration')\n",
        [(1, "stays"), (2, "SCALE.orchestration, which is now SCALE")],
    ),
    "comments on a shared line": (
        "if x: from SCALE import (  # why\n  orchestration)\n",
        [(1, "write import SCALE as orchestration")],
    ),
}


@pytest.mark.parametrize("case", NOTED)
def test_noted(case):
    before, expected = NOTED[case]
    changes = changes_of(spelled_out(before))
    assert changes.edits == []
    assert [note.line for note in changes.notes] == [line for line, _ in expected]
    for note, (_, part) in zip(changes.notes, expected, strict=True):
        assert spelled_out(part) in note.text


def test_a_name_that_the_package_lacks_is_noted_where_it_is_used():
    changes = changes_of(spelled_out("import SCALE.orchestration\nx = SCALE.orchestration.__file__\n"))
    assert changes.result() == spelled_out("import SCALE\nx = SCALE.__file__\n")
    (note,) = changes.notes
    assert note.line == 2
    assert note.text == spelled_out("SCALE.orchestration has no public name __file__; SCALE may not have it")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("x = 1\nprint 'old'\n", "line 2: "),
        ("x = 'MemoryPool\n", "line 1: "),
        ("\0", "null byte"),
        ("(" * 5000 + ")" * 5000, "line 1: too many nested parentheses"),
        ("x = " + "+".join(["a"] * 5000) + "\n", "nested too deeply"),
        ("x = " + "-" * 20000 + "1\n", "nested too deeply"),
    ],
    ids=["python 2", "open string", "null", "parentheses", "sum", "signs"],
)
def test_what_does_not_parse_is_an_error_with_the_reason(text, why):
    with pytest.raises(NotReadableError, match=why):
        changes_of(text)


def test_a_text_that_libcst_would_change_is_refused(monkeypatch):
    parse = libcst.parse_module
    monkeypatch.setattr(libcst, "parse_module", lambda text: parse(f"{text}#"))
    with pytest.raises(NotReadableError, match="libcst would not keep every byte"):
        changes_of("x = 1\n")
