"""Both clients against a real HTTP server whose answers the test lays out."""

from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from urllib.parse import parse_qs

import pytest
from tests.cli.command_line import JOB_ID, KEY, ScriptedAnswer, ScriptedService, event_json, job_json
from tests.client.client_kinds import MakeClient

from steadyhand import (
    Client,
    Conflict,
    Cost,
    Forbidden,
    InvalidRequest,
    NotFound,
    QueryTooSlow,
    RetryLater,
    ServiceUnreachable,
    SteadyhandError,
    Unauthenticated,
)

EVENTS = f"/v1/jobs/{JOB_ID}/events"
JOB = f"/v1/jobs/{JOB_ID}"
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, "malformed_json", InvalidRequest),
        (401, "unauthenticated", Unauthenticated),
        (403, "workspace_not_allowed", Forbidden),
        (404, "not_found", NotFound),
        (409, "not_ready", Conflict),
        (413, "body_too_large", InvalidRequest),
        (422, "unknown_agent", InvalidRequest),
        (429, "queue_full", RetryLater),
        (503, "draining", RetryLater),
        (503, "query_too_slow", QueryTooSlow),
        (408, "request_timeout", RetryLater),
        (500, "internal", ServiceUnreachable),
    ],
)
def test_each_status_becomes_its_error_with_code_and_detail(
    make_client: MakeClient, scripted: ScriptedService, status: int, code: str, kind: type[SteadyhandError]
) -> None:
    scripted.respond("GET", JOB, ScriptedAnswer.problem(status, code, "Because.", x_request_id="req_1"))
    with (
        make_client(scripted.url, KEY, retry_later_seconds=0) as client,
        pytest.raises(kind) as caught,
    ):
        client.get(JOB_ID)
    assert "Because." in caught.value.detail
    assert (caught.value.code, caught.value.status, caught.value.request_id) == (code, status, "req_1")
    assert len(scripted.requests) == 1


def test_every_wrong_field_and_the_time_to_wait_are_kept(
    make_client: MakeClient, scripted: ScriptedService
) -> None:
    body = {
        "detail": "two",
        "code": "invalid_field",
        "errors": [{"pointer": "/a", "detail": "x"}, {"pointer": "/b"}],
    }
    scripted.respond("POST", "/v1/jobs", ScriptedAnswer.of(body, 422))
    scripted.respond("GET", JOB, ScriptedAnswer.problem(429, "queue_full", "Full.", retry_after="12"))
    with make_client(scripted.url, KEY, retry_later_seconds=5) as client:
        with pytest.raises(InvalidRequest) as wrong:
            client.submit("x")
        with pytest.raises(RetryLater) as full:
            client.get(JOB_ID)
    assert [(fault.pointer, fault.detail) for fault in wrong.value.field_errors] == [("/a", "x"), ("/b", "")]
    assert full.value.retry_after == 12


@pytest.mark.parametrize(
    "answer",
    [
        ScriptedAnswer(200, b"<html>hello</html>", "text/html"),
        ScriptedAnswer(502, b"bad gateway", "text/plain"),
        ScriptedAnswer.of([1]),
        ScriptedAnswer(200, b"[" * 100_000),
    ],
)
def test_an_answer_that_is_not_ours_is_told_apart(
    make_client: MakeClient, scripted: ScriptedService, answer: ScriptedAnswer
) -> None:
    scripted.respond("GET", JOB, answer)
    with make_client(scripted.url, KEY) as client, pytest.raises(ServiceUnreachable) as caught:
        client.get(JOB_ID)
    assert caught.value.code == "bad_answer"


def test_nobody_listening_is_unreachable_and_keeps_its_cause(make_client: MakeClient) -> None:
    with make_client("http://127.0.0.1:9", KEY) as client, pytest.raises(ServiceUnreachable) as caught:
        client.get(JOB_ID)
    assert caught.value.code == "unreachable"
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize(
    "address", ["", "nonsense", "ftp://127.0.0.1", "http://", "http://[::1", "file:///etc"]
)
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(InvalidRequest):
        Client(address)


