"""Prometheus's text, read by its own parser."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families


def samples(text: str) -> dict[tuple[str, ...], float]:
    """Values by name without our prefix, and labels."""
    return {
        (sample.name.removeprefix("kernel_pytorch_"), *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
