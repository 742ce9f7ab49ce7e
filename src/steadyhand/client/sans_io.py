"""The procedures of the client without input or output: each yields the steps that a client performs for it.

The synchronous and the asynchronous client perform the same procedures, so that both repeat, wait and reconnect alike.
"""

import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Any, Generic, Protocol, TypeVar

from steadyhand.client import http_requests
from steadyhand.client.decoding import ObjectT, UnexpectedValue, decode
from steadyhand.client.http_requests import HttpRequest
from steadyhand.client.response_errors import HttpResponse, bad_answer, parse_object, response_error
from steadyhand.client.result_types import (
    ENDED_STATES,
    OPEN_RESPONSE_STATUSES,
    Event,
    Job,
    JobItem,
    Response,
    ResultPage,
    UsageGroup,
)
from steadyhand.client.retry_policy import MAX_PAUSE_SECONDS, MIN_PAUSE_SECONDS, Retries, RetryTimes
from steadyhand.client.server_sent_events import ServerSentEventParser
from steadyhand.errors import InvalidRequest, NotFound, RetryLater, ServiceUnreachable

_MAX_PREFER_WAIT_SECONDS = 30  # of one `Prefer: wait`; the service allows up to 60
_GRACE_SECONDS = 5.0  # in which a service that is there answers
_JOBS_OF_A_PAGE = 200
_STABLE_STREAM_SECONDS = 1.0  # a stream that lasted this long was a good one

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Send:
    """Send a request and return its whole `HttpResponse`."""

    request: HttpRequest


@dataclass(frozen=True, slots=True)
class OpenStream:
    """Close the open stream, send a request and return its `HttpResponse`; the body of a success is the next stream."""

    request: HttpRequest


@dataclass(frozen=True, slots=True)
class ReadChunk:
    """Return the next bytes of the open stream, or `None` at its end."""


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait for so many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Deliver:
    """Hand a value to the caller of an iterator."""

    value: Any


Step = Send | OpenStream | ReadChunk | Pause | Deliver
Procedure = Generator[Step, Any, T]
"""A procedure: it gets the result of each step, or its `ServiceUnreachable`, and returns its own result."""


class ProcedureRun(Generic[T]):
    """A procedure in progress; `step` is to be performed next, and `None` once there is a `result`."""

    step: Step | None
    result: T

    def __init__(self, procedure: Procedure[T]) -> None:
        self._procedure = procedure
        self.resume(None)

    def resume(self, value: Any) -> None:
        """Go on with the result of the step."""
        try:
            self.step = self._procedure.send(value)
        except StopIteration as stop:
            self.step, self.result = None, stop.value

    def fail(self, error: ServiceUnreachable) -> None:
        """Go on with the failure of the step."""
        try:
            self.step = self._procedure.throw(error)
        except StopIteration as stop:
            self.step, self.result = None, stop.value


@dataclass(frozen=True, slots=True)
class ServiceState:
    """The service as a client knows it: its address, and the limits of repeats."""

    base_url: str
    limits: RetryTimes


def send(
    state: ServiceState, request: HttpRequest, *, deadline: float | None = None
) -> Procedure[HttpResponse]:
    """Send a request until it succeeds and return the answer; raise the error of the last attempt."""
    retries, was_repeated = Retries(state.limits, deadline=deadline), False
    while True:
        try:
            response: HttpResponse = yield Send(request)
            error = response_error(response, state.base_url)
        except ServiceUnreachable as failure:
            error = failure
        if error is None:
            state.limits.connected = True
            return response
        if was_repeated and request.method == "DELETE" and isinstance(error, NotFound):
            return response  # the answer to the first request was lost
        yield Pause(retries.pause_or_raise(request, error))
        was_repeated = was_repeated or isinstance(error, ServiceUnreachable)


def fetch(
    state: ServiceState, kind: type[ObjectT], request: HttpRequest, *, deadline: float | None = None
) -> Procedure[ObjectT]:
    """Send a request and return the object of its answer."""
    response = yield from send(state, request, deadline=deadline)
    return _decoded(state, kind, response, parse_object(response, state.base_url))


