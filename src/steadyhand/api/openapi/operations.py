"""Document each route apart from its name: parameters, bodies, responses and examples.

Each constant holds the keyword arguments of one route. `api/examples.py` has the examples by their names.
"""

from collections.abc import Iterable
from copy import deepcopy
from functools import partial
from typing import Any, get_args

from starlette.responses import Response

from steadyhand.api.schemas import bulk_bodies, forecast_bodies, openai_requests, requests, tool_bodies
from steadyhand.api.schemas import classic_bodies as classic
from steadyhand.api.schemas import native_bodies as native
from steadyhand.api.schemas import openai_bodies as openai
from steadyhand.control import ToolGroup
from steadyhand.job import State
from steadyhand.ports import DeliveryState, UsageGroup

SECURITY_SCHEME = "bearer"
_STRING_SCHEMA = {"type": "string"}
_TIME_SCHEMA = {"type": "string", "format": "date-time"}
_SEARCH_SCHEMA = {"type": "string", "minLength": 1, "maxLength": 256}
_STATUS_DESCRIPTIONS = {
    400: "Not JSON, or a parameter that is not to be had.",
    401: "No key, or one that is not known.",
    403: "The key may not do this, or the host is not known.",
    404: "No such thing, or another caller's.",
    406: "None of the accepted media types is to be had.",
    409: "Not in a state for this.",
    413: "The body is too large.",
    415: "The body is not JSON.",
    422: "A wrong field; nothing was stored.",
    429: "Full, or a limit of the key, for now; nothing was stored.",
    500: "A fault of the service.",
    503: "Stopping, or the run failed, or the store cannot be used for now, or the query takes too long.",
}
RouteDoc = dict[str, Any]


def _ref(body: type) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{body.__name__}"}


def _examples(*names: str) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/examples/{name}"} for name in names}


def _content(media_type: str, schema: dict[str, Any], *examples: str) -> dict[str, Any]:
    return {media_type: {"schema": schema, "examples": _examples(*examples)}}


def json_answer(
    description: str, body: type, example: str, *, links: dict[str, Any] | None = None, **headers: str
) -> dict[str, Any]:
    content = _content("application/json", _ref(body), example)
    response: dict[str, Any] = {"description": description, "content": content}
    if links:
        response["links"] = links
    if headers:
        response["headers"] = {
            name.replace("_", "-"): {"description": text, "schema": _STRING_SCHEMA}
            for name, text in headers.items()
        }
    return response


def _stream_content(example: str, *events: type, end_marker: str | None = None) -> dict[str, Any]:
    """Return the schema of each event of a stream (`itemSchema`): its data is JSON, but for the end marker."""
    data: dict[str, Any] = {
        "type": "string",
        "contentMediaType": "application/json",
        "contentSchema": {"anyOf": [_ref(event) for event in events]},
    }
    if end_marker is not None:
        data = {"anyOf": [{"const": end_marker}, data]}
    properties = {"id": _STRING_SCHEMA, "event": _STRING_SCHEMA, "data": data}
    event = {"type": "object", "properties": properties, "required": ["data"]}
    return {"text/event-stream": {"itemSchema": event, "examples": _examples(example)}}


def _links(parameter: str, pointer: str, *operations: str) -> dict[str, Any]:
    """Return links to the operations that take the id at this place of a response, as this parameter."""
    parameters = {parameter: f"$response.body#/{pointer}"}
    return {operation: {"operationId": operation, "parameters": parameters} for operation in operations}


def _error_response(status: int, media_type: str) -> dict[str, Any]:
    content = _content(media_type, _ref(native.Problem), f"PROBLEM_{status}")
    response: dict[str, Any] = {"description": _STATUS_DESCRIPTIONS[status], "content": content}
    if status in (429, 503):
        response["headers"] = {"retry-after": {"description": "Seconds.", "schema": {"type": "integer"}}}
    return response


def _integer(minimum: int, maximum: int | None = None, default: int | None = None) -> dict[str, Any]:
    limits = {"minimum": minimum, "maximum": maximum, "default": default}
    return {"type": "integer"} | {name: value for name, value in limits.items() if value is not None}


