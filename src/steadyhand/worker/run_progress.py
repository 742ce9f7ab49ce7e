"""The session and the work of a run, stored for other nodes as they come: the node may die before the run's end."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import structlog

from steadyhand.errors import Conflict, NotFound, SteadyhandError
from steadyhand.job import Job
from steadyhand.ports import Checkout, Checkouts, OrphanedRun

MAX_SHARE = 0.05
"""The greatest share of the time of a run in which its progress is stored."""
MAX_SECONDS = 120.0
"""The time limit of storing it once."""


@asynccontextmanager
async def progress_saved(
    checkouts: Checkouts,
    job: Job,
    checkout: Checkout,
    seconds: float | None,
    *,
    orphan: OrphanedRun | None = None,
) -> AsyncIterator[Callable[[int, int], None]]:
    """Store the progress of a run during the block, with `seconds` between two times or more; None stores nothing.

    Call the function that is yielded with pid and start time of the supervisor once it has started: nothing is stored
    before. An `orphan` has one already. The block ends once nothing works in the checkout any more.
    """
    if seconds is None:
        yield lambda _pid, _started: None
        return
    holder: asyncio.Future[tuple[int, int]] = asyncio.get_running_loop().create_future()

    def spawned(pid: int, started: int) -> None:
        if not holder.done():
            holder.set_result((pid, started))

    if orphan is not None:
        spawned(orphan.pid, orphan.started)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(
            _save_again_and_again(checkouts, job, checkout, holder, seconds), name=f"progress {job.id}"
        )
        try:
            yield spawned
        finally:
            task.cancel()


async def _save_again_and_again(
    checkouts: Checkouts,
    job: Job,
    checkout: Checkout,
    holder: asyncio.Future[tuple[int, int]],
    seconds: float,
) -> None:
    log = structlog.get_logger("steadyhand.worker").bind(job=job.id)
    # Layers can be mounted once: what is stored is read by the mounts of the supervisor.
    checkout = replace(checkout, holder=await holder)
    pause = seconds
    while True:
        await asyncio.sleep(pause)
        started = time.monotonic()
        failure: Exception | None = None
        try:
            async with asyncio.timeout(MAX_SECONDS):
                await checkouts.save_progress(job, checkout)
        except (Conflict, NotFound) as error:
            log.info("job.moved_elsewhere", reason=error.detail)
            return
        except Exception as error:  # noqa: BLE001  # logged below; the run does not end for it
            failure = error
        pause = pause_after(
            time.monotonic() - started, seconds
        )  # without the time that a long traceback takes
        if isinstance(failure, TimeoutError):
            log.warning("progress.not_saved", error="the time was over")
        elif failure is not None:
            has_bug = not isinstance(failure, SteadyhandError)
            log.warning("progress.not_saved", error=str(failure), exc_info=failure if has_bug else None)


def pause_after(duration: float, seconds: float) -> float:
    """Return the seconds until progress is stored again, if the last time took `duration`."""
    return max(seconds, duration / MAX_SHARE)
