"""Fixtures of the services that these tests start."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.service_fixtures import closing_services, make_service_root, model, reachable_tmp, stand_in

from steadyhand.testing.service import MakeService, Service

__all__ = ["model", "reachable_tmp", "stand_in"]  # fixtures, taken in


@pytest.fixture
def make_service(reachable_tmp: Path, stand_in: Path) -> Iterator[MakeService]:
    """Make a service without a sandbox that was not started; keywords are those of `Service`."""

    def make(**options: object) -> Service:
        env = {"STEADYHAND_ISOLATION": "none"}
        return Service(make_service_root(reachable_tmp), stand_in, env=env, **options)  # type: ignore[arg-type]

    with closing_services(make) as making:
        yield making
