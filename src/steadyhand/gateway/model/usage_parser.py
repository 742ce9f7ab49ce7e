"""The base of the usage parsers: the counts of one response so far, and the safe reading of JSON and figures."""

import json
import re
from typing import Any

from steadyhand.gateway.money.prices import UsageExtras
from steadyhand.ports import TokenCounts

MAX_TOKENS = 10**10
"""A figure above it is no count of tokens."""
_MODEL = re.compile(r"[!-~]{1,256}")


class UsageParser:
    """The counts so far. Each is cumulative: the last one counts, and never less than an earlier one.

    There is one subclass for each API. It is the `UsageSink` of the parser of the body.
    """

    has_long_events = False
    """True if an event with usage may hold the whole response."""

    def __init__(self) -> None:
        self.model: str | None = None
        self.malformed = False
        self.output_bytes = 0
        self._counts: dict[str, int] = {}
        self._fast = False
        self._searches = 0

    @property
    def has_usage(self) -> bool:
        """Return True if any usage was reported."""
        return bool(self._counts)

    def count_delta(self, event: bytes) -> bool:
        """Count the length of an event's text; return False if the event must be parsed."""
        raise NotImplementedError

    def is_content(self, _head: bytes) -> bool:
        """Return True if an event that begins like this, and is too long to buffer, has no usage."""
        return False

    def on_event(self, data: bytes) -> None:
        """Read the JSON of one event of a stream."""
        raise NotImplementedError

    def on_body(self, data: bytes | bytearray) -> None:
        """Read the JSON of an answer that came in one piece."""
        raise NotImplementedError

    def on_done(self) -> None:
        """Note the `[DONE]` that ends some streams."""

    def complete(self, *, truncated: bool) -> bool:
        """Return True if nothing can be missing: input and last output were reported, and everything was readable."""
        raise NotImplementedError

    def tokens(self) -> TokenCounts:
        """Return the reported tokens: `input` is what was neither read from a cache nor written to one."""
        raise NotImplementedError

    def extras(self) -> UsageExtras:
        """Return the reported usage besides tokens."""
        return UsageExtras(searches=self._searches, fast=self._fast)

    # --- for subclasses ---

    def _parse_object(self, data: bytes | bytearray) -> dict[str, Any]:
        try:
            parsed = json.loads(data)
        except (ValueError, RecursionError):
            parsed = None
        if isinstance(parsed, dict):
            return parsed
        self.malformed = True
        return {}

    def _record_model(self, model: object) -> None:
        if isinstance(model, str) and _MODEL.fullmatch(model):
            self.model = model

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