def _list_of(values: Iterable[str]) -> dict[str, Any]:
    return {"type": "array", "items": {"enum": list(values)}}


def _query(name: str, description: str, schema: dict[str, Any] = _STRING_SCHEMA) -> dict[str, Any]:
    return {"name": name, "in": "query", "description": description, "schema": schema, "required": False}


def _header(name: str, description: str, schema: dict[str, Any] = _STRING_SCHEMA) -> dict[str, Any]:
    return {**_query(name, description, schema), "in": "header"}


def route_doc(
    responses: dict[int, dict[str, Any]],
    *errors: int,
    error_type: str = "application/problem+json",
    parameters: tuple[dict[str, Any], ...] = (),
    body: type | None = None,
    examples: tuple[str, ...] = (),
    body_optional: bool = False,
    public: bool = False,
) -> RouteDoc:
    """Return the documentation of a route. Errors that every such route has need not be named."""
    statuses = {
        *errors,
        500,
        *(() if public else (401, 403)),
        *(() if body is None else (400, 413, 415, 422)),
    }
    extra: dict[str, Any] = {"security": [] if public else [{SECURITY_SCHEME: []}]}
    if parameters:
        extra["parameters"] = list(parameters)
    if body is not None:
        content = _content("application/json", _ref(body), *examples)
        extra["requestBody"] = {"required": not body_optional, "content": content}
    return {
        "responses": {status: _error_response(status, error_type) for status in sorted(statuses)} | responses,
        "openapi_extra": extra,
        # `Response` has no media type of its own, so that only what is written here gets into the document.
        "response_class": Response,
        "response_model": None,
    }


_plain_doc = partial(route_doc, error_type="application/json")


_PREFER_HEADER = _header("Prefer", "`wait=N` waits for the end, at most 60 seconds.")
_IDEMPOTENCY_HEADER = _header(
    "Idempotency-Key",
    "The same key with the same body gives the same job, for 24 hours.",
    {"type": "string", "minLength": 1, "maxLength": 255},
)
_LIST_QUERY: tuple[dict[str, Any], ...] = (
    _query("state", "Any of these states; repeatable.", _list_of(State)),
    _query("agent", "Jobs of this agent."),
    _query("workspace", "Jobs in this workspace."),
    _query("api_key", "Jobs of this key; needs `read:all` for others than one's own."),
    _query("created_after", "RFC 3339, with its zone.", _TIME_SCHEMA),
    _query("created_before", "RFC 3339, with its zone.", _TIME_SCHEMA),
    _query("id_prefix", "Jobs whose ids begin so.", {"type": "string", "pattern": "^[0-9a-f]{1,12}$"}),
    _query("q", "Words of the title or the prompt, all of them; a phrase is quoted.", _SEARCH_SCHEMA),
    _query("limit", "How many.", _integer(1, 200, 20)),
    _query("cursor", "`next_cursor` of the page before."),
)
LIST_PARAMETERS = tuple(parameter["name"] for parameter in _LIST_QUERY)


def list_query(*names: str) -> tuple[dict[str, Any], ...]:
    """Return some of the parameters of the list of jobs, for a list of something else."""
    return tuple(parameter for parameter in _LIST_QUERY if parameter["name"] in names)


