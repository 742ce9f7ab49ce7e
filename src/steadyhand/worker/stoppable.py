"""Waits that a stop signal can end, and work that waits for the end of an outage."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from steadyhand.errors import RunError, StoreUnavailable, WorkspaceError
from steadyhand.ports import StopSignal, Store

_T = TypeVar("_T")

FIRST_PAUSE_SECONDS = 0.05
MAX_PAUSE_SECONDS = 1.0


async def catch_run_error(work: Awaitable[_T]) -> _T | RunError:
    """Return the result of the work, or its `RunError` as a value: a task group would wrap the error."""
    try:
        return await work
    except RunError as error:
        return error


async def run_until_stopped(work: Coroutine[Any, Any, _T], stop: StopSignal) -> _T | None:
    """Return the result of the work, or None if a stop is requested first; the work is then cancelled."""
    async with asyncio.TaskGroup() as group:
        task = group.create_task(catch_run_error(work))
        stop_request = group.create_task(stop.wait())
        await asyncio.wait({task, stop_request}, return_when=asyncio.FIRST_COMPLETED)
        stop_request.cancel()
        if not task.done():
            task.cancel()
    if task.cancelled():
        return None
    result = task.result()
    if isinstance(result, RunError):
        raise result
    return result


async def read_patiently(read: Callable[[], Awaitable[_T]]) -> _T:
    """Return the result of a read of the store. It is repeated during an outage; a stop of the service ends that."""
    pause = FIRST_PAUSE_SECONDS
    while True:
        try:
            return await read()
        except StoreUnavailable:
            await asyncio.sleep(pause)
            pause = min(pause * 2, MAX_PAUSE_SECONDS)


async def repeat_after_outage(store: Store, job_id: str, work: Callable[[], Awaitable[_T]]) -> _T:
    """Return the result of work on files. If it fails in an outage of the store, wait for the end and do it again.

    The disk that is full for one is full for the other, and the store's answer says when it no longer is.
    """
    failures = store.failures
    while True:
        try:
            return await work()
        except (WorkspaceError, OSError):
            await store.append_events(job_id, (), hold=True)
            if store.failures == failures:
                raise
            failures = store.failures
