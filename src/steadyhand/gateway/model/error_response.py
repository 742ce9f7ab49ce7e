"""Answers that the gateway gives by itself: errors in the form of the Messages API."""

import contextlib
import json
from collections.abc import Mapping

from starlette.types import Send


class Rejected(Exception):
    """A request that is answered here, in the words of the Messages API."""

    def __init__(
        self, status: int, kind: str, message: str, headers: Mapping[bytes, bytes] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.message = message
        self.headers = headers or {}


async def send_error(send: Send, rejected: Rejected) -> None:
    """Send a rejection, and close the connection."""
    body = json.dumps(
        {"type": "error", "error": {"type": rejected.kind, "message": rejected.message}}
    ).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        *rejected.headers.items(),
        (b"connection", b"close"),
    ]
    with contextlib.suppress(OSError):
        await send({"type": "http.response.start", "status": rejected.status, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": False})