@pytest.mark.parametrize("token", ["line\nbreak", "snow☃", "nul\x00"])
def test_a_key_that_cannot_stand_in_a_header_is_refused(token: str) -> None:
    with pytest.raises(InvalidRequest):
        Client("http://127.0.0.1:9", token)


@pytest.mark.parametrize("job_id", ["", "../keys", "a/b", "a?b", "é", "a b"])
def test_an_id_never_becomes_another_path(
    make_client: MakeClient, scripted: ScriptedService, job_id: str
) -> None:
    with make_client(scripted.url, KEY) as client:
        reads = (client.get, client.diff, client.transcript, client.bundle)
        for verb in (*reads, client.cancel, client.delete, client.retry):
            with pytest.raises(NotFound):
                verb(job_id)
    assert scripted.requests == []


def test_the_key_and_the_fields_are_sent_and_null_ones_are_not(
    make_client: MakeClient, scripted: ScriptedService
) -> None:
    scripted.respond("POST", "/v1/jobs", ScriptedAnswer.of(job_json(), 202))
    with make_client(scripted.url, KEY) as client:
        client.submit("Do it.", budget_usd=1.5, model=None)
    [asked] = scripted.requests
    assert asked.headers["authorization"] == f"Bearer {KEY}"
    assert asked.body == {"prompt": "Do it.", "budget_usd": 1.5}
    assert asked.headers["idempotency-key"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "\ud800", object()])
def test_what_json_cannot_say_is_refused_before_it_is_sent(
    make_client: MakeClient, scripted: ScriptedService, value: object
) -> None:
    with make_client(scripted.url, KEY) as client, pytest.raises(InvalidRequest):
        client.submit("x", metadata={"value": value})
    assert scripted.requests == []


def test_a_submission_whose_answer_was_lost_is_sent_again_with_the_same_key(
    make_client: MakeClient, scripted: ScriptedService
) -> None:
    scripted.respond(
        "POST", "/v1/jobs", ScriptedAnswer(202, b"{", cut=True), ScriptedAnswer.of(job_json(), 202)
    )
    with make_client(scripted.url, KEY) as client:
        assert client.submit("x").id == JOB_ID
    first, second = scripted.requests
    assert first.headers["idempotency-key"] == second.headers["idempotency-key"]


def test_a_stream_that_breaks_is_taken_up_after_the_last_number(
    make_client: MakeClient, scripted: ScriptedService
) -> None:
    one, two = (
        event_json(1, "message", role="assistant", text="one"),
        event_json(2, "message", role="assistant", text="2"),
    )
    delta, end = (
        event_json(None, "text.delta", text="o"),
        event_json(3, "state.changed", **{"from": "running", "to": "failed"}),
    )
    scripted.respond(
        "GET", EVENTS, ScriptedAnswer.stream(one, delta, cut=True), ScriptedAnswer.stream(two, end)
    )
    with make_client(scripted.url, KEY) as client:
        assert [event.seq for event in client.follow(JOB_ID)] == [1, None, 2, 3]
    assert [asked.headers.get("last-event-id") for asked in scripted.requests] == [None, "1"]


def test_a_stream_that_breaks_after_the_last_event_ends_with_the_204(
    make_client: MakeClient, scripted: ScriptedService
) -> None:
    end = event_json(1, "state.changed", **{"from": "running", "to": "completed"})
    scripted.respond("GET", EVENTS, ScriptedAnswer.stream(end, cut=True), ScriptedAnswer(204))
    with make_client(scripted.url, KEY) as client:
        assert [event.seq for event in client.follow(JOB_ID)] == [1]
    assert [asked.headers.get("last-event-id") for asked in scripted.requests] == [None, "1"]


