"""Formats in which a tensor takes fewer bytes on the wire."""
