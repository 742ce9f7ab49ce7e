"""Fixtures of the services that these tests start."""

from tests.service_fixtures import reachable_tmp, stand_in

__all__ = ["reachable_tmp", "stand_in"]  # fixtures, taken in
