"""HTTP form of errors, created in one place: one body for all three groups of routes (docs/http-api.md#errors)."""

import json
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Literal

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import Scope as AsgiScope

from steadyhand.api.schemas import classic_bodies, native_bodies
from steadyhand.errors import (
    CallerError,
    Conflict,
    FieldError,
    Forbidden,
    InputError,
    InvalidRequest,
    NotFound,
    RetryLater,
    StoreUnavailable,
    Unauthenticated,
)
from steadyhand.redact import NO_REDACTION, Redactor

REQUEST_ID_SCOPE_KEY = "steadyhand.request_id"
"""The key of the request's id in the ASGI scope; the middleware sets it."""
REDACTOR_SCOPE_KEY = "steadyhand.redactor"
"""The key of the redactor of errors in the ASGI scope; the middleware sets it."""

CLASSIC_SCOPE_KEY = "steadyhand.classic"
"""A key of the ASGI scope: set in the classic profile; the middleware sets it."""

STATUS_BY_CODE: Mapping[str, int] = {
    "malformed_json": 400,
    "unsupported_parameter": 400,
    "unsupported_schema": 400,
    "previous_response_not_found": 400,
    "unknown_call": 400,
    "model_not_found": 404,
    "item_not_found": 404,
    "not_acceptable": 406,
    "request_timeout": 408,
    "body_too_large": 413,
    "unsupported_media_type": 415,
    "draining": 503,
    "unavailable": 503,
    "query_too_slow": 503,
    "node_gone": 503,
    "node_busy": 503,
}
"""Statuses of codes that differ from the status of their class."""

_STATUS_BY_CLASS: Sequence[tuple[type[CallerError], int]] = (
    (InvalidRequest, 422),
    (Unauthenticated, 401),
    (Forbidden, 403),
    (NotFound, 404),
    (Conflict, 409),
    (RetryLater, 429),
)
_CODE_BY_STATUS: Mapping[int, str] = {404: "not_found", 405: "method_not_allowed"}
_OPENAI_TYPE_BY_STATUS: Mapping[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    429: "rate_limit_error",
}
_SERVER_ERROR = 500
_INVALID = 422
_MAX_INPUT_BYTES = 1024
_MAX_INDEX_DIGITS = 10
STORE_RETRY_AFTER_SECONDS = 5
"""The `Retry-After` of a response during an outage of the store."""
_MAX_FIELD_ERRORS = 20

RouteGroup = Literal["classic", "native", "openai"]


def route_group(path: str) -> RouteGroup:
    """Return the group of docs/http-api.md that a path belongs to; a path of no group is native."""
    if path in ("/health", "/execute") or path.startswith("/jobs/"):
        return "classic"
    if path.startswith(("/v1/chat/", "/v1/conversational", "/v1/models", "/v1/responses")):
        return "openai"
    return "native"


def http_status(error: CallerError) -> int:
    """Return an error's status: that of its code if it has one of its own, else that of its class."""
    status_of_code = STATUS_BY_CODE.get(error.code)
    if status_of_code is not None:
        return status_of_code
    return next((status for error_class, status in _STATUS_BY_CLASS if isinstance(error, error_class)), 400)


def error_response(
    scope: AsgiScope,
    status: int,
    code: str,
    detail: str,
    *,
    field_errors: Sequence[FieldError] = (),
    headers: Mapping[str, str] | None = None,
    classic_detail: list[classic_bodies.ClassicInputError] | None = None,
) -> Response:
    """Create the one error body, with the content type of the path's group; `classic_detail` replaces its `detail`."""
    field_errors = field_errors[:_MAX_FIELD_ERRORS]
    param = field_errors[0].pointer.lstrip("/?").replace("/", ".") or None if field_errors else None
    body: native_bodies.Problem = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "code": code,
        "request_id": scope[REQUEST_ID_SCOPE_KEY],
        "errors": [
            {"pointer": field_error.pointer, "detail": field_error.detail} for field_error in field_errors
        ],
        "error": openai_error_json(status, code, detail, param),
    }
    redactor: Redactor = scope.get(REDACTOR_SCOPE_KEY, NO_REDACTION)
    document: Any = redactor.value(body)
    if classic_detail is not None:
        document["detail"] = classic_detail
    is_native = route_group(scope["path"]) == "native"
    media_type = "application/problem+json" if is_native else "application/json"
    return json_response(document, status, headers=headers, media_type=media_type)


def openai_error_json(
    status: int, code: str, detail: str, param: str | None = None
) -> native_bodies.OpenaiError:
    """Return an error in OpenAI's form; a stream that has begun sends it in place of a status."""
    error_type = _OPENAI_TYPE_BY_STATUS.get(
        status, "server_error" if status >= _SERVER_ERROR else "invalid_request_error"
    )
    return {"message": detail, "type": error_type, "param": param, "code": code}


