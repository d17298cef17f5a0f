"""``pytest tests/test_distributed_scale.py`` runs the suites of ``kernel_pytorch.distributed_scale``.

They are in ``entry_points.DISTRIBUTED_SCALE``; ``tests/conftest.py`` adds them where this file is named.
"""

from __future__ import annotations

from entry_points import DISTRIBUTED_SCALE, files_importing, outside


def test_the_suites_are_all_that_use_these_names():
    files = files_importing("kernel_pytorch.distributed_scale")
    assert len(files) > 10
    assert outside(files, DISTRIBUTED_SCALE) == set()
