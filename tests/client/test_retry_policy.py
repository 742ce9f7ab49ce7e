"""The decisions about repeats, as steps of a procedure: nothing is sent and nobody waits."""

import json
import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx2
import pytest

from steadyhand import InvalidRequest, NotFound, RetryLater, ServiceUnreachable, SteadyhandError
from steadyhand.client import http_requests, retry_policy, sans_io
from steadyhand.client.http_requests import HttpRequest
from steadyhand.client.response_errors import HttpResponse, retry_after_seconds
from steadyhand.client.retry_policy import RetryTimes
from steadyhand.client.sans_io import EventStream, OpenStream, Pause, ProcedureRun, Send, ServiceState

OK = HttpResponse(200, {}, b"{}")
READ = http_requests.get("/v1/agents")
CREATE_KEY = http_requests.create_key("nightly", None, {}, strict=False)
SUBMIT = http_requests.submit("x", {}, None)


def problem(status: int, code: str, **headers: str) -> HttpResponse:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return HttpResponse(status, names, json.dumps({"detail": "Because.", "code": code}).encode())


def lost(cause: httpx2.HTTPError) -> ServiceUnreachable:
    error = ServiceUnreachable("No answer.")
    error.__cause__ = cause
    return error


NOT_SENT = lost(httpx2.ConnectError("refused"))
CUT = lost(httpx2.RemoteProtocolError("cut"))