_METADATA_QUERY = _query(
    "metadata",
    "`metadata.NAME=value`: jobs whose metadata has this value under this name.",
    {"type": "object", "additionalProperties": _STRING_SCHEMA},
)
_USAGE_QUERY: tuple[dict[str, Any], ...] = (
    _query("by", "Group by these; repeatable. Without it there is one row.", _list_of(get_args(UsageGroup))),
    _query("since", "Calls from then on; RFC 3339, with its zone.", _TIME_SCHEMA),
    _query("until", "Calls before then.", _TIME_SCHEMA),
    _query("api_key", "Calls for this key; needs `admin` for others than one's own."),
    _query("agent", "Calls of this agent."),
    _query("model", "Calls of this model."),
    _query(
        "workspace",
        "Calls of jobs in this workspace; empty for jobs in none, and calls before this was stored.",
    ),
    _query("limit", "How many rows.", _integer(1, 1000, 200)),
    _query("cursor", "`next_cursor` of the page before."),
)
USAGE_PARAMETERS = tuple(parameter["name"] for parameter in _USAGE_QUERY)
_FORECAST_QUERY: tuple[dict[str, Any], ...] = (
    _query("agent", "The agent; else the default one."),
    _query("workspace", "Rest on jobs in this workspace alone."),
    _query("model", "Rest on jobs that name this model, or whose agent does."),
    _query(
        "api_key", "Rest on jobs of this key, with its budgets; needs `read:all`, for its spending `admin`."
    ),
    _query("days", "Rest on jobs of the last days.", _integer(1, 365, 30)),
    _query("budgets", "The budgets of all agents and keys; needs `admin`.", {"enum": ["all"]}),
)
FORECAST_PARAMETERS = tuple(parameter["name"] for parameter in _FORECAST_QUERY)
_TOOLS_QUERY: tuple[dict[str, Any], ...] = (
    _query("by", "A row for each of these too; repeatable.", _list_of(get_args(ToolGroup))),
    _query("job", "Calls in this job alone, whenever it was."),
    _query("agent", "Calls in jobs of this agent."),
    _query("workspace", "Calls in jobs in this workspace."),
    _query("api_key", "Calls in jobs of this key; needs `read:all` for others than one's own."),
    _query("days", "Calls in jobs of the last days.", _integer(1, 365, 30)),
    _query("jobs", "Look at so many of the newest jobs.", _integer(1, 500, 100)),
    _query("limit", "How many rows.", _integer(1, 1000, 200)),
)
TOOL_PARAMETERS = tuple(parameter["name"] for parameter in _TOOLS_QUERY)
_EVENTS_QUERY = (
    _query("after", "Only events above this number.", _integer(0, default=0)),
    _query("limit", "How many on a JSON page.", _integer(1, 500)),
    _header("Last-Event-ID", "The same as `after`, from a stream's reconnect."),
)
_RESPONSE_QUERY = (
    _query("stream", "Follow its events.", {"type": "boolean", "default": False}),
    _query("starting_after", "Only events above this `sequence_number`.", _integer(0)),
)
_INPUT_QUERY = (
    _query("limit", "How many.", _integer(1, 100)),
    _query("order", "The newest first, or the oldest.", {"enum": ["asc", "desc"]}),
    _query("after", "Only items after this one."),
)

# --- native ----------------------------------------------------------------------------------------

_ALIVE = {200: json_answer("It answers.", native.Alive, "ALIVE")}
_JOB_ACTIONS = ("getJob", "followJob", "cancelJob", "retryJob", "resumeJob", "nextTurn", "deleteJob")
_JOB_FILES = ("getDiff", "getTranscript", "getBundle", "getClassicJob")
_JOB_LINKS = _links("job_id", "id", *_JOB_ACTIONS, *_JOB_FILES)
_QUEUED = json_answer("It is queued.", native.Job, "QUEUED", location="The job.")
_ACCEPTED = {
    200: json_answer(
        "It ended while `Prefer: wait` waited.", native.Job, "JOB", links=_JOB_LINKS, location="The job."
    ),
    202: json_answer(
        "It is stored and will run.", native.Job, "QUEUED", links=_JOB_LINKS, location="The job."
    ),
}
_EVENTS_RESPONSE: dict[str, Any] = {
    "description": "A stream of events, or a page of them.",
    "content": {
        **_stream_content("STREAM", native.Event),
        **_content("application/json", _ref(native.EventList), "EVENTS"),
    },
}
_KEY_LINKS = _links("key_id", "id", "getKey", "rotateKey", "revokeKey")


def _file(media_type: str, example: str, schema: dict[str, Any] = _STRING_SCHEMA) -> RouteDoc:
    content = _content(media_type, schema, example)
    return route_doc({200: {"description": "The file.", "content": content}}, *(404, 409, 503))


