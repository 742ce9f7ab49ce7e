"""The kinds of items with one part of text in a response: messages, refusals and thinking; one may be open."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from steadyhand.api.openai.responses.delta_splitter import DeltaSplitter
from steadyhand.api.openai.responses.resource import (
    message_item,
    reasoning_item,
    refusal_part,
    summary_part,
    text_part,
)
from steadyhand.events import TextDelta, ThinkingDelta


class TextKind(NamedTuple):
    """A kind of item: the prefix of its ids, its JSON by id, parts and status, and the names of its events."""

    id_prefix: str
    make_item: Callable[[str, Sequence[Any], str], dict[str, Any]]
    make_part: Callable[[str], dict[str, Any]]
    part_event: str
    text_event: str
    part_index: str = "content_index"
    text_key: str = "text"
    fields: Mapping[str, Any] = {}
    """Fields that each event of its text has."""


MESSAGE = TextKind(
    "msg",
    message_item,
    text_part,
    "response.content_part",
    "response.output_text",
    fields={"logprobs": []},
)
REFUSAL = TextKind(
    "msg", message_item, refusal_part, "response.content_part", "response.refusal", text_key="refusal"
)
REASONING = TextKind(
    "rs",
    reasoning_item,
    summary_part,
    "response.reasoning_summary_part",
    "response.reasoning_summary_text",
    "summary_index",
)
LIVE_KINDS = {TextDelta.type: MESSAGE, ThinkingDelta.type: REASONING}
"""The kinds by the type of live text."""


class OpenItem:
    """An item that is not complete yet; it has no part before its first text."""

    def __init__(self, kind: TextKind, index: int, id_suffix: str) -> None:
        self.kind = kind
        self.index = index
        self.id = f"{kind.id_prefix}_{id_suffix}_{index}"
        self.splitter = DeltaSplitter()
        self.delta_count = 0
        self.has_part = False

    @property
    def ids(self) -> dict[str, Any]:
        """The fields by which events name its part."""
        return {"item_id": self.id, "output_index": self.index, self.kind.part_index: 0}
