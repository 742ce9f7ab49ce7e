"""Fixtures of the services that these tests start."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.service_fixtures import closing_services, make_service_root, model, reachable_tmp, stand_in
from tests.telemetry.otlp_receiver import OtlpReceiver, receiving_otlp

from steadyhand.testing.service import MakeService, Service

__all__ = ["model", "reachable_tmp", "stand_in"]  # fixtures, taken in


@pytest.fixture
def otlp() -> Iterator[OtlpReceiver]:
    """A receiver of one's own."""
    with receiving_otlp() as receiver:
        yield receiver


@pytest.fixture(scope="session")
def make_service_in(reachable_tmp: Path, stand_in: Path) -> MakeService:
    """Make a service that was not started; keywords are those of `Service`."""

    def make(**options: object) -> Service:
        claude = options.pop("claude", stand_in)
        return Service(make_service_root(reachable_tmp), claude, **options)  # type: ignore[arg-type]

    return make


@pytest.fixture
def make_service(make_service_in: MakeService) -> Iterator[MakeService]:
    """The same, ended with the test."""
    with closing_services(make_service_in) as making:
        yield making
