"""All devices that could each do a job, best first."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace

from ..machine.facts import ClusterTopology, DeviceInfo
from . import place
from .request import Health, PlacementRequest

logger = logging.getLogger(__name__)


def rank_devices(
    topology: ClusterTopology, request: PlacementRequest, health: Health, *, free_bytes: Mapping[int, int]
) -> list[int]:
    """Interim, until place() takes free memory."""

    def with_free(device: DeviceInfo) -> DeviceInfo:
        return replace(device, memory_bytes=free_bytes.get(device.device_id, device.memory_bytes))

    nodes = {
        n: replace(node, devices=tuple(with_free(d) for d in node.devices))
        for n, node in topology.nodes.items()
    }
    topology = replace(topology, nodes=nodes)
    left = set(request.devices or ())
    ranked: list[int] = []
    while left:
        placement = place(topology, replace(request, devices=left), health)
        for device_id, why in placement.left_out.items():
            logger.info("left out: device %d %s", device_id, why)
        ranked += placement.device_ids
        left -= {*placement.device_ids, *placement.left_out}
    return ranked
