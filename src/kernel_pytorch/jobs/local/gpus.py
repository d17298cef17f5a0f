"""GPUs of this machine, and which of its nodes has which."""

from __future__ import annotations

import os
from collections.abc import Mapping


def num_gpus() -> int | None:
    """GPUs that a process started here may use; None: the drivers of some cannot be asked."""
    from ...machine.discover import open_drivers, read_node
    from ...machine.files import Files

    files = Files("/")
    drivers = open_drivers(files, load_torch=False)
    try:
        node = read_node(files, drivers)
    finally:
        drivers.close()
    found = sum(device.kind == "gpu" and device.hidden is None for device in node.devices)
    return found if found or not (drivers.missing or drivers.on_bus) else None


def share_of(node: int, nodes: int, gpus: int | None) -> Mapping[str, str]:
    """The variable that shows a node its part of the GPUs, which a job with one node does not need.

    Args:
        node: its index.
        nodes: how many there are.
        gpus: of each node; None: the job did not ask for any.
    """
    if not gpus or nodes == 1:
        return {}
    first, seen = node * gpus, os.environ.get("CUDA_VISIBLE_DEVICES")
    numbers = map(str, range(first, first + gpus))
    own = numbers if seen is None else seen.split(",")[first : first + gpus]
    return {"CUDA_VISIBLE_DEVICES": ",".join(own)}  # AMD's runtime reads it too
