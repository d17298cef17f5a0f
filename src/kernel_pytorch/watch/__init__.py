"""Readings over time: sampling, recordings, metrics, health."""
