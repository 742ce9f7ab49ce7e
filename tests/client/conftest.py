"""Fixtures: both clients, a real service, and a scripted one for what a real one seldom answers."""

from collections.abc import Iterator

import pytest
from tests.api.api_service import RunningService, running_service
from tests.cli.command_line import ScriptedService
from tests.client.client_kinds import MakeClient, make_blocking_async_client

from steadyhand import Client

WAITING = frozenset(
    {
        "test_a_full_queue_is_waited_for",
        "test_a_refusal_is_tried_again_after_the_time_that_the_service_names",
        "test_a_stream_that_is_cut_in_the_middle_is_whole",
        "test_waiting_goes_on_with_a_job_that_is_run_again",
        "test_a_job_that_is_to_run_again_is_returned_if_the_service_stays_away",
    }
)
"""Those that wait for a second or more. `make test` has them with the asynchronous client alone."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave them to `make test-long` with the other client."""
    for item in items:
        callspec = getattr(item, "callspec", None)
        is_sync = callspec is not None and callspec.params.get("make_client") == "sync"
        if is_sync and getattr(item, "originalname", item.name) in WAITING:
            item.add_marker(pytest.mark.long)


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