def fetch_file(state: ServiceState, request: HttpRequest) -> Procedure[bytes]:
    """Send a request and return the body of its answer."""
    return (yield from send(state, request)).body


def fetch_sign_in_link(state: ServiceState) -> Procedure[str]:
    """Create a sign-in link for the operations page and return it, with the address of the service."""
    response = yield from send(state, http_requests.post("/ui/links", {}))
    url = str(parse_object(response, state.base_url).get("url"))
    return url if "://" in url else state.base_url.rstrip("/") + url


def fetch_page(
    state: ServiceState, kind: type[ObjectT], request: HttpRequest
) -> Procedure[ResultPage[ObjectT]]:
    """Send a request and return the page of a list of such objects."""
    response = yield from send(state, request)
    document = parse_object(response, state.base_url)
    rows = document.get("data")
    if not isinstance(rows, list):
        raise bad_answer(state.base_url, response, "data: is no list")
    items = tuple(_decoded(state, kind, response, row) for row in rows)
    cursor = document.get("next_cursor")
    return ResultPage(
        data=items,
        has_more=document.get("has_more") is True,
        next_cursor=cursor if isinstance(cursor, str) else None,
        document=document,
    )


def fetch_list(state: ServiceState, kind: type[ObjectT], path: str) -> Procedure[tuple[ObjectT, ...]]:
    """Return all objects of a list that is always complete."""
    page = yield from fetch_page(state, kind, http_requests.get(path))
    return page.data


def fetch_usage(
    state: ServiceState, by: tuple[str, ...], filters: Mapping[str, Any]
) -> Procedure[tuple[UsageGroup, ...]]:
    """Return the rows of all pages of usage."""
    rows: list[UsageGroup] = []
    cursor = None
    while True:
        page = yield from fetch_page(state, UsageGroup, http_requests.usage(by, filters, cursor))
        rows += page.data
        if not page.has_more or page.next_cursor in (None, cursor):
            return tuple(rows)
        cursor = page.next_cursor


def deliver_jobs(state: ServiceState, filters: Mapping[str, Any]) -> Procedure[None]:
    """Deliver the jobs of all pages of a list."""
    cursor = None
    while True:
        page = yield from fetch_page(
            state, JobItem, http_requests.list_jobs(_JOBS_OF_A_PAGE, cursor, filters)
        )
        for job in page.data:
            yield Deliver(job)
        if not page.has_more or page.next_cursor in (None, cursor):
            return
        cursor = page.next_cursor


def run_again(
    state: ServiceState, job: str | JobItem, verb: str, fields: Mapping[str, Any]
) -> Procedure[Job]:
    """Retry or resume a job, once however often the request arrives.

    The number of the last run that the caller knows makes it so. It is that of the job if the caller has it ended, and
    else is read from the service.
    """
    if fields.get("after_run") is None:
        known = job if isinstance(job, JobItem) and job.ended else None
        if known is None:
            known = yield from fetch(state, Job, http_requests.get_job(job_id_of(job)))
        if known.ended:
            fields = {**fields, "after_run": known.run}
    return (yield from fetch(state, Job, http_requests.run_again(job_id_of(job), verb, fields)))


def wait_for_job(state: ServiceState, job_id: str, timeout_seconds: float | None) -> Procedure[Job]:
    """Return a job when it has ended for good, or as it is after a time.

    If the service stops and does not come back, the job is returned as it was interrupted.
    """
    deadline, job, pause = _deadline(timeout_seconds), None, MIN_PAUSE_SECONDS
    while True:
        asked_at = time.monotonic()
        remaining = _MAX_PREFER_WAIT_SECONDS if deadline is None else deadline - asked_at
        # Whole seconds only, so the rest of a short wait is polled.
        seconds = max(0, int(min(_MAX_PREFER_WAIT_SECONDS, remaining)))
        request = _within(deadline, http_requests.get_job(job_id, seconds))
        try:
            job = yield from fetch(state, Job, request, deadline=deadline)
        except (ServiceUnreachable, RetryLater):
            if job is None or not job.will_run_again:
                raise
            return job
        now = time.monotonic()
        if job.is_final or (deadline is not None and now >= deadline):
            return job
        # The service answers at once until it has stopped, and then runs the job again.
        pause = min(pause * 2, MAX_PAUSE_SECONDS) if job.will_run_again else MIN_PAUSE_SECONDS
        if now - asked_at < pause:
            yield Pause(pause if deadline is None else max(0.0, min(pause, deadline - now)))


