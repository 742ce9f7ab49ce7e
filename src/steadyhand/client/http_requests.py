"""The requests of the client: one function for each route, without input or output."""

import json
import math
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from decimal import Decimal
from typing import Any, TypedDict

from steadyhand.errors import InvalidRequest, NotFound

JSON, ANYTHING, EVENTS, DIFF = "application/json", "*/*", "text/event-stream", "text/x-diff"


class WorkFields(TypedDict, total=False):
    """The fields of a job and of a turn; see `POST /v1/jobs`. `None` leaves a field out."""

    command: Mapping[str, str] | None
    model: str | None
    budget_usd: float | Decimal | None
    timeout_seconds: float | None
    idle_timeout_seconds: float | None
    priority: int | None
    metadata: Mapping[str, Any] | None
    title: str | None
    output_schema: Mapping[str, Any] | None
    on_interrupt: str | None
    publish: str | None
    expires_in_seconds: float | None
    max_turns: int | None
    effort: str | None
    labels: Sequence[str] | None
    not_on_nodes: Sequence[str] | None
    callback_url: str | None
    callback_events: Sequence[str] | None
    callback_body: str | None


class JobFields(WorkFields, total=False):
    """The fields of a job; those that a turn has from the job before it are among them."""

    agent: str | None
    workspace: str | None
    ref: str | None
    uncommitted: Mapping[str, str] | None
    append_system_prompt: str | None
    session: str | None


class JobFilters(TypedDict, total=False):
    """The filters of a list of jobs; `metadata` is matched by each of its values."""

    state: str | Sequence[str] | None
    agent: str | None
    workspace: str | None
    api_key: str | None
    metadata: Mapping[str, str] | None
    created_after: datetime | str | None
    created_before: datetime | str | None
    id_prefix: str | None
    q: str | None


class BulkFields(JobFilters, total=False):
    """The filters of a bulk operation; without any of them it needs `all`. See `POST /v1/jobs/cancel`."""

    all: bool | None
    limit: int | None
    cursor: str | None
    as_of: datetime | str | None
    dry_run: bool | None


class BulkResumeFields(BulkFields, total=False):
    """The fields of a bulk resume: each job gets the same prompt and budget."""

    prompt: str | None
    budget_usd: float | Decimal | None


class ForecastFields(TypedDict, total=False):
    """The parameters of a forecast; see `GET /v1/forecast`."""

    agent: str | None
    workspace: str | None
    model: str | None
    api_key: str | None
    days: int | None
    budgets: str | None


class ToolFilters(TypedDict, total=False):
    """The filters of the calls of tools; see `GET /v1/tools`."""

    job: str | None
    agent: str | None
    workspace: str | None
    api_key: str | None
    days: int | None
    jobs: int | None
    limit: int | None


class DeliveryFilters(TypedDict, total=False):
    """The filters of a list of deliveries of callbacks."""

    state: str | None
    job: str | None
    endpoint: str | None


class UsageFilters(TypedDict, total=False):
    """The filters of usage."""

    since: datetime | str | None
    until: datetime | str | None
    api_key: str | None
    agent: str | None
    model: str | None
    workspace: str | None


class KeyLimitFields(TypedDict, total=False):
    """The limits of a new key; `None` is no limit."""

    agents: Sequence[str] | None
    workspaces: Sequence[str] | None
    requests_per_minute: int | None
    running_jobs: int | None
    queued_jobs: int | None
    budget_usd_per_day: float | Decimal | None
    budget_usd_per_month: float | Decimal | None
    max_budget_usd: float | Decimal | None
    max_timeout_seconds: float | None
    models: Sequence[str] | None


@dataclass(frozen=True, slots=True)
class Tool:
    """A function of the client that the agent may call; `parameters` is the JSON Schema of its arguments."""

    name: str
    description: str
    parameters: Mapping[str, Any]


