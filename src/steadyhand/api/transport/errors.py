"""Errors, translated once: one body for all three groups of routes (docs/http-api.md#errors)."""

import json
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Literal

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import Scope as AsgiScope

from steadyhand.api.schemas import native_bodies
from steadyhand.errors import (
    CallerError,
    Conflict,
    FieldError,
    Forbidden,
    InvalidRequest,
    NotFound,
    RetryLater,
    Unauthenticated,
)
from steadyhand.redact import NO_REDACTION, Redactor

REQUEST_ID_SCOPE_KEY = "steadyhand.request_id"
"""Where the edge leaves the request's id in the ASGI scope."""
REDACTOR_SCOPE_KEY = "steadyhand.redactor"
"""Where the edge leaves what takes live secrets out of errors."""

STATUS_BY_CODE: Mapping[str, int] = {
    "malformed_json": 400,
    "unsupported_parameter": 400,
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
}
"""Codes whose status is not that of their class."""

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
_MAX_FIELD_ERRORS = 20

RouteGroup = Literal["classic", "native", "openai"]


def route_group(path: str) -> RouteGroup:
    """Say which group of docs/http-api.md a path belongs to; what belongs to none is native."""
    if path in ("/health", "/execute") or path.startswith("/jobs/"):
        return "classic"
    if path.startswith(("/v1/chat/", "/v1/models", "/v1/responses")):
        return "openai"
    return "native"


def http_status(error: CallerError) -> int:
    """Give an error's status: by its code when that has one of its own, else by its class."""
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
) -> Response:
    """Make the one error body, with the content type of the group that the path belongs to."""
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
    body = redactor.value(body)
    is_native = route_group(scope["path"]) == "native"
    media_type = "application/problem+json" if is_native else "application/json"
    return json_response(body, status, headers=headers, media_type=media_type)


def openai_error_json(
    status: int, code: str, detail: str, param: str | None = None
) -> native_bodies.OpenaiError:
    """Give an error as OpenAI's clients know it; in a stream it stands for the status that can be sent no more."""
    error_type = _OPENAI_TYPE_BY_STATUS.get(
        status, "server_error" if status >= _SERVER_ERROR else "invalid_request_error"
    )
    return {"message": detail, "type": error_type, "param": param, "code": code}


def caller_error_response(scope: AsgiScope, error: CallerError) -> Response:
    """Make the error body for one of our errors, with the headers that go with it."""
    headers: dict[str, str] = {}
    if isinstance(error, Unauthenticated):
        headers["www-authenticate"] = 'Bearer realm="steadyhand"'
    if isinstance(error, RetryLater):
        headers["retry-after"] = str(max(1, error.retry_after))
    field_errors = error.field_errors if isinstance(error, InvalidRequest) else ()
    return error_response(
        scope, http_status(error), error.code, error.detail, field_errors=field_errors, headers=headers
    )


def internal_error_response(scope: AsgiScope) -> Response:
    """Make the body for a fault of ours: it says nothing of the cause, which is in the log."""
    return error_response(
        scope, 500, "internal", "The service failed. Its log has the cause, under this request's id."
    )


async def handle_caller_error(request: Request, error: Exception) -> Response:
    """Answer one of our errors; FastAPI's handler for `CallerError`."""
    assert isinstance(error, CallerError)  # noqa: S101  # registered for this class alone
    return caller_error_response(request.scope, error)


async def handle_router_error(request: Request, error: Exception) -> Response:
    """Answer what the router itself refuses: an unknown path or method."""
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
    """Give the methods of all routes that have this path; the router names those of the first one alone."""
    routes = request.app.router.routes
    matching_routes = (route for route in routes if route.matches(request.scope)[0] is not Match.NONE)
    return ", ".join(sorted({method for route in matching_routes for method in route.methods or ()}))


def json_response(
    body: Any,
    status: int = 200,
    *,
    headers: Mapping[str, str] | None = None,
    media_type: str = "application/json",
) -> Response:
    """Answer with JSON, as it stands: nothing is validated again."""
    return Response(json_bytes(body), status, headers, media_type)


def json_bytes(body: Any) -> bytes:
    """Write JSON in UTF-8. A lone surrogate in what an agent said becomes a question mark, never a 500."""
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def unsupported_parameter(parameter: str, reason: str) -> InvalidRequest:
    """Refuse what the OpenAI API has and these routes do not."""
    return InvalidRequest.at(f"/{parameter}", reason, code="unsupported_parameter")