def test_an_ended_state_in_the_middle_is_not_the_end(
    make_client: MakeClient, scripted: ScriptedService
) -> None:
    moves = [("running", "failed"), ("failed", "queued"), ("queued", "running"), ("running", "completed")]
    events = [event_json(n, "state.changed", **{"from": a, "to": b}) for n, (a, b) in enumerate(moves, 1)]
    scripted.respond("GET", EVENTS, ScriptedAnswer.stream(*events))
    with make_client(scripted.url, KEY) as client:
        assert [event.seq for event in client.follow(JOB_ID)] == [1, 2, 3, 4]


def test_a_stream_that_always_breaks_is_given_up_in_the_end(
    make_client: MakeClient, scripted: ScriptedService
) -> None:
    scripted.respond("GET", EVENTS, ScriptedAnswer.stream())
    with make_client(scripted.url, KEY, reconnect_seconds=3) as client, pytest.raises(ServiceUnreachable):
        list(client.follow(JOB_ID))
    assert len(scripted.requests) > 1


def test_a_service_that_went_away_is_given_up_however_long_each_attempt_takes(
    make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "steadyhand.client.sans_io._STABLE_STREAM_SECONDS", -1.0
    )  # every attempt counts as a long one
    with make_client("http://127.0.0.1:9", KEY, reconnect_seconds=0.3) as client:
        client._state.limits.connected = True
        with pytest.raises(ServiceUnreachable):
            list(client.follow(JOB_ID))


def test_unicode_line_ends_within_an_event_do_not_split_it(
    make_client: MakeClient, scripted: ScriptedService
) -> None:
    text = "a\u2028b\u0085c\x0bd"
    end = event_json(2, "state.changed", **{"from": "running", "to": "completed"})
    scripted.respond(
        "GET", EVENTS, ScriptedAnswer.stream(event_json(1, "message", role="assistant", text=text), end)
    )
    with make_client(scripted.url, KEY) as client:
        assert next(iter(client.follow(JOB_ID))).text == text


def test_an_unreadable_event_is_an_error_and_no_traceback(
    make_client: MakeClient, scripted: ScriptedService
) -> None:
    scripted.respond("GET", EVENTS, ScriptedAnswer(200, b"data: {nonsense\n\n", "text/event-stream"))
    with make_client(scripted.url, KEY, reconnect_seconds=0.3) as client, pytest.raises(ServiceUnreachable):
        list(client.follow(JOB_ID))


def test_without_follow_the_events_so_far_come_page_by_page(
    make_client: MakeClient, scripted: ScriptedService
) -> None:
    first = {"object": "list", "data": [event_json(1, "warning"), event_json(2, "warning")], "has_more": True}
    second = {"object": "list", "data": [event_json(3, "warning")], "has_more": False}
    scripted.respond("GET", EVENTS, ScriptedAnswer.of(first), ScriptedAnswer.of(second))
    with make_client(scripted.url, KEY) as client:
        assert [event.seq for event in client.events(JOB_ID)] == [1, 2, 3]
    assert [asked.path.partition("?")[2] for asked in scripted.requests] == ["after=0", "after=2"]


def test_waiting_goes_on_until_the_job_has_ended(make_client: MakeClient, scripted: ScriptedService) -> None:
    scripted.respond(
        "GET",
        JOB,
        ScriptedAnswer.of(job_json(state="queued")),
        ScriptedAnswer.of(job_json(state="running")),
        ScriptedAnswer.of(job_json()),
    )
    with make_client(scripted.url, KEY) as client:
        assert client.wait(JOB_ID).state == "completed"
    assert [asked.headers["prefer"] for asked in scripted.requests] == ["wait=30"] * 3


TO_RUN_AGAIN = ScriptedAnswer.of(job_json(state="interrupted", will_run_again=True, answer=None))
"""A job that a stop of the service interrupted, as long as the service still answers."""


