"""Choosing devices: by the links between them (``links.py``) or by their heat (``heat.py``)."""

from .links import DIM_NAMES, Placement, PlacementRequest, Ranking, place, rank_devices

__all__ = ["DIM_NAMES", "Placement", "PlacementRequest", "Ranking", "place", "rank_devices"]
