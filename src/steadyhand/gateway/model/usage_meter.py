"""The usage meter: reads the usage of a call from its response as it passes, streamed or not, whole or broken.

Pure: it takes bytes and returns `MeasuredUsage`. No content raises an error, and a count that may be too low is marked.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from steadyhand.gateway.model.response_parsers import (
    BodyParser,
    Decompressor,
    EventStreamParser,
    JsonParser,
    SseParser,
)
from steadyhand.gateway.money.prices import UsageExtras
from steadyhand.ports import TokenCounts

ResponseFormat = Literal["messages", "bedrock", "none"]
"""How the answers of a route look: those of the Messages API, those of Bedrock's invoke, or none that costs."""

MAX_TOKENS = 10**10
"""A figure above it is no count of tokens."""
BYTES_PER_TOKEN = 4
BATCH_BYTES = 64 * 1024
"""Pieces are read together: the figures are wanted at the end only, and a piece of a stream is often tiny."""

_SUCCESS = range(200, 300)
_EVENT_STREAM_TYPE = "application/vnd.amazon.eventstream"
_COMPRESSED_ENCODINGS = (["gzip"], ["x-gzip"], ["deflate"])
_MODEL = re.compile(r"[!-~]{1,256}")
_USAGE_KEYS = ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
_CACHE_WRITE_KEYS = ("ephemeral_5m_input_tokens", "ephemeral_1h_input_tokens")
_SEARCHES_KEY = "web_search_requests"


@dataclass(frozen=True, slots=True)
class MeasuredUsage:
    """The measured usage of one response. `tokens` is exactly as reported; `complete` is false if that may be too low.

    `seen` is true if any usage was reported. `estimated_output` is an estimate by the length of the text, for a
    response that broke before its last count. `model` is the one that the response names.
    """

    tokens: TokenCounts
    model: str | None
    complete: bool
    has_usage: bool
    estimated_output: int = 0
    extras: UsageExtras = field(default_factory=UsageExtras)

    @property
    def billable_tokens(self) -> TokenCounts:
        """Return the tokens to bill: of an incomplete response the higher of reported and estimated output."""
        if self.complete:
            return self.tokens
        return replace(self.tokens, output=max(self.tokens.output, self.estimated_output))


