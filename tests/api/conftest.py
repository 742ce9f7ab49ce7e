"""Fixtures: one running service for a file, and a client with every scope."""

from collections.abc import Iterator

import httpx2
import pytest
from tests.api.api_service import Service, running
from tests.api.tool_calling_agent import Asking


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One service in the default profile for a whole file."""
    with running(tmp_path_factory.mktemp("service")) as found:
        yield found


@pytest.fixture
def client(service: Service) -> Iterator[httpx2.Client]:
    with service.client() as made:
        yield made


@pytest.fixture
def asking(service: Service) -> Iterator[Asking]:
    """What every agent with tools of its caller does for the length of a test: one turn with two calls."""
    agent = Asking(["Paris", "Rome"])
    service.runner.asking = agent
    yield agent
    service.runner.asking = None