PROBE = route_doc(_ALIVE, public=True)
READINESS = route_doc(_ALIVE, 503, public=True)
SUBMIT = route_doc(
    _ACCEPTED,
    *(429, 503),
    parameters=(_PREFER_HEADER, _IDEMPOTENCY_HEADER),
    body=requests.JobRequest,
    examples=("LEAST", "SUBMIT"),
)
TURNS = route_doc(
    _ACCEPTED,
    *(404, 409, 429, 503),
    parameters=(_PREFER_HEADER, _IDEMPOTENCY_HEADER),
    body=requests.TurnRequest,
    examples=("TURN",),
)
LIST = route_doc(
    {200: json_answer("A page.", native.JobList, "JOBS")},
    *(422, 503),
    parameters=(*_LIST_QUERY, _METADATA_QUERY),
)
JOB = route_doc(
    {
        200: json_answer("The job.", native.Job, "JOB", etag="Changes when the job does."),
        304: {"description": "It has not changed since the `ETag` of `If-None-Match`."},
    },
    *(404, 422, 503),
    parameters=(_PREFER_HEADER, _header("If-None-Match", "An `ETag` of this job.")),
)
EVENTS = route_doc(
    {200: _EVENTS_RESPONSE, 204: {"description": "There will be no more."}},
    *(404, 406, 422, 503),
    parameters=_EVENTS_QUERY,
)
DIFF = _file("text/x-diff", "DIFF")
BUNDLE = _file("application/x-git-bundle", "BUNDLE", {"type": "string", "format": "binary"})
TRANSCRIPT = _file("application/x-ndjson", "TRANSCRIPT")
CANCEL = route_doc(
    {
        200: json_answer("It has ended.", native.Job, "JOB"),
        202: json_answer("It is being stopped.", native.Job, "JOB"),
    },
    *(404, 503),
    body=requests.CancelRequest,
    examples=("EMPTY",),
    body_optional=True,
)
RETRY = route_doc(
    {202: _QUEUED}, *(404, 409, 429, 503), body=requests.RetryRequest, examples=("RETRY",), body_optional=True
)
RESUME = route_doc(
    {202: _QUEUED},
    *(404, 409, 429, 503),
    body=requests.ResumeRequest,
    examples=("RESUME",),
    body_optional=True,
)
STEER = route_doc(
    {202: json_answer("The agent has read it.", native.Steer, "STEERED")},
    *(404, 409, 422, 429, 503),
    parameters=(_IDEMPOTENCY_HEADER,),
    body=requests.SteerRequest,
    examples=("STEER",),
)
_BULK = {200: json_answer("The jobs, and what became of each.", bulk_bodies.BulkResult, "BULK")}
CANCEL_JOBS = route_doc(_BULK, 503, body=requests.BulkRequest, examples=("BULK_CANCEL", "BULK_ALL"))
RETRY_JOBS = route_doc(_BULK, 503, body=requests.BulkRequest, examples=("BULK_RETRY",))
RESUME_JOBS = route_doc(_BULK, 503, body=requests.BulkResumeRequest, examples=("BULK_RESUME",))
DELETE = route_doc({204: {"description": "It is deleted."}}, *(404, 409, 503))
AGENTS = route_doc({200: json_answer("The agents.", native.AgentList, "AGENTS")}, 422)
WORKSPACES = route_doc({200: json_answer("The workspaces.", native.WorkspaceList, "WORKSPACES")}, 422)
KEYS = route_doc({200: json_answer("The keys.", native.KeyList, "KEYS")}, *(422, 503))
KEY = route_doc({200: json_answer("The key.", native.Key, "KEY")}, *(404, 422, 503))
CREATE_KEY = route_doc(
    {
        201: json_answer(
            "The key, with its secret.", native.NewKey, "NEW_KEY", links=_KEY_LINKS, location="The key."
        )
    },
    503,
    body=requests.KeyRequest,
    examples=("CREATE_KEY", "LEAST_KEY"),
)
REVOKE_KEY = route_doc({200: json_answer("It is revoked.", native.Key, "REVOKED_KEY")}, *(404, 409, 422, 503))
ROTATE_KEY = route_doc(
    {200: json_answer("The key, with its new secret.", native.NewKey, "NEW_KEY")},
    *(404, 409, 503),
    body=requests.RotateRequest,
    examples=("ROTATE_KEY",),
    body_optional=True,
)
FORECAST = route_doc(
    {200: json_answer("The forecast.", forecast_bodies.Forecast, "FORECAST")},
    *(422, 503),
    parameters=_FORECAST_QUERY,
)
TOOLS = route_doc(
    {200: json_answer("The rows.", tool_bodies.ToolList, "TOOLS")}, *(404, 422, 503), parameters=_TOOLS_QUERY
)
USAGE = route_doc(
    {200: json_answer("The rows.", native.UsageList, "USAGE")}, *(422, 503), parameters=_USAGE_QUERY
)