def submit_and_wait(
    state: ServiceState, request: HttpRequest, timeout_seconds: float | None
) -> Procedure[Job]:
    """Submit a job and return it when it has ended, or as it is after a time."""
    deadline = _deadline(timeout_seconds)
    job = yield from fetch(state, Job, request, deadline=deadline)
    return (yield from wait_for_job(state, job.id, _remaining(deadline)))


def respond(state: ServiceState, request: HttpRequest, timeout_seconds: float | None) -> Procedure[Response]:
    """Request a response and return it when it has ended, or as it is after a time."""
    deadline = _deadline(timeout_seconds)
    response = yield from fetch(state, Response, request, deadline=deadline)
    if response.ended:
        return response
    return (yield from wait_for_response(state, response.id, _remaining(deadline)))


def wait_for_response(
    state: ServiceState, response_id: str, timeout_seconds: float | None
) -> Procedure[Response]:
    """Return a response when it has ended, or as it is after a time."""
    stream = ResponseStream(response_id)
    yield from follow(state, stream, timeout_seconds)
    # The last event has the response as well; read again, it has been checked as any other answer.
    return (yield from fetch(state, Response, http_requests.get_response(response_id)))


def deliver_stored_events(state: ServiceState, job_id: str, after: int) -> Procedure[None]:
    """Deliver the events that exist now, page by page."""
    while True:
        page = yield from fetch_page(state, Event, http_requests.list_events(job_id, after))
        for event in page.data:
            yield Deliver(event)
        newest = max((event.seq for event in page.data if event.seq is not None), default=after)
        if not page.has_more or newest == after:
            return
        after = newest


class ServiceStream(Protocol):
    """A stream of the service, as far as it was received; `is_complete` is True if nothing follows."""

    @property
    def is_complete(self) -> bool: ...

    def request(self) -> HttpRequest:
        """Return the request for the rest of the stream."""
        ...

    def accept(self, event: Mapping[str, Any]) -> bool:
        """Record an event; return False if it was received before."""
        ...


@dataclass(slots=True)
class EventStream:
    """The stream of a job's events: `after` is the last number, `end_state` the state if that event ended the job."""

    job_id: str
    after: int = 0
    end_state: str | None = None

    @property
    def is_complete(self) -> bool:
        """True if the last event was an end of the job."""
        return self.end_state is not None

    def request(self) -> HttpRequest:
        """Return the request for the rest of the stream."""
        return http_requests.stream_events(self.job_id, self.after)

    def accept(self, event: Mapping[str, Any]) -> bool:
        """Record an event; return False if it was received before."""
        number = event.get("seq")
        if not isinstance(number, int):
            return True
        if number <= self.after:
            return False
        data = event.get("data")
        self.after = number
        is_change = event.get("type") == "state.changed"
        state = data.get("to") if is_change and isinstance(data, dict) else None
        self.end_state = state if state in ENDED_STATES else None
        return True


@dataclass(slots=True)
class ResponseStream:
    """The stream of a response's events: `after` is the last number, -1 before the first."""

    response_id: str
    after: int = -1
    is_complete: bool = False

    def request(self) -> HttpRequest:
        """Return the request for the rest of the stream."""
        return http_requests.stream_response(self.response_id, self.after)

    def accept(self, event: Mapping[str, Any]) -> bool:
        """Record an event; return False if it was received before."""
        number, response = event.get("sequence_number"), event.get("response")
        if not isinstance(number, int) or number <= self.after:
            return False
        self.after = number
        status = response.get("status") if isinstance(response, dict) else None
        self.is_complete = isinstance(status, str) and status not in OPEN_RESPONSE_STATUSES
        return True


