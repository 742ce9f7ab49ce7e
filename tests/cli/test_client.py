"""The Python client, against a real HTTP server whose answers the test lays out."""

import inspect

import pytest
from tests.cli.command_line import JOB_ID, KEY, ScriptedAnswer, ScriptedService, event_json, job_json

import steadyhand.client as public
from steadyhand.client import Client
from steadyhand.errors import (
    Conflict,
    Forbidden,
    InvalidRequest,
    NotFound,
    RetryLater,
    ServiceUnreachable,
    SteadyhandError,
    Unauthenticated,
)

EVENTS = f"/v1/jobs/{JOB_ID}/events"
JOB = f"/v1/jobs/{JOB_ID}"


def test_the_public_surface_is_this_and_no_more() -> None:
    assert public.__all__ == ["DEFAULT_URL", "ENDED_STATES", "Client"]
    verbs = {name for name in vars(Client) if not name.startswith("_")}
    assert verbs == {
        "agents",
        "bundle",
        "cancel",
        "close",
        "create_key",
        "delete",
        "diff",
        "events",
        "get",
        "list",
        "list_keys",
        "resume",
        "retry",
        "revoke_key",
        "rotate_key",
        "submit",
        "transcript",
        "usage",
        "wait",
        "workspaces",
    }
    assert all(inspect.getdoc(getattr(Client, name)) for name in verbs)


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
        (500, "internal", ServiceUnreachable),
    ],
)
def test_each_status_becomes_its_error_with_code_and_detail(
    service: ScriptedService, status: int, code: str, kind: type[SteadyhandError]
) -> None:
    service.respond("GET", JOB, ScriptedAnswer.problem(status, code, "Because."))
    with Client(service.url, KEY) as client, pytest.raises(kind) as caught:
        client.get(JOB_ID)
    assert "Because." in caught.value.detail
    assert caught.value.code == code


def test_every_wrong_field_and_the_time_to_wait_are_kept(service: ScriptedService) -> None:
    body = {
        "detail": "two",
        "code": "invalid_field",
        "errors": [{"pointer": "/a", "detail": "x"}, {"pointer": "/b"}],
    }
    service.respond("POST", "/v1/jobs", ScriptedAnswer.of(body, 422))
    service.respond("GET", JOB, ScriptedAnswer.problem(429, "queue_full", "Full.", retry_after="12"))
    with Client(service.url, KEY) as client:
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
def test_an_answer_that_is_not_ours_is_told_apart(service: ScriptedService, answer: ScriptedAnswer) -> None:
    service.respond("GET", JOB, answer)
    with Client(service.url, KEY) as client, pytest.raises(ServiceUnreachable) as caught:
        client.get(JOB_ID)
    assert caught.value.code == "bad_answer"


def test_nobody_listening_is_unreachable_and_keeps_its_cause() -> None:
    with Client("http://127.0.0.1:9", KEY) as client, pytest.raises(ServiceUnreachable) as caught:
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
def test_an_id_never_becomes_another_path(service: ScriptedService, job_id: str) -> None:
    with Client(service.url, KEY) as client:
        reads = (client.get, client.diff, client.transcript, client.bundle)
        for verb in (*reads, client.cancel, client.delete, client.retry):
            with pytest.raises(NotFound):
                verb(job_id)
    assert service.requests == []


def test_the_key_and_the_fields_are_sent_and_null_ones_are_not(service: ScriptedService) -> None:
    service.respond("POST", "/v1/jobs", ScriptedAnswer.of(job_json(), 202))
    with Client(service.url, KEY) as client:
        client.submit("Do it.", budget_usd=1.5, model=None)
    [asked] = service.requests
    assert asked.headers["authorization"] == f"Bearer {KEY}"
    assert asked.body == {"prompt": "Do it.", "budget_usd": 1.5}
    assert asked.headers["idempotency-key"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "\ud800", object()])
def test_what_json_cannot_say_is_refused_before_it_is_sent(service: ScriptedService, value: object) -> None:
    with Client(service.url, KEY) as client, pytest.raises(InvalidRequest):
        client.submit("x", metadata={"value": value})
    assert service.requests == []


def test_a_submission_whose_answer_was_lost_is_sent_again_with_the_same_key(service: ScriptedService) -> None:
    service.respond(
        "POST", "/v1/jobs", ScriptedAnswer(202, b"{", cut=True), ScriptedAnswer.of(job_json(), 202)
    )
    with Client(service.url, KEY) as client:
        assert client.submit("x")["id"] == JOB_ID
    first, second = service.requests
    assert first.headers["idempotency-key"] == second.headers["idempotency-key"]


def test_a_stream_that_breaks_is_taken_up_after_the_last_number(service: ScriptedService) -> None:
    one, two = (
        event_json(1, "message", role="assistant", text="one"),
        event_json(2, "message", role="assistant", text="2"),
    )
    delta, end = (
        event_json(None, "text.delta", text="o"),
        event_json(3, "state.changed", **{"from": "running", "to": "failed"}),
    )
    service.respond(
        "GET", EVENTS, ScriptedAnswer.stream(one, delta, cut=True), ScriptedAnswer.stream(two, end)
    )
    with Client(service.url, KEY) as client:
        assert [event["seq"] for event in client.events(JOB_ID)] == [1, None, 2, 3]
    assert [asked.headers.get("last-event-id") for asked in service.requests] == [None, "1"]


