"""The usage of responses of the Messages API: a stream reports input at its start and output at its end."""

from typing import Any

from steadyhand.gateway.model.usage_parser import UsageParser
from steadyhand.gateway.money.prices import UsageExtras
from steadyhand.ports import TokenCounts

_BLOCK = b'"content_block_'
_DELTA = b'"content_block_delta"'
_DELTA_LINE = b"event: content_block_delta\n"
_USAGE = b'"usage"'
_TEXT_KEYS = (b'"text":', b'"partial_json":', b'"thinking":')
_DELTA_SUFFIX_BYTES = len(b'""}}')
_USAGE_KEYS = ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
_CACHE_WRITE_KEYS = ("ephemeral_5m_input_tokens", "ephemeral_1h_input_tokens")
_SEARCHES_KEY = "web_search_requests"


class MessagesUsage(UsageParser):
    """The usage of a response of the Messages API, also in the frames of Bedrock. Input that was cached is apart."""

    def __init__(self) -> None:
        super().__init__()
        self._has_final_output = False
        self._has_stop_reason = False
        self._stopped = False
        self._us_only = False
        self._compaction_tokens = TokenCounts()

    def count_delta(self, event: bytes) -> bool:
        """Count the length of an event's text; return False if the event must be parsed, as it is no block delta."""
        if _USAGE in event:
            return False
        if event.startswith(_DELTA_LINE) or _DELTA in event:
            self.output_bytes += _delta_bytes(event)
            return True
        return _BLOCK in event

    def is_content(self, head: bytes) -> bool:
        """Return True for an event of a content block."""
        return _BLOCK in head

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

    def _parse_message(self, message: dict[str, Any]) -> bool:
        """Parse a message's model and usage; return True if it reports its output."""
        self._record_model(message.get("model"))
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

    def _parse_iterations(self, steps: object) -> None:
        """Add the usage of a context compaction: it is charged, but not part of the other counts."""
        total = TokenCounts()
        for step in steps if isinstance(steps, list) else [steps]:
            if isinstance(step, dict) and step.get("type") == "compaction":
                compaction = MessagesUsage()
                has_output = compaction._parse_usage({**step, "iterations": None})
                self.malformed = self.malformed or compaction.malformed or not has_output
                total = total.plus(compaction.tokens())
            elif not isinstance(step, dict) or step.get("type") != "message":
                self.malformed = True  # perhaps another model's work: its price is not to be had from here
        if total.input + total.output > self._compaction_tokens.input + self._compaction_tokens.output:
            self._compaction_tokens = total


def _delta_bytes(event: bytes) -> int:
    """Return the approximate bytes of text, thinking or tool input in an event, as written in JSON."""
    for name in _TEXT_KEYS:
        at = event.find(name)
        if at >= 0:
            return max(0, len(event) - at - len(name) - _DELTA_SUFFIX_BYTES)
    return 0
