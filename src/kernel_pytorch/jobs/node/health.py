"""The condition of this node, as evidence.

``python -m kernel_pytorch.jobs.node.health`` prints it: drivers of broken devices may hang or crash, and
do so in a process of their own.
"""

from __future__ import annotations

import sys

from .processes import answer_of

_SHOWN = 300


def evidence(within_s: float = 15.0) -> str | None:
    """Which components of this node are faulty, in one line, those that failed first.

    Returns:
        None: no fault was found, or nothing could be read within ``within_s`` seconds.
    """
    try:
        done = answer_of([sys.executable, "-m", "kernel_pytorch.jobs.node.health"], within_s)
    except OSError:
        return None
    if done.returncode:
        return None
    line = " ".join(done.stdout.decode(errors="replace").split())
    return line[:_SHOWN] or None


def main() -> None:
    """Read the node twice, as some faults are changes, and print its faults."""
    from ...machine.live import Machine
    from ...watch.health import HealthState, assess

    machine = Machine(load_torch=False)
    try:
        components = assess((machine.read(), machine.read()), machine.node.devices)
    finally:
        machine.close()
    faults = []
    for state in (HealthState.FAILED, HealthState.DEGRADED):
        for name, health in components.items():
            if health.state is state:
                why = ", ".join(item.text for item in health.evidence if item.state is state)
                faults.append(f"{name} {state.value}: {why}")
    print("; ".join(faults))


if __name__ == "__main__":
    main()
