"""Start a run for a request, or join the run of a repeated request; wait for it, or cancel it on a disconnect."""

import asyncio
import math
from collections.abc import Coroutine
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from starlette.requests import Request

from steadyhand.api.openai.run_failure import (
    RETRY_COUNT_HEADER,
    TURN_HEADER,
    is_answered,
    is_silent_retrier,
    job_headers,
    may_reconnect,
)
from steadyhand.api.transport.body import fingerprint
from steadyhand.api.transport.context import ApiContext, as_job_owner
from steadyhand.api.transport.params import parse_idempotency_key
from steadyhand.api.transport.waiting_clients import RequestKey
from steadyhand.clock import utc_now
from steadyhand.control import Caller, Submission
from steadyhand.errors import InvalidRequest, NotFound
from steadyhand.job import Job, State
from steadyhand.ports import AddResult, IdempotencyKey

ResultT = TypeVar("ResultT")
REPEAT_WINDOW = timedelta(minutes=10)
"""The time after its end in which a run still answers a repeat of its request."""
FAILURE_REPEAT_WINDOW = timedelta(seconds=20)
"""The time in which a failure is returned again, if an official library sends the same request as a first try.

Frameworks repeat a failed request through that library whatever the response: LlamaIndex twice, after 1 to 20 s.
"""
RECONNECT_SECONDS = 2.5
"""The time a run continues after a disconnect, if the client's library retries by itself within that time."""
MIN_RETRY_SECONDS, MAX_RETRY_SECONDS = 1.5, 8.0
"""The time after which a library that does not announce retries sends one: it waits 2 s, then 4 s."""
SILENT_RECONNECT_SECONDS = 5.0
"""As `RECONNECT_SECONDS`, for a library that does not announce retries and lost a response without a stream."""
_FAILED_STATES = frozenset({State.FAILED, State.TIMEOUT, State.ERROR})


@dataclass(frozen=True, slots=True)
class StartedRun:
    """A run that answers a request; `replayed` if an earlier request started it."""

    job: Job
    replayed: bool

    def headers(self, *, retry: bool = True) -> dict[str, str]:
        """Return the headers that name the job."""
        headers = job_headers(self.job, retry=retry)
        if self.replayed:
            headers["idempotent-replayed"] = "true"
        return headers


async def start_run(
    request: Request, context: ApiContext, caller: Caller, submission: Submission, json_body: Any
) -> StartedRun:
    """Start a run for a request with this parsed body, or find the run that the same request started before.

    An `Idempotency-Key` marks a repeat for a day. Without one a repeat is recognized by the retry count of the library,
    by an equal body that names its turn, or, for a library that sends neither, by the time since the first request.
    Frameworks around such a library repeat failed requests too, with a retry count of zero. Raise as `Control.submit`.
    """
    key = parse_idempotency_key(request)
    if key is not None:
        body_fingerprint = await _fingerprint_in_thread([request.url.path, json_body])
        submitted = await _submit(context, caller, submission, IdempotencyKey(key, body_fingerprint))
        return StartedRun(submitted.job, submitted.replayed)
    retry_count = request.headers.get(RETRY_COUNT_HEADER)
    if not may_reconnect(request):
        return StartedRun((await _submit(context, caller, submission)).job, replayed=False)
    request_key: RequestKey = (caller.key_id, await _fingerprint_in_thread([request.url.path, json_body]))
    earlier_job = None
    if is_silent_retrier(request):
        earlier_job = await _find_lost_run(
            context, caller, request_key, is_stream=bool(json_body.get("stream"))
        )
    elif TURN_HEADER in request.headers or (
        retry_count is not None
        and retry_count.isascii()
        and retry_count.isdecimal()
        and retry_count.strip("0")
    ):
        earlier_job = await _find_repeated_run(context, caller, request_key)
    elif not json_body.get("background"):
        # Who asks for a run in the background was not told by an error that it failed: asking again is meant.
        earlier_job = await _find_recent_failure(context, caller, request_key)
    if earlier_job is not None:
        return StartedRun(earlier_job, replayed=True)
    submitted = await _submit(context, caller, submission)
    context.waiting_clients.remember_job(request_key, submitted.job.id)
    return StartedRun(submitted.job, replayed=False)


