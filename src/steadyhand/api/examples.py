"""Examples of the OpenAPI document by name. The service's own code builds those of responses, errors and events."""

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from steadyhand.agents import Agent, Workspace
from steadyhand.api.classic.execute import classic_job_json
from steadyhand.api.native.event_stream import event_frame
from steadyhand.api.native.forecast import forecast_json
from steadyhand.api.native.nodes import node_json
from steadyhand.api.native.schedules import schedule_json, tick_json
from steadyhand.api.native.serializers import (
    agent_json,
    bulk_json,
    delivery_json,
    delivery_with_body_json,
    endpoint_json,
    event_json,
    job_item_json,
    job_json,
    key_json,
    list_json,
    new_key_json,
    usage_json,
    workspace_json,
)
from steadyhand.api.native.tools import tools_json
from steadyhand.api.openai.chat.chunks import ChatOptions, ChunkBuilder
from steadyhand.api.openai.chat.completion import completion_json, message_json
from steadyhand.api.openai.output_spec import OutputSpec
from steadyhand.api.openai.responses.build_submission import build_submission
from steadyhand.api.openai.responses.input_items import normalize_input
from steadyhand.api.openai.responses.resource import get_stored_response
from steadyhand.api.openai.responses.response_events import ResponseEvents
from steadyhand.api.openai.responses.start_response import stored_input_items
from steadyhand.api.schemas.openai_requests import ResponseRequest
from steadyhand.api.transport.context import ModelAlias
from steadyhand.api.transport.errors import (
    REQUEST_ID_SCOPE_KEY,
    caller_error_response,
    http_status,
    internal_error_response,
)
from steadyhand.control import (
    AvailableAgent,
    BudgetForecast,
    BulkItem,
    BulkResult,
    Forecast,
    ForecastRequest,
    ToolRow,
    ToolStatistics,
)
from steadyhand.errors import (
    CallerError,
    Conflict,
    Forbidden,
    InvalidRequest,
    NotFound,
    RetryLater,
    Unauthenticated,
)
from steadyhand.events import Event
from steadyhand.forecast import BurnRate, Quantiles
from steadyhand.job import Changes, Cost, Job, JobSpec, Outcome, OutcomeType, Run, State, Usage
from steadyhand.ports import (
    ApiKey,
    BudgetLimit,
    Delivery,
    EndpointInfo,
    JobTemplate,
    KeyLimits,
    RunOutput,
    Schedule,
    ScheduleInfo,
    ScheduleSpec,
    ScheduleTick,
    TokenCounts,
    ToolNames,
    UsageRow,
    UsageTotal,
)
from steadyhand.ports.nodes import Drained, NodeFigures, NodeInfo, NodeState

_TIME = datetime(2026, 1, 1, 9, 0, 0, 100_000, tzinfo=UTC)
_STARTED, _FINISHED = _TIME + timedelta(milliseconds=20), _TIME + timedelta(seconds=40.93)
_SUCCESS = Outcome(OutcomeType.SUCCESS)
_NEW_JOB = Job(
    "3f2a9c01be77",
    JobSpec("Fix the failing test.", metadata={"ticket": "OPS-7"}),
    "claude",
    "k_7h2",
    _TIME,
    2_500_000,
    900,
    600,
    workspace="infra",
    ref="main",
    last_event=1,
)
_JOB = replace(
    _NEW_JOB,
    state=State.COMPLETED,
    commit="6a1f0e3b9c5d7a2e4f8b0c1d2e3f4a5b6c7d8e9f",
    session_id="0b0f4c5e-8f0e-4d7a-9a51-6f3c2f1f7a10",
    started_at=_STARTED,
    finished_at=_FINISHED,
    outcome=_SUCCESS,
    runs=(Run(1, State.COMPLETED, _SUCCESS, _STARTED, _FINISHED, 0, "n1"),),
    answer="The test passes now.",
    usage=Usage(812, 340, 15_210, 2_004, 3),
    cost=Cost(41_200, reported_micros=41_200),
    changes=Changes(
        "6a1f0e3b9c5d7a2e4f8b0c1d2e3f4a5b6c7d8e9f", "9f8e7d6c5b4a39281706f5e4d3c2b1a0f9e8d7c6", 2, 14, 3
    ),
    last_event=57,
)
_KEY = ApiKey(
    "k_7h2m4q9x1z",
    "nightly triage",
    "",
    frozenset({"submit", "read", "cancel"}),
    _TIME,
    KeyLimits(("recruiter-triage",), ("infra",), 30, 2, 20, 5_000_000, 60_000_000),
)
_QUESTION = {"role": "user", "content": "What is the capital of France?"}


