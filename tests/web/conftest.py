"""Fixtures: one running service with the operations page for a file, and browsers without a screen."""

from collections.abc import AsyncGenerator, Iterator, Sequence
from typing import TYPE_CHECKING

import pytest
from tests.api.api_service import ADMIN, RunningService, running_service
from tests.web.page_client import PageClient

from steadyhand.api import ApiOptions
from steadyhand.ports import DoctorCheck
from steadyhand.web import create_routes

if TYPE_CHECKING:
    from playwright.sync_api import Browser, StorageState
    from tests.web.browser_fixtures import WatchedContext


async def doctor_checks() -> AsyncGenerator[Sequence[DoctorCheck], None]:
    """Yield a check of each verdict."""
    yield [DoctorCheck("cli", ok=True, detail="runs")]
    yield [DoctorCheck("limits", ok=True, detail="no control group", remedy="delegate one", warning=True)]
    yield [DoctorCheck("workspace infra", ok=False, detail="x" * 300, remedy="Check `repository`.")]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """One service with the page, for a whole file."""
    root, options = tmp_path_factory.mktemp("service"), ApiOptions(run_doctor=doctor_checks)
    with running_service(root, options=options, more_routes=create_routes()) as found:
        yield found


@pytest.fixture
def page(service: RunningService) -> Iterator[PageClient]:
    """A browser that is signed in with the key of an admin."""
    with PageClient(service) as client:
        client.sign_in()
        yield client


@pytest.fixture
def stranger(service: RunningService) -> Iterator[PageClient]:
    """A browser that is not signed in."""
    with PageClient(service) as client:
        yield client


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    """A Chromium, for a whole file."""
    from tests.web.browser_fixtures import chromium  # noqa: PLC0415  # most files need no browser

    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def signed_in(browser: "Browser", service: RunningService) -> "StorageState":
    """The cookie of a session, for the profiles of a whole file."""
    from tests.web.browser_fixtures import WatchedContext  # noqa: PLC0415

    first = WatchedContext(browser, service.url)
    first.sign_in(ADMIN)
    state = first.context.storage_state()
    first.context.close()
    first.check()
    return state


@pytest.fixture
def profile(
    browser: "Browser", service: RunningService, signed_in: "StorageState"
) -> "Iterator[WatchedContext]":
    """A browser's profile that is signed in; at its end nothing may have been complained of."""
    from tests.web.browser_fixtures import WatchedContext  # noqa: PLC0415

    found = WatchedContext(browser, service.url, storage_state=signed_in)
    yield found
    found.context.close()
    found.check()
