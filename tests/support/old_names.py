"""Source with old names, written short: SCALE, UTILS and LONG stand for the packages."""

from __future__ import annotations

import textwrap

_LONG_FORMS = {
    "SCALE": "kernel_pytorch.distributed_scale",
    "UTILS": "kernel_pytorch.utils",
    "LONG": "dilated_attention_pytorch",
}


def spelled_out(text: str) -> str:
    """Source with the packages' names, without common indentation."""
    text = textwrap.dedent(text)
    for short, name in _LONG_FORMS.items():
        text = text.replace(short, name)
    return text
