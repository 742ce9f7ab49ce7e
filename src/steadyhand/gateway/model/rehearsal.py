"""The gateway's own answer to a process that rehearses: the first turn of a process takes most of its processor time.

The turn costs nothing and is in no ledger: no provider sees it, and its usage is zero.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from starlette.types import Receive, Scope, Send

REHEARSAL_TEXT = "OK"
_MAX_BODY_BYTES = 4 << 20
_USAGE = {"input_tokens": 0, "output_tokens": 0}


async def answer_rehearsal(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a call of the Messages API, as a stream if it asks for one; anything else gets 404."""
    body = await _read_body(receive)
    request = _parse(body)
    if scope["method"] != "POST" or request is None or b"count" in scope["state"]["target"]:
        content, kind, status = (
            b'{"type":"error","error":{"type":"not_found_error","message":"Not now."}}',
            b"json",
            404,
        )
    elif request.get("stream"):
        content, kind, status = b"".join(_events(request)), b"event-stream", 200
    else:
        content, kind, status = json.dumps(_message(request, whole=True)).encode(), b"json", 200
    media_type = b"text/event-stream" if kind == b"event-stream" else b"application/json"
    headers = [
        (b"content-type", media_type),
        (b"content-length", b"%d" % len(content)),
        (b"connection", b"close"),  # no connection of the rehearsal is there for a run
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content, "more_body": False})


async def _read_body(receive: Receive) -> bytes:
    parts, size = [], 0
    while size <= _MAX_BODY_BYTES:
        message = await receive()
        if message["type"] != "http.request":
            break
        parts.append(message["body"])
        size += len(message["body"])
        if not message["more_body"]:
            break
    return b"".join(parts)


def _parse(body: bytes) -> Mapping[str, Any] | None:
    try:
        request = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return request if isinstance(request, dict) else None


def _message(request: Mapping[str, Any], *, whole: bool) -> Mapping[str, Any]:
    return {
        "id": "msg_rehearsal",
        "type": "message",
        "role": "assistant",
        "model": str(request.get("model", ""))[:200],
        "content": [{"type": "text", "text": REHEARSAL_TEXT}] if whole else [],
        "stop_reason": "end_turn" if whole else None,
        "stop_sequence": None,
        "usage": _USAGE,
    }


def _events(request: Mapping[str, Any]) -> Iterator[bytes]:
    block = {"type": "text", "text": ""}
    for event in (
        {"type": "message_start", "message": _message(request, whole=False)},
        {"type": "content_block_start", "index": 0, "content_block": block},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": REHEARSAL_TEXT}},
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn", "stop_sequence": None},
            "usage": _USAGE,
        },
        {"type": "message_stop"},
    ):
        yield b"event: %s\ndata: %s\n\n" % (str(event["type"]).encode(), json.dumps(event).encode())
