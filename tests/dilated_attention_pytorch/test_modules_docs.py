"""The code of the page about modules runs, as one script."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import torch

PAGE = Path(__file__).parents[2] / "docs/modules.md"


def test_the_pages_code_runs():
    torch.manual_seed(0)
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) == 5
    names: dict[str, object] = {}
    with warnings.catch_warnings():  # the page sets a filter
        for block in blocks:
            exec(compile(block, str(PAGE), "exec"), names)
    assert names["out"].shape == (2, 300, 64)
