"""What the OpenAPI document says of each route, apart from its name: bodies, parameters, answers, examples.

Each constant is handed to one route as keyword arguments. Examples are named as in `examples.EXAMPLES`.
"""

from typing import Any, get_args

from starlette.responses import Response

from steadyhand.api.schemas import native_bodies, openai_bodies, requests
from steadyhand.job import State
from steadyhand.ports import UsageGroup

SECURITY = "bearer"
_TEXT = {"type": "string"}
_TEXTS = {
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
    503: "Stopping, or the run failed.",
}
Route = dict[str, Any]


def _ref(model: type) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{model.__name__}"}


def _examples(*names: str) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/examples/{name}"} for name in names}


def _content(media: str, model: type, example: str) -> dict[str, Any]:
    return {media: {"schema": _ref(model), "examples": _examples(example)}}


def _json(
    text: str, model: type, example: str, *, links: Route | None = None, **headers: str
) -> dict[str, Any]:
    answer: dict[str, Any] = {"description": text, "content": _content("application/json", model, example)}
    if links:
        answer["links"] = links
    if headers:
        answer["headers"] = {
            name.replace("_", "-"): {"description": about, "schema": {"type": "string"}}
            for name, about in headers.items()
        }
    return answer


def _stream(example: str, *kinds: type, end: str | None = None) -> dict[str, Any]:
    """Say what each event of a stream is (`itemSchema`): its data is JSON, but for the `end`."""
    data: dict[str, Any] = {
        "type": "string",
        "contentMediaType": "application/json",
        "contentSchema": {"anyOf": [_ref(kind) for kind in kinds]},
    }
    event = {
        "type": "object",
        "properties": {
            "id": _TEXT,
            "event": _TEXT,
            "data": data if end is None else {"anyOf": [{"const": end}, data]},
        },
        "required": ["data"],
    }
    return {"text/event-stream": {"itemSchema": event, "examples": _examples(example)}}


def _links(parameter: str, where: str, *operations: str) -> dict[str, Any]:
    """Say which operations take the id that an answer holds, and as which parameter."""
    value = f"$response.body#/{where}"
    return {
        operation: {"operationId": operation, "parameters": {parameter: value}} for operation in operations
    }


def _errors(media: str, *statuses: int) -> dict[int, dict[str, Any]]:
    made: dict[int, dict[str, Any]] = {}
    for status in statuses:
        made[status] = {
            "description": _TEXTS[status],
            "content": _content(media, native_bodies.Problem, f"PROBLEM_{status}"),
        }
        if status in (429, 503):
            made[status]["headers"] = {
                "retry-after": {"description": "Seconds.", "schema": {"type": "integer"}}
            }
    return made


def _native(*statuses: int) -> dict[int, dict[str, Any]]:
    return _errors("application/problem+json", 401, 403, *statuses, 500)


def _plain(*statuses: int) -> dict[int, dict[str, Any]]:
    return _errors("application/json", *statuses, 500)


