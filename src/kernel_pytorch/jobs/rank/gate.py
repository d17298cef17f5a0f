"""Where a rank that torchrun has started again waits until it was decided whether a restart helps."""

from __future__ import annotations

import os
import time
from pathlib import Path

_LOOK_EVERY_S = 0.02


def wait_for_restart(beats: Path, restart: int) -> None:
    """Wait until the node program allows a restart of this number; the first start, 0, needs no leave.

    It waits for as long as the node program lives, with which it ends.
    """
    while restart and not os.path.exists(_allowed(beats, restart)):
        time.sleep(_LOOK_EVERY_S)


def allow_restart(beats: Path, restart: int) -> None:
    """End the wait of the ranks of a node."""
    _allowed(beats, restart).touch()


def _allowed(beats: Path, restart: int) -> Path:
    return beats / f"restart-{restart}-allowed"
