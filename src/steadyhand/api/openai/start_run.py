"""One run for one request: started, or joined when the client's library asks the same again; left, or waited for."""

import asyncio
import math
from collections.abc import Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from starlette.requests import Request

from steadyhand.api.openai.run_failure import RETRY_COUNT_HEADER, is_silent_retrier, job_headers
from steadyhand.api.transport.body import fingerprint
from steadyhand.api.transport.context import Door, insider
from steadyhand.api.transport.params import idempotency_key
from steadyhand.control import Caller, Submission
from steadyhand.errors import InvalidRequest, NotFound
from steadyhand.job import Job, State
from steadyhand.ports import Added, Idempotency

T = TypeVar("T")
JUST_ENDED = timedelta(minutes=10)
"""How long after its end a run is still the answer to a repeat of its request."""
JUST_FAILED = timedelta(seconds=20)
"""How long a failure is the answer when an official library asks the same as for the first time.

Frameworks repeat what failed through that library whatever it was told: LlamaIndex twice, 1 to 20 s after an answer.
"""
RETURN_SECONDS = 2.5
"""How long a run goes on after its client went away, when the client's library asks again by itself within that."""
SOONEST_SECONDS, LATEST_SECONDS = 1.5, 8.0
"""When a library that says nothing asks again: it waits 2 s the first time and 4 s the second."""
SILENT_RETURN_SECONDS = 5.0
"""As `RETURN_SECONDS`, for a library that says nothing and lost an answer that was to come whole."""
_FAILED = frozenset({State.FAILED, State.TIMEOUT, State.ERROR})


@dataclass(frozen=True, slots=True)
class Started:
    """A run that answers a request; `replayed` when an earlier request started it."""

    job: Job
    replayed: bool

    def headers(self, *, retry: bool = True) -> dict[str, str]:
        """Give the headers that name the job."""
        headers = job_headers(self.job, retry=retry)
        if self.replayed:
            headers["idempotent-replayed"] = "true"
        return headers


async def started(
    request: Request, door: Door, caller: Caller, submission: Submission, value: Any
) -> Started:
    """Start a run for a request with this parsed body, or find the run that the same request started before.

    An `Idempotency-Key` says so for a day; without one a library that counts its retries does, and of one that
    does not it is known by the time. What failed is also asked for again by frameworks around such a library, which
    then counts from zero. Raises as `Control.submit`.
    """
    key = idempotency_key(request)
    if key is not None:
        said = await _fingerprint([request.url.path, value])
        added = await _submitted(door, caller, submission, Idempotency(key, said))
        return Started(added.job, added.replayed)
    count = request.headers.get(RETRY_COUNT_HEADER)
    silent = is_silent_retrier(request)
    if count is None and not silent:
        return Started((await _submitted(door, caller, submission)).job, replayed=False)
    asked = (caller.key_id, await _fingerprint([request.url.path, value]))
    found = None
    if silent:
        found = await _lost(door, caller, asked, streamed=bool(value.get("stream")))
    elif count is not None and count.isascii() and count.isdecimal() and count.strip("0"):
        found = await _joined(door, caller, asked)
    elif not value.get("background"):
        # Who asks for a run in the background was not told by an error that it failed: asking again is meant.
        found = await _failed(door, caller, asked)
    if found is not None:
        return Started(found, replayed=True)
    added = await _submitted(door, caller, submission)
    door.attending.remember(asked, added.job.id)
    return Started(added.job, replayed=False)


async def _submitted(
    door: Door, caller: Caller, submission: Submission, idempotency: Idempotency | None = None
) -> Added:
    try:
        return await door.control.submit(caller, submission, idempotency)
    except InvalidRequest as error:
        if [fault.pointer for fault in error.faults] != ["/agent"]:
            raise
        # Here an agent is asked for by a model's name.
        why = "means another agent than that of the session, which keeps its agent"
        raise InvalidRequest.at("/model", why) from error


async def _fingerprint(value: Any) -> str:
    return await asyncio.to_thread(fingerprint, value)


async def _joined(door: Door, caller: Caller, asked: tuple[str, str]) -> Job | None:
    job_id = door.attending.recall(asked)
    if job_id is None:
        return None
    try:
        job = await door.control.get(insider(caller), job_id)
    except NotFound:
        return None
    if job.state is State.CANCELLED:
        return None  # nobody waited for it any more: there is nothing to answer with
    ended = job.finished_at
    return job if ended is None or datetime.now(UTC) - ended <= JUST_ENDED else None


async def _failed(door: Door, caller: Caller, asked: tuple[str, str]) -> Job | None:
    job = await _joined(door, caller, asked)
    if job is None or job.finished_at is None or job.state not in _FAILED:
        return None
    return job if datetime.now(UTC) - job.finished_at <= JUST_FAILED else None


async def _lost(door: Door, caller: Caller, asked: tuple[str, str], *, streamed: bool) -> Job | None:
    """Give the run whose answer was lost, or was a failure, when the same comes just as the library asks again.

    Whoever asks the same on purpose gets a run of its own: beside one that somebody waits for, at once after one that
    ended, or after a stream that came to its end, by calls too, for which the library does not ask again.
    """
    job = await _joined(door, caller, asked)
    if job is None or door.attending.anybody_at(job.id):
        return None
    if job.finished_at is None:
        alone = door.attending.alone_for(job.id)
        if alone is None or not SOONEST_SECONDS <= alone <= LATEST_SECONDS:
            return None
        told = streamed and await door.control.open_calls(insider(caller), job.id)
        return None if told else job
    age = (datetime.now(UTC) - job.finished_at).total_seconds()
    if job.state is State.COMPLETED:
        return job if not streamed and SOONEST_SECONDS <= age <= LATEST_SECONDS else None
    return job if age <= LATEST_SECONDS else None


async def ended_or_left(request: Request, door: Door, caller: Caller, job_id: str) -> Job | None:
    """Wait for a job's end (its own deadline is the bound); when the client leaves, cancel it and give null."""
    return await unless_left(
        request, door, caller, job_id, door.control.wait(insider(caller), job_id, math.inf)
    )


async def unless_left(
    request: Request, door: Door, caller: Caller, job_id: str, waited: Coroutine[Any, Any, T]
) -> T | None:
    """Wait for what comes of a job; when the client leaves, cancel the job and give null."""
    with door.attending.at(job_id):
        async with asyncio.TaskGroup() as group:
            wait = group.create_task(waited)
            ear = group.create_task(_cancel_when_left(request, wait))
            wait.add_done_callback(lambda _: ear.cancel())
    if wait.cancelled():
        seconds = SILENT_RETURN_SECONDS if is_silent_retrier(request) else RETURN_SECONDS
        await left(request, door, caller, job_id, seconds)
        return None
    return wait.result()


async def _cancel_when_left(request: Request, wait: asyncio.Task[Any]) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    wait.cancel()


async def left(
    request: Request, door: Door, caller: Caller, job_id: str, seconds: float = RETURN_SECONDS
) -> None:
    """Cancel a run whose client went away, unless another one waits for it or the same comes back within `seconds`."""
    if RETRY_COUNT_HEADER in request.headers or is_silent_retrier(request):
        await asyncio.sleep(seconds)
    if not door.attending.anybody_at(job_id):
        await door.control.cancel(insider(caller), job_id)
