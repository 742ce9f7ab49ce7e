"""Fixtures: one running service for a file, and a client with every scope."""

from collections.abc import Iterator

import httpx2
import pytest
from tests.api.api_service import RunningService, running_service
from tests.api.tool_calling_agent import ToolCallingAgent


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """One service in the default profile for a whole file."""
    with running_service(tmp_path_factory.mktemp("service")) as found:
        yield found


@pytest.fixture
def client(service: RunningService) -> Iterator[httpx2.Client]:
    with service.client() as made:
        yield made


@pytest.fixture
def asking(service: RunningService) -> Iterator[ToolCallingAgent]:
    """What every agent with tools of its caller does for the length of a test: one turn with two calls."""
    agent = ToolCallingAgent(["Paris", "Rome"])
    service.runner.tool_calling_agent = agent
    yield agent
    service.runner.tool_calling_agent = None