_DELIVERIES_QUERY = (
    _query("state", "Deliveries in this state.", {"enum": list(get_args(DeliveryState))}),
    _query("job", "Deliveries about this job."),
    _query("endpoint", "Deliveries to this configured receiver; needs `read:all`."),
    _query("limit", "How many.", _integer(1, 200, 20)),
    _query("cursor", "`next_cursor` of the page before."),
)
DELIVERIES_PARAMETERS = tuple(parameter["name"] for parameter in _DELIVERIES_QUERY)
DELIVERIES = route_doc(
    {200: json_answer("The deliveries.", native.CallbackDeliveryList, "DELIVERIES")},
    *(404, 422, 503),
    parameters=_DELIVERIES_QUERY,
)
DELIVERY = route_doc(
    {200: json_answer("The delivery.", native.CallbackDeliveryWithBody, "DELIVERY")}, *(404, 422, 503)
)
REPLAY_DELIVERY = route_doc(
    {202: json_answer("It is sent once more.", native.CallbackDelivery, "REPLAYED")},
    *(404, 503),
    body=requests.ReplayRequest,
    examples=("EMPTY",),
    body_optional=True,
)
ENDPOINTS = route_doc(
    {200: json_answer("The endpoints.", native.CallbackEndpointList, "ENDPOINTS")}, *(404, 422, 503)
)
ENDPOINT = route_doc(
    {200: json_answer("The endpoint.", native.CallbackEndpoint, "ENDPOINT")}, *(404, 422, 503)
)
CREATE_ENDPOINT = route_doc(
    {
        201: json_answer(
            "The endpoint, with its secret.",
            native.NewCallbackEndpoint,
            "NEW_ENDPOINT",
            location="The endpoint.",
        )
    },
    *(404, 409, 503),
    body=requests.EndpointRequest,
    examples=("CREATE_ENDPOINT",),
)
CHANGE_ENDPOINT = route_doc(
    {200: json_answer("The endpoint; with its secret if that is new.", native.CallbackEndpoint, "ENDPOINT")},
    *(404, 409, 503),
    body=requests.EndpointChangeRequest,
    examples=("CHANGE_ENDPOINT",),
)
REMOVE_ENDPOINT = route_doc({204: {"description": "It is removed."}}, *(404, 409, 422, 503))
CALLBACK_SECRET = route_doc(
    {200: json_answer("The secret.", native.CallbackSecret, "CALLBACK_SECRET")}, *(404, 422)
)

# --- OpenAI ----------------------------------------------------------------------------------------

_COMPLETION = json_answer("The answer.", openai.Completion, "COMPLETION", x_steadyhand_job_id="The job.")
_CHUNKS = _stream_content("CHAT_STREAM", openai.Chunk, openai.ChunkFault, end_marker="[DONE]")
_RESPONSE = json_answer(
    "The response.",
    openai.ResponseObject,
    "RESPONSE",
    links=_links("response_id", "id", "getResponse", "deleteResponse", "cancelResponse", "listInputItems"),
    x_steadyhand_job_id="The job.",
)
_RESPONSE["content"] |= _stream_content("RESPONSE_STREAM", openai.ResponseEvent, end_marker="[DONE]")

