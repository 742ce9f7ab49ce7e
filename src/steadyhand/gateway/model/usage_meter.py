"""Reads what a call of the model used from the answer as it passes: streamed or not, whole or broken.

Pure: bytes go in, a `Reading` comes out. Nothing that is in them raises, and a figure that may be too low is marked.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

from steadyhand.gateway.model.response_parsers import Body, Events, Frames, Json, Unpacked
from steadyhand.ports import Tokens

Form = Literal["messages", "bedrock", "none"]
"""How the answers of a route look: those of the Messages API, those of Bedrock's invoke, or none that costs."""

MOST_TOKENS = 10**10
"""A figure above it is no count of tokens."""
BYTES_A_TOKEN = 4
GATHERED_BYTES = 64 * 1024
"""Pieces are read together: the figures are wanted at the end only, and a piece of a stream is often tiny."""

_SUCCESS = range(200, 300)
_FRAMES = "application/vnd.amazon.eventstream"
_PACKED = (["gzip"], ["x-gzip"], ["deflate"])
_MODEL = re.compile(r"[!-~]{1,256}")
_TOLD = ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
_LENGTHS = ("ephemeral_5m_input_tokens", "ephemeral_1h_input_tokens")
_SEARCHES = "web_search_requests"


@dataclass(frozen=True, slots=True)
class Extras:
    """What a call is charged by besides its tokens: web searches, and the rates of fast mode and of US-only work."""

    searches: int = 0
    fast: bool = False
    us_only: bool = False


@dataclass(frozen=True, slots=True)
class Reading:
    """What one answer told. `tokens` is exactly what was told; `complete` is false when that may be too low.

    `seen` says that any usage was told. `estimated_output` is made from how much was said, for an answer that broke
    off before its last figure. `model` is the one that the answer names.
    """

    tokens: Tokens
    model: str | None
    complete: bool
    seen: bool
    estimated_output: int = 0
    extras: Extras = Extras()

    @property
    def likely(self) -> Tokens:
        """Give the tokens for a budget: of an incomplete reading the output told or the one estimated, if more."""
        if self.complete:
            return self.tokens
        return replace(self.tokens, output=max(self.tokens.output, self.estimated_output))