def follow_job(
    state: ServiceState, job_id: str, after: int, timeout_seconds: float | None
) -> Procedure[None]:
    """Deliver the events of a job until it has ended for good, also across a stop of the service."""
    deadline, stream, checked = _deadline(timeout_seconds), EventStream(job_id, after), -1
    while True:
        yield from follow(state, stream, _remaining(deadline))
        # Of an end that the stream did not bring, as before its first event, the service is asked.
        if stream.end_state not in (None, "interrupted") or stream.after == checked:
            return
        checked = stream.after
        if not (yield from _wait_for_next_run(state, stream, deadline)):
            return


def _wait_for_next_run(state: ServiceState, stream: EventStream, deadline: float | None) -> Procedure[bool]:
    """Wait for the next run of a job that the service runs again; return False if there is none."""
    pause = MIN_PAUSE_SECONDS
    while deadline is None or time.monotonic() < deadline:
        job = yield from fetch(state, Job, http_requests.get_job(stream.job_id), deadline=deadline)
        if not job.will_run_again:
            return job.last_event > stream.after
        yield Pause(pause)
        pause = min(pause * 2, MAX_PAUSE_SECONDS)
    return False


def follow(
    state: ServiceState, stream: ServiceStream, timeout_seconds: float | None = None
) -> Procedure[None]:
    """Follow a stream until it is complete, and open it again after the last event whenever it breaks.

    The events of a job are delivered; those of a response are received alone.
    """
    deadline = _deadline(timeout_seconds)
    retries = Retries(state.limits, deadline=deadline)
    while True:
        request = _within(deadline, stream.request())
        opened_at, is_first_contact = None, not state.limits.connected
        error: ServiceUnreachable | RetryLater = ServiceUnreachable(
            "The stream of events ended early several times."
        )
        try:
            response: HttpResponse = yield OpenStream(request)
            if (refusal := response_error(response, state.base_url)) is not None:
                raise refusal
            state.limits.connected, opened_at = True, time.monotonic()
            if response.status == HTTPStatus.NO_CONTENT:
                return
            if (yield from _deliver_chunks(state, stream, response, retries.reset, deadline)):
                return
        except (ServiceUnreachable, RetryLater) as failure:
            error = failure
        if opened_at is not None and deadline is not None and time.monotonic() >= deadline:
            return
        if opened_at is not None and (
            is_first_contact or time.monotonic() - opened_at > _STABLE_STREAM_SECONDS
        ):
            retries.reset()  # the service answered, though nothing happened
        yield Pause(retries.pause_or_raise(request, error))


def _deliver_chunks(
    state: ServiceState,
    stream: ServiceStream,
    response: HttpResponse,
    on_event: Callable[[], None],
    deadline: float | None,
) -> Procedure[bool]:
    """Deliver the events of one connection. Return True if none is to follow, or the time is over."""
    parser = ServerSentEventParser()
    while (chunk := (yield ReadChunk())) is not None:
        for event in parser.feed(chunk):
            if stream.accept(event):
                on_event()
                if isinstance(stream, EventStream):
                    yield Deliver(_decoded(state, Event, response, event))
        if deadline is not None and time.monotonic() >= deadline:
            return True
    return stream.is_complete


def job_id_of(job: str | JobItem) -> str:
    """Return the id of a job that is named by its id or is an object."""
    return job if isinstance(job, str) else job.id


def _deadline(seconds: float | None) -> float | None:
    if seconds is None:
        return None
    if not seconds >= 0:  # NaN is neither
        raise InvalidRequest("A time to wait is 0 seconds or more.")
    return time.monotonic() + seconds


def _within(deadline: float | None, request: HttpRequest) -> HttpRequest:
    """Return the request with an answer that may not be silent for long beyond the deadline."""
    remaining = _remaining(deadline)
    return request if remaining is None else replace(request, max_quiet_seconds=remaining + _GRACE_SECONDS)


def _remaining(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())


def _decoded(state: ServiceState, kind: type[ObjectT], response: HttpResponse, document: Any) -> ObjectT:
    try:
        return decode(kind, document)
    except UnexpectedValue as error:
        raise bad_answer(state.base_url, response, str(error)) from error