def test_a_stream_that_breaks_after_the_last_event_ends_with_the_204(service: ScriptedService) -> None:
    end = event_json(1, "state.changed", **{"from": "running", "to": "completed"})
    service.respond("GET", EVENTS, ScriptedAnswer.stream(end, cut=True), ScriptedAnswer(204))
    with Client(service.url, KEY) as client:
        assert [event["seq"] for event in client.events(JOB_ID)] == [1]
    assert [asked.headers.get("last-event-id") for asked in service.requests] == [None, "1"]


def test_an_ended_state_in_the_middle_is_not_the_end(service: ScriptedService) -> None:
    moves = [("running", "failed"), ("failed", "queued"), ("queued", "running"), ("running", "completed")]
    events = [event_json(n, "state.changed", **{"from": a, "to": b}) for n, (a, b) in enumerate(moves, 1)]
    service.respond("GET", EVENTS, ScriptedAnswer.stream(*events))
    with Client(service.url, KEY) as client:
        assert [event["seq"] for event in client.events(JOB_ID)] == [1, 2, 3, 4]


def test_a_stream_that_always_breaks_is_given_up_in_the_end(service: ScriptedService) -> None:
    service.respond("GET", EVENTS, ScriptedAnswer.stream())
    with Client(service.url, KEY, patience_seconds=0.5) as client, pytest.raises(ServiceUnreachable):
        list(client.events(JOB_ID))
    assert len(service.requests) > 1


def test_a_service_that_went_away_is_given_up_however_long_each_attempt_takes(
    service: ScriptedService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "steadyhand.client.client._STABLE_STREAM_SECONDS", -1.0
    )  # every attempt counts as a long one
    service.close()
    with Client(service.url, KEY, patience_seconds=0.3) as client:
        client._has_connected = True
        with pytest.raises(ServiceUnreachable):
            list(client.events(JOB_ID))


def test_unicode_line_ends_within_an_event_do_not_split_it(service: ScriptedService) -> None:
    text = "a\u2028b\u0085c\x0bd"
    end = event_json(2, "state.changed", **{"from": "running", "to": "completed"})
    service.respond(
        "GET", EVENTS, ScriptedAnswer.stream(event_json(1, "message", role="assistant", text=text), end)
    )
    with Client(service.url, KEY) as client:
        assert next(iter(client.events(JOB_ID)))["data"]["text"] == text


def test_an_unreadable_event_is_an_error_and_no_traceback(service: ScriptedService) -> None:
    service.respond("GET", EVENTS, ScriptedAnswer(200, b"data: {nonsense\n\n", "text/event-stream"))
    with Client(service.url, KEY, patience_seconds=0.3) as client, pytest.raises(ServiceUnreachable):
        list(client.events(JOB_ID))


def test_without_follow_the_events_so_far_come_page_by_page(service: ScriptedService) -> None:
    first = {"object": "list", "data": [event_json(1, "warning"), event_json(2, "warning")], "has_more": True}
    second = {"object": "list", "data": [event_json(3, "warning")], "has_more": False}
    service.respond("GET", EVENTS, ScriptedAnswer.of(first), ScriptedAnswer.of(second))
    with Client(service.url, KEY) as client:
        assert [event["seq"] for event in client.events(JOB_ID, follow=False)] == [1, 2, 3]
    assert [asked.path.partition("?")[2] for asked in service.requests] == ["after=0", "after=2"]


def test_waiting_goes_on_until_the_job_has_ended(service: ScriptedService) -> None:
    service.respond(
        "GET",
        JOB,
        ScriptedAnswer.of(job_json(state="queued")),
        ScriptedAnswer.of(job_json(state="running")),
        ScriptedAnswer.of(job_json()),
    )
    with Client(service.url, KEY) as client:
        assert client.wait(JOB_ID)["state"] == "completed"
    assert [asked.headers["prefer"] for asked in service.requests] == ["wait=30"] * 3


def test_waiting_has_a_bound_when_one_is_given(service: ScriptedService) -> None:
    service.respond("GET", JOB, ScriptedAnswer.of(job_json(state="running")))
    with Client(service.url, KEY) as client:
        assert client.wait(JOB_ID, timeout_seconds=0.3)["state"] == "running"


def test_waiting_outlives_a_restart_of_the_service(service: ScriptedService) -> None:
    service.respond(
        "GET",
        JOB,
        ScriptedAnswer.of(job_json(state="running")),
        ScriptedAnswer(200, b"{", cut=True),
        ScriptedAnswer.of(job_json()),
    )
    with Client(service.url, KEY) as client:
        assert client.wait(JOB_ID)["state"] == "completed"
    assert len(service.requests) == 3


def test_there_is_no_patience_with_a_service_that_never_answered(service: ScriptedService) -> None:
    service.respond("GET", JOB, ScriptedAnswer(502, b"bad gateway")).respond(
        "GET", EVENTS, ScriptedAnswer(502, b"bad gateway")
    )
    with Client(service.url, KEY) as client:
        with pytest.raises(ServiceUnreachable):
            client.wait(JOB_ID)
        with pytest.raises(ServiceUnreachable):
            list(client.events(JOB_ID))
    assert len(service.requests) == 2