MODELS = _plain_doc({200: json_answer("The models.", openai.ModelList, "MODELS")})
MODEL = _plain_doc({200: json_answer("The model.", openai.Model, "MODEL")}, 404)
CHAT = _plain_doc(
    {200: {**_COMPLETION, "content": _COMPLETION["content"] | _CHUNKS}},
    *(404, 429, 503),
    parameters=(_IDEMPOTENCY_HEADER,),
    body=openai_requests.ChatRequest,
    examples=("CHAT", "CHAT_OBJECT", "CHAT_FUNCTION"),
)
RESPONSE_CREATE = _plain_doc(
    {200: _RESPONSE},
    *(404, 429, 503),
    parameters=(_IDEMPOTENCY_HEADER,),
    body=openai_requests.ResponseRequest,
    examples=("RESPOND", "RESPOND_BACKGROUND"),
)
RESPONSE_GET = _plain_doc({200: _RESPONSE}, *(404, 422, 503), parameters=_RESPONSE_QUERY)
RESPONSE_DELETE = _plain_doc(
    {200: json_answer("It is deleted.", openai.ResponseGone, "RESPONSE_GONE")}, *(404, 409, 503)
)
RESPONSE_CANCEL = _plain_doc(
    {200: json_answer("The response, as it is now.", openai.ResponseObject, "RESPONSE")},
    *(404, 503),
    body=openai_requests.ResponseCancelRequest,
    examples=("EMPTY",),
    body_optional=True,
)
RESPONSE_INPUT = _plain_doc(
    {200: json_answer("The input.", openai.InputItems, "INPUT_ITEMS")},
    *(404, 422, 503),
    parameters=_INPUT_QUERY,
)

# --- classic ---------------------------------------------------------------------------------------


def _classic_failure(description: str, status: int, example: str) -> dict[str, Any]:
    """Return an error that has the earlier service's own body, or if that had none, the body of all routes."""
    schema = {"anyOf": [_ref(classic.ClassicFailure), _ref(native.Problem)]}
    content = _content("application/json", schema, example, f"PROBLEM_{status}")
    return {"description": description, "content": content}


HEALTH = _plain_doc({200: json_answer("How full the service is.", native.Health, "HEALTH")}, public=True)
EXECUTE = _plain_doc(
    {
        202: json_answer(
            "The job is stored and will run.",
            classic.Executed,
            "EXECUTED",
            links=_links("job_id", "job_id", "getClassicJob"),
        )
    },
    *(409, 429, 503),
    body=requests.ExecuteRequest,
    examples=("EXECUTE",),
)
CLASSIC_JOB = _plain_doc({200: json_answer("The job.", classic.ClassicJob, "CLASSIC_JOB")}, *(404, 503))
CLASSIC_CHAT = _plain_doc(
    {
        200: _COMPLETION,
        400: _classic_failure("Not JSON, or streaming, which is not supported.", 400, "CLASSIC_STREAM"),
        503: _classic_failure("Stopping, busy, or the run failed.", 503, "CLASSIC_FAILURE"),
    },
    body=requests.ClassicChatRequest,
    examples=("CHAT",),
)
CONVERSATIONAL = _plain_doc(
    {200: json_answer("The reply.", classic.ConversationalReply, "CONVERSATIONAL_REPLY")},
    *(404, 429, 503),
    body=requests.ConversationalRequest,
    examples=("CONVERSATIONAL",),
)
_CLASSIC_INVALID = {
    "description": _STATUS_DESCRIPTIONS[422],
    "content": _content("application/json", _ref(classic.ClassicProblem), "CLASSIC_PROBLEM_422"),
}
_CLASSIC_FAILED = _classic_failure("Stopping, busy, or the run failed.", 503, "CLASSIC_FAILURE")


def use_classic_errors(operation: RouteDoc) -> None:
    """Document the errors of a classic or an OpenAI route as the classic profile sends them."""
    responses = operation["responses"]
    if "422" in responses:
        responses["422"] = deepcopy(_CLASSIC_INVALID)
    if operation["operationId"] == "converse":
        responses["503"] = deepcopy(_CLASSIC_FAILED)