class Meter:
    """Reads one answer. `headers` are names and values as they came; `feed` takes the body as it was received."""

    def __init__(self, status: int, headers: Iterable[tuple[bytes, bytes]], form: Form) -> None:
        self._status = status
        self._costs = form != "none"
        self._figures = _Figures()
        self._body: Body | None = None
        self._waiting: list[bytes] = []
        self._size = 0
        encodings: list[str] = []
        kind = ""
        for name, value in headers:
            lowered = name.lower()
            if lowered == b"content-encoding":
                encodings += [word.strip().lower() for word in value.decode("latin-1").split(",")]
            elif lowered == b"content-type":
                kind = value.decode("latin-1").partition(";")[0].strip().lower()
        packed = [word for word in encodings if word not in ("", "identity")]
        self._unpacked = Unpacked() if packed in _PACKED else None
        self._readable = not packed or self._unpacked is not None
        if form == "bedrock" and kind == _FRAMES:
            self._body = Frames(self._figures)

    def feed(self, data: bytes) -> None:
        """Take the next piece of the body. Never raises for what is in it."""
        if not self._costs:
            return
        self._waiting.append(data)
        self._size += len(data)
        if self._size >= GATHERED_BYTES or len(self._waiting) >= GATHERED_BYTES:
            self._read()

    def finish(self, *, cut: bool) -> Reading:
        """Say what the answer told; `cut` when it ended before its sender or its reader was done."""
        if not self._costs:
            return Reading(Tokens(), None, complete=True, seen=False)
        self._read()
        if self._body is not None:
            self._body.end()
        figures = self._figures
        # An error costs nothing and says nothing of usage; one that does is read as any answer is.
        expected = figures.seen or self._status in _SUCCESS
        return Reading(
            figures.tokens(),
            figures.model,
            not expected or (self._readable and figures.complete(cut=cut)),
            figures.seen,
            -(-figures.said // BYTES_A_TOKEN),
            figures.extras(),
        )

    def _read(self) -> None:
        data = b"".join(self._waiting)
        self._waiting.clear()
        self._size = 0
        if not self._readable:
            return
        if self._unpacked is None:
            self._take(data)
            return
        for piece in self._unpacked.pieces(data):
            self._take(piece)
        self._readable = not self._unpacked.broken

    def _take(self, data: bytes) -> None:
        if self._body is None:
            data = data.lstrip()
            if not data:
                return
            # What it is shows in its first byte: a wrong content type hides nothing.
            self._body = Json(self._figures) if data.startswith(b"{") else Events(self._figures)
        self._body.take(data)


class _Figures:
    """The figures so far. Each is cumulative: the last one told counts, and never less than an earlier one."""

    def __init__(self) -> None:
        self.model: str | None = None
        self.broken = False
        self.said = 0
        self._most: dict[str, int] = {}
        self._last_output = False
        self._reason = False
        self._stopped = False
        self._fast = False
        self._us_only = False
        self._compacted = Tokens()

    @property
    def seen(self) -> bool:
        """Whether any figure was told."""
        return bool(self._most)

    def event(self, data: bytes) -> None:
        """Read the JSON of one event of a stream."""
        event = self._object(data)
        kind = event.get("type")
        if kind == "message_start":
            message = event.get("message")
            if isinstance(message, dict):
                self._message(message)
            else:
                self.broken = True
        elif kind == "message_delta":
            if "usage" in event:
                self._last_output = self._usage(event["usage"]) or self._last_output
            delta = event.get("delta")
            self._reason = self._reason or (isinstance(delta, dict) and bool(delta.get("stop_reason")))
        elif kind == "message_stop":
            self._stopped = True

    def whole(self, data: bytes | bytearray) -> None:
        """Read the JSON of an answer that came in one piece."""
        self._last_output = self._message(self._object(data))
        self._stopped = True

    def complete(self, *, cut: bool) -> bool:
        """Say whether nothing can be missing: input and the last output were told, and nothing was unreadable."""
        ended = self._stopped or (self._reason and not cut)
        return ended and self._last_output and "input_tokens" in self._most and not self.broken

    def tokens(self) -> Tokens:
        """Give what was told. Cache writes that say no length are the short ones."""
        told = self._most.get
        hour = told("ephemeral_1h_input_tokens", 0)
        written = max(told("cache_creation_input_tokens", 0), hour + told("ephemeral_5m_input_tokens", 0))
        plain = Tokens(
            input=told("input_tokens", 0),
            output=told("output_tokens", 0),
            cache_read=told("cache_read_input_tokens", 0),
            cache_write_5m=written - hour,
            cache_write_1h=hour,
        )
        return plain.plus(self._compacted)

    def extras(self) -> Extras:
        """Give what was told besides tokens."""
        return Extras(self._most.get(_SEARCHES, 0), self._fast, self._us_only)

    def _object(self, data: bytes | bytearray) -> dict[str, Any]:
        try:
            found = json.loads(data)
        except (ValueError, RecursionError):
            found = None
        if isinstance(found, dict):
            return found
        self.broken = True
        return {}

    def _message(self, message: dict[str, Any]) -> bool:
        """Read a message's model and usage; true when it told its output."""
        model = message.get("model")
        if isinstance(model, str) and _MODEL.fullmatch(model):
            self.model = model
        return self._usage(message.get("usage"))

    def _usage(self, usage: object) -> bool:
        """Read a `usage`; true when it told its output."""
        if not isinstance(usage, dict):
            self.broken = True
            return False
        told = [self._keep(usage, name) for name in _TOLD]
        lengths = usage.get("cache_creation")
        if lengths is not None:
            for name in _LENGTHS:
                self._keep(lengths, name)
        if usage.get("server_tool_use") is not None:
            self._keep(usage["server_tool_use"], _SEARCHES)
        self._fast = self._fast or usage.get("speed") == "fast"
        self._us_only = self._us_only or usage.get("inference_geo") == "us"
        if usage.get("iterations") is not None:
            self._iterations(usage["iterations"])
        return told[1]

    def _keep(self, table: object, name: str) -> bool:
        """Keep a figure; true when there was one. Null is none; anything but a plausible count is broken."""
        value = table.get(name) if isinstance(table, dict) else table
        if value is None:
            return False
        if type(value) is not int or not 0 <= value <= MOST_TOKENS:
            self.broken = True
            return False
        self._most[name] = max(self._most.get(name, 0), value)
        return True

    def _iterations(self, steps: object) -> None:
        """Add what the service used to sum the conversation up: it is charged, and not in the figures beside it."""
        total = Tokens()
        for step in steps if isinstance(steps, list) else [steps]:
            if isinstance(step, dict) and step.get("type") == "compaction":
                apart = _Figures()
                told = apart._usage({**step, "iterations": None})
                self.broken = self.broken or apart.broken or not told
                total = total.plus(apart.tokens())
            elif not isinstance(step, dict) or step.get("type") != "message":
                self.broken = True  # perhaps another model's work: its price is not to be had from here
        if total.input + total.output > self._compacted.input + self._compacted.output:
            self._compacted = total
