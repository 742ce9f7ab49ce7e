"""Clusters of real services on one database of Postgres."""

from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from tests.blackbox.conftest import (
    UNSANDBOXED,
    common_dir,
    make_service,
    make_service_in,
    model,
    reachable_tmp,
    stand_in,
)
from tests.postgres_fixtures import pgbouncer_url, postgres_url, store_template
from tests.service_fixtures import closing_services

from steadyhand.testing.cluster import Cluster
from steadyhand.testing.postgres import Postgres
from steadyhand.testing.service import MakeService, Service

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


@contextmanager
def unsandboxed_cluster(
    make_service_in: MakeService, postgres: Postgres, template: str, **options: Any
) -> Iterator[Cluster]:
    """Start the nodes of a cluster without a boundary on a database of their own, for more than one test."""

    def make(**more: Any) -> Service:
        return make_service_in(**{**more, "env": UNSANDBOXED | more.get("env", {})})

    database = postgres.create_database(template)
    with closing_services(make) as ended, Cluster(ended, postgres.url(database), **options) as cluster:
        yield cluster
    postgres.drop_database(database)


def start_ended_nodes(cluster: Cluster, request: pytest.FixtureRequest) -> Cluster:
    """Return a shared cluster for a test: nodes that were ended are started again, and its logs are in the report."""
    request.node.stash.setdefault(CLUSTERS, []).append(cluster)
    for node in cluster.nodes.values():
        if node.process.poll() is not None:
            node.restart()
    return cluster


_shared: list[Cluster] = []


@pytest.fixture(scope="session")
def shared_cluster(
    make_service_in: MakeService, postgres: Postgres, store_template: str
) -> Iterator[Cluster]:
    with unsandboxed_cluster(make_service_in, postgres, store_template, serving=("front", "back")) as made:
        _shared.append(made)
        yield made


@pytest.fixture
def cluster(request: pytest.FixtureRequest, shared_cluster: Cluster) -> Cluster:
    """Two nodes that serve and one that works, without a boundary; shared, so a test leaves nothing running there."""
    return start_ended_nodes(shared_cluster, request)


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """End the shared nodes after the last test of this folder: they are not to work beside all others."""
    if nextitem is None or nextitem.path.parent != item.path.parent:
        for cluster in _shared:
            cluster.close()
