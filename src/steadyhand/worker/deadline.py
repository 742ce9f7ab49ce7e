"""The deadline of a run. Its clock stands still while the run waits for its client."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from steadyhand.outcome import StopReason
from steadyhand.ports import StopSignal


class RunDeadline:
    """Requests a run to stop when its seconds are over; `cancel` ends that."""

    def __init__(self, stop: StopSignal, seconds: float, waited_seconds: float = 0.0) -> None:
        """Start the clock. It has stood still for `waited_seconds` before, in an earlier service."""
        self.waited_seconds = waited_seconds
        """The seconds so far in which the clock stood still."""
        self._stop = stop
        self._seconds_left = seconds
        self._loop = asyncio.get_running_loop()
        self._handle: asyncio.TimerHandle | None = None
        self._is_paused = False
        self._start()

    @property
    def ends_at(self) -> float:
        """Return the end by the machine's monotonic clock, if the clock does not stand still meanwhile."""
        return self._loop.time() + self._seconds_left if self._handle is None else self._handle.when()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the clock for the length of the block. Blocks do not overlap."""
        began = self._loop.time()
        was_active = self._handle is not None
        if self._handle is not None:
            self._seconds_left = max(0.0, self._handle.when() - began)
            self.cancel()
            self._is_paused = True
        try:
            yield
        finally:
            self.waited_seconds += self._loop.time() - began
            if was_active and self._is_paused:
                self._start()

    def cancel(self) -> None:
        """Stop the clock for good."""
        self._is_paused = False
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _start(self) -> None:
        self._is_paused = False
        self._handle = self._loop.call_later(self._seconds_left, self._stop.request, StopReason.DEADLINE)
