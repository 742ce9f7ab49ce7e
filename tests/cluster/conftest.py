"""Clusters of real services on one database of Postgres."""

from collections.abc import Callable, Iterator
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


@pytest.fixture
def make_cluster(make_service: MakeService, postgres_url: str) -> Iterator[MakeCluster]:
    """Start the nodes of one cluster; keywords are those of `Cluster`, and `url`. They are ended with the test."""
    with ExitStack() as stack:

        def make(**options: object) -> Cluster:
            url = options.pop("url", postgres_url)
            return stack.enter_context(Cluster(make_service, url, **options))  # type: ignore[arg-type]

        yield make