def caller_error_response(scope: AsgiScope, error: CallerError) -> Response:
    """Create the response for a `CallerError`, with the headers that belong to it."""
    headers: dict[str, str] = {}
    if isinstance(error, Unauthenticated):
        headers["www-authenticate"] = 'Bearer realm="steadyhand"'
    if isinstance(error, RetryLater):
        headers["retry-after"] = str(max(1, error.retry_after))
    field_errors = error.field_errors if isinstance(error, InvalidRequest) else ()
    status = http_status(error)
    classic_detail = None
    if isinstance(error, InvalidRequest) and status == _INVALID and _has_classic_details(scope):
        classic_detail = classic_details(error, scope.get(REDACTOR_SCOPE_KEY, NO_REDACTION))
    return error_response(
        scope,
        status,
        error.code,
        error.detail,
        field_errors=field_errors,
        headers=headers,
        classic_detail=classic_detail,
    )


def _has_classic_details(scope: AsgiScope) -> bool:
    return CLASSIC_SCOPE_KEY in scope and route_group(scope["path"]) != "native"


def classic_details(error: InvalidRequest, redactor: Redactor) -> list[classic_bodies.ClassicInputError]:
    """Return the wrong fields as FastAPI lists them; an input above 1 KB is cut. Secrets are removed."""
    input_errors = error.input_errors or [
        InputError("value_error", ("body", *_location(field_error.pointer)), field_error.detail, None)
        for field_error in error.field_errors or (FieldError("", error.detail),)
    ]
    inputs: dict[int, Any] = {}
    for each in input_errors:
        if id(each.value) not in inputs:  # often the whole body
            inputs[id(each.value)] = _short_input(each.value, redactor)
    return [
        {
            "type": each.type,
            "loc": list(each.location),
            "msg": redactor.text(each.message),
            "input": inputs[id(each.value)],
        }
        for each in input_errors[:_MAX_FIELD_ERRORS]
    ]


def _location(pointer: str) -> list[str | int]:
    parts = [part.replace("~1", "/").replace("~0", "~") for part in pointer.split("/")[1:]]
    return [int(part) if part.isdecimal() and len(part) < _MAX_INDEX_DIGITS else part for part in parts]


def _short_input(value: Any, redactor: Redactor) -> Any:
    """Return an input, or the beginning of its text or of its JSON if that is longer than 1 KB."""
    text = value if isinstance(value, str) else json_bytes(value).decode("utf-8")
    data = text[: 4 * _MAX_INPUT_BYTES].encode("utf-8", "replace")
    if len(data) <= _MAX_INPUT_BYTES:
        return redactor.value(value)
    return redactor.truncated(data)[:_MAX_INPUT_BYTES].decode("utf-8", "ignore")


def store_unavailable_response(scope: AsgiScope, error: StoreUnavailable) -> Response:
    """Create the response for a request that an outage of the store prevents."""
    headers = {"retry-after": str(STORE_RETRY_AFTER_SECONDS)}
    return error_response(scope, 503, error.code, error.detail, headers=headers)


async def handle_store_unavailable(request: Request, error: Exception) -> Response:
    """Respond to a `StoreUnavailable`; registered as its handler."""
    assert isinstance(error, StoreUnavailable)  # noqa: S101  # registered for this class alone
    return store_unavailable_response(request.scope, error)


def internal_error_response(scope: AsgiScope) -> Response:
    """Create the response for an internal error; the cause is only in the log."""
    return error_response(
        scope, 500, "internal", "The service failed. Its log has the cause, under this request's id."
    )


async def handle_caller_error(request: Request, error: Exception) -> Response:
    """Respond to a `CallerError`; registered as its handler."""
    assert isinstance(error, CallerError)  # noqa: S101  # registered for this class alone
    return caller_error_response(request.scope, error)


async def handle_router_error(request: Request, error: Exception) -> Response:
    """Respond to an error of the router itself: an unknown path or method."""
    assert isinstance(error, HTTPException)  # noqa: S101  # registered for this class alone
    code = _CODE_BY_STATUS.get(error.status_code, "invalid_request")
    detail = {
        404: "There is no such route.",
        405: f"{request.method} is not allowed here.",
    }.get(error.status_code, HTTPStatus(error.status_code).phrase)
    headers = error.headers
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        headers = {"allow": _allowed_methods(request)}
    return error_response(request.scope, error.status_code, code, detail, headers=headers)


def _allowed_methods(request: Request) -> str:
    """Return the methods of all routes with this path; the router names those of the first one only.

    A path of its own (`/v1/jobs/cancel`) comes before one that has it as a parameter (`/v1/jobs/{job_id}`).
    """
    routes = request.app.router.routes
    matching = [route for route in routes if route.matches(request.scope)[0] is not Match.NONE]
    own = [route for route in matching if route.path == request.url.path]
    return ", ".join(sorted({method for route in own or matching for method in route.methods or ()}))


def json_response(
    body: Any,
    status: int = 200,
    *,
    headers: Mapping[str, str] | None = None,
    media_type: str = "application/json",
) -> Response:
    """Return a JSON response as is, without another validation."""
    return Response(json_bytes(body), status, headers, media_type)


def json_bytes(body: Any) -> bytes:
    """Encode JSON in UTF-8. A lone surrogate in an agent's text becomes a question mark, never a 500."""
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def unsupported_parameter(parameter: str, reason: str) -> InvalidRequest:
    """Return the error for a parameter of the OpenAI API that these routes do not support."""
    return InvalidRequest.at(f"/{parameter}", reason, code="unsupported_parameter")
