"""The held runs of a data directory; implements `ports.HeldRuns`."""

import asyncio
import contextlib
from collections.abc import Mapping
from pathlib import Path

from steadyhand.job import ToolOutput
from steadyhand.ports import HoldSpec, OrphanedRun
from steadyhand.runner.process.held_record import (
    held_dir,
    idle_hold,
    read_results,
    remove_record,
    write_results,
)
from steadyhand.runner.process.kill_run import kill_leftover_run
from steadyhand.runner.process.supervisor_channel import encode_frame


class DirectoryHeldRuns:
    """The held runs below a data directory."""

    def __init__(self, data_dir: Path, seconds: float) -> None:
        """Create it. A run waits for the next service for `seconds`."""
        self._folder = held_dir(data_dir.absolute())
        self._seconds = seconds

    @property
    def seconds(self) -> float:
        """See `ports.HeldRuns.seconds`."""
        return self._seconds

    def idle_spec(self, listener: int | None) -> HoldSpec:
        """See `ports.HeldRuns.idle_spec`."""
        return idle_hold(self._folder, self._seconds, listener)

    def folder_of(self, job_id: str, run: int) -> Path:
        """See `ports.HeldRuns.folder_of`."""
        return self._folder / f"{job_id}-{run}"

    async def end(self, orphan: OrphanedRun) -> None:
        """See `ports.HeldRuns.end`."""
        connection = orphan.take_connection()
        if connection is not None:
            with contextlib.suppress(OSError):
                connection.sendall(encode_frame({"keep": False}) + encode_frame({"kill": True}))
            connection.close()
        orphan.close()
        if orphan.exit is None:
            await kill_leftover_run(orphan.pid, orphan.started)
        await asyncio.to_thread(remove_record, orphan.folder)

    async def save_results(self, job_id: str, run: int, results: Mapping[str, ToolOutput]) -> None:
        """See `ports.HeldRuns.save_results`."""
        folder = self.folder_of(job_id, run)
        if folder.exists():
            with contextlib.suppress(OSError):  # the run then ends with the service that has them
                await asyncio.to_thread(write_results, folder, results)

    async def read_results(self, job_id: str, run: int) -> Mapping[str, ToolOutput]:
        """See `ports.HeldRuns.read_results`."""
        return await asyncio.to_thread(read_results, self.folder_of(job_id, run))

    async def remove(self, job_id: str, run: int) -> None:
        """See `ports.HeldRuns.remove`."""
        folder = self.folder_of(job_id, run)
        if folder.exists():
            await asyncio.to_thread(remove_record, folder)
