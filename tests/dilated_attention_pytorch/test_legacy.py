from __future__ import annotations

import subprocess
import sys

import pytest

import dilated_attention_pytorch
from dilated_attention_pytorch import legacy, ring_attention


@pytest.mark.parametrize(
    "module", [dilated_attention_pytorch, ring_attention], ids=["package", "ring_attention"]
)
@pytest.mark.parametrize(("old", "new"), [(old, new) for old, (_, new) in legacy.RENAMED.items()])
def test_an_old_name_is_the_new_one_and_warns_where_it_is_used(module, old: str, new: str):
    with pytest.warns(DeprecationWarning, match=rf"^{old} is now {new} .*removed in v0\.3\.0$") as caught:
        found = getattr(module, old)
    assert found is getattr(ring_attention, new)
    assert caught[0].filename == __file__
    assert old not in module.__all__


def test_other_names_are_not_there():
    with pytest.raises(AttributeError, match="module 'dilated_attention_pytorch' has no attribute 'Nothing'"):
        _ = dilated_attention_pytorch.Nothing


@pytest.mark.parametrize("module", ["dilated_attention_pytorch", "dilated_attention_pytorch.ring_attention"])
def test_importing_everything_is_silent(module: str):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"from {module} import *"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_from_import_of_an_old_name_warns_at_the_import():
    script = "from dilated_attention_pytorch import RingDilatedAttentionTrue"
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", script], capture_output=True, text=True, check=True
    )
    assert (
        "<string>:1: DeprecationWarning: RingDilatedAttentionTrue is now RingDilatedAttention" in done.stderr
    )