def examples() -> Mapping[str, Any]:
    """Return every example by its name."""
    return {
        **_requests(),
        **_native(),
        **_callbacks(),
        **_schedules(),
        **_nodes(),
        **_classic(),
        **_chat(),
        **_responses(),
        **_errors(),
    }


def _requests() -> dict[str, Any]:
    limits = {
        "agents": ["recruiter-triage"],
        "workspaces": ["infra"],
        "requests_per_minute": 30,
        "running_jobs": 2,
        "queued_jobs": 20,
        "budget_usd_per_day": 5.0,
        "budget_usd_per_month": 60.0,
    }
    city = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    tool = {"type": "function", "function": {"name": "city", "parameters": {"type": "object"}}}
    upgrade = {"role": "user", "content": [{"type": "input_text", "text": "Upgrade the parser."}]}
    return {
        "CONVERSATIONAL": {"session_id": "kitchen", "message": "What is the capital of France?"},
        "EMPTY": {},
        "EXECUTE": {
            "prompt": "Answer the newest issue.",
            "agent": ".claude/agents/issue-responder.md",
            "max_budget_usd": 5.0,
            "timeout_seconds": 2700,
            "metadata": {"issue": 42},
        },
        "LEAST": {"prompt": "Say hello."},
        "SUBMIT": {
            "prompt": "Fix the failing test.",
            "agent": "claude",
            "workspace": "infra",
            "ref": "main",
            "budget_usd": 2.5,
            "timeout_seconds": 900,
            "metadata": {"ticket": "OPS-7"},
        },
        "TURN": {"prompt": "Now add a test for it."},
        "RETRY": {"after_run": 1},
        "RESUME": {"after_run": 1, "budget_usd": 10},
        "STEER": {"text": "Leave the parser alone, please."},
        "BULK_CANCEL": {"state": ["queued"], "agent": "claude", "metadata": {"ticket": "OPS-7"}},
        "BULK_ALL": {"all": True, "dry_run": True},
        "BULK_RETRY": {"state": ["error", "interrupted"], "created_after": "2026-01-01T00:00:00Z"},
        "BULK_RESUME": {"state": ["failed"], "q": "parser", "budget_usd": 10, "prompt": "Go on."},
        "LEAST_KEY": {"name": "ci"},
        "CREATE_KEY": {"name": _KEY.name, "scopes": ["submit", "read", "cancel"], "limits": limits},
        "ROTATE_KEY": {"grace_seconds": 3600},
        "CHAT": {
            "model": "chat",
            "messages": [{"role": "system", "content": "Answer in one word."}, _QUESTION],
        },
        "CHAT_OBJECT": {
            "model": "chat",
            "messages": [_QUESTION],
            "response_format": {"type": "json_schema", "json_schema": {"name": "city", "schema": city}},
        },
        "CHAT_FUNCTION": {
            "model": "chat",
            "messages": [_QUESTION],
            "tools": [tool],
            "tool_choice": "required",
        },
        "RESPOND": {
            "model": "claude",
            "instructions": "Be brief.",
            "input": "Why is the build red?",
            "stream": True,
        },
        "RESPOND_BACKGROUND": {"model": "claude", "input": [upgrade], "background": True},
    }


def _event(seq: int, kind: str, **data: Any) -> Event:
    return Event(seq, _JOB.id, 1, _TIME + timedelta(seconds=seq), kind, data)


