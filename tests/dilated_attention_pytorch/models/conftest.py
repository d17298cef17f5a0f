from __future__ import annotations

from collections.abc import Iterator

import pytest
from worlds import World


@pytest.fixture(scope="session")
def two_ranks() -> Iterator[World]:
    with World(2) as world:
        yield world


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep what shares the world in one worker of pytest-xdist."""
    for item in items:
        if "two_ranks" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("two_ranks"))