class ResponseFields(TypedDict, total=False):
    """The fields of a request with tools of the client, beside prompt, agent and tools."""

    instructions: str | None
    metadata: Mapping[str, str] | None
    parallel_tool_calls: bool | None
    previous_response_id: str | None
    text: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A request of the service.

    `repeatable` is True if it has one effect however often it arrives. Its answer may be silent for `quiet_seconds`
    more than usually, but never longer than `max_quiet_seconds`.
    """

    method: str
    path: str
    params: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    repeatable: bool = True
    quiet_seconds: float = 0.0
    max_quiet_seconds: float = math.inf


def with_header(request: HttpRequest, name: str, value: str) -> HttpRequest:
    """Return the request with another header."""
    return replace(request, headers={**request.headers, name: value})


def submit(prompt: str | None, fields: Mapping[str, Any], idempotency_key: str | None) -> HttpRequest:
    """Return the request for a new job, with a generated idempotency key if there is none."""
    return _submission("/v1/jobs", prompt, fields, idempotency_key)


def submit_turn(
    job_id: str, prompt: str | None, fields: Mapping[str, Any], idempotency_key: str | None
) -> HttpRequest:
    """Return the request for the next turn of a job."""
    return _submission(f"{job_path(job_id)}/turns", prompt, fields, idempotency_key)


def _submission(
    path: str, prompt: str | None, fields: Mapping[str, Any], idempotency_key: str | None
) -> HttpRequest:
    return _with_idempotency_key(post(path, without_none({"prompt": prompt, **fields})), idempotency_key)


def _with_idempotency_key(request: HttpRequest, idempotency_key: str | None) -> HttpRequest:
    key = uuid.uuid4().hex if idempotency_key is None else idempotency_key
    if not (key and key.isascii() and key.isprintable()):
        raise InvalidRequest("The idempotency key is empty or contains characters that no header has.")
    return with_header(request, "idempotency-key", key)


def respond(
    prompt: str,
    agent: str,
    tools: Sequence[Tool],
    fields: Mapping[str, Any],
    idempotency_key: str | None,
) -> HttpRequest:
    """Return the request for a response of an agent that may call tools of the client. It runs in the background."""
    functions = [
        {
            "type": "function",
            "name": tool.name,
            "description": tool.description,
            "parameters": tool.parameters,
        }
        for tool in tools
    ]
    body = {"model": agent, "input": prompt, "tools": functions or None, "background": True}
    return _with_idempotency_key(post("/v1/responses", without_none({**body, **fields})), idempotency_key)


def send_results(response_id: str, agent: str, results: Mapping[str, Any]) -> HttpRequest:
    """Return the request with the results of calls. A repeat has no effect: the service knows results that it has."""
    items = [
        {"type": "function_call_output", "call_id": call_id, "output": _output_text(result)}
        for call_id, result in results.items()
    ]
    body = {"model": agent, "previous_response_id": response_id, "input": items, "background": True}
    return post("/v1/responses", body)


def _output_text(result: Any) -> str:
    return result if isinstance(result, str) else encode_json(result).decode("utf-8")


def get_response(response_id: str) -> HttpRequest:
    """Return the request for a response as it is now."""
    return HttpRequest("GET", response_path(response_id))


def stream_response(response_id: str, after: int) -> HttpRequest:
    """Return the request for the stream of a response's events after a number; -1 is before the first."""
    params = {"stream": "true"} | ({"starting_after": after} if after >= 0 else {})
    return HttpRequest("GET", response_path(response_id), params, {"accept": EVENTS})


def get_job(job_id: str, wait_seconds: int = 0) -> HttpRequest:
    """Return the request for a job; with `wait_seconds` the service answers at the job's end, or after that time."""
    request = HttpRequest("GET", job_path(job_id), quiet_seconds=wait_seconds)
    return with_header(request, "prefer", f"wait={wait_seconds}") if wait_seconds else request


def steer(job_id: str, text: str, idempotency_key: str | None) -> HttpRequest:
    """Return the request that sends a message to the running turn of a job."""
    return _with_idempotency_key(post(f"{job_path(job_id)}/steer", {"text": text}), idempotency_key)


def cancel(job_id: str) -> HttpRequest:
    """Return the request that cancels a job."""
    return HttpRequest("POST", f"{job_path(job_id)}/cancel")