def _native() -> dict[str, Any]:
    tool_call = _event(12, "tool.started", tool_id="toolu_1", name="Bash", input={"command": "make test"})
    claude = Agent("claude", "Claude with all its tools, in the default workspace.")
    agent = agent_json(AvailableAgent(claude, "infra", 5_000_000, 2700, 600, max_budget_micros=20_000_000))
    infra = workspace_json(Workspace("infra", "https://git.example.org/infra.git", "main"))
    usage = UsageTotal(41, TokenCounts(33_292, 13_940, 623_610, 82_164), 1_689_200)
    key = key_json(_KEY, is_fixed=False)
    rows = [
        ToolRow("Bash", None, None, "claude", 41, 3, 1, 92_300),
        ToolRow("Read", None, None, "claude", 17),
    ]
    tools = ToolStatistics(12, rows)
    conflict = Conflict("The job has left no session to resume; retry it.")
    items = [
        BulkItem(replace(_JOB, state=State.QUEUED)),
        BulkItem(replace(_JOB, id="0c1d2e3f4a5b"), conflict),
    ]
    bulk = BulkResult(_TIME, False, 2, items, None, has_more=False)
    return {
        "HEALTH": {"status": "ok", "busy": False, "active": 1, "queued": 0, "capacity": 4},
        "ALIVE": {"status": "ok"},
        "JOB": job_json(_JOB, None),
        "QUEUED": job_json(_NEW_JOB, 1),
        "JOBS": list_json([job_item_json(_JOB, None)]),
        "BULK": bulk_json(bulk, str),
        "TOOLS": tools_json(tools, 200),
        "FORECAST": forecast_json(_forecast()),
        "STEERED": {"object": "steer", "id": "st_5d0c69e90932e6cafe11", "job_id": _JOB.id, "run": 1},
        "EVENTS": list_json([event_json(tool_call)], "12"),
        "STREAM": event_frame(tool_call).decode(),
        "DIFF": "diff --git a/shop.py b/shop.py\n--- a/shop.py\n+++ b/shop.py\n@@ -1 +1 @@\n-total = 0\n+total = 1\n",
        "BUNDLE": "# v2 git bundle\n",
        "TRANSCRIPT": '{"type":"user","message":{"role":"user","content":"Fix the failing test."}}\n',
        "AGENTS": list_json([agent]),
        "WORKSPACES": list_json([infra]),
        "KEY": key,
        "NEW_KEY": new_key_json(_KEY, "sh_k_7h2m4q9x1z_" + "0" * 43, is_fixed=False),
        "REVOKED_KEY": key_json(replace(_KEY, revoked_at=_TIME + timedelta(days=1)), is_fixed=False),
        "KEYS": list_json([key]),
        "USAGE": list_json([usage_json(UsageRow({"api_key": _KEY.id, "day": "2026-01-01"}, usage))]),
    }


def _forecast() -> Forecast:
    burn = BurnRate(9_120_000, 604_800, _TIME - timedelta(days=7))
    limit = BudgetLimit("key", _KEY.id, "month", 60_000_000)
    budget = BudgetForecast(
        limit, 31_400_000, True, _TIME + timedelta(days=30), burn, _TIME + timedelta(days=21)
    )
    return Forecast(
        agent="claude",
        request=ForecastRequest(workspace="infra"),
        since=_TIME - timedelta(days=30),
        sampled=182,
        cost=Quantiles(41_200, 310_500, 180),
        seconds=Quantiles(40.93, 312.5, 182),
        burn=burn,
        burn_priced=True,
        budgets=[budget],
    )


