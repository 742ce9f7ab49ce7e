"""The progress of fetches and checkouts: by git from its stderr, where a remote writes too, so no text is passed on."""

import asyncio
import re
from collections.abc import Callable

from steadyhand.ports import ProgressRelay, report_phase, report_progress

_STEPS = (
    rb"Enumerating objects|Counting objects|Compressing objects|Receiving objects|Resolving deltas"
    rb"|Updating files|Filtering content"
)
_PROGRESS = re.compile(rb"(?:^|[\r\n])(?:remote: )?(" + _STEPS + rb"): +(\d{1,3})%[^\r\n]{0,200}(?=[\r\n])")
_MAX_TAIL = 512


class GitProgress:
    """Reports the newest progress of one command as its output comes."""

    def __init__(self, report: Callable[[str], None] = report_progress) -> None:
        """Report by `report`; by default to the current run alone."""
        self._report = report
        self._tail = b""

    def feed(self, chunk: bytes) -> None:
        """Read a piece of stderr, and report the newest whole line of progress in it."""
        self._tail = (self._tail + chunk)[-max(_MAX_TAIL, len(chunk)) :]
        lines = list(_PROGRESS.finditer(self._tail))
        if lines:
            newest = lines[-1]
            self._report(f"{newest[1].decode('ascii').lower()} {min(100, int(newest[2]))} %")
            self._tail = self._tail[newest.end() :]


async def wait_for_fetch(lock: asyncio.Lock, relay: ProgressRelay) -> None:
    """Acquire the lock of a fetch. While another job fetches, the current run has its phase and its progress."""
    if not lock.locked():
        await lock.acquire()
        return
    await report_phase("fetching")
    with relay.joined():
        await lock.acquire()
