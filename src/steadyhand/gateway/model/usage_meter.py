"""The usage meter: reads the usage of a call from its response as it passes, streamed or not, whole or broken.

Pure: it takes bytes and returns `MeasuredUsage`. No content raises an error, and a count that may be too low is marked.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from steadyhand.gateway.model.gemini_usage import GeminiUsage
from steadyhand.gateway.model.messages_usage import MessagesUsage
from steadyhand.gateway.model.openai_usage import ChatCompletionsUsage, ResponsesUsage
from steadyhand.gateway.model.response_parsers import (
    BodyParser,
    Decompressor,
    EventStreamParser,
    JsonParser,
    SseParser,
)
from steadyhand.gateway.model.usage_parser import UsageParser
from steadyhand.gateway.money.prices import UsageExtras
from steadyhand.ports import TokenCounts

ResponseFormat = Literal["messages", "bedrock", "responses", "chat", "gemini", "none"]
"""The API whose responses a route has; Bedrock's invoke has frames. `none` costs nothing."""

BYTES_PER_TOKEN = 4
BATCH_BYTES = 64 * 1024
"""Pieces are read together: the figures are wanted at the end only, and a piece of a stream is often tiny."""

_USAGE_PARSERS: Mapping[ResponseFormat, type[UsageParser]] = {
    "messages": MessagesUsage,
    "bedrock": MessagesUsage,
    "responses": ResponsesUsage,
    "chat": ChatCompletionsUsage,
    "gemini": GeminiUsage,
}
_SUCCESS = range(200, 300)
_EVENT_STREAM_TYPE = "application/vnd.amazon.eventstream"
_COMPRESSED_ENCODINGS = (["gzip"], ["x-gzip"], ["deflate"])


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
        self._usage = _USAGE_PARSERS.get(response_format, UsageParser)()
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
