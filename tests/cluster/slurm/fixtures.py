"""The clusters as fixtures, for all tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cluster.slurm.cluster import SlurmCluster, require

FIXTURES = {"slurm_cluster", "slurm_hosts"}


@pytest.fixture(scope="session")
def slurm_cluster() -> Iterator[SlurmCluster]:
    """Four nodes that share this machine's hostname and localhost; idle, with no job, before each test."""
    require()
    with SlurmCluster() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def slurm_hosts() -> Iterator[SlurmCluster]:
    """Like ``slurm_cluster``, but each node has a hostname, a localhost and an address of its own."""
    require(namespaces=True)
    with SlurmCluster(namespaces=True) as cluster:
        yield cluster


@pytest.fixture(autouse=True)
def reset_clusters(request: pytest.FixtureRequest) -> Iterator[None]:
    names = FIXTURES.intersection(request.fixturenames)
    clusters = [request.getfixturevalue(name) for name in sorted(names)]
    yield
    for cluster in clusters:
        cluster.reset()


@pytest.hookimpl(tryfirst=True)  # pytest-xdist reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep what shares the clusters in one worker of pytest-xdist."""
    for item in items:
        uses = FIXTURES.intersection(getattr(item, "fixturenames", ()))
        if uses or item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.xdist_group("slurm"))
