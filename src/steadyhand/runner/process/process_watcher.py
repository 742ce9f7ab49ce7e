"""A watch of a process that is not our child."""

import asyncio
import contextlib
import os
import signal

from steadyhand.runner.process.cgroups import start_ticks

_POLL_SECONDS = 0.01


class ProcessWatcher:
    """Waits for the end of one process: by a pidfd, or by polling if there is none."""

    def __init__(self, pid: int, ticks: int) -> None:
        """Watch the process with this pid and start time in clock ticks since boot."""
        self._identity = pid, ticks
        self._exited = asyncio.Event()
        try:
            self._pidfd = os.pidfd_open(pid)
        except OSError:
            self._pidfd = -1
        else:
            asyncio.get_running_loop().add_reader(self._pidfd, self._exited.set)

    async def wait(self) -> None:
        """Wait for the end of the process. The caller sets a time limit."""
        if self._pidfd >= 0:
            await self._exited.wait()
            return
        pid, ticks = self._identity
        while start_ticks(pid) == ticks:  # noqa: ASYNC110  # there is no event for it
            await asyncio.sleep(_POLL_SECONDS)

    def resume(self) -> None:
        """Send SIGCONT: a stopped process goes on, any other takes no notice."""
        with contextlib.suppress(ProcessLookupError):
            if self._pidfd >= 0:
                signal.pidfd_send_signal(self._pidfd, signal.SIGCONT)
            elif start_ticks(self._identity[0]) == self._identity[1]:
                os.kill(self._identity[0], signal.SIGCONT)

    def close(self) -> None:
        """Close the pidfd."""
        if self._pidfd >= 0:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
