"""The body of a request on its way to a provider, buffered if it is small."""

import json
import re
from collections.abc import AsyncIterator
from typing import Any

from starlette.types import Receive

from steadyhand.gateway.model.error_response import Rejected
from steadyhand.gateway.model.http_client import RequestBody
from steadyhand.gateway.model.metered_run import MeteredRun, OpenCall

MAX_BODY_BYTES = 64 * 1024 * 1024
MAX_REPLAYABLE_BYTES = 4 * 1024 * 1024
"""A body up to this size is buffered until its response arrives, so that it can be sent again."""
_LEADING_MODEL_KEY = re.compile(rb'\s*\{\s*"model"\s*:\s*"([A-Za-z0-9._:@/\[\]-]{1,200})"')


class ClientDisconnected(Exception):
    """The agent's end of the connection is closed."""


class StreamedBody(RequestBody):
    """A request body on its way, bounded: each chunk is sent on as it arrives; a small body is buffered as well.

    `prepare` waits for the first chunk, and for all of a small body only if the first chunk does not name the model.
    """

    def __init__(self, receive: Receive, run: MeteredRun) -> None:
        self._receive = receive
        self._run = run
        self._total = 0
        self._at_end = False
        self._reserved_bytes = 0
        self._call: OpenCall | None = None
        self._chunks: list[bytes] | None = None
        self.first_chunk = b""

    @property
    def buffered(self) -> bytes | None:
        """Return the whole body, if it is in memory."""
        if self._chunks is None or not self._at_end:
            return None
        if len(self._chunks) > 1:
            self._chunks = [b"".join(self._chunks)]
        return self._chunks[0] if self._chunks else b""

    @property
    def replayable(self) -> bool:
        """Return True if the body is buffered from its beginning and can be sent again."""
        return self._chunks is not None

    async def prepare(self, length: int | None, *, needs_model: bool, needs_all: bool = False) -> None:
        """Read as much as is needed before the call is admitted; `needs_model` if the model must be known.

        With `needs_all`, all of a small body is read.
        """
        if self._at_end or (
            length is not None and length <= min(MAX_REPLAYABLE_BYTES, self._run.buffer_bytes_left)
        ):
            self._reserved_bytes = length or 0
            self._run.buffer_bytes_left -= self._reserved_bytes
            self._chunks = []
        while not (self.first_chunk or self._at_end):
            self.first_chunk = await self._read_chunk()
        needs_all = needs_all or (needs_model and _LEADING_MODEL_KEY.match(self.first_chunk) is None)
        if self.replayable and needs_all:
            while not self._at_end:
                await self._read_chunk()
            self.first_chunk = self.buffered or b""

    def replace(self, body: bytes) -> None:
        """Replace a body that is in memory as a whole."""
        self._chunks = [body]
        self.first_chunk = body

    def report_size_to(self, call: OpenCall) -> None:
        """Report the real size of the body to a call."""
        self._call = call

    def release(self) -> None:
        """Release the buffer."""
        self._run.buffer_bytes_left += self._reserved_bytes
        self._reserved_bytes = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        if self._chunks is None:
            chunk = self.first_chunk
            while chunk or not self._at_end:
                if chunk:
                    yield chunk
                chunk = b"" if self._at_end else await self._read_chunk()
        else:
            chunks, index = self._chunks, 0
            while index < len(chunks) or not self._at_end:
                if index == len(chunks):
                    await self._read_chunk()
                else:
                    yield chunks[index]
                    index += 1
        if self._call is not None:
            self._call.resize(self._total)

    async def _read_chunk(self) -> bytes:
        """Return the next chunk. Raises `ClientDisconnect`, and `Rejected` when the body is too large."""
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnected
        chunk: bytes = message["body"]
        self._total += len(chunk)
        if self._total > MAX_BODY_BYTES:
            raise too_large()
        self._at_end = not message["more_body"]
        if self._chunks is not None and chunk:
            self._chunks.append(chunk)
        return chunk

    def mark_empty(self) -> None:
        """Mark the body as empty."""
        self._at_end = True


def requested_model(body: bytes) -> str | None:
    """Return the model that a request names in its beginning, or in all of it."""
    match = _LEADING_MODEL_KEY.match(body)
    if match is not None:
        return match[1].decode("ascii")
    try:
        parsed: Any = json.loads(body)
    except (ValueError, RecursionError):
        return None
    model = parsed.get("model") if isinstance(parsed, dict) else None
    return model if isinstance(model, str) else None


def too_large() -> Rejected:
    """Return the answer to a body above the limit."""
    return Rejected(413, "request_too_large", f"A request has at most {MAX_BODY_BYTES >> 20} MiB.")
