"""Waiting for work that somebody may stop."""

import asyncio
from collections.abc import Awaitable, Coroutine
from typing import Any, TypeVar

from steadyhand.errors import RunError
from steadyhand.ports import StopSignal

_T = TypeVar("_T")


async def catch_run_error(work: Awaitable[_T]) -> _T | RunError:
    """Give what the work comes to, its `RunError` as a value: a task group would wrap it."""
    try:
        return await work
    except RunError as error:
        return error


async def run_until_stopped(work: Coroutine[Any, Any, _T], stop: StopSignal) -> _T | None:
    """Give what the work comes to, or null when a stop is asked for first; the work is then cancelled."""
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