def _callbacks() -> dict[str, Any]:
    at = _TIME + timedelta(minutes=1)
    links = {"job": f"/v1/jobs/{_JOB.id}", "events": f"/v1/jobs/{_JOB.id}/events"}
    data = {"id": _JOB.id, "state": "completed", "outcome": "success", "run": 1, "event": 57, "links": links}
    sent = {"type": "job.ended", "timestamp": "2026-01-01T09:00:41.030000Z", "data": data}
    delivery = Delivery(
        1,
        "msg_5d1c0a9be2f34f6e8a7b6c5d4e3f2a10",
        _JOB.id,
        _KEY.id,
        None,
        "https://n8n.example.org/webhook-waiting/7?signature=a1b2",
        "",
        "job.ended",
        json.dumps(sent, separators=(",", ":")),
        _TIME,
        at,
        _TIME + timedelta(days=1),
        state="delivered",
        attempts=1,
        attempted_at=at,
        status=200,
    )
    pending = replace(delivery, state="pending", attempts=0, status=None)
    endpoint = endpoint_json(
        EndpointInfo("n8n", "https://n8n.example.org", ["job.ended"], ["triage"], "thin", "api", _TIME)
    )
    return {
        "ENDPOINTS": list_json([endpoint]),
        "ENDPOINT": endpoint,
        "NEW_ENDPOINT": {**endpoint, "secret": "whsec_" + "A" * 43 + "="},
        "CREATE_ENDPOINT": {
            "name": "n8n",
            "url": "https://n8n.example.org/webhook/7?signature=a1b2",
            "events": ["job.ended"],
            "agents": ["triage"],
        },
        "CHANGE_ENDPOINT": {"agents": [], "rotate_secret": True},
        "DELIVERIES": list_json([delivery_json(delivery)]),
        "DELIVERY": delivery_with_body_json(delivery),
        "REPLAYED": delivery_json(pending),
        "CALLBACK_SECRET": {
            "object": "callback_secret",
            "api_key_id": _KEY.id,
            "secret": "whsec_" + "A" * 43 + "=",
        },
    }


def _schedules() -> dict[str, Any]:
    request = {
        "name": "nightly",
        "cron": "30 2 * * MON-FRI",
        "timezone": "Europe/Berlin",
        "job": {
            "prompt": "Update the dependencies. Today is {{ tick.date }}.",
            "agent": "claude",
            "workspace": "shop",
            "budget_usd": 2,
        },
        "overlap": "skip",
        "missed": "once",
        "max_usd": 100,
        "max_failures": 3,
    }
    template = JobTemplate(
        JobSpec("Update the dependencies. Today is {{ tick.date }}."),
        agent="claude",
        workspace="shop",
        budget_micros=2_000_000,
    )
    spec = ScheduleSpec("30 2 * * MON-FRI", template, "Europe/Berlin", max_micros=100_000_000, max_failures=3)
    fired = ScheduleTick(
        8, "sch_1", _TIME, _TIME, "cron", "fired", job_id=_JOB.id, outcome=OutcomeType.SUCCESS, micros=420_000
    )
    skipped = ScheduleTick(
        7, "sch_1", _TIME, _TIME, "cron", "skipped", "overlap", "The job 3f2a9c01be77 goes on."
    )
    schedule = Schedule(
        "sch_1",
        "nightly",
        _KEY.id,
        "api",
        spec,
        _TIME,
        _TIME + timedelta(days=1),
        runs=1,
        spent_micros=420_000,
    )
    document = schedule_json(ScheduleInfo(schedule, fired))
    return {
        "SCHEDULE": document,
        "SCHEDULES": list_json([document]),
        "SCHEDULE_TICKS": list_json([tick_json(fired), tick_json(skipped)]),
        "LEAST_SCHEDULE": {"name": "hourly", "cron": "@hourly", "job": {"prompt": "Look for news."}},
        "CREATE_SCHEDULE": request,
        "CHANGE_SCHEDULE": {"cron": "0 3 * * *", "max_usd": None},
    }


def _nodes() -> dict[str, Any]:
    info = NodeInfo(
        "node-1", version="1.4.0", schema="0011", labels=("gpu", "zone=a"), slots=4, host="build-1"
    )
    alive = node_json(NodeState(info, NodeFigures(2, 0, 0.41, 1), None, 0.8, _TIME), "node-1")
    worker = replace(info, name="node-2", role="worker", labels=(), host="build-2")
    drained = NodeState(worker, NodeFigures(1, 0, 0.1, 0), Drained(_TIME + timedelta(hours=1)), 1.6, _TIME)
    drained_node = node_json(drained, "node-1")
    return {
        "NODE": drained_node,
        "NODES": list_json([alive, drained_node]),
        "DRAIN_NODE": {"until_restart": True},
    }


