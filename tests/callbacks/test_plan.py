"""Who is told of an event of a job, and the bodies."""

import json
from dataclasses import replace
from typing import Any

from steadyhand.api.native.serializers import job_json
from steadyhand.api.openai.responses.webhook_event import webhook_event
from steadyhand.callbacks.address_guard import parse_callback_url
from steadyhand.callbacks.endpoints import Endpoint
from steadyhand.callbacks.plan import MAX_BODY_BYTES, DeliveryPlan, Renderers
from steadyhand.events import Event, EventBody, Message, StateChanged, ToolCallsRequested, event_data
from steadyhand.job import CallbackBody, Job, JobCallback, JobSpec, Outcome, OutcomeType, State
from steadyhand.ports import JobTemplate, Schedule, SchedulePause, ScheduleSpec
from steadyhand.redact import NO_REDACTION, Redactor
from steadyhand.testing.contracts.samples import NOON, make_job

URL = "https://receiver.example/hook?signature=secret"
RENDER = Renderers(lambda job: job_json(job, None), webhook_event)


def endpoint(name: str = "one", body: CallbackBody = "thin", **changes: Any) -> Endpoint:
    made = Endpoint(name, parse_callback_url(URL), frozenset({"job.ended"}), frozenset(), body, ("x",))
    return replace(made, **changes)


def plan_with(
    *endpoints: Endpoint, redactor: Redactor = NO_REDACTION, url: str | None = None
) -> DeliveryPlan:
    return DeliveryPlan(lambda: endpoints, RENDER, redactor, url)


def ended_job(**changes: Any) -> Job:
    fields: dict[str, Any] = {
        "state": State.COMPLETED,
        "outcome": Outcome(OutcomeType.SUCCESS),
        "answer": "done",
        "finished_at": NOON,
        **changes,
    }
    return make_job(**fields)


def event(job: Job, body: EventBody) -> Event:
    return Event(7, job.id, 1, NOON, body.type, event_data(body))


ENDED, PARKED = StateChanged("running", "completed"), StateChanged("running", "parked")
CALLS = ToolCallsRequested([{"id": "call_1", "name": "city", "arguments": {}}])


def types_of(plan: DeliveryPlan, job: Job, *bodies: EventBody) -> list[str]:
    return [draft.type for draft in plan(job, [event(job, body) for body in bodies])]


def test_a_schedule_that_has_paused_itself_is_told_to_its_receivers() -> None:
    callback = JobCallback("https://own.example/hook", ("job.ended", "schedule.paused"))
    template = JobTemplate(JobSpec("x", callback=callback), agent="claude")
    pause = SchedulePause(NOON, "max_usd", "Its jobs have cost 5.00 of 5.00 USD; the-secret.")
    schedule = Schedule(
        "sch_1", "nightly", "k_1", "api", ScheduleSpec("@daily", template), NOON, None, paused=pause
    )
    told = frozenset({"schedule.paused"})
    plan = plan_with(
        endpoint("told", events=told),
        endpoint("full", "full", events=told, agents=frozenset({"claude"})),
        endpoint("ends"),
        endpoint("other", events=told, agents=frozenset({"chat"})),
        endpoint("openai", "openai", events=told),
        redactor=Redactor([b"the-secret"]),
        url="https://steady.example/",
    )
    drafts = plan.plan_pause(schedule)
    assert [(each.endpoint, each.url) for each in drafts] == [
        (None, callback.url),
        ("told", None),
        ("full", None),
    ]
    assert len({each.id for each in drafts}) == 3
    assert drafts[0].circuit == "k_1 https://own.example"
    body = json.loads(drafts[0].body)
    assert (body["type"], body["data"]["schedule"], body["data"]["reason"]) == (
        "schedule.paused",
        "nightly",
        "max_usd",
    )
    assert body["data"]["links"]["schedule"] == "https://steady.example/v1/schedules/nightly"
    assert "the-secret" not in drafts[0].body
    assert plan.plan_pause(replace(schedule, paused=None)) == []
    assert plan.plan_pause(replace(schedule, spec=None)) == ()  # type: ignore[arg-type]  # the pause is stored all the same


def test_an_endpoint_is_told_of_its_events_and_of_its_agents() -> None:
    job = ended_job()
    assert types_of(plan_with(endpoint()), job, ENDED, PARKED, CALLS, Message("assistant", "x")) == [
        "job.ended"
    ]
    all_events = endpoint(events=frozenset({"job.ended", "job.parked", "job.needs_results"}))
    assert types_of(plan_with(all_events), job, PARKED, CALLS, ENDED) == [
        "job.parked",
        "job.needs_results",
        "job.ended",
    ]
    assert types_of(plan_with(endpoint(agents=frozenset({"claude"}))), job, ENDED) == ["job.ended"]
    assert types_of(plan_with(endpoint(agents=frozenset({"other"}))), job, ENDED) == []


def test_every_state_in_which_a_job_ends_is_an_end_and_no_other_is() -> None:
    plan = plan_with(endpoint())
    for state in State:
        job = ended_job(state=state)
        assert bool(types_of(plan, job, StateChanged("running", state))) is state.ended


def test_a_job_that_the_next_start_takes_up_has_not_ended() -> None:
    job = ended_job(state=State.INTERRUPTED, at_start="resume")
    assert types_of(plan_with(endpoint()), job, StateChanged("running", "interrupted")) == []


