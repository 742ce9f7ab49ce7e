"""The end of a chaos run, which its threads look at: by the clock, or by somebody who interrupts it."""

import threading
import time


class Deadline:
    """Comes after so many seconds, or when it is called."""

    def __init__(self, seconds: float) -> None:
        self._at = time.monotonic() + seconds
        self._interrupted = threading.Event()

    @property
    def is_over(self) -> bool:
        """True once it has come."""
        return self._interrupted.is_set() or time.monotonic() >= self._at

    def pause(self, seconds: float) -> None:
        """Wait; an interruption ends the wait."""
        self._interrupted.wait(max(0.0, seconds))

    def interrupt(self) -> None:
        """Let it come now."""
        self._interrupted.set()
