"""Examples of the documentation for torchrun, run in a world that is there already."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import ProcessGroup


def run_example(code: str, page: str) -> Any:
    """What ``main()`` of an example returns, in float64; then runs it as the script that it is.

    A script must destroy its process group once, and when no variable holds it: else gloo may abort at exit.
    """
    compiled = compile(code, page, "exec")
    ended: list[list[str]] = []
    script: dict[str, Any] = {"__name__": "__main__"}

    def destroy() -> None:
        held = (ProcessGroup, nn.Module)
        ended.append([name for name, x in script.items() if isinstance(x, held)])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dist, "init_process_group", lambda backend: None)
        patch.setattr(dist, "destroy_process_group", destroy)
        torch.set_default_dtype(torch.float64)
        try:
            exec(compiled, script)
            assert ended == [[]], f"the group was destroyed {len(ended)} times, in the hands of {ended}"
            return script["main"]()
        finally:
            torch.set_default_dtype(torch.float32)