class Clock:
    """The monotonic clock of the client, which only pauses move."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(retry_policy, "time", made)
    monkeypatch.setattr(sans_io, "time", made)
    return made


def play(
    clock: Clock,
    request: HttpRequest,
    answer: Callable[[int], HttpResponse | ServiceUnreachable],
    *,
    connected: bool = True,
    deadline: float | None = None,
) -> tuple[int, list[float], SteadyhandError | None]:
    """Return how often the request was sent, the pauses between, and the error in the end."""
    state = ServiceState("http://service", RetryTimes(30.0, 60.0, connected=connected))
    sent, pauses = 0, []
    try:
        run: ProcedureRun[Any] = ProcedureRun(sans_io.send(state, request, deadline=deadline))
        while run.step is not None:
            if isinstance(run.step, Pause):
                pauses.append(run.step.seconds)
                clock.now += run.step.seconds
                run.resume(None)
                continue
            assert run.step == Send(request)
            sent += 1
            found = answer(sent)
            run.resume(found) if isinstance(found, HttpResponse) else run.fail(found)
    except SteadyhandError as error:
        return sent, pauses, error
    return sent, pauses, None


def once(first: HttpResponse | ServiceUnreachable) -> Callable[[int], HttpResponse | ServiceUnreachable]:
    return lambda count: first if count == 1 else OK


@pytest.mark.parametrize(("status", "code"), [(429, "queue_full"), (503, "draining"), (503, "unavailable")])
def test_a_refusal_is_sent_again_after_the_time_in_its_header(clock: Clock, status: int, code: str) -> None:
    assert play(clock, SUBMIT, once(problem(status, code, retry_after="7"))) == (2, [7.0], None)


def test_all_pauses_of_a_refused_call_together_have_a_bound(clock: Clock) -> None:
    sent, pauses, error = play(clock, SUBMIT, lambda _: problem(429, "rate_limited", retry_after="25"))
    assert (sent, pauses) == (3, [25.0, 25.0])
    assert isinstance(error, RetryLater)
    assert error.retry_after == 25


def test_a_time_that_is_longer_than_the_bound_is_not_waited_for(clock: Clock) -> None:
    sent, pauses, error = play(clock, SUBMIT, lambda _: problem(429, "budget_exhausted", retry_after="3600"))
    assert (sent, pauses) == (1, [])
    assert isinstance(error, RetryLater)


def test_no_pause_lasts_beyond_the_deadline_of_the_call(clock: Clock) -> None:
    answer = problem(429, "queue_full", retry_after="7")
    assert play(clock, READ, lambda _: answer, deadline=clock.now + 20)[:2] == (3, [7.0, 7.0])


@pytest.mark.parametrize("failure", [CUT, problem(500, "internal"), HttpResponse(502, {}, b"<html>")])
def test_a_repeatable_request_whose_answer_is_lost_is_sent_again(
    clock: Clock, failure: HttpResponse | ServiceUnreachable
) -> None:
    for request in (READ, SUBMIT, http_requests.run_again("a", "retry", {"after_run": 1})):
        sent, pauses, error = play(clock, request, once(failure))
        assert (sent, error) == (2, None)
        assert 0 < pauses[0] <= 0.1


@pytest.mark.parametrize(
    "failure",
    [
        CUT,
        problem(500, "internal"),
        HttpResponse(502, {}, b""),
        problem(503, "unavailable", retry_after="1"),
        HttpResponse(429, {"retry-after": "1"}, b"<html>"),
    ],
)
def test_a_request_that_may_have_had_its_effect_is_never_sent_again(
    clock: Clock, failure: HttpResponse | ServiceUnreachable
) -> None:
    for request in (CREATE_KEY, http_requests.rotate_key("k", 0), http_requests.run_again("a", "retry", {})):
        sent, pauses, error = play(clock, request, once(failure))
        assert (sent, pauses) == (1, [])
        assert isinstance(error, ServiceUnreachable | RetryLater)


def test_a_request_that_nobody_received_or_that_was_refused_is_sent_again_whatever_it_is(
    clock: Clock,
) -> None:
    for failure in (NOT_SENT, problem(429, "rate_limited", retry_after="1")):
        assert play(clock, CREATE_KEY, once(failure))[::2] == (2, None)


def test_a_service_that_never_answered_is_unreachable_at_once(clock: Clock) -> None:
    assert play(clock, READ, lambda _: NOT_SENT, connected=False) == (1, [], NOT_SENT)


def test_a_service_that_stays_away_is_given_up_after_growing_pauses(clock: Clock) -> None:
    sent, pauses, error = play(clock, READ, lambda _: NOT_SENT)
    assert error is NOT_SENT
    assert isinstance(error.__cause__, httpx2.ConnectError)
    assert 15 <= sent <= 40
    assert 25 <= sum(pauses) <= 30
    assert max(pauses) <= 2


@pytest.mark.parametrize(
    "answer",
    [problem(422, "invalid_field"), problem(401, "unauthenticated"), problem(503, "query_too_slow")],
)
def test_an_error_of_the_caller_is_raised_at_once(clock: Clock, answer: HttpResponse) -> None:
    assert play(clock, READ, lambda _: answer)[:2] == (1, [])


def test_a_service_that_fails_is_asked_twice_more(clock: Clock) -> None:
    sent, pauses, error = play(clock, READ, lambda _: problem(500, "internal"))
    assert (sent, len(pauses)) == (3, 2)
    assert isinstance(error, ServiceUnreachable)
    assert (error.code, error.status) == ("internal", 500)


def test_a_silent_stream_ends_with_its_time(clock: Clock) -> None:
    state = ServiceState("http://service", RetryTimes(30.0, 60.0))
    run: ProcedureRun[Any] = ProcedureRun(sans_io.follow(state, EventStream("a"), 10))
    assert isinstance(run.step, OpenStream)
    assert run.step.request.max_quiet_seconds == 15
    run.resume(HttpResponse(200, {}))
    clock.now += 15
    run.fail(lost(httpx2.ReadTimeout("timed out")))
    assert run.step is None


def test_a_proxy_that_names_a_time_is_honoured(clock: Clock) -> None:
    answer = HttpResponse(503, {"retry-after": "3"}, b"<html>")
    assert play(clock, READ, once(answer)) == (2, [3.0], None)


def test_a_deletion_that_was_repeated_and_finds_nothing_has_succeeded(clock: Clock) -> None:
    gone, request = problem(404, "not_found"), http_requests.delete("a")
    assert play(clock, request, lambda count: CUT if count == 1 else gone)[::2] == (2, None)
    assert isinstance(play(clock, request, lambda _: gone)[2], NotFound)


def test_a_time_to_wait_is_read_in_both_of_its_forms() -> None:
    def read(value: str) -> int | None:
        return retry_after_seconds(HttpResponse(503, {"retry-after": value}))

    later = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    assert 95 <= (read(later) or 0) <= 100
    assert read("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert [read(value) for value in ("7", " 7 ", "", "-1", "1.5", "soon", "٣")] == [7, 7, *[None] * 5]
    assert (read("9" * 5000) or 0) >= 10**9


@pytest.mark.parametrize("seconds", [-1.0, float("nan")])
def test_a_time_that_is_none_is_refused(seconds: float) -> None:
    state = ServiceState("http://service", RetryTimes(1.0, 1.0))
    with pytest.raises(InvalidRequest):
        ProcedureRun(sans_io.wait_for_job(state, "a", seconds))


def test_a_wait_with_a_limit_does_not_depend_on_a_service_that_hangs(clock: Clock) -> None:
    state = ServiceState("http://service", RetryTimes(30.0, 60.0, connected=True))
    run: ProcedureRun[Any] = ProcedureRun(sans_io.wait_for_job(state, "a", 10))
    assert isinstance(run.step, Send)
    assert run.step.request.headers == {"prefer": "wait=10"}
    assert run.step.request.max_quiet_seconds == 15
    clock.now += 15  # as long as the answer may be silent
    hung = lost(httpx2.ReadTimeout("timed out"))
    with pytest.raises(ServiceUnreachable) as caught:
        run.fail(hung)
    assert caught.value is hung
    unlimited: ProcedureRun[Any] = ProcedureRun(sans_io.wait_for_job(state, "a", None))
    assert isinstance(unlimited.step, Send)
    assert unlimited.step.request.max_quiet_seconds == math.inf
    assert unlimited.step.request.quiet_seconds == 30
