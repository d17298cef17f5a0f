"""Hosts on one machine joined by shaped links, and what is measured on them (``__main__``)."""

from .namespaces import Links, Traffic, why_no_delay, why_no_links

__all__ = ["Links", "Traffic", "why_no_delay", "why_no_links"]
