"""Spans as plain values: made on the event loop's thread, exported by a thread of OpenTelemetry's SDK. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from steadyhand.telemetry.names import SpanSpec
from steadyhand.telemetry.trace_ids import JobTrace

AttributeValue = str | int | float | bool
Attributes = Mapping[str, AttributeValue]
MAX_VALUE = 256
"""The characters of an attribute that names something, such as a tool."""
MAX_TEXT = 32_000
"""The characters of an attribute with a text of a caller, a model or a tool."""


@dataclass(frozen=True, slots=True)
class SpanLink:
    """A link to a span of this or of another trace."""

    trace_id: int
    span_id: int
    attributes: Attributes = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FinishedSpan:
    """One span that has ended. Without a `parent_id` it is the root of its trace; `error` is the type of its error."""

    spec: SpanSpec
    trace: JobTrace
    span_id: int
    parent_id: int | None
    begin: datetime
    end: datetime
    attributes: Attributes = field(default_factory=dict)
    error: str | None = None
    links: tuple[SpanLink, ...] = ()

    @property
    def name(self) -> str:
        """Return the name: that of its kind, and what it is about."""
        subject = None if self.spec.subject is None else self.attributes.get(self.spec.subject)
        return self.spec.name if subject is None else f"{self.spec.name} {subject}"


class SpanSink(Protocol):
    """Exports spans, later. Its methods do not wait and do not raise."""

    def is_sampled(self, trace: JobTrace) -> bool:
        """Return True if the spans of a trace are exported."""
        ...

    def add(self, span: FinishedSpan) -> None:
        """Queue a span; it is dropped if too many wait."""
        ...


def short_text(text: str) -> str:
    """Return a name from an agent or a caller in a form that fits an attribute: printable, of a bounded length."""
    cut = text[:MAX_VALUE]
    return (
        cut
        if cut.isprintable()
        else "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in cut)
    )
