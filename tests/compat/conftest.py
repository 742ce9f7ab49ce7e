"""Fixtures of the services that these tests start."""

from tests.service_fixtures import model, reachable_tmp, stand_in

__all__ = ["model", "reachable_tmp", "stand_in"]  # fixtures, taken in
