"""Examples for the OpenAPI document, by name in `EXAMPLES`; a test holds them to the schemas."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from steadyhand.api.schemas.native_bodies import LIST_OMITTED_FIELDS

_CODES = {
    400: ("malformed_json", "The body is not valid JSON."),
    401: ("unauthenticated", "This token is not known here."),
    403: ("scope_missing", "This key lacks the scope 'submit'."),
    404: ("not_found", "Job not found"),
    406: ("not_acceptable", "This comes as text/event-stream or application/json."),
    409: ("invalid_state", "The job is running; cancel it first."),
    413: ("body_too_large", "The body is larger than 8388608 bytes."),
    415: ("unsupported_media_type", "The body has to be application/json."),
    422: ("invalid_field", "budget_usd: input should be greater than 0"),
    429: ("queue_full", "The queue is full (100 jobs). Try again in 12 s."),
    500: ("internal", "The service failed. Its log has the cause, under this request's id."),
    503: ("draining", "The service is stopping."),
}
_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 409: "conflict_error"}


def problem(status: int) -> dict[str, Any]:
    """Give an error body with this status."""
    code, detail = _CODES[status]
    kind = _TYPES.get(status) or ("server_error" if status >= 500 else "invalid_request_error")  # noqa: PLR2004
    kind = "rate_limit_error" if code == "queue_full" else kind
    field = {"pointer": "/budget_usd", "detail": "input should be greater than 0"}
    wrong = code == "invalid_field"
    return {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "code": code,
        "request_id": "req_9f86d081884c7d65",
        "errors": [field] if wrong else [],
        "error": {"message": detail, "type": kind, "param": "budget_usd" if wrong else None, "code": code},
    }


HEALTH = {"status": "ok", "busy": False, "active": 1, "queued": 0, "capacity": 4}
EXECUTE = {
    "prompt": "Answer the newest issue.",
    "agent": ".claude/agents/issue-responder.md",
    "max_budget_usd": 5.0,
    "timeout_seconds": 2700,
    "metadata": {"issue": 42},
}
EXECUTED = {"job_id": "3f2a9c01be77", "status": "running"}
CLASSIC_JOB = {
    "job_id": "3f2a9c01be77",
    "status": "completed",
    "state": "completed",
    "prompt": "Answer the newest issue.",
    "agent": "issue-responder",
    "metadata": {"issue": 42},
    "started_at": "2026-01-01T09:00:00.120000+00:00",
    "finished_at": "2026-01-01T09:00:41.030000+00:00",
    "exit_code": 0,
    "output": ['{"type":"result","subtype":"success","is_error":false,"result":"Done."}\n'],
    "stderr": "",
}
LEAST = {"prompt": "Say hello."}
SUBMIT = {
    "prompt": "Fix the failing test.",
    "agent": "claude",
    "workspace": "infra",
    "ref": "main",
    "budget_usd": 2.5,
    "timeout_seconds": 900,
    "metadata": {"ticket": "OPS-7"},
}
_OUTCOME = {"type": "success", "detail": None}
JOB: dict[str, Any] = {
    "object": "job",
    "id": "3f2a9c01be77",
    "state": "completed",
    "outcome": _OUTCOME,
    "title": None,
    "prompt": "Fix the failing test.",
    "agent": "claude",
    "runner": "claude",
    "model": None,
    "workspace": "infra",
    "ref": "main",
    "commit": "6a1f0e3b9c5d7a2e4f8b0c1d2e3f4a5b6c7d8e9f",
    "priority": 0,
    "metadata": {"ticket": "OPS-7"},
    "api_key_id": "k_7h2",
    "origin": "api",
    "session_id": "0b0f4c5e-8f0e-4d7a-9a51-6f3c2f1f7a10",
    "parent_job_id": None,
    "budget_usd": "2.500000",
    "timeout_seconds": 900,
    "idle_timeout_seconds": 600,
    "on_interrupt": "auto",
    "publish": "none",
    "created_at": "2026-01-01T09:00:00.100000Z",
    "started_at": "2026-01-01T09:00:00.120000Z",
    "finished_at": "2026-01-01T09:00:41.030000Z",
    "parked_until": None,
    "queue_position": None,
    "run": 1,
    "runs": [
        {
            "number": 1,
            "state": "completed",
            "outcome": _OUTCOME,
            "started_at": "2026-01-01T09:00:00.120000Z",
            "finished_at": "2026-01-01T09:00:41.030000Z",
            "exit_code": 0,
            "node": "n1",
        }
    ],
    "answer": "The test passes now.",
    "structured_output": None,
    "usage": {
        "input_tokens": 812,
        "output_tokens": 340,
        "cache_read_input_tokens": 15_210,
        "cache_creation_input_tokens": 2_004,
        "turns": 3,
    },
    "cost": {"usd": "0.041200", "source": "reported", "priced": True, "reported_usd": "0.041200"},
    "changes": {
        "base": "6a1f0e3b9c5d7a2e4f8b0c1d2e3f4a5b6c7d8e9f",
        "head": "9f8e7d6c5b4a39281706f5e4d3c2b1a0f9e8d7c6",
        "files": 2,
        "insertions": 14,
        "deletions": 3,
        "branch": None,
        "published": False,
    },
    "warnings": [],
    "error": None,
    "last_event": 57,
    "links": {
        "self": "/v1/jobs/3f2a9c01be77",
        "events": "/v1/jobs/3f2a9c01be77/events",
        "diff": "/v1/jobs/3f2a9c01be77/diff",
        "transcript": "/v1/jobs/3f2a9c01be77/transcript",
        "bundle": "/v1/jobs/3f2a9c01be77/bundle",
    },
}
QUEUED: dict[str, Any] = {
    **JOB,
    "state": "queued",
    "outcome": None,
    "commit": None,
    "session_id": None,
    "started_at": None,
    "finished_at": None,
    "queue_position": 1,
    "run": 0,
    "runs": [],
    "answer": None,
    "usage": dict.fromkeys(JOB["usage"], 0),
    "cost": {"usd": "0.000000", "source": "reported", "priced": True, "reported_usd": None},
    "changes": None,
    "last_event": 1,
}
JOBS = {
    "object": "list",
    "data": [{name: value for name, value in JOB.items() if name not in LIST_OMITTED_FIELDS}],
    "has_more": False,
    "next_cursor": None,
}
_EVENT = {
    "object": "event",
    "seq": 12,
    "job_id": "3f2a9c01be77",
    "run": 1,
    "type": "tool.started",
    "at": "2026-01-01T09:00:07.500000Z",
    "data": {"tool_id": "toolu_1", "name": "Bash", "input": {"command": "pytest -q"}},
}
EVENTS = {"object": "list", "data": [_EVENT], "has_more": True, "next_cursor": "12"}
STREAM = (
    'id: 12\nevent: tool.started\ndata: {"object":"event","seq":12,"job_id":"3f2a9c01be77","run":1,'
    '"type":"tool.started","at":"2026-01-01T09:00:07.100000Z",'
    '"data":{"tool_id":"toolu_1","name":"Bash","input":{"command":"make test"}}}\n\n'
)
DIFF = "diff --git a/shop.py b/shop.py\n--- a/shop.py\n+++ b/shop.py\n@@ -1 +1 @@\n-total = 0\n+total = 1\n"
BUNDLE = "# v2 git bundle\n"
TRANSCRIPT = '{"type":"user","message":{"role":"user","content":"Fix the failing test."}}\n'
AGENTS = {
    "object": "list",
    "data": [
        {
            "object": "agent",
            "name": "claude",
            "description": "Claude with all its tools, in the default workspace.",
            "runner": "claude",
            "model": None,
            "workspace": "infra",
            "budget_usd": "5.000000",
            "timeout_seconds": 2700,
            "idle_timeout_seconds": 600,
            "max_turns": None,
            "effort": None,
            "tools": None,
            "limits": {"max_budget_usd": "20.000000", "max_timeout_seconds": None},
        }
    ],
    "has_more": False,
    "next_cursor": None,
}
WORKSPACES = {
    "object": "list",
    "data": [
        {
            "object": "workspace",
            "name": "infra",
            "repository": "https://git.example.org/infra.git",
            "ref": "main",
            "mode": "checkout",
            "trust": "instructions",
        }
    ],
    "has_more": False,
    "next_cursor": None,
}
CREATE_KEY = {
    "name": "nightly triage",
    "scopes": ["submit", "read", "cancel"],
    "limits": {
        "agents": ["recruiter-triage"],
        "workspaces": ["infra"],
        "requests_per_minute": 30,
        "running_jobs": 2,
        "queued_jobs": 20,
        "budget_usd_per_day": 5.0,
        "budget_usd_per_month": 60.0,
    },
}
KEY: dict[str, Any] = {
    "object": "api_key",
    "id": "k_7h2m4q9x1z",
    "name": "nightly triage",
    "origin": "service",
    "scopes": ["submit", "read", "cancel"],
    "limits": {
        "agents": ["recruiter-triage"],
        "workspaces": ["infra"],
        "requests_per_minute": 30,
        "running_jobs": 2,
        "queued_jobs": 20,
        "budget_usd_per_day": "5.000000",
        "budget_usd_per_month": "60.000000",
    },
    "created_at": "2026-01-01T09:00:00.100000Z",
    "revoked_at": None,
    "former_secret_until": None,
}
NEW_KEY = {**KEY, "secret": "sh_k_7h2m4q9x1z_" + "0" * 43}
USAGE = {
    "object": "list",
    "data": [
        {
            "object": "usage",
            "api_key_id": "k_7h2m4q9x1z",
            "agent": None,
            "model": None,
            "provider": None,
            "day": "2026-01-01",
            "calls": 41,
            "usage": {
                "input_tokens": 33_292,
                "output_tokens": 13_940,
                "cache_read_input_tokens": 623_610,
                "cache_creation_input_tokens": 82_164,
            },
            "cost": {"usd": "1.689200", "priced": True, "complete": True},
        }
    ],
    "has_more": False,
    "next_cursor": None,
}
MODEL = {"id": "chat", "object": "model", "created": 0, "owned_by": "steadyhand"}
MODELS = {"object": "list", "data": [MODEL]}
CHAT = {
    "model": "chat",
    "messages": [
        {"role": "system", "content": "Answer in one word."},
        {"role": "user", "content": "What is the capital of France?"},
    ],
}
CHAT_OBJECT = {
    "model": "chat",
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
    "response_format": {
        "type": "json_schema",
        "json_schema": {
            "name": "city",
            "schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    },
}
CHAT_FUNCTION = {
    "model": "chat",
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
    "tools": [{"type": "function", "function": {"name": "city", "parameters": {"type": "object"}}}],
    "tool_choice": "required",
}
CHAT_STREAM = (
    'data: {"id":"chatcmpl-3f2a9c01be77","object":"chat.completion.chunk","created":1767258000,"model":"chat",'
    '"system_fingerprint":null,"choices":[{"index":0,"delta":{"content":"Paris"},"logprobs":null,'
    '"finish_reason":null}]}\n\ndata: [DONE]\n\n'
)
COMPLETION = {
    "id": "chatcmpl-3f2a9c01be77",
    "object": "chat.completion",
    "created": 1_767_258_000,
    "model": "chat",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Paris", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ],
    "usage": {
        "prompt_tokens": 1_204,
        "completion_tokens": 4,
        "total_tokens": 1_208,
        "prompt_tokens_details": {"cached_tokens": 1_100},
    },
}
RESPOND = {"model": "claude", "instructions": "Be brief.", "input": "Why is the build red?", "stream": True}
RESPOND_BACKGROUND = {
    "model": "claude",
    "input": [{"role": "user", "content": [{"type": "input_text", "text": "Upgrade the parser."}]}],
    "background": True,
}
RESPONSE: dict[str, Any] = {
    "id": "resp_3f2a9c01be77",
    "object": "response",
    "created_at": 1_767_258_000,
    "completed_at": 1_767_258_041,
    "status": "completed",
    "background": False,
    "error": None,
    "incomplete_details": None,
    "instructions": "Be brief.",
    "model": "claude",
    "output": [
        {
            "type": "mcp_call",
            "id": "mcp_3f2a9c01be77_0",
            "status": "completed",
            "server_label": "steadyhand",
            "name": "Bash",
            "arguments": '{"command": "make test"}',
            "output": "1 failed",
            "error": None,
            "approval_request_id": None,
        },
        {
            "type": "message",
            "id": "msg_3f2a9c01be77_1",
            "status": "completed",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "A test fails.", "annotations": [], "logprobs": []}],
        },
    ],
    "usage": {
        "input_tokens": 1_204,
        "input_tokens_details": {"cached_tokens": 1_100, "cache_write_tokens": 0},
        "output_tokens": 4,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 1_208,
    },
    "metadata": {},
    "previous_response_id": None,
    "store": True,
    "parallel_tool_calls": True,
    "temperature": 1.0,
    "top_p": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "top_logprobs": 0,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "reasoning": {"effort": None, "summary": None},
    "text": {"format": {"type": "text"}, "verbosity": "medium"},
    "tool_choice": "auto",
    "tools": [],
    "truncation": "disabled",
    "service_tier": "default",
    "prompt_cache_key": None,
    "safety_identifier": None,
    "user": None,
}
RESPONSE_STREAM = (
    'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","sequence_number":9,'
    '"item_id":"msg_3f2a9c01be77_1","output_index":1,"content_index":0,"delta":"A test fails.","logprobs":[]}\n\n'
)
INPUT_ITEMS = {
    "object": "list",
    "data": [
        {
            "id": "in_3f2a9c01be77_0",
            "type": "message",
            "role": "user",
            "status": "completed",
            "content": [{"type": "input_text", "text": "Why is the build red?"}],
        }
    ],
    "first_id": "in_3f2a9c01be77_0",
    "last_id": "in_3f2a9c01be77_0",
    "has_more": False,
}
CLASSIC_STREAM = {
    "error": "streaming not supported",
    "detail": "This service answers in one piece; leave out 'stream' or set it to false.",
}
CLASSIC_FAILURE = {"error": "execution failed", "detail": "agent is busy"}
EXAMPLES: Mapping[str, Any] = {
    "ALIVE": {"status": "ok"},
    "EMPTY": {},
    "TURN": {"prompt": "Now add a test for it."},
    "RETRY": {"after_run": 1},
    "RESUME": {"after_run": 1, "budget_usd": 10},
    "HEALTH": HEALTH,
    "EXECUTE": EXECUTE,
    "EXECUTED": EXECUTED,
    "CLASSIC_JOB": CLASSIC_JOB,
    "LEAST": LEAST,
    "SUBMIT": SUBMIT,
    "JOB": JOB,
    "QUEUED": QUEUED,
    "JOBS": JOBS,
    "EVENTS": EVENTS,
    "STREAM": STREAM,
    "DIFF": DIFF,
    "BUNDLE": BUNDLE,
    "TRANSCRIPT": TRANSCRIPT,
    "AGENTS": AGENTS,
    "WORKSPACES": WORKSPACES,
    "USAGE": USAGE,
    "LEAST_KEY": {"name": "ci"},
    "CREATE_KEY": CREATE_KEY,
    "ROTATE_KEY": {"grace_seconds": 3600},
    "KEY": KEY,
    "NEW_KEY": NEW_KEY,
    "REVOKED_KEY": {**KEY, "revoked_at": "2026-01-02T09:00:00.100000Z"},
    "KEYS": {"object": "list", "data": [KEY], "has_more": False, "next_cursor": None},
    "MODEL": MODEL,
    "MODELS": MODELS,
    "CHAT": CHAT,
    "CHAT_OBJECT": CHAT_OBJECT,
    "CHAT_FUNCTION": CHAT_FUNCTION,
    "CHAT_STREAM": CHAT_STREAM,
    "COMPLETION": COMPLETION,
    "RESPOND": RESPOND,
    "RESPOND_BACKGROUND": RESPOND_BACKGROUND,
    "RESPONSE": RESPONSE,
    "RESPONSE_STREAM": RESPONSE_STREAM,
    "RESPONSE_GONE": {"id": "resp_3f2a9c01be77", "object": "response", "deleted": True},
    "INPUT_ITEMS": INPUT_ITEMS,
    "CLASSIC_STREAM": CLASSIC_STREAM,
    "CLASSIC_FAILURE": CLASSIC_FAILURE,
    **{f"PROBLEM_{status}": problem(status) for status in _CODES},
}
