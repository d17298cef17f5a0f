"""Which GPUs of this node its ranks use, and on which CPUs they run.

``python -m kernel_pytorch.jobs.node.devices RANKS`` prints it: drivers of broken devices may hang or crash,
and do so in a process of their own.
"""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import dataclass, field

from .processes import answer_of


@dataclass(frozen=True, kw_only=True)
class Devices:
    """What to give to torchrun on this node."""

    environment: dict[str, str] = field(default_factory=dict)
    """Variables by which the ranks see their GPUs, in order."""
    numa_binding: str | None = None
    note: str
    """The reason, one line."""


def devices_for_ranks(python: str, ranks: int, within_s: float = 30.0) -> Devices:
    """Choose GPUs for the ranks of this node. Without any, or if it fails, nothing is set.

    Args:
        python: the interpreter that chooses.
        ranks: number on this node, each of which uses a GPU.
        within_s: seconds after which the drivers count as hanging.
    """
    try:
        done = answer_of([python, "-m", "kernel_pytorch.jobs.node.devices", str(ranks)], within_s)
        if done.returncode == 0:
            return Devices(**json.loads(done.stdout))
        why = (done.stderr.decode(errors="replace").splitlines() or [f"exit code {done.returncode}"])[-1]
    except (OSError, ValueError) as error:
        why = " ".join(str(error).split())
    return Devices(note=f"GPUs as torch finds them, no NUMA binding: {why}")


def main(ranks: int) -> None:
    """Choose, and print the result as JSON."""
    from ...machine.facts import ClusterTopology
    from ...machine.live import Machine
    from ...placement import PlacementRequest, place
    from ...placement.launch_hints import launch_hints
    from ...watch.health import assess

    machine = Machine(load_torch=False)
    try:
        node = machine.node
        components = assess([machine.read()], node.devices)
    finally:
        machine.close()
    gpus = tuple(device.device_id for device in node.devices if device.kind == "gpu")
    if not gpus:
        print(json.dumps({"note": "there is no GPU"}))
        return
    health = {device.device_id: components[device.label].state for device in node.devices}
    topology = ClusterTopology(nodes={node.node_id: node})
    try:
        placement = place(topology, PlacementRequest(num_devices=ranks, devices=gpus), health)
    except ValueError as error:
        sys.exit(str(error))
    (launch,) = launch_hints(topology, placement).nodes
    numactl = shutil.which("numactl") is not None
    binding = launch.why if numactl else "none, numactl is not installed"
    labels = {device.device_id: device.label for device in node.devices}
    without = [f"without {labels[device]}: {why}" for device, why in placement.left_out.items()]
    print(
        json.dumps(
            {
                "environment": launch.environment,
                "numa_binding": launch.numa_binding if numactl else None,
                "note": "; ".join([f"NUMA binding: {binding}", *without]),
            }
        )
    )


if __name__ == "__main__":
    main(int(sys.argv[1]))