def test_the_receiver_of_a_job_is_told_of_its_end_alone_unless_it_asks_for_more() -> None:
    job = ended_job(callback=JobCallback(URL))
    (draft,) = plan_with()(job, [event(job, body) for body in (PARKED, CALLS, ENDED)])
    assert (draft.endpoint, draft.url, draft.circuit) == (None, URL, "k_one https://receiver.example")
    job = ended_job(callback=JobCallback(URL, ("job.parked", "job.needs_results")))
    assert types_of(plan_with(), job, PARKED, CALLS, ENDED) == ["job.parked", "job.needs_results"]


def test_receivers_of_two_keys_at_one_host_do_not_share_a_circuit() -> None:
    circuits = set()
    for key in ("k_one", "k_two"):
        job = ended_job(api_key_id=key, callback=JobCallback(URL))
        circuits |= {draft.circuit for draft in plan_with()(job, [event(job, ENDED)])}
    assert len(circuits) == 2


def test_a_thin_body_has_ids_and_links_and_nothing_that_anybody_wrote() -> None:
    job = ended_job()
    (draft,) = plan_with(endpoint(), url="https://sh.example/")(job, [event(job, ENDED)])
    assert draft.id.startswith("msg_")
    assert json.loads(draft.body) == {
        "type": "job.ended",
        "timestamp": "2026-03-01T12:00:00.123456Z",
        "data": {
            "id": job.id,
            "state": "completed",
            "outcome": "success",
            "run": 0,
            "event": 7,
            "links": {
                "job": f"https://sh.example/v1/jobs/{job.id}",
                "events": f"https://sh.example/v1/jobs/{job.id}/events",
            },
        },
    }


def test_a_full_body_has_the_whole_job_and_the_calls_that_wait() -> None:
    plan, job = (
        plan_with(endpoint(body="full", events=frozenset({"job.ended", "job.needs_results"}))),
        ended_job(),
    )
    calls, end = (
        json.loads(draft.body)["data"] for draft in plan(job, [event(job, CALLS), event(job, ENDED)])
    )
    assert calls["calls"] == CALLS.calls
    assert end["job"] == json.loads(json.dumps(job_json(job, None)))
    assert "calls" not in end


def test_a_job_that_is_too_large_is_told_of_in_a_thin_body() -> None:
    job = ended_job(answer="é" * MAX_BODY_BYTES)
    (draft,) = plan_with(endpoint(body="full"))(job, [event(job, ENDED)])
    data = json.loads(draft.body)["data"]
    assert data["truncated"] is True
    assert "job" not in data
    assert len(draft.body) < 1_000


def test_live_secrets_are_not_in_a_body_and_the_address_of_the_receiver_is_not_either() -> None:
    secret = "sk-live-0123456789abcdef"
    job = ended_job(
        prompt=f"Use {secret}.", answer=f"It was {secret}.", callback=JobCallback(URL, body="full")
    )
    (draft,) = plan_with(redactor=Redactor([secret]))(job, [event(job, ENDED)])
    assert secret not in draft.body
    assert "signature" not in draft.body
    assert json.loads(draft.body)["data"]["job"]["callback"]["receiver"] == "https://receiver.example"
    assert "signature" not in repr(job)


def response_job(**changes: Any) -> Job:
    request = {
        "kind": "response",
        "version": 1,
        "function": None,
        "model": "claude",
        "background": True,
        "input": [],
    }
    return ended_job(
        origin="openai", request={**request, "echo": {}, **changes.pop("document", {})}, **changes
    )


def test_an_openai_endpoint_is_told_of_responses_in_the_background_alone() -> None:
    plan = plan_with(endpoint(body="openai"))
    for state, outcome, kind in (
        (State.COMPLETED, OutcomeType.SUCCESS, "response.completed"),
        (State.FAILED, OutcomeType.AGENT_ERROR, "response.failed"),
        (State.CANCELLED, OutcomeType.CANCELLED, "response.cancelled"),
    ):
        job = response_job(state=state, outcome=Outcome(outcome))
        (draft,) = plan(job, [event(job, StateChanged("running", state))])
        assert json.loads(draft.body) == {
            "object": "event",
            "id": draft.id,
            "type": kind,
            "created_at": int(NOON.timestamp()),
            "data": {"id": f"resp_{job.id}"},
        }
        assert draft.id.startswith("evt_")
    for job in (ended_job(), response_job(document={"background": False})):
        assert plan(job, [event(job, ENDED)]) == []


def test_a_budget_that_is_nearly_spent_is_told_with_its_amounts() -> None:
    budget = {"scope": "key", "name": "k_one", "period": "day", "limit_usd": "10.00", "spent_usd": "8.10"}
    job = make_job(callback=JobCallback(URL, events=("budget.near",)))
    event = Event(9, job.id, 1, NOON, "budget.near", budget)
    told = endpoint("told", events=frozenset({"budget.near"}))
    deaf = endpoint("deaf")
    in_openai_form = endpoint("openai", "openai", events=frozenset({"budget.near"}))
    drafts = plan_with(told, deaf, in_openai_form)(job, [event])
    assert [(draft.endpoint, draft.type) for draft in drafts] == [
        (None, "budget.near"),
        ("told", "budget.near"),
    ]
    for draft in drafts:
        body = json.loads(draft.body)
        assert (body["type"], body["data"]["budget"], body["data"]["id"]) == ("budget.near", budget, job.id)
