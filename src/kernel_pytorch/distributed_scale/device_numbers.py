"""Device ids across a discovery that numbers the devices anew."""

from __future__ import annotations

from collections import Counter

from ..machine.facts import ClusterTopology


class DeviceNumbers:
    """The ids that devices had when :meth:`moves` was last called.

    Args:
        topology: has the devices as they are numbered now.
    """

    def __init__(self, topology: ClusterTopology) -> None:
        self._topology = topology

    def moves(self, topology: ClusterTopology) -> dict[int, int]:
        """The id in ``topology`` of each device by the one before; without devices that are gone."""
        before, self._topology = self._topology, topology
        now = _identities(topology)
        return {number: now[device] for device, number in _identities(before).items() if device in now}


def _identities(topology: ClusterTopology) -> dict[tuple[object, ...], int]:
    """Device ids by what a device keeps under any number; devices that look the same count in their order."""
    found: dict[tuple[object, ...], int] = {}
    alike: Counter[tuple[object, ...]] = Counter()
    for node in topology.nodes.values():
        for device in node.devices:
            host = (node.boot_id, node.network_namespace, node.hostname)
            identity = (host, device.kind, device.vendor, device.index, device.uuid)
            key = (*identity, alike[identity])
            found[key] = device.device_id
            alike[identity] += 1
    return found