def test_waiting_goes_on_with_a_job_that_is_run_again(
    make_client: MakeClient, scripted: ScriptedService
) -> None:
    scripted.respond("GET", JOB, TO_RUN_AGAIN, TO_RUN_AGAIN, ScriptedAnswer.of(job_json(run=2)))
    with make_client(scripted.url, KEY) as client:
        assert (client.wait(JOB_ID).state, len(scripted.requests)) == ("completed", 3)
    interrupted = ScriptedAnswer.of(job_json(state="interrupted", will_run_again=False))
    scripted.respond("GET", JOB, interrupted)
    with make_client(scripted.url, KEY) as client:
        assert client.wait(JOB_ID).state == "interrupted"
        scripted.respond("GET", JOB, TO_RUN_AGAIN)
        waited = client.wait(JOB_ID, timeout_seconds=0.3)
        assert (waited.ended, waited.is_final, waited.will_run_again) == (True, False, True)


def test_a_job_that_is_to_run_again_is_returned_if_the_service_stays_away(
    make_client: MakeClient, scripted: ScriptedService
) -> None:
    end = event_json(1, "state.changed", **{"from": "running", "to": "interrupted"})
    away = ScriptedAnswer(502, b"bad gateway")
    scripted.respond("GET", EVENTS, ScriptedAnswer.stream(end))
    with make_client(scripted.url, KEY, reconnect_seconds=0.3) as client:
        scripted.respond("GET", JOB, TO_RUN_AGAIN, away)
        assert client.wait(JOB_ID).will_run_again
        scripted.respond("GET", JOB, TO_RUN_AGAIN, away)
        with pytest.raises(ServiceUnreachable):
            list(client.follow(JOB_ID))


def test_following_goes_on_with_a_job_that_is_run_again(
    make_client: MakeClient, scripted: ScriptedService
) -> None:
    moves = [("running", "interrupted"), ("interrupted", "queued"), ("queued", "completed")]
    events = [event_json(n, "state.changed", **{"from": a, "to": b}) for n, (a, b) in enumerate(moves, 1)]
    scripted.respond("GET", EVENTS, ScriptedAnswer.stream(events[0]), ScriptedAnswer.stream(*events[1:]))
    scripted.respond("GET", JOB, TO_RUN_AGAIN, ScriptedAnswer.of(job_json(state="running", last_event=2)))
    with make_client(scripted.url, KEY) as client:
        assert [event.seq for event in client.follow(JOB_ID)] == [1, 2, 3]
        assert [asked.headers.get("last-event-id") for asked in scripted.requests] == [None, None, None, "1"]
        # Neither an end for good nor a service that has nothing new is followed forever.
        for last_event in (1, 9):
            job = job_json(state="interrupted", last_event=last_event)
            scripted.respond("GET", EVENTS, ScriptedAnswer.stream(events[0]), ScriptedAnswer(204))
            scripted.respond("GET", JOB, ScriptedAnswer.of(job))
            assert [event.seq for event in client.follow(JOB_ID)] == [1]
        scripted.respond("GET", EVENTS, ScriptedAnswer(204))
        scripted.respond("GET", JOB, ScriptedAnswer.of(job_json(last_event=1)))
        assert list(client.follow(JOB_ID, after=1)) == []


def test_waiting_has_a_bound_when_one_is_given(make_client: MakeClient, scripted: ScriptedService) -> None:
    scripted.respond("GET", JOB, ScriptedAnswer.of(job_json(state="running")))
    with make_client(scripted.url, KEY) as client:
        assert client.wait(JOB_ID, timeout_seconds=0.3).state == "running"


def test_waiting_outlives_a_restart_of_the_service(
    make_client: MakeClient, scripted: ScriptedService
) -> None:
    scripted.respond(
        "GET",
        JOB,
        ScriptedAnswer.of(job_json(state="running")),
        ScriptedAnswer(200, b"{", cut=True),
        ScriptedAnswer.of(job_json()),
    )
    with make_client(scripted.url, KEY) as client:
        assert client.wait(JOB_ID).state == "completed"
    assert len(scripted.requests) == 3


