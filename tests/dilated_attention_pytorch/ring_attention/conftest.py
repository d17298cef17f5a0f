from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from worlds import World


@pytest.fixture(scope="session")
def world() -> Iterator[Callable[[int], World]]:
    """The world of a size, started when first asked for."""
    with ExitStack() as stack:
        worlds: dict[int, World] = {}

        def of(size: int) -> World:
            if size not in worlds:
                worlds[size] = stack.enter_context(World(size))
            return worlds[size]

        yield of


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep what shares the worlds in one worker of pytest-xdist."""
    for item in items:
        if "world" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("worlds"))