def delete(job_id: str) -> HttpRequest:
    """Return the request that deletes a job."""
    return HttpRequest("DELETE", job_path(job_id))


def run_again(job_id: str, verb: str, fields: Mapping[str, Any]) -> HttpRequest:
    """Return the request that retries or resumes a job; only `after_run` among its fields makes it repeatable."""
    body = without_none(fields)
    return replace(post(f"{job_path(job_id)}/{verb}", body), repeatable="after_run" in body)


def change_jobs(operation: str, selection: Mapping[str, Any]) -> HttpRequest:
    """Return the request that cancels, retries or resumes the jobs of a filter.

    Without `as_of` it is not repeatable: the second one would change jobs that came or ended in between.
    """
    body = without_none(selection)
    if isinstance(body.get("state"), str):
        body["state"] = [body["state"]]
    is_repeatable = "as_of" in body or body.get("dry_run") is True
    return replace(post(f"/v1/jobs/{operation}", body), repeatable=is_repeatable)


def job_file(job_id: str, name: str) -> HttpRequest:
    """Return the request for a file of a job: `diff`, `bundle` or `transcript`."""
    accept = DIFF if name == "diff" else ANYTHING
    return HttpRequest("GET", f"{job_path(job_id)}/{name}", headers={"accept": accept})


def list_events(job_id: str, after: int) -> HttpRequest:
    """Return the request for a page of a job's events."""
    return HttpRequest("GET", f"{job_path(job_id)}/events", {"after": after}, {"accept": JSON})


def stream_events(job_id: str, after: int) -> HttpRequest:
    """Return the request for the stream of a job's events after a number."""
    request = HttpRequest("GET", f"{job_path(job_id)}/events", headers={"accept": EVENTS})
    return with_header(request, "last-event-id", str(after)) if after else request


def list_jobs(limit: int | None, cursor: str | None, filters: Mapping[str, Any]) -> HttpRequest:
    """Return the request for a page of jobs."""
    others = {name: value for name, value in filters.items() if name != "metadata"}
    metadata = {f"metadata.{name}": value for name, value in (filters.get("metadata") or {}).items()}
    return get("/v1/jobs", {"limit": limit, "cursor": cursor, **others, **metadata})


def create_key(
    name: str, scopes: Sequence[str] | None, limits: Mapping[str, Any], *, strict: bool
) -> HttpRequest:
    """Return the request for a new key. It is not repeatable: each arrival creates a key."""
    fields = {
        "name": name,
        "scopes": None if scopes is None else list(scopes),
        "limits": without_none(limits) or None,
        "strict": True if strict else None,
    }
    return replace(post("/v1/keys", without_none(fields)), repeatable=False)


def revoke_key(key_id: str) -> HttpRequest:
    """Return the request that revokes a key."""
    return HttpRequest("DELETE", f"/v1/keys/{key_path_segment(key_id)}")


def rotate_key(key_id: str, grace_seconds: float) -> HttpRequest:
    """Return the request for a new secret. It is not repeatable: each arrival makes another secret."""
    path = f"/v1/keys/{key_path_segment(key_id)}/rotate"
    return replace(post(path, {"grace_seconds": grace_seconds}), repeatable=False)


def list_deliveries(limit: int | None, cursor: str | None, filters: Mapping[str, Any]) -> HttpRequest:
    """Return the request for a page of deliveries of callbacks."""
    return get("/v1/callbacks/deliveries", {"limit": limit, "cursor": cursor, **filters})


def get_delivery(delivery_id: str) -> HttpRequest:
    """Return the request for a delivery with its body."""
    return get(_delivery_path(delivery_id))


def replay_delivery(delivery_id: str) -> HttpRequest:
    """Return the request that sends a delivery once more. It is not repeatable: each arrival may send it."""
    return replace(post(f"{_delivery_path(delivery_id)}/replay", {}), repeatable=False)


def _delivery_path(delivery_id: str) -> str:
    if not (delivery_id.isascii() and delivery_id.replace("_", "").isalnum()):
        raise NotFound(f"{delivery_id!r} is not the id of a delivery.")
    return f"/v1/callbacks/deliveries/{delivery_id}"


