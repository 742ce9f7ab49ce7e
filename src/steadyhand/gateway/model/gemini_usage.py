"""The usage of Gemini's `generateContent`: each chunk of a stream reports the counts so far.

Input that was read from a cache is within the prompt; thoughts are apart from the answer, and are output.
"""

import re
from typing import Any

from steadyhand.gateway.model.usage_parser import UsageParser
from steadyhand.ports import TokenCounts

_TEXT = re.compile(rb'"text"\s*:\s*"((?:[^"\\]++|\\.)*+)', re.DOTALL)
_PROMPT, _CACHED, _TOOL_PROMPT = "promptTokenCount", "cachedContentTokenCount", "toolUsePromptTokenCount"
_CANDIDATES, _THOUGHTS, _TOTAL = "candidatesTokenCount", "thoughtsTokenCount", "totalTokenCount"
_PARTS = (_PROMPT, _TOOL_PROMPT, _CANDIDATES, _THOUGHTS)


class GeminiUsage(UsageParser):
    """The usage of a response. Its chunks are few and large, and each one is parsed: each has figures."""

    has_long_events = True  # an image is in one event

    def __init__(self) -> None:
        super().__init__()
        self._has_finish_reason = False
        self._has_final_usage = False

    def count_delta(self, event: bytes) -> bool:
        """Count the length of an event's text; return False, as every event is parsed."""
        for text in _TEXT.finditer(event):
            self.output_bytes += text.end(1) - text.start(1)
        return False

    def on_event(self, data: bytes) -> None:
        """Read one chunk."""
        self._parse_response(self._parse_object(data))

    def on_body(self, data: bytes | bytearray) -> None:
        """Read a response that came in one piece."""
        self._parse_response(self._parse_object(data))

    def complete(self, *, truncated: bool) -> bool:
        """Return True if the end was there with all of its figures."""
        return self._has_final_usage and not truncated and not self.malformed

    def tokens(self) -> TokenCounts:
        """Return the reported tokens. What the tools of the service put into the prompt is input, too."""
        count = self._counts.get
        cached = count(_CACHED, 0)
        return TokenCounts(
            input=max(0, count(_PROMPT, 0) - cached) + count(_TOOL_PROMPT, 0),
            output=count(_CANDIDATES, 0) + count(_THOUGHTS, 0),
            cache_read=cached,
        )

    def _parse_response(self, response: dict[str, Any]) -> None:
        self._record_model(response.get("modelVersion"))
        candidates = response.get("candidates")
        feedback = response.get("promptFeedback")
        if isinstance(candidates, list):
            self._has_finish_reason = self._has_finish_reason or any(
                isinstance(each, dict) and bool(each.get("finishReason")) for each in candidates
            )
        if isinstance(feedback, dict) and feedback.get("blockReason"):
            self._has_finish_reason = True  # the prompt was refused, and there is no candidate
        usage = response.get("usageMetadata")
        if isinstance(usage, dict):
            for name in (*_PARTS, _CACHED):
                self._record_count(usage, name)
            self._has_final_usage = self._has_finish_reason and _is_whole(usage)
        if self._counts.get(_CACHED, 0) > self._counts.get(_PROMPT, 0):
            self.malformed = True


def _is_whole(usage: dict[str, Any]) -> bool:
    """Return True if no figure lacks: zeros are left out, and the total tells."""
    parts = [usage.get(name) or 0 for name in _PARTS]
    return bool(parts[0]) and all(type(part) is int for part in parts) and sum(parts) == usage.get(_TOTAL)
