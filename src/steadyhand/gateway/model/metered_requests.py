"""Checks and changes of requests to OpenAI's APIs, so that each call reports its usage."""

import json
import re
from typing import Any

from steadyhand.gateway.model.error_response import Rejected
from steadyhand.gateway.model.usage_meter import ResponseFormat

_MAYBE_BACKGROUND = re.compile(rb"background|\\u00[4-7]", re.IGNORECASE)
"""The name of the option, or an escaped letter, by which it could be hidden."""
_ASKS_FOR_USAGE = re.compile(rb'"stream_options"\s*:\s*\{\s*"include_usage"\s*:\s*true\s*[,}]')
_USAGE_OPTION = b'"stream_options":{"include_usage":true},'


def metered_body(response_format: ResponseFormat, body: bytes) -> bytes:
    """Return the body to send for a call that is in memory as a whole.

    Raises `Rejected` for a response in the background: it goes on without a connection, and nobody would see its usage.
    A streamed chat completion reports usage only if it is asked to, so it is.
    """
    if response_format == "responses":
        if _MAYBE_BACKGROUND.search(body) and _parse(body).get("background"):
            text = "This gateway passes no response in the background: send `background` as false."
            raise Rejected(400, "invalid_request_error", text)
    elif response_format == "chat" and _ASKS_FOR_USAGE.search(body) is None:
        request = _parse(body)
        if request.get("stream"):
            return _with_usage_option(body, request)
    return body


def _with_usage_option(body: bytes, request: dict[str, Any]) -> bytes:
    """Return the body with the option. Without other options, all of the rest stays as it was written."""
    if "stream_options" not in request:
        return b"{" + _USAGE_OPTION + body.lstrip()[1:]
    options = request["stream_options"]
    options = options if isinstance(options, dict) else {}
    return json.dumps({**request, "stream_options": {**options, "include_usage": True}}).encode()


def _parse(body: bytes) -> dict[str, Any]:
    try:
        request = json.loads(body)
    except (ValueError, RecursionError):
        return {}  # the provider refuses it in its own words
    return request if isinstance(request, dict) else {}
