"""The reload by a signal: this service starts the next one, which takes its place.

systemd sees one unit all the time: it is told the pid of the new main process before the old one ends.
"""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress

import structlog

from steadyhand.serve import service_manager

REPLACE_OPTION = "--replace"


def successor_command() -> Sequence[str]:
    """Return the command that starts the next service: this process's own, with `--replace`."""
    program, *arguments = sys.argv
    command = [program] if os.access(program, os.X_OK) else [sys.executable, "-m", "steadyhand"]
    return [*command, *(each for each in arguments if each != REPLACE_OPTION), REPLACE_OPTION]


class Reload:
    """Starts the next service, one at a time."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._pidfd = -1
        self._has_handed_over = False
        self._log = structlog.get_logger("steadyhand")

    def begin(self) -> None:
        """Start the next service, unless it is being started. It asks for the sockets once it is prepared."""
        if self._child is not None:
            return
        service_manager.notify(f"{service_manager.RELOADING}\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            # With this process's own environment and streams. It lives on: no task of this loop may own it.
            self._child = subprocess.Popen(successor_command())
            self._pidfd = os.pidfd_open(self._child.pid)
        except OSError as error:
            self._fail(str(error))
            return
        self._log.info("reload.begins", successor=self._child.pid)
        asyncio.get_running_loop().add_reader(self._pidfd, self._note_end)

    def refusal(self, pid: int) -> str | None:
        """Return the reason why the process with this pid cannot take this one's place, or None."""
        if os.getpid() == 1:
            return "It is process 1 of a container, which ends with it."
        if self._child is not None and pid == self._child.pid:
            return None
        if service_manager.is_managed():
            return "It belongs to a service manager: use `systemctl reload`."
        return None

    def hand_over(self, pid: int) -> None:
        """Send the manager the pid of the next service, which is about to take over."""
        self._has_handed_over = True
        service_manager.notify(f"MAINPID={pid}")

    def close(self) -> None:
        """Stop the next service if this one ends without it: whoever stops this one means both."""
        if self._child is not None:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            if not self._has_handed_over:
                self._child.terminate()  # it ends by itself, too: nobody hands over to it
            self._child.returncode = 0  # it is no child of ours any more: nobody here waits for it
            self._child = None

    def _note_end(self) -> None:
        child, self._child = self._child, None
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        code = None
        if child is not None:
            with suppress(subprocess.TimeoutExpired):
                code = child.wait(1)
        self._fail(f"it ended with {code}")

    def _fail(self, error: str) -> None:
        self._child = None
        self._log.error("reload.failed", error=error, meaning="the running service goes on")
        service_manager.notify(service_manager.READY)