def _parameter(name: str, where: str, about: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": where, "description": about, "schema": schema, "required": where == "path"}


def _route(
    answers: dict[int, dict[str, Any]],
    *,
    parameters: tuple[dict[str, Any], ...] = (),
    body: type | None = None,
    shown: tuple[str, ...] = (),
    optional: bool = False,
    open_to_all: bool = False,
) -> Route:
    extra: dict[str, Any] = {"security": [] if open_to_all else [{SECURITY: []}]}
    if parameters:
        extra["parameters"] = list(parameters)
    if body is not None:
        extra["requestBody"] = {
            "required": not optional,
            "content": {
                "application/json": {
                    "schema": _ref(body),
                    "examples": _examples(*shown),
                }
            },
        }
    # `Response` has no media type of its own, so that only what is written here gets into the document.
    return {"responses": answers, "openapi_extra": extra, "response_class": Response, "response_model": None}


_BINARY = {"type": "string", "format": "binary"}
_PREFER = _parameter("Prefer", "header", "`wait=N` waits for the end, at most 60 seconds.", _TEXT)
_IDEMPOTENCY = _parameter(
    "Idempotency-Key",
    "header",
    "The same key with the same body gives the same job, for 24 hours.",
    {"type": "string", "minLength": 1, "maxLength": 255},
)
_LISTED: tuple[dict[str, Any], ...] = (
    _parameter(
        "state",
        "query",
        "Any of these states; repeatable.",
        {"type": "array", "items": {"enum": list(State)}},
    ),
    _parameter("agent", "query", "Jobs of this agent.", _TEXT),
    _parameter("workspace", "query", "Jobs in this workspace.", _TEXT),
    _parameter("api_key", "query", "Jobs of this key; needs `read:all` for others than one's own.", _TEXT),
    _parameter(
        "created_after", "query", "RFC 3339, with its zone.", {"type": "string", "format": "date-time"}
    ),
    _parameter(
        "created_before", "query", "RFC 3339, with its zone.", {"type": "string", "format": "date-time"}
    ),
    _parameter(
        "id_prefix", "query", "Jobs whose ids begin so.", {"type": "string", "pattern": "^[0-9a-f]{1,12}$"}
    ),
    _parameter(
        "limit", "query", "How many.", {"type": "integer", "minimum": 1, "maximum": 200, "default": 20}
    ),
    _parameter("cursor", "query", "`next_cursor` of the page before.", _TEXT),
)
LIST_PARAMETERS = tuple(parameter["name"] for parameter in _LISTED)
_METADATA = {
    "name": "metadata",
    "in": "query",
    "description": "`metadata.NAME=value`: jobs whose metadata has this value under this name.",
    "required": False,
    "schema": {"type": "object", "additionalProperties": _TEXT},
}

HEALTH = _route({200: _json("How full it is.", native_bodies.Health, "HEALTH"), **_plain()}, open_to_all=True)
PROBE = _route(
    {200: _json("It answers.", native_bodies.Alive, "ALIVE"), **_errors("application/problem+json", 500)},
    open_to_all=True,
)
READINESS = _route(
    {
        200: _json("Work is taken.", native_bodies.Alive, "ALIVE"),
        **_errors("application/problem+json", 500, 503),
    },
    open_to_all=True,
)
EXECUTE = _route(
    {
        202: _json(
            "The job is kept and will run.",
            native_bodies.Executed,
            "EXECUTED",
            links=_links("job_id", "job_id", "getClassicJob"),
        ),
        **_plain(400, 401, 403, 409, 413, 415, 422, 429, 503),
    },
    body=requests.ExecuteRequest,
    shown=("EXECUTE",),
)
CLASSIC_JOB = _route(
    {200: _json("The job.", native_bodies.ClassicJob, "CLASSIC_JOB"), **_plain(401, 403, 404)},
)
_JOB_LINKS = _links(
    "job_id",
    "id",
    *("getJob", "followJob", "cancelJob", "retryJob", "resumeJob", "nextTurn", "deleteJob"),
    *("getDiff", "getTranscript", "getBundle", "getClassicJob"),
)
_MADE = {
    200: _json(
        "It has ended while `Prefer: wait` waited.",
        native_bodies.Job,
        "JOB",
        links=_JOB_LINKS,
        location="The job.",
    ),
    202: _json(
        "It is kept and will run.", native_bodies.Job, "QUEUED", links=_JOB_LINKS, location="The job."
    ),
}
SUBMIT = _route(
    {
        **_MADE,
        **_native(400, 413, 415, 422, 429, 503),
    },
    parameters=(_PREFER, _IDEMPOTENCY),
    body=requests.JobRequest,
    shown=(
        "LEAST",
        "SUBMIT",
    ),
)
LIST = _route(
    {200: _json("A page.", native_bodies.JobList, "JOBS"), **_native(422)}, parameters=(*_LISTED, _METADATA)
)
JOB = _route(
    {
        200: _json("The job.", native_bodies.Job, "JOB", etag="Changes when the job does."),
        304: {"description": "It is as `If-None-Match` says."},
        **_native(404, 422),
    },
    parameters=(_PREFER, _parameter("If-None-Match", "header", "An `ETag` of this job.", _TEXT)),
)
_AFTER = {"type": "integer", "minimum": 0, "default": 0}
_EVENTS: dict[str, Any] = {
    "description": "A stream of events, or a page of them.",
    "content": {
        **_stream("STREAM", native_bodies.Event),
        **_content("application/json", native_bodies.EventList, "EVENTS"),
    },
}
EVENTS = _route(
    {200: _EVENTS, 204: {"description": "There will be no more."}, **_native(404, 406, 422)},
    parameters=(
        _parameter("after", "query", "Only events above this number.", _AFTER),
        _parameter(
            "limit", "query", "How many on a JSON page.", {"type": "integer", "minimum": 1, "maximum": 500}
        ),
        _parameter("Last-Event-ID", "header", "The same as `after`, from a stream's reconnect.", _TEXT),
    ),
)


def _file(media: str, example: str, schema: dict[str, Any] = _TEXT) -> dict[int, dict[str, Any]]:
    content = {media: {"schema": schema, "examples": _examples(example)}}
    return {200: {"description": "The file.", "content": content}, **_native(404, 409)}


DIFF = _route(_file("text/x-diff", "DIFF"))
BUNDLE = _route(_file("application/x-git-bundle", "BUNDLE", _BINARY))
TRANSCRIPT = _route(_file("application/x-ndjson", "TRANSCRIPT"))
CANCEL = _route(
    {
        200: _json("It has ended.", native_bodies.Job, "JOB"),
        202: _json("It is being stopped.", native_bodies.Job, "JOB"),
        **_native(400, 404, 413, 415, 422),
    },
    body=requests.CancelRequest,
    shown=("EMPTY",),
    optional=True,
)
RETRY = _route(
    {
        202: _json("It is queued.", native_bodies.Job, "QUEUED", location="The job."),
        **_native(400, 404, 409, 413, 415, 422, 429, 503),
    },
    body=requests.RetryRequest,
    shown=("RETRY",),
    optional=True,
)
TURNS = _route(
    {
        **_MADE,
        **_native(400, 404, 409, 413, 415, 422, 429, 503),
    },
    parameters=(_PREFER, _IDEMPOTENCY),
    body=requests.TurnRequest,
    shown=("TURN",),
)
RESUME = _route(
    {
        202: _json("It is queued.", native_bodies.Job, "QUEUED", location="The job."),
        **_native(400, 404, 409, 413, 415, 422, 429, 503),
    },
    body=requests.ResumeRequest,
    shown=("RESUME",),
    optional=True,
)
DELETE = _route({204: {"description": "It is gone."}, **_native(404, 409)})
AGENTS = _route({200: _json("The agents.", native_bodies.AgentList, "AGENTS"), **_native(422)})
WORKSPACES = _route(
    {200: _json("The workspaces.", native_bodies.WorkspaceList, "WORKSPACES"), **_native(422)}
)
KEYS = _route({200: _json("The keys.", native_bodies.KeyList, "KEYS"), **_native(422)})
KEY = _route({200: _json("The key.", native_bodies.Key, "KEY"), **_native(404, 422)})
CREATE_KEY = _route(
    {
        201: _json(
            "The key, with its secret.",
            native_bodies.NewKey,
            "NEW_KEY",
            links=_links("key_id", "id", "getKey", "rotateKey", "revokeKey"),
            location="The key.",
        ),
        **_native(400, 413, 415, 422),
    },
    body=requests.KeyRequest,
    shown=("CREATE_KEY", "LEAST_KEY"),
)
REVOKE_KEY = _route(
    {200: _json("It is revoked.", native_bodies.Key, "REVOKED_KEY"), **_native(404, 409, 422)}
)
ROTATE_KEY = _route(
    {
        200: _json("The key, with its new secret.", native_bodies.NewKey, "NEW_KEY"),
        **_native(400, 404, 409, 413, 415, 422),
    },
    body=requests.RotateRequest,
    shown=("ROTATE_KEY",),
    optional=True,
)
_TIME = {"type": "string", "format": "date-time"}
_USAGE: tuple[dict[str, Any], ...] = (
    _parameter(
        "by",
        "query",
        "What to group by; repeatable. Without it there is one row.",
        {"type": "array", "items": {"enum": list(get_args(UsageGroup))}},
    ),
    _parameter("since", "query", "Calls from then on; RFC 3339, with its zone.", _TIME),
    _parameter("until", "query", "Calls before then.", _TIME),
    _parameter("api_key", "query", "Calls for this key; needs `admin` for others than one's own.", _TEXT),
    _parameter("agent", "query", "Calls of this agent.", _TEXT),
    _parameter("model", "query", "Calls of this model.", _TEXT),
    _parameter(
        "limit", "query", "How many rows.", {"type": "integer", "minimum": 1, "maximum": 1000, "default": 200}
    ),
    _parameter("cursor", "query", "`next_cursor` of the page before.", _TEXT),
)
USAGE_PARAMETERS = tuple(parameter["name"] for parameter in _USAGE)
USAGE = _route({200: _json("The rows.", native_bodies.UsageList, "USAGE"), **_native(422)}, parameters=_USAGE)
MODELS = _route({200: _json("The models.", openai_bodies.ModelList, "MODELS"), **_plain(401, 403)})
MODEL = _route({200: _json("The model.", openai_bodies.Model, "MODEL"), **_plain(401, 403, 404)})
_COMPLETION = _json("The answer.", openai_bodies.Completion, "COMPLETION", x_steadyhand_job_id="The job.")
_COMPLETION["content"] |= _stream("CHAT_STREAM", openai_bodies.Chunk, openai_bodies.ChunkFault, end="[DONE]")
CHAT = _route(
    {
        200: _COMPLETION,
        **_plain(400, 401, 403, 404, 413, 415, 422, 429, 503),
    },
    parameters=(_IDEMPOTENCY,),
    body=requests.ChatRequest,
    shown=("CHAT", "CHAT_OBJECT", "CHAT_FUNCTION"),
)
_RESPONSE = _json("The response.", openai_bodies.ResponseObject, "RESPONSE", x_steadyhand_job_id="The job.")
_RESPONSE["content"] |= _stream("RESPONSE_STREAM", openai_bodies.ResponseEvent, end="[DONE]")
_RESPONSE["links"] = _links(
    "response_id", "id", "getResponse", "deleteResponse", "cancelResponse", "listInputItems"
)
RESPONSE_CREATE = _route(
    {200: _RESPONSE, **_plain(400, 401, 403, 404, 413, 415, 422, 429, 503)},
    parameters=(_IDEMPOTENCY,),
    body=requests.ResponseRequest,
    shown=("RESPOND", "RESPOND_BACKGROUND"),
)
_NUMBER = {"type": "integer", "minimum": 0}
RESPONSE_GET = _route(
    {200: _RESPONSE, **_plain(401, 403, 404, 422)},
    parameters=(
        _parameter("stream", "query", "Follow its events.", {"type": "boolean", "default": False}),
        _parameter("starting_after", "query", "Only events above this `sequence_number`.", _NUMBER),
    ),
)
_GONE = _json("It is gone.", openai_bodies.ResponseGone, "RESPONSE_GONE")
RESPONSE_DELETE = _route({200: _GONE, **_plain(401, 403, 404, 409)})
RESPONSE_CANCEL = _route(
    {
        200: _json("The response, as it is now.", openai_bodies.ResponseObject, "RESPONSE"),
        **_plain(400, 401, 403, 404, 413, 415, 422),
    },
    body=requests.ResponseCancelRequest,
    shown=("EMPTY",),
    optional=True,
)
RESPONSE_INPUT = _route(
    {200: _json("The input.", openai_bodies.InputItems, "INPUT_ITEMS"), **_plain(401, 403, 404, 422)},
    parameters=(
        _parameter("limit", "query", "How many.", {"type": "integer", "minimum": 1, "maximum": 100}),
        _parameter("order", "query", "The newest first, or the oldest.", {"enum": ["asc", "desc"]}),
        _parameter("after", "query", "Only items after this one.", _TEXT),
    ),
)


def _classic_failure(text: str, status: int, example: str) -> dict[str, Any]:
    """Say that an answer is the earlier service's own, or where that had none, the one of all routes."""
    schema = {"anyOf": [_ref(native_bodies.ClassicFailure), _ref(native_bodies.Problem)]}
    content = {"schema": schema, "examples": _examples(example, f"PROBLEM_{status}")}
    return {"description": text, "content": {"application/json": content}}


CLASSIC_CHAT = _route(
    {
        200: _json("The answer.", openai_bodies.Completion, "COMPLETION", x_steadyhand_job_id="The job."),
        **_plain(401, 403, 413, 415, 422),
        400: _classic_failure("Not JSON, or streaming, which is not to be had.", 400, "CLASSIC_STREAM"),
        503: _classic_failure("Stopping, busy, or the run failed.", 503, "CLASSIC_FAILURE"),
    },
    body=requests.ClassicChatRequest,
    shown=("CHAT",),
)
