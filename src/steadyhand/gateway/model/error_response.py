"""Answers that the gateway gives by itself: errors in the form of the API that the agent speaks."""

import contextlib
import json
from collections.abc import Mapping
from typing import Any, Literal

from starlette.types import Send

from steadyhand.ports import ModelApi

ErrorFormat = Literal["messages", "openai", "gemini"]

BUDGET_STATUS = 402
BUDGET = "billing_error"
RATE_LIMIT_STATUS = 429
RATE_LIMIT = "rate_limit_error"
_OVERLOADED_STATUS = 529

# Statuses that end the agent. Of the Messages API they are 402 for a spent budget and 429 with `x-should-retry: false`.
# Agents of the other APIs retry 429, most of them for minutes or as long as `retry-after` says, and errors of a server;
# they retry neither 403 nor 400. Gemini's own errors of billing are 400 FAILED_PRECONDITION. 529 is Anthropic's alone.
_STATUSES: Mapping[ErrorFormat, Mapping[int, int]] = {
    "messages": {},
    "openai": {BUDGET_STATUS: 403, RATE_LIMIT_STATUS: 403, _OVERLOADED_STATUS: 503},
    "gemini": {BUDGET_STATUS: 400, RATE_LIMIT_STATUS: 400, _OVERLOADED_STATUS: 503},
}
_OPENAI_CODES: Mapping[str, str] = {
    BUDGET: "insufficient_quota",
    RATE_LIMIT: "rate_limit_exceeded",
    "authentication_error": "invalid_api_key",
}
_GEMINI_STATUSES: Mapping[int, str] = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    502: "UNAVAILABLE",
    503: "UNAVAILABLE",
}


class Rejected(Exception):
    """A request that is answered here; status and kind are those of the Messages API."""

    def __init__(
        self, status: int, kind: str, message: str, headers: Mapping[bytes, bytes] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.message = message
        self.headers = headers or {}

    def status_in(self, error_format: ErrorFormat) -> int:
        """Return the status of the response to an agent of this API."""
        return _STATUSES[error_format].get(self.status, self.status)


def error_format_of(api: ModelApi) -> ErrorFormat:
    """Return the form of the errors of an API."""
    return api if api in ("openai", "gemini") else "messages"


def error_format_of_target(target: bytes) -> ErrorFormat:
    """Return the form of the errors of a request whose run, and so whose API, is not known."""
    if target.startswith((b"/v1/responses", b"/v1/chat/")):
        return "openai"
    return "gemini" if target.startswith(b"/v1beta/") else "messages"


async def send_error(send: Send, rejected: Rejected, error_format: ErrorFormat = "messages") -> None:
    """Send a rejection in the form of an API, and close the connection."""
    status = rejected.status_in(error_format)
    body = json.dumps(_error_body(rejected, status, error_format)).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        *rejected.headers.items(),
        (b"connection", b"close"),
    ]
    with contextlib.suppress(OSError):
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": False})


def _error_body(rejected: Rejected, status: int, error_format: ErrorFormat) -> dict[str, Any]:
    kind, message = rejected.kind, rejected.message
    if error_format == "openai":
        code = _OPENAI_CODES.get(kind)
        kind = code if kind == BUDGET and code is not None else kind
        return {"error": {"message": message, "type": kind, "param": None, "code": code}}
    if error_format == "gemini":
        named = (
            "FAILED_PRECONDITION" if kind in (BUDGET, RATE_LIMIT) else _GEMINI_STATUSES.get(status, "UNKNOWN")
        )
        return {"error": {"code": status, "message": message, "status": named}}
    return {"type": "error", "error": {"type": kind, "message": message}}
