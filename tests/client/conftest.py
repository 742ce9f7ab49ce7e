"""Fixtures: both clients, a real service, and a scripted one for what a real one seldom answers."""

from collections.abc import Iterator

import pytest
from tests.api.api_service import RunningService, running_service
from tests.cli.command_line import ScriptedService
from tests.client.client_kinds import MakeClient, make_blocking_async_client

from steadyhand import Client


@pytest.fixture(params=["sync", "async"])
def make_client(request: pytest.FixtureRequest) -> MakeClient:
    """The class of each client in turn."""
    return Client if request.param == "sync" else make_blocking_async_client


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """One real service for all tests of the room, so nothing is left running in it."""
    with running_service(tmp_path_factory.mktemp("service")) as found:
        yield found


@pytest.fixture
def scripted() -> Iterator[ScriptedService]:
    """A service whose answers the test lays out."""
    made = ScriptedService()
    yield made
    made.close()