def test_there_is_no_patience_with_a_service_that_never_answered(
    make_client: MakeClient, scripted: ScriptedService
) -> None:
    scripted.respond("GET", JOB, ScriptedAnswer(502, b"bad gateway")).respond(
        "GET", EVENTS, ScriptedAnswer(502, b"bad gateway")
    )
    with make_client(scripted.url, KEY) as client:
        with pytest.raises(ServiceUnreachable):
            client.wait(JOB_ID)
        with pytest.raises(ServiceUnreachable):
            list(client.follow(JOB_ID))
    assert len(scripted.requests) == 2


def test_a_refusal_is_tried_again_after_the_time_that_the_service_names(
    make_client: MakeClient, scripted: ScriptedService
) -> None:
    refusals = [
        ScriptedAnswer.problem(status, code, "Not now.", retry_after="1")
        for status, code in ((429, "queue_full"), (503, "unavailable"))
    ]
    scripted.respond("POST", "/v1/jobs", *refusals, ScriptedAnswer.of(job_json(), 202))
    with make_client(scripted.url, KEY) as client:
        assert client.submit("x").id == JOB_ID
    assert len({asked.headers["idempotency-key"] for asked in scripted.requests}) == 1
    assert len(scripted.requests) == 3


def test_each_submission_has_an_idempotency_key_of_its_own_or_the_one_of_the_caller(
    make_client: MakeClient, scripted: ScriptedService
) -> None:
    scripted.respond("POST", "/v1/jobs", ScriptedAnswer.of(job_json(), 202))
    scripted.respond("POST", f"{JOB}/turns", ScriptedAnswer.of(job_json(), 202))
    with make_client(scripted.url, KEY) as client:
        client.submit("x")
        client.submit("x")
        client.turn(JOB_ID, "x")
        client.submit("x", idempotency_key="mine")
        with pytest.raises(InvalidRequest):
            client.submit("x", idempotency_key="line\nbreak")
    keys = [asked.headers["idempotency-key"] for asked in scripted.requests]
    assert len(set(keys)) == 4
    assert keys[3] == "mine"


def test_a_newer_service_may_have_more_types_states_and_fields(
    make_client: MakeClient, scripted: ScriptedService
) -> None:
    cost = job_json()["cost"] | {"currency": "USD"}
    job = job_json(state="hibernating", mood="calm", cost=cost, warnings=[{"code": "new", "message": "!"}])
    end = event_json(2, "state.changed", **{"from": "running", "to": "completed"}) | {"trace": "t1"}
    scripted.respond("GET", JOB, ScriptedAnswer.of(job))
    scripted.respond("GET", EVENTS, ScriptedAnswer.stream(event_json(1, "aura.changed", hue=[1]), end))
    with make_client(scripted.url, KEY) as client:
        found, events = client.get(JOB_ID), list(client.follow(JOB_ID))
    assert (found.state, found.ended, found.extra) == ("hibernating", False, {"mood": "calm"})
    assert (found.cost.extra, found.warnings[0].code) == ({"currency": "USD"}, "new")
    assert found.document == job
    assert (events[0].type, events[0].data) == ("aura.changed", {"hue": [1]})
    assert (events[1].new_state, events[1].extra) == ("completed", {"trace": "t1"})


