"""The usage of responses of OpenAI's APIs, Responses and Chat Completions, also from the many services that speak them.

Both count input that was read from a cache within the input, and reasoning within the output. A stream reports usage at
its end only, so the output of one that breaks off is estimated.
"""

import re
from typing import Any

from steadyhand.gateway.model.usage_parser import UsageParser
from steadyhand.ports import TokenCounts

_TEXT = rb'"\s*:\s*"((?:[^"\\]++|\\.)*+)'
_RESPONSES_TEXT = re.compile(rb'"delta' + _TEXT, re.DOTALL)
_CHAT_TEXT = re.compile(rb'"(?:content|reasoning_content|reasoning|arguments|refusal)' + _TEXT, re.DOTALL)
_RESPONSES_FIGURES = re.compile(rb'"usage"\s*:\s*\{')
_CHAT_FIGURES = re.compile(rb'"usage"\s*:\s*\{|"finish_reason"\s*:\s*"')
"""The sign of an event that must be parsed. A model cannot write it: quotes within its text are escaped."""
_MAX_NAMELESS_EVENTS = 16
"""The events that are parsed for the name of the model."""
_TERMINAL_EVENTS = ("response.completed", "response.incomplete", "response.failed")
_DONE_STATUSES = ("completed", "incomplete", "failed", "cancelled")
_FAST_TIERS = ("priority", "fast", "ultrafast")
_CACHED, _WRITTEN = "cached_tokens", "cache_write_tokens"


class _OpenAIUsage(UsageParser):
    """The common part of both APIs, which differ in the names of their figures."""

    _input_key = ""
    _output_key = ""
    _figures: re.Pattern[bytes]
    _text: re.Pattern[bytes]

    def __init__(self) -> None:
        super().__init__()
        self._ended = False
        self._nameless_events = 0

    def count_delta(self, event: bytes) -> bool:
        """Count the length of an event's text; return False for one with figures, and until the model is known."""
        for text in self._text.finditer(event):
            self.output_bytes += text.end(1) - text.start(1)
        if self.model is None and self._nameless_events < _MAX_NAMELESS_EVENTS:
            self._nameless_events += 1
            return False
        return self._figures.search(event) is None and b"[DONE]" not in event

    def complete(self, *, truncated: bool) -> bool:
        """Return True if the end and both figures were there, and everything was readable."""
        has_figures = self._input_key in self._counts and self._output_key in self._counts
        return self._has_ended(truncated=truncated) and has_figures and not self.malformed

    def _has_ended(self, *, truncated: bool) -> bool:  # noqa: ARG002  # of Chat Completions
        return self._ended

    def tokens(self) -> TokenCounts:
        """Return the reported tokens. Cache writes count as short ones: there is only one kind."""
        count = self._counts.get
        cached, written = count(_CACHED, 0), count(_WRITTEN, 0)
        return TokenCounts(
            input=max(0, count(self._input_key, 0) - cached - written),
            output=count(self._output_key, 0),
            cache_read=cached,
            cache_write_5m=written,
        )

    def _parse_usage(self, usage: dict[str, Any], details: object) -> None:
        self._record_count(usage, self._input_key)
        self._record_count(usage, self._output_key)
        if details is not None:
            self._record_count(details, _CACHED)
            self._record_count(details, _WRITTEN)
        count = self._counts.get
        if count(_CACHED, 0) + count(_WRITTEN, 0) > count(self._input_key, 0):
            self.malformed = True

    def _parse_tier(self, response: dict[str, Any]) -> None:
        self._fast = self._fast or response.get("service_tier") in _FAST_TIERS


class ResponsesUsage(_OpenAIUsage):
    """The usage of the Responses API: the event that ends a stream holds the whole response."""

    has_long_events = True
    _input_key, _output_key = "input_tokens", "output_tokens"
    _figures, _text = _RESPONSES_FIGURES, _RESPONSES_TEXT

    def on_event(self, data: bytes) -> None:
        """Read the model of any event's response, and the usage of the last one."""
        event = self._parse_object(data)
        response = event.get("response")
        if isinstance(response, dict):
            self._record_model(response.get("model"))
            if event.get("type") in _TERMINAL_EVENTS:
                self._parse_response(response)

    def on_body(self, data: bytes | bytearray) -> None:
        """Read a response that came in one piece. One that goes on in the background is not complete."""
        response = self._parse_object(data)
        self._record_model(response.get("model"))
        if response.get("status") in _DONE_STATUSES:
            self._parse_response(response)

    def _parse_response(self, response: dict[str, Any]) -> None:
        self._ended = True
        self._parse_tier(response)
        usage = response.get("usage")
        if isinstance(usage, dict):
            self._parse_usage(usage, usage.get("input_tokens_details"))
        output = response.get("output")
        self._searches = sum(map(_is_search, output)) if isinstance(output, list) else 0


class ChatCompletionsUsage(_OpenAIUsage):
    """The usage of Chat Completions: a chunk without choices reports it, or for some services the last choice."""

    _input_key, _output_key = "prompt_tokens", "completion_tokens"
    _figures, _text = _CHAT_FIGURES, _CHAT_TEXT

    def __init__(self) -> None:
        super().__init__()
        self._has_finish_reason = False

    def on_event(self, data: bytes) -> None:
        """Read the model, the end and the usage of a chunk."""
        chunk = self._parse_object(data)
        self._parse_completion(chunk)
        self._ended = self._ended or (isinstance(chunk.get("usage"), dict) and chunk.get("choices") == [])

    def on_body(self, data: bytes | bytearray) -> None:
        """Read a completion that came in one piece."""
        self._parse_completion(self._parse_object(data))
        self._ended = True

    def on_done(self) -> None:
        """Note the end of a stream."""
        self._ended = True

    def _has_ended(self, *, truncated: bool) -> bool:
        return self._ended or (self._has_finish_reason and not truncated)

    def _parse_completion(self, completion: dict[str, Any]) -> None:
        self._record_model(completion.get("model"))
        self._parse_tier(completion)
        choices = completion.get("choices")
        choices = [each for each in choices if isinstance(each, dict)] if isinstance(choices, list) else []
        if any(each.get("finish_reason") for each in choices):
            self._has_finish_reason = True
        for usage in (completion.get("usage"), *(each.get("usage") for each in choices)):
            if isinstance(usage, dict):
                self._parse_usage(usage, _input_details(usage))


def _input_details(usage: dict[str, Any]) -> object:
    """Return the parts of the input, from where the service puts them."""
    details = usage.get("prompt_tokens_details")
    if isinstance(details, dict) and details.get(_CACHED) is not None:
        return details
    hits = usage.get(_CACHED, usage.get("prompt_cache_hit_tokens"))  # Moonshot's and DeepSeek's names
    if hits is None:
        return details
    return {**(details if isinstance(details, dict) else {}), _CACHED: hits}


def _is_search(item: object) -> bool:
    """Return True for a search of the web by the service, which has a price of its own."""
    if not isinstance(item, dict) or item.get("type") != "web_search_call":
        return False
    action = item.get("action")
    return not isinstance(action, dict) or action.get("type", "search") == "search"
