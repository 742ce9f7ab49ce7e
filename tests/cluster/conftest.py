"""Clusters of real services on one database of Postgres."""

from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack

import pytest
from tests.blackbox.conftest import (
    common_dir,
    make_service,
    make_service_in,
    model,
    reachable_tmp,
    stand_in,
)
from tests.postgres_fixtures import pgbouncer_url, postgres_url, store_template

from steadyhand.testing.cluster import Cluster
from steadyhand.testing.service import MakeService

__all__ = [  # fixtures, taken in
    "common_dir",
    "make_service",
    "make_service_in",
    "model",
    "pgbouncer_url",
    "postgres_url",
    "reachable_tmp",
    "stand_in",
    "store_template",
]

MakeCluster = Callable[..., Cluster]
CLUSTERS = pytest.StashKey[list[Cluster]]()
"""The clusters of a test, for its report."""


@pytest.fixture
def make_cluster(
    request: pytest.FixtureRequest, make_service: MakeService, postgres_url: str
) -> Iterator[MakeCluster]:
    """Start the nodes of one cluster; keywords are those of `Cluster`, and `url`. They are ended with the test."""
    clusters = request.node.stash.setdefault(CLUSTERS, [])
    with ExitStack() as stack:

        def make(**options: object) -> Cluster:
            url = options.pop("url", postgres_url)
            cluster = Cluster(make_service, url, **options)  # type: ignore[arg-type]
            clusters.append(cluster)
            return stack.enter_context(cluster)

        yield make


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the ends of the logs of all nodes to the report of a test that failed."""
    report = yield
    if report.failed:
        for cluster in item.stash.get(CLUSTERS, []):
            report.sections += [("logs of the nodes", text) for text in cluster.log_tails()]
    return report