class UsageMeter:
    """Reads one answer. `headers` are names and values as they came; `feed` takes the body as it was received."""

    def __init__(
        self, status: int, headers: Iterable[tuple[bytes, bytes]], response_format: ResponseFormat
    ) -> None:
        self._status = status
        self._is_billable = response_format != "none"
        self._usage = _UsageParser()
        self._parser: BodyParser | None = None
        self._buffered: list[bytes] = []
        self._size = 0
        encodings: list[str] = []
        content_type = ""
        for name, value in headers:
            lowered = name.lower()
            if lowered == b"content-encoding":
                encodings += [word.strip().lower() for word in value.decode("latin-1").split(",")]
            elif lowered == b"content-type":
                content_type = value.decode("latin-1").partition(";")[0].strip().lower()
        compressed = [word for word in encodings if word not in ("", "identity")]
        self._decompressor = Decompressor() if compressed in _COMPRESSED_ENCODINGS else None
        self._readable = not compressed or self._decompressor is not None
        if response_format == "bedrock" and content_type == _EVENT_STREAM_TYPE:
            self._parser = EventStreamParser(self._usage)

    def feed(self, data: bytes) -> None:
        """Read the next chunk of the body. Never raises because of its content."""
        if not self._is_billable:
            return
        self._buffered.append(data)
        self._size += len(data)
        if self._size >= BATCH_BYTES or len(self._buffered) >= BATCH_BYTES:
            self._flush()

    def finish(self, *, truncated: bool) -> MeasuredUsage:
        """Return the measured usage; `cut` if the response ended too early."""
        if not self._is_billable:
            return MeasuredUsage(TokenCounts(), None, complete=True, has_usage=False)
        self._flush()
        if self._parser is not None:
            self._parser.finish()
        usage = self._usage
        # An error costs nothing and says nothing of usage; one that does is read as any answer is.
        needs_usage = usage.has_usage or self._status in _SUCCESS
        return MeasuredUsage(
            usage.tokens(),
            usage.model,
            not needs_usage or (self._readable and usage.complete(truncated=truncated)),
            usage.has_usage,
            -(-usage.output_bytes // BYTES_PER_TOKEN),
            usage.extras(),
        )

    def _flush(self) -> None:
        data = b"".join(self._buffered)
        self._buffered.clear()
        self._size = 0
        if not self._readable:
            return
        if self._decompressor is None:
            self._parse(data)
            return
        for chunk in self._decompressor.decompress(data):
            self._parse(chunk)
        self._readable = not self._decompressor.malformed

    def _parse(self, data: bytes) -> None:
        if self._parser is None:
            data = data.lstrip()
            if not data:
                return
            # What it is shows in its first byte: a wrong content type hides nothing.
            self._parser = JsonParser(self._usage) if data.startswith(b"{") else SseParser(self._usage)
        self._parser.feed(data)


class _UsageParser:
    """The counts so far. Each is cumulative: the last one counts, and never less than an earlier one."""

    def __init__(self) -> None:
        self.model: str | None = None
        self.malformed = False
        self.output_bytes = 0
        self._counts: dict[str, int] = {}
        self._has_final_output = False
        self._has_stop_reason = False
        self._stopped = False
        self._fast = False
        self._us_only = False
        self._compaction_tokens = TokenCounts()

    @property
    def has_usage(self) -> bool:
        """Return True if any usage was reported."""
        return bool(self._counts)

    def on_event(self, data: bytes) -> None:
        """Read the JSON of one event of a stream."""
        event = self._parse_object(data)
        kind = event.get("type")
        if kind == "message_start":
            message = event.get("message")
            if isinstance(message, dict):
                self._parse_message(message)
            else:
                self.malformed = True
        elif kind == "message_delta":
            if "usage" in event:
                self._has_final_output = self._parse_usage(event["usage"]) or self._has_final_output
            delta = event.get("delta")
            self._has_stop_reason = self._has_stop_reason or (
                isinstance(delta, dict) and bool(delta.get("stop_reason"))
            )
        elif kind == "message_stop":
            self._stopped = True

    def on_body(self, data: bytes | bytearray) -> None:
        """Read the JSON of an answer that came in one piece."""
        self._has_final_output = self._parse_message(self._parse_object(data))
        self._stopped = True

    def complete(self, *, truncated: bool) -> bool:
        """Return True if nothing can be missing: input and last output were reported, and everything was readable."""
        ended = self._stopped or (self._has_stop_reason and not truncated)
        return ended and self._has_final_output and "input_tokens" in self._counts and not self.malformed

    def tokens(self) -> TokenCounts:
        """Return the reported tokens. Cache writes without a duration count as short ones."""
        count = self._counts.get
        written_1h = count("ephemeral_1h_input_tokens", 0)
        cache_written = max(
            count("cache_creation_input_tokens", 0), written_1h + count("ephemeral_5m_input_tokens", 0)
        )
        tokens = TokenCounts(
            input=count("input_tokens", 0),
            output=count("output_tokens", 0),
            cache_read=count("cache_read_input_tokens", 0),
            cache_write_5m=cache_written - written_1h,
            cache_write_1h=written_1h,
        )
        return tokens.plus(self._compaction_tokens)

    def extras(self) -> UsageExtras:
        """Return the reported usage besides tokens."""
        return UsageExtras(self._counts.get(_SEARCHES_KEY, 0), self._fast, self._us_only)

    def _parse_object(self, data: bytes | bytearray) -> dict[str, Any]:
        try:
            parsed = json.loads(data)
        except (ValueError, RecursionError):
            parsed = None
        if isinstance(parsed, dict):
            return parsed
        self.malformed = True
        return {}

    def _parse_message(self, message: dict[str, Any]) -> bool:
        """Parse a message's model and usage; return True if it reports its output."""
        model = message.get("model")
        if isinstance(model, str) and _MODEL.fullmatch(model):
            self.model = model
        return self._parse_usage(message.get("usage"))

    def _parse_usage(self, usage: object) -> bool:
        """Parse a `usage` object; return True if it reports the output."""
        if not isinstance(usage, dict):
            self.malformed = True
            return False
        present = [self._record_count(usage, name) for name in _USAGE_KEYS]
        cache_writes = usage.get("cache_creation")
        if cache_writes is not None:
            for name in _CACHE_WRITE_KEYS:
                self._record_count(cache_writes, name)
        if usage.get("server_tool_use") is not None:
            self._record_count(usage["server_tool_use"], _SEARCHES_KEY)
        self._fast = self._fast or usage.get("speed") == "fast"
        self._us_only = self._us_only or usage.get("inference_geo") == "us"
        if usage.get("iterations") is not None:
            self._parse_iterations(usage["iterations"])
        return present[1]

    def _record_count(self, table: object, name: str) -> bool:
        """Store a count and return True if there was one; an implausible count marks the usage as incomplete."""
        value = table.get(name) if isinstance(table, dict) else table
        if value is None:
            return False
        if type(value) is not int or not 0 <= value <= MAX_TOKENS:
            self.malformed = True
            return False
        self._counts[name] = max(self._counts.get(name, 0), value)
        return True

    def _parse_iterations(self, steps: object) -> None:
        """Add the usage of a context compaction: it is charged, but not part of the other counts."""
        total = TokenCounts()
        for step in steps if isinstance(steps, list) else [steps]:
            if isinstance(step, dict) and step.get("type") == "compaction":
                compaction = _UsageParser()
                has_output = compaction._parse_usage({**step, "iterations": None})
                self.malformed = self.malformed or compaction.malformed or not has_output
                total = total.plus(compaction.tokens())
            elif not isinstance(step, dict) or step.get("type") != "message":
                self.malformed = True  # perhaps another model's work: its price is not to be had from here
        if total.input + total.output > self._compaction_tokens.input + self._compaction_tokens.output:
            self._compaction_tokens = total