def _classic() -> dict[str, Any]:
    spec = JobSpec("Answer the newest issue.", metadata={"issue": 42}, origin="classic")
    job = replace(_JOB, spec=spec, agent="issue-responder")
    printed = '{"type":"result","subtype":"success","is_error":false,"result":"Done."}\n'
    return {
        "EXECUTED": {"job_id": job.id, "status": "running"},
        "CLASSIC_JOB": classic_job_json(job, RunOutput([printed], "")),
        "CLASSIC_STREAM": {
            "error": "streaming not supported",
            "detail": "streaming not supported",
        },
        "CLASSIC_FAILURE": {"error": "execution failed", "detail": "agent is busy"},
        "CONVERSATIONAL_REPLY": {"session_id": "kitchen", "reply": "Paris"},
    }


def _chat() -> dict[str, Any]:
    chunks = ChunkBuilder(_JOB, ChatOptions("chat", OutputSpec()))
    stream = [frame.data for frame in chunks.feed(_event(2, "message", role="assistant", text="Paris"))]
    model = {"id": "chat", "object": "model", "created": 0, "owned_by": "steadyhand"}
    return {
        "MODEL": model,
        "MODELS": {"object": "list", "data": [model]},
        "COMPLETION": completion_json(_JOB, "chat", message_json("Paris")),
        "CHAT_STREAM": b"".join([*stream, b"data: [DONE]\n\n"]).decode(),
    }


def _responses() -> dict[str, Any]:
    body = ResponseRequest.model_validate(_requests()["RESPOND"])
    request = build_submission(body, ModelAlias("claude"), normalize_input(body.input)).spec.request
    response = get_stored_response(replace(_JOB, spec=replace(_JOB.spec, request=request)))
    assert response is not None  # noqa: S101  # it was just requested as one
    events = ResponseEvents(response, ToolNames(client_prefix="client.", structured_output="answer"))
    happened = (
        _event(1, "state.changed", **{"from": None, "to": "queued"}),
        _event(2, "tool.started", tool_id="toolu_1", name="Bash", input={"command": "make test"}),
        _event(3, "tool.finished", tool_id="toolu_1", is_error=False, output="1 failed"),
        _event(4, "message", role="assistant", text="A test fails."),
    )
    stream = [each for event in happened for each in events.feed(event)]
    delta = next(each for each in stream if each["type"] == "response.output_text.delta")
    job = replace(response.job, answer="A test fails.")
    events.finish(job)
    items = stored_input_items(response)
    return {
        "RESPONSE": events.to_json(job),
        "RESPONSE_STREAM": f"event: {delta['type']}\ndata: {json.dumps(delta)}\n\n",
        "RESPONSE_GONE": {"id": response.id, "object": "response", "deleted": True},
        "INPUT_ITEMS": {
            "object": "list",
            "data": items,
            "first_id": items[0]["id"],
            "last_id": items[-1]["id"],
            "has_more": False,
        },
    }


_ERRORS: tuple[CallerError, ...] = (
    InvalidRequest("The body is not valid JSON.", code="malformed_json"),
    Unauthenticated("This token is not known here."),
    Forbidden("This key lacks the scope 'submit'.", code="scope_missing"),
    NotFound("Job not found"),
    InvalidRequest("This comes as text/event-stream or application/json.", code="not_acceptable"),
    Conflict("The job is running; cancel it first."),
    InvalidRequest("The body is larger than 8388608 bytes.", code="body_too_large"),
    InvalidRequest("The body has to be application/json.", code="unsupported_media_type"),
    InvalidRequest.at("/budget_usd", "input should be greater than 0"),
    RetryLater("The queue is full (100 jobs). Try again in 12 s.", code="queue_full", retry_after=12),
    RetryLater("The service is stopping.", code="draining"),
)


def _errors() -> dict[str, Any]:
    scope = {"path": "/", REQUEST_ID_SCOPE_KEY: "req_9f86d081884c7d65"}
    responses = {http_status(error): caller_error_response(scope, error) for error in _ERRORS} | {
        500: internal_error_response(scope)
    }
    problems = {f"PROBLEM_{status}": json.loads(bytes(each.body)) for status, each in responses.items()}
    detail = {
        "type": "greater_than",
        "loc": ["body", "max_budget_usd"],
        "msg": "Input should be greater than 0",
        "input": -1,
    }
    return problems | {"CLASSIC_PROBLEM_422": problems["PROBLEM_422"] | {"detail": [detail]}}
