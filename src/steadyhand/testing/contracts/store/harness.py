"""The harness of the store's tests, and what they share."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from datetime import datetime

from steadyhand.job import Job, State
from steadyhand.ports import IdempotencyKey, Store
from steadyhand.testing.contracts.samples import FakeClock

QUEUED = frozenset({State.QUEUED})
KEY = IdempotencyKey("again", "f" * 64)


def complete_job(at: datetime) -> Callable[[Job], Job]:
    """Return the change that completes a job."""
    return lambda job: replace(job, state=State.COMPLETED, finished_at=at)


class StoreFactory:
    """Opens the store under test; the tests of each adapter subclass it."""

    def open(self, clock: Callable[[], datetime] = FakeClock()) -> AbstractAsyncContextManager[Store]:  # noqa: B008  # never moved
        """Open an empty store for one test, closed at its end."""
        raise NotImplementedError