class EndpointFields(TypedDict, total=False):
    """The fields of an endpoint of callbacks; those of None are left out."""

    url: str | None
    events: Sequence[str] | None
    agents: Sequence[str] | None
    body: str | None


def create_endpoint(name: str, fields: Mapping[str, Any]) -> HttpRequest:
    """Return the request that creates an endpoint. It is not repeatable: its secret comes once."""
    return replace(post(ENDPOINTS_PATH, _present({"name": name, **fields})), repeatable=False)


def change_endpoint(name: str, fields: Mapping[str, Any], *, rotate_secret: bool) -> HttpRequest:
    """Return the request that changes an endpoint; one that makes a new secret is not repeatable."""
    values = _present(fields) | ({"rotate_secret": True} if rotate_secret else {})
    request = replace(post(_endpoint_path(name), values), method="PATCH")
    return replace(request, repeatable=not rotate_secret)


def remove_endpoint(name: str) -> HttpRequest:
    """Return the request that removes an endpoint."""
    return HttpRequest("DELETE", _endpoint_path(name))


ENDPOINTS_PATH = "/v1/callbacks/endpoints"
_NAME_MARKS = str.maketrans("", "", "_.-")


def _present(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in fields.items()
        if value is not None
    }


def _endpoint_path(name: str) -> str:
    return f"{ENDPOINTS_PATH}/{checked_name(name, 'an endpoint')}"


def checked_name(name: str, kind: str) -> str:
    """Return a name as a part of a path. Raise `NotFound` for one that nothing can have."""
    if not name.isascii() or not name[:1].isalnum() or not name.translate(_NAME_MARKS).isalnum():
        raise NotFound(f"{name!r} is not the name of {kind}.")
    return name


def usage(by: Sequence[str], filters: Mapping[str, Any], cursor: str | None) -> HttpRequest:
    """Return the request for a page of usage."""
    return get("/v1/usage", {"by": list(by), "limit": 1000, **filters, "cursor": cursor})


def get(path: str, params: Mapping[str, Any] | None = None) -> HttpRequest:
    """Return a request for an object; a sequence repeats a parameter, `None` leaves it out."""
    return HttpRequest("GET", path, {name: _param(each) for name, each in without_none(params or {}).items()})


def post(path: str, body: Mapping[str, Any]) -> HttpRequest:
    """Return a request with a JSON body."""
    return HttpRequest("POST", path, headers={"content-type": JSON}, body=encode_json(body))


def without_none(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that have a value."""
    return {name: value for name, value in fields.items() if value is not None}


def encode_json(value: Any) -> bytes:
    """Encode a body. Raise `InvalidRequest` for NaN, half a surrogate pair and other values that JSON cannot have."""
    try:
        text = json.dumps(
            value, allow_nan=False, ensure_ascii=False, separators=(",", ":"), default=_encode_other
        )
        return text.encode("utf-8")
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequest("The request contains a value that JSON cannot represent.") from error


def _encode_other(value: Any) -> Any:
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(type(value).__name__)


def _param(value: Any) -> Any:
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, str | int | float):
        return value
    return [_param(each) for each in value]


def job_path(job_id: str) -> str:
    """Return the path of a job. Raise `NotFound` if the text is no id, so that it never becomes another path."""
    if not (job_id.isascii() and job_id.isalnum()):
        raise NotFound(f"{job_id!r} is not the id of a job.")
    return f"/v1/jobs/{job_id}"


def response_path(response_id: str) -> str:
    """Return the path of a response. Raise `NotFound` if the text is no id."""
    if not (response_id.isascii() and response_id.replace("_", "").isalnum()):
        raise NotFound(f"{response_id!r} is not the id of a response.")
    return f"/v1/responses/{response_id}"


def key_path_segment(key_id: str) -> str:
    """Return the id of a key as a part of a path. Raise `NotFound` if the text is no id."""
    if not (key_id.isascii() and key_id.replace("_", "").isalnum()):
        raise NotFound(f"{key_id!r} is not the id of a key.")
    return key_id
