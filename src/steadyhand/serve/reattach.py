"""The runs that an earlier service left: found at the start of the service, before its gateway listens."""

import asyncio
import functools
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import structlog

from steadyhand.config.settings import Settings
from steadyhand.ports import HeldRuns, OrphanedRun
from steadyhand.runner.process.held_record import find_orphaned_runs, held_dir
from steadyhand.runner.process.held_run_directory import DirectoryHeldRuns
from steadyhand.serve.queue_setup import MAX_REATTACH_SECONDS, shares_database

_LASTING_INITS = frozenset({"systemd", "init", "runit", "s6-svscan", "openrc-init", "dinit"})
"""Names of first processes that go on when a child ends. Those of containers, such as `tini`, end with theirs."""


@dataclass(slots=True)
class FoundRuns:
    """The runs that an earlier service left."""

    orphans: list[OrphanedRun] = field(default_factory=list)
    lost: list[tuple[str, int]] = field(default_factory=list)
    """The job and the run of each that cannot be taken up."""
    ended_after_stop: list[tuple[str, int]] = field(default_factory=list)
    """The job and the run of each that a stop left, and that ended before this service was there."""

    def add_lost(self, folder: str, error: str, was_left: bool) -> None:  # noqa: FBT001  # a callback's signature
        """Add a run that cannot be taken up, by the name of its folder."""
        structlog.get_logger("steadyhand.worker").info("run.not_taken_up", folder=folder, error=error)
        job_id, _, run = folder.rpartition("-")
        if run.isdecimal():
            self.lost.append((job_id, int(run)))
            self.ended_after_stop += self.lost[-1:] if was_left else []


def held_runs_of(settings: Settings) -> HeldRuns | None:
    """Return the held runs of the data directory; None if every run ends with the service.

    So it is in the classic profile, and in a container that ends with its service. Other nodes on the same database
    take up the jobs of this one soon, so its runs wait for `MAX_REATTACH_SECONDS` at most.
    """
    seconds = settings.tables.service.reattach_seconds
    if shares_database(settings):
        seconds = min(seconds, MAX_REATTACH_SECONDS)
    if settings.classic or not seconds or _ends_with_container():
        return None
    return DirectoryHeldRuns(settings.data_dir, seconds)


@functools.cache  # a hand-over gives the service another parent
def _ends_with_container() -> bool:
    first = Path("/proc/1/comm").read_text("utf-8", "replace").strip()
    return ends_with_container(os.getpid(), os.getppid(), first)


def ends_with_container(pid: int, parent: int, first: str) -> bool:
    """Return True if all processes end with this one; `first` is the name of process 1.

    So it is for the first process of a container, and for the only child of one that ends with it.
    """
    is_first = pid == 1 or parent == 0  # 0: the first process belongs to the pod
    return is_first or (parent == 1 and first not in _LASTING_INITS)


def without_reattach(settings: Settings) -> Settings:
    """Return settings with which every run ends with the service."""
    tables = settings.tables
    service = tables.service.model_copy(update={"reattach_seconds": 0})
    return replace(settings, tables=tables.model_copy(update={"service": service}))


@asynccontextmanager
async def orphaned_runs(settings: Settings) -> AsyncIterator[FoundRuns]:
    """Find the runs that an earlier service left, and prove this one to them.

    Those that nobody has taken at the end of the block wait for the next service again.
    """
    found = FoundRuns()
    if held_runs_of(settings) is None:
        # What runs left when the setting was another one: the recovery ends them, and nobody reads their output.
        await asyncio.to_thread(shutil.rmtree, held_dir(settings.data_dir), ignore_errors=True)
    else:
        found.orphans += await asyncio.to_thread(find_orphaned_runs, settings.data_dir, found.add_lost)
    try:
        yield found
    finally:
        for orphan in found.orphans:
            orphan.close()