async def _submit(
    context: ApiContext, caller: Caller, submission: Submission, idempotency: IdempotencyKey | None = None
) -> AddResult:
    try:
        return await context.control.submit(caller, submission, idempotency)
    except InvalidRequest as error:
        if [fault.pointer for fault in error.field_errors] != ["/agent"]:
            raise
        # Here an agent is asked for by a model's name.
        reason = "means another agent than that of the session, which keeps its agent"
        raise InvalidRequest.at("/model", reason) from error


async def _fingerprint_in_thread(value: Any) -> str:
    return await asyncio.to_thread(fingerprint, value)


async def _find_repeated_run(context: ApiContext, caller: Caller, request_key: RequestKey) -> Job | None:
    return await _get_run(context, caller, await context.waiting_clients.find_job_anywhere(request_key))


async def _get_run(context: ApiContext, caller: Caller, job_id: str | None) -> Job | None:
    if job_id is None:
        return None
    try:
        job = await context.control.get(as_job_owner(caller), job_id)
    except NotFound:
        return None
    if job.state is State.CANCELLED:
        return None  # nobody waited for it any more: there is nothing to answer with
    finished_at = job.finished_at
    return job if finished_at is None or utc_now() - finished_at <= REPEAT_WINDOW else None


async def _find_recent_failure(context: ApiContext, caller: Caller, request_key: RequestKey) -> Job | None:
    # Each first request comes here: other nodes are not asked.
    job = await _get_run(context, caller, context.waiting_clients.find_job(request_key))
    if job is None or job.finished_at is None or job.state not in _FAILED_STATES or is_answered(job):
        return None
    return job if utc_now() - job.finished_at <= FAILURE_REPEAT_WINDOW else None


async def _find_lost_run(
    context: ApiContext, caller: Caller, request_key: RequestKey, *, is_stream: bool
) -> Job | None:
    """Return the run whose response was lost or was a failure, if the request is repeated when the library retries.

    A deliberate second request gets a run of its own: beside a run that a client waits for, at once after a run that
    ended, and after a stream that was finished, also by calls; the library does not retry in these cases.
    """
    job = await _find_repeated_run(context, caller, request_key)
    if job is None or await context.waiting_clients.is_awaited_anywhere(job.id):
        return None
    if job.finished_at is None and is_answered(job.as_answered):
        return None  # as at once after its end
    if job.finished_at is None:
        unattended = await context.waiting_clients.unattended_seconds_anywhere(job.id)
        if unattended is None or not MIN_RETRY_SECONDS <= unattended <= MAX_RETRY_SECONDS:
            return None
        has_open_calls = is_stream and await context.control.open_tool_calls(as_job_owner(caller), job.id)
        return None if has_open_calls else job
    age = (utc_now() - job.finished_at).total_seconds()
    if is_answered(job):
        return job if not is_stream and MIN_RETRY_SECONDS <= age <= MAX_RETRY_SECONDS else None
    return job if age <= MAX_RETRY_SECONDS else None


async def wait_for_end(request: Request, context: ApiContext, caller: Caller, job_id: str) -> Job | None:
    """Wait for a job's end (its own deadline is the bound). If the client disconnects, cancel it and return None."""
    return await wait_unless_disconnected(
        request, context, caller, job_id, context.control.wait(as_job_owner(caller), job_id, math.inf)
    )


async def wait_unless_disconnected(
    request: Request, context: ApiContext, caller: Caller, job_id: str, waiter: Coroutine[Any, Any, ResultT]
) -> ResultT | None:
    """Wait for a result of a job. If the client disconnects, cancel the job and return None."""
    with context.waiting_clients.track(job_id):
        async with asyncio.TaskGroup() as group:
            task = group.create_task(waiter)
            disconnect_watcher = group.create_task(_cancel_on_disconnect(request, task))
            task.add_done_callback(lambda _: disconnect_watcher.cancel())
    if task.cancelled():
        seconds = SILENT_RECONNECT_SECONDS if is_silent_retrier(request) else RECONNECT_SECONDS
        await cancel_abandoned_run(request, context, caller, job_id, seconds)
        return None
    return task.result()


async def _cancel_on_disconnect(request: Request, task: asyncio.Task[Any]) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    task.cancel()


async def cancel_abandoned_run(
    request: Request, context: ApiContext, caller: Caller, job_id: str, seconds: float = RECONNECT_SECONDS
) -> None:
    """Cancel a run whose client disconnected, unless another client waits for it or reconnects within `seconds`."""
    if may_reconnect(request):
        await asyncio.sleep(seconds)
    if not await context.waiting_clients.is_awaited_anywhere(job_id):
        await context.control.cancel(as_job_owner(caller), job_id)
