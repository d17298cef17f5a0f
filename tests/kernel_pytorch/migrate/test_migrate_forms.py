"""Each form of an old import or use, before and after."""

from __future__ import annotations

import pytest
from old_names import spelled_out

from kernel_pytorch.migrate.rewrite import changes_of

FORMS = {
    "import": ("import SCALE.orchestration\n", "import SCALE\n"),
    "import as": ("import SCALE.orchestration as o\n", "import SCALE as o\n"),
    "import of several": (
        "import os, SCALE.orchestration as o, UTILS.compiler_optimization_assistant\n",
        "import os, SCALE as o, UTILS\n",
    ),
    "import of the package, too, with a form feed": (
        "import SCALE.orchestration\x0c, os, SCALE\n",
        "import os, SCALE\n",
    ),
    "import of two from one package": (
        "import SCALE.orchestration, os, SCALE.hardware_adaptation\n",
        "import SCALE, os\n",
    ),
    "from": (
        "from SCALE.orchestration import JobState, JobStatus as S  # states\n",
        "from SCALE import JobState, JobStatus as S  # states\n",
    ),
    "from, parenthesised": (
        """\
        from SCALE.hardware_adaptation import (  # hardware
            DeviceInfo,
            # of the node
            NodeTopology as Node,  # and its name
        )
        """,
        """\
        from SCALE import (  # hardware
            DeviceInfo,
            # of the node
            NodeTopology as Node,  # and its name
        )
        """,
    ),
    "from, continued": (
        "from SCALE . orchestration \\\n    import JobState, \\\n  JobStatus\n",
        "from SCALE \\\n    import JobState, \\\n  JobStatus\n",
    ),
    "module from its package": ("from SCALE import orchestration\n", "import SCALE as orchestration\n"),
    "module from its package as": ("from SCALE import orchestration as o\n", "import SCALE as o\n"),
    "module among names": (
        "if x:\n    from SCALE import JobState, orchestration, JobStatus  # jobs\n",
        "if x:\n    import SCALE as orchestration\n    from SCALE import JobState, JobStatus  # jobs\n",
    ),
    "module after names": (
        "from SCALE import JobState, orchestration\n",
        "import SCALE as orchestration\nfrom SCALE import JobState\n",
    ),
    "module among names in parentheses": (
        """\
        from SCALE import (
            orchestration,  # jobs
            JobState,  # one of them
            hardware_adaptation as hardware
        )
        """,
        """\
        import SCALE as orchestration
        import SCALE as hardware
        from SCALE import (
            # jobs
            JobState,  # one of them
        )
        """,
    ),
    "modules alone, with comments": (
        "from SCALE import (  # both\n    orchestration,\n    hardware_adaptation as h,  # it\n)\n",
        "# both\n# it\nimport SCALE as orchestration\nimport SCALE as h\n",
    ),
    "modules alone, with line ends of other kinds in a comment": (
        "from SCALE import (  # a\x0cb\u2028c\n    orchestration)\n",
        "# a\x0cb\u2028c\nimport SCALE as orchestration\n",
    ),
    "module on a shared line": (
        "if x: from SCALE import orchestration, JobState; y = 1\n",
        "if x: import SCALE as orchestration; from SCALE import JobState; y = 1\n",
    ),
    "module after a continued line": (
        "if x: \\\n  from SCALE import orchestration, JobState\n",
        "if x: \\\n  import SCALE as orchestration; from SCALE import JobState\n",
    ),
    "used through packages": (
        "import SCALE.orchestration\nx = SCALE.orchestration.JobState.RUNNING\ny = SCALE.orchestration\n",
        "import SCALE\nx = SCALE.JobState.RUNNING\ny = SCALE\n",
    ),
    "used through an alias of the package": (
        """\
        import kernel_pytorch as k, SCALE as s
        x = k.distributed_scale.orchestration.JobState, s.orchestration.JobState
        """,
        """\
        import kernel_pytorch as k, SCALE as s
        x = k.distributed_scale.JobState, s.JobState
        """,
    ),
    "used in an f-string, a decorator and an annotation": (
        """\
        import LONG as d
        x = f"{d.MemoryPool!r:>{d.MemoryPool}}"
        @d.MemoryPool
        def f(x: d.MemoryPool = d.MemoryPool) -> d.MemoryPool: ...
        """,
        """\
        import LONG as d
        x = f"{d.UnifiedMemoryPool!r:>{d.UnifiedMemoryPool}}"
        @d.UnifiedMemoryPool
        def f(x: d.UnifiedMemoryPool = d.UnifiedMemoryPool) -> d.UnifiedMemoryPool: ...
        """,
    ),
    "string with a variable that is the new module then": (
        "from SCALE import orchestration\nx: 'orchestration.JobState'\n",
        "import SCALE as orchestration\nx: 'orchestration.JobState'\n",
    ),
    "renamed": (
        "from LONG import RingDilatedAttentionHybrid\n__all__ = ['RingDilatedAttentionHybrid']\n",
        "from LONG import RingDilatedAttention as RingDilatedAttentionHybrid\n"
        "__all__ = ['RingDilatedAttentionHybrid']\n",
    ),
    "renamed as": (
        "from LONG.ring_attention import RingDilatedAttentionHilbertOptimized as Ring, shard_sequence\n",
        "from LONG.ring_attention import RingDilatedAttentionHilbert as Ring, shard_sequence\n",
    ),
    "renamed with another home": (
        "from LONG.core import MemoryPool\n",
        "from LONG.core.memory import UnifiedMemoryPool as MemoryPool\n",
    ),
    "renamed with another home, as the new name": (
        "from LONG.core import MemoryPool as UnifiedMemoryPool\n",
        "from LONG.core.memory import UnifiedMemoryPool\n",
    ),
    "renamed with another home among others": (
        "from LONG.ring_attention import RingDilatedAttentionTrue, MemoryPool, shard_sequence\n",
        "from LONG.core.memory import UnifiedMemoryPool as MemoryPool\n"
        "from LONG.ring_attention import RingDilatedAttention as RingDilatedAttentionTrue, shard_sequence\n",
    ),
    "renamed with another home, before a comment": (
        "from LONG.ring_attention import (\n    ring_traffic, MemoryPool,  # both\n    shard_sequence)\n",
        "from LONG.core.memory import UnifiedMemoryPool as MemoryPool\n"
        "from LONG.ring_attention import (\n    ring_traffic,  # both\n    shard_sequence)\n",
    ),
    "renamed with another home, continued": (
        "from LONG.ring_attention import MemoryPool, \\\n    shard_sequence\n",
        "from LONG.core.memory import UnifiedMemoryPool as MemoryPool\n"
        "from LONG.ring_attention import shard_sequence\n",
    ),
    "attribute renamed": (
        "import LONG\nx = LONG.RingDilatedAttentionTrue, LONG.ring_attention.RingDilatedAttentionTrue\n",
        "import LONG\nx = LONG.RingDilatedAttention, LONG.ring_attention.RingDilatedAttention\n",
    ),
    "attribute with another home": (
        "from LONG import core\nimport LONG\nx = core.MemoryPool(), LONG.ring_attention.MemoryPool\n",
        "from LONG import core\nimport LONG\n"
        "x = core.memory.UnifiedMemoryPool(), LONG.core.memory.UnifiedMemoryPool\n",
    ),
    "attribute that needs an import": (
        "def f():\n\tfrom LONG import ring_attention as r\n\treturn r.MemoryPool(), r.MemoryPool\n",
        "def f():\n\tfrom LONG.core.memory import UnifiedMemoryPool\n\tfrom LONG import ring_attention as r\n"
        "\treturn UnifiedMemoryPool(), UnifiedMemoryPool\n",
    ),
    "attribute whose import is there": (
        "from LONG import ring_attention as r, UnifiedMemoryPool\nx = r.MemoryPool\n",
        "from LONG import ring_attention as r, UnifiedMemoryPool\nx = UnifiedMemoryPool\n",
    ),
    "attribute that needs an import, where the new name has another": (
        "from LONG import ring_attention as r, UnifiedMemoryPool as P\nx = r.MemoryPool, P.get\n",
        "from LONG.core.memory import UnifiedMemoryPool\n"
        "from LONG import ring_attention as r, UnifiedMemoryPool as P\n"
        "x = UnifiedMemoryPool, P.get\n",
    ),
    "TYPE_CHECKING": (
        "if TYPE_CHECKING:\n    from SCALE.orchestration import JobState\n",
        "if TYPE_CHECKING:\n    from SCALE import JobState\n",
    ),
    "ImportError": (
        """\
        try:
            import LONG as d
            from SCALE.orchestration import JobState
        except ImportError:
            d = None
            JobState = None
        x = d.RingDilatedAttentionTrue if d else None
        """,
        """\
        try:
            import LONG as d
            from SCALE import JobState
        except ImportError:
            d = None
            JobState = None
        x = d.RingDilatedAttention if d else None
        """,
    ),
    "import_module": (
        "import importlib\nm = importlib.import_module('SCALE.orchestration')\n",
        "import importlib\nm = importlib.import_module('SCALE')\n",
    ),
    "import_module by its name": (
        'from importlib import import_module as load\nm = load(name=r"""SCALE.orchestration""")\n',
        'from importlib import import_module as load\nm = load(name=r"""SCALE""")\n',
    ),
    "mock.patch": (
        "from unittest import mock\n@mock.patch('SCALE.orchestration.JobState', 1)\ndef f(): ...\n",
        "from unittest import mock\n@mock.patch('SCALE.JobState', 1)\ndef f(): ...\n",
    ),
    "patch of a renamed name": (
        "from unittest.mock import patch\nwith patch(target='LONG.core.MemoryPool'): ...\n",
        "from unittest.mock import patch\nwith patch(target='LONG.core.memory.UnifiedMemoryPool'): ...\n",
    ),
    "monkeypatch": (
        "def test(monkeypatch): monkeypatch.setattr('SCALE.orchestration.create_slurm_manager', None)\n",
        "def test(monkeypatch): monkeypatch.setattr('SCALE.create_slurm_manager', None)\n",
    ),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("newline", ["\n", "\r\n"], ids=["lf", "crlf"])
def test_form(form, newline):
    before, after = (spelled_out(text).replace("\n", newline) for text in FORMS[form])
    changes = changes_of(before)
    assert changes.result() == after
    assert [note for note in changes.notes if not note.text.startswith("patches ")] == []
    compile(after, form, "exec")
    again = changes_of(after)
    assert again.edits == []


PATCHES = {
    "mock.patch": FORMS["mock.patch"][0],
    "assignment": "import SCALE.orchestration\nSCALE.orchestration.JobState = 1\n",
    "deletion": "from SCALE import orchestration as o\ndel o.JobState\n",
}
OBJECTS = {
    "patch.object": "import mock, SCALE.orchestration as o\nwith mock.patch.object(o, 'JobState'): ...\n",
    "monkeypatch": "from SCALE import orchestration as o\ndef f(mp): mp.setattr(o, 'JobState', 1)\n",
}


@pytest.mark.parametrize("form", PATCHES)
def test_a_patch_is_noted_although_it_is_rewritten(form):
    (note,) = changes_of(spelled_out(PATCHES[form])).notes
    assert note.line == 2
    assert note.text == spelled_out(
        "patches SCALE.JobState now: code that still reads SCALE.orchestration.JobState is not affected"
    )


@pytest.mark.parametrize("form", OBJECTS)
def test_a_patch_of_an_attribute_of_an_old_module_is_noted(form):
    (note,) = changes_of(spelled_out(OBJECTS[form])).notes
    assert note.line == 2
    assert note.text == spelled_out(
        "patches SCALE now: code that still reads SCALE.orchestration is not affected"
    )


def test_escapes_about_which_python_warns_are_no_error():
    before = "from LONG import MemoryPool\nx = 'MemoryPool \\d'\n"
    assert changes_of(before.replace("LONG", "numpy")).edits == []
    assert changes_of(spelled_out(before)).result().endswith("x = 'MemoryPool \\d'\n")
