"""Fixtures of the services that these tests start."""

from tests.callbacks.conftest import make_service, model, reachable_tmp, stand_in

__all__ = ["make_service", "model", "reachable_tmp", "stand_in"]  # fixtures, taken in
