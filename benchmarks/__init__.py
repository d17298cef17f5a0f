"""Benchmarks of both packages: ``python -m benchmarks.run --list``."""