@pytest.mark.parametrize(
    ("name", "value", "default"),
    [
        ("run", True, 0),
        ("cost", {"usd": "much"}, Cost(usd=Decimal(0), priced=False)),
        ("cost", {"usd": "NaN"}, Cost(usd=Decimal(0), priced=False)),
        ("budget_usd", 5, None),
        ("created_at", "2026-01-01T00:00:00", None),
        ("created_at", "yesterday", None),
        ("timeout_seconds", 10**400, None),
        ("warnings", [{"code": "x", "message": "y"}, {"code": 1}], ()),
        ("warnings", {}, ()),
        ("outcome", [], None),
        ("changes", {"base": "a"}, None),
        ("metadata", [], {}),
    ],
)
def test_a_field_that_cannot_be_read_has_its_default_and_is_kept_apart(
    make_client: MakeClient, scripted: ScriptedService, name: str, value: object, default: object
) -> None:
    scripted.respond("GET", JOB, ScriptedAnswer.of(job_json(**{name: value})))
    with make_client(scripted.url, KEY) as client:
        job = client.get(JOB_ID)
    found = getattr(job, name)
    kept = found.extra if isinstance(found, Cost) else job.extra
    assert (replace(found, extra={}) if isinstance(found, Cost) else found) == default
    assert kept == (value if isinstance(found, Cost) else {name: value})
    assert job.document[name] == value


@pytest.mark.parametrize(
    ("changes", "where"), [({"id": None}, "id: is missing"), ({"state": 1}, "state: is no text")]
)
def test_an_object_without_its_first_fields_is_no_result(
    make_client: MakeClient, scripted: ScriptedService, changes: dict[str, object], where: str
) -> None:
    scripted.respond("GET", JOB, ScriptedAnswer.of(job_json(**changes)))
    with make_client(scripted.url, KEY) as client, pytest.raises(ServiceUnreachable) as caught:
        client.get(JOB_ID)
    assert caught.value.code == "bad_answer"
    assert where in caught.value.detail


def test_an_event_that_a_proxy_sends_twice_comes_once(
    make_client: MakeClient, scripted: ScriptedService
) -> None:
    events = [event_json(number, "warning", code="x", message=str(number)) for number in (1, 2)]
    end = event_json(3, "state.changed", **{"from": "running", "to": "completed"})
    scripted.respond(
        "GET", EVENTS, ScriptedAnswer.stream(*events, cut=True), ScriptedAnswer.stream(*events, end)
    )
    with make_client(scripted.url, KEY) as client:
        assert [event.seq for event in client.follow(JOB_ID)] == [1, 2, 3]


def test_an_endless_event_is_given_up(
    make_client: MakeClient, scripted: ScriptedService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("steadyhand.client.server_sent_events._MAX_EVENT_BYTES", 1000)
    for body in (b"data: " + b"x" * 2000, b"data: 1\n" * 300):
        scripted.respond("GET", EVENTS, ScriptedAnswer(200, body, "text/event-stream"))
        with (
            make_client(scripted.url, KEY, reconnect_seconds=0.3) as client,
            pytest.raises(ServiceUnreachable) as caught,
        ):
            list(client.follow(JOB_ID))
        assert "too long" in caught.value.detail


def test_a_filter_by_metadata_and_several_states_is_sent_as_parameters(
    make_client: MakeClient, scripted: ScriptedService
) -> None:
    scripted.respond("GET", "/v1/jobs", ScriptedAnswer.of({"object": "list", "data": [], "has_more": False}))
    with make_client(scripted.url, KEY) as client:
        client.list(state=["failed", "timeout"], metadata={"team": "a b"}, created_after=NOON, agent=None)
    [asked] = scripted.requests
    assert parse_qs(asked.path.partition("?")[2]) == {
        "limit": ["20"],
        "state": ["failed", "timeout"],
        "metadata.team": ["a b"],
        "created_after": ["2026-01-01T12:00:00+00:00"],
    }


def test_a_redirect_is_no_answer_and_the_key_stays_here(
    make_client: MakeClient, scripted: ScriptedService
) -> None:
    elsewhere = ScriptedAnswer(302, b"", headers={"location": f"{scripted.url}/v1/jobs/{'0' * 12}"})
    scripted.respond("GET", JOB, elsewhere)
    with make_client(scripted.url, KEY) as client, pytest.raises(ServiceUnreachable):
        client.get(JOB_ID)
    assert len(scripted.requests) == 1
