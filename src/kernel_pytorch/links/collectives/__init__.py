"""Collectives by several patterns, with the same result as torch's."""
