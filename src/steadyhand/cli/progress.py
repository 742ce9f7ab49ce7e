"""The progress of a job: live on a terminal, in plain lines elsewhere."""

import time
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from steadyhand.cli.activity import phase_text
from steadyhand.cli.sanitize import (
    abbreviate_output,
    as_mapping,
    display_usd,
    first_line,
    format_age,
    format_branch,
    format_changes,
    format_count,
    format_duration,
    format_turns,
    one_line,
    parse_time,
    sanitize,
    summarize_tool_input,
)
from steadyhand.client import ENDED_STATES
from steadyhand.events import budget_near_text

STATE_STYLES: Mapping[str, str] = {
    "queued": "cyan",
    "running": "blue",
    "parked": "cyan",
    "waiting": "cyan",
    "completed": "green",
    "failed": "red",
    "timeout": "red",
    "cancelled": "yellow",
    "interrupted": "yellow",
    "error": "red",
}
_TOKEN_FIELDS = ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
_REFRESH_PER_SECOND = 8
_MAX_WARNING_LENGTH = 1000
_SILENCE_SECONDS = 10
"""The seconds without an event after which the progress line tells how long ago the last one was."""
_QUIET_PHASES = frozenset({"starting", "running"})
"""Phases that only the progress line shows."""


@dataclass(slots=True)
class Progress:
    """The progress line of a job. Its clock is this process's own and starts when it begins to follow."""

    state: str = "queued"
    turns: int = 0
    tokens: int = 0
    cost: str | None = None
    started_at: float = field(default_factory=time.monotonic)
    phase: str | None = None
    last_event_at: float = field(default_factory=time.monotonic)

    def add_usage(self, data: Mapping[str, Any]) -> None:
        """Add the usage of one turn; a report with a cost is that of the whole run so far and replaces the sum."""
        tokens = sum(data[name] for name in _TOKEN_FIELDS if isinstance(data.get(name), int))
        turns = data.get("turns") if isinstance(data.get("turns"), int) else 0
        if data.get("cost_usd") is None:
            self.turns += turns or 1
            self.tokens += tokens
        else:
            self.turns, self.tokens = turns or self.turns, tokens or self.tokens
            self.cost = display_usd(data["cost_usd"])

    def summary(self) -> str:
        """Return the progress line: state, elapsed time, turns, tokens, cost."""
        now = time.monotonic()
        state = self.state
        if state == "running" and self.phase not in {None, "running"}:
            state = f"{state}, {self.phase}"
        parts = [state, format_duration(now - self.started_at), format_turns(self.turns)]
        parts.append(f"{format_count(self.tokens)} tokens")
        if self.cost is not None:
            parts.append(self.cost)
        if now - self.last_event_at >= _SILENCE_SECONDS:
            parts.append(f"last event {format_age(now - self.last_event_at)}")
        return " · ".join(parts)


class ProgressView(Protocol):
    """The output of progress."""

    def print_line(self, text: Text) -> None:
        """Print a whole line."""
        ...

    def print_partial(self, text: str) -> None:
        """Show a part of a text that is in progress."""
        ...

    def flush_partial(self) -> None:
        """Print the text that is in progress."""
        ...

    def refresh(self) -> None:
        """Show the progress line."""
        ...


class PlainProgressView(AbstractContextManager["PlainProgressView"]):
    """Whole lines only, for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Do nothing: no text is held back."""

    def print_line(self, text: Text) -> None:
        """Print the line."""
        self._console.print(text, soft_wrap=True)

    def print_partial(self, text: str) -> None:
        """Do nothing: the whole message follows."""

    def flush_partial(self) -> None:
        """Do nothing: no text is in progress."""

    def refresh(self) -> None:
        """Do nothing: only a terminal has a progress line."""


class LiveProgressView:
    """Lines above, and at the bottom the text in progress and the progress line, redrawn in place."""

    def __init__(self, console: Console, progress: Progress) -> None:
        self._console = console
        self._progress = progress
        self._partial = ""
        self._spinner = Spinner("dots")
        self._live = Live(
            console=console,
            get_renderable=self._render_status,
            refresh_per_second=_REFRESH_PER_SECOND,
            transient=True,
        )

    def __enter__(self) -> Self:
        self._live.start(refresh=True)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.flush_partial()
        self._live.stop()

    def print_line(self, text: Text) -> None:
        """Print the line above the bottom."""
        self.flush_partial()
        self._console.print(text)

    def print_partial(self, text: str) -> None:
        """Append to the text in progress; each full line moves up."""
        *lines, unfinished = (self._partial + text).split("\n")
        self._partial = ""
        for line in lines:
            self._console.print(Text(line))
        wrapped = Text(unfinished).wrap(self._console, max(20, self._console.width - 1))
        for wrapped_line in wrapped[:-1]:
            self._console.print(wrapped_line)
        # `wrap` drops the space at the end of its last line, which the next piece needs.
        last = wrapped[-1].plain if len(wrapped) > 1 else unfinished
        self._partial = last + " " if len(wrapped) > 1 and unfinished.endswith(" ") else last

    def flush_partial(self) -> None:
        """Print the text in progress as it is."""
        partial, self._partial = self._partial, ""  # first, or the text would be shown in both places
        if partial.strip():
            self._console.print(Text(partial))

    def refresh(self) -> None:
        """Do nothing: the next tick redraws the progress line."""

    def _render_status(self) -> RenderableType:
        status = Table.grid(padding=(0, 1))
        status.add_row(self._spinner, Text(self._progress.summary(), style="dim", no_wrap=True))
        return Group(Text(self._partial), status) if self._partial else status


class EventPrinter:
    """Turns events into lines. `last_message` is the last whole message of the agent that was printed."""

    def __init__(self, view: ProgressView, progress: Progress, *, timestamps: bool = False) -> None:
        """Create it; with `timestamps` each event has its time before it, and text comes in whole messages."""
        self._timestamps = timestamps
        self._at = ""
        self._view = view
        self._progress = progress
        self._streamed_text = ""
        self._end_line: Text | None = None
        self.last_message: str | None = None

    def print_event(self, event: Mapping[str, Any]) -> None:
        """Print one event. Unknown types are skipped, as the HTTP API requires."""
        data = event.get("data")
        if not isinstance(data, Mapping):
            return
        self._at = one_line(event.get("at", "?"), 40)
        self._progress.last_event_at = time.monotonic()
        handler = _HANDLERS.get(str(event.get("type")))
        if handler is not None:
            if self._end_line is not None:  # the job runs once more
                self._print_line(self._end_line)
                self._end_line = None
            handler(self, data)
            self._view.refresh()

    def print_events(self, events: Iterable[Mapping[str, Any]]) -> None:
        """Print events as they come."""
        for event in events:
            self.print_event(event)

    def _print_line(self, text: Text) -> None:
        self._view.print_line(Text.assemble((f"{self._at}  ", "dim"), text) if self._timestamps else text)

    def _print_delta(self, data: Mapping[str, Any]) -> None:
        if self._timestamps:
            return
        text = sanitize(data.get("text", ""))
        self._streamed_text += text
        self._view.print_partial(text)

    def _print_message(self, data: Mapping[str, Any]) -> None:
        text = sanitize(data.get("text", "")).strip()
        streamed, self._streamed_text = self._streamed_text.strip(), ""
        self._view.flush_partial()
        if not text:
            return
        already_shown = isinstance(self._view, LiveProgressView) and streamed == text
        if not already_shown:
            is_assistant = data.get("role") == "assistant"
            self._print_line(Text(text) if is_assistant else Text("> " + text, style="bold"))
        if data.get("role") == "assistant":
            self.last_message = text

    def _print_thinking(self, data: Mapping[str, Any]) -> None:
        line = first_line(data.get("text", ""), 120)
        if line:
            self._print_line(Text(f"∴ {line}", style="dim italic"))

    def _print_tool_started(self, data: Mapping[str, Any]) -> None:
        name = one_line(data.get("name", "tool"), 60)
        line = Text.assemble(("● ", "green"), (name, "bold"), "  ", summarize_tool_input(data.get("input")))
        self._print_line(line)

    def _print_tool_finished(self, data: Mapping[str, Any]) -> None:
        failed = data.get("is_error") is True
        lines = abbreviate_output(data.get("output", ""))
        if failed and not lines:
            lines = ["failed"]
        for number, line in enumerate(lines):
            style = "red" if failed else "dim"
            self._print_line(Text(("  └ " if number == 0 else "    ") + line, style=style))

    def _add_usage(self, data: Mapping[str, Any]) -> None:
        self._progress.add_usage(data)

    def _print_state(self, data: Mapping[str, Any]) -> None:
        state = one_line(data.get("to", "?"), 20)
        self._progress.state = state
        if state == "queued" and data.get("from") is None:
            return
        reason = data.get("reason") or (data.get("outcome") if state != "completed" else None)
        suffix = f" ({one_line(reason, 120)})" if reason else ""
        if data.get("parked_until") is not None:
            suffix = f" until {one_line(data['parked_until'], 40)}{suffix}"
        line = Text(f"{state}{suffix}", style=STATE_STYLES.get(state, "") + " dim")
        if state in ENDED_STATES:
            self._end_line = line  # `summary_line` prints the last one
        else:
            self._print_line(line)

    def _print_warning(self, data: Mapping[str, Any]) -> None:
        self._print_line(
            Text(
                f"! {one_line(data.get('message', data.get('code', '')), _MAX_WARNING_LENGTH)}",
                style="yellow",
            )
        )

    def _print_phase(self, data: Mapping[str, Any]) -> None:
        self._progress.phase = phase_text(data)
        if data.get("phase") not in _QUIET_PHASES:
            self._print_line(Text(self._progress.phase, style="dim"))

    def _show_phase_progress(self, data: Mapping[str, Any]) -> None:
        self._progress.phase = phase_text(data)

    def _print_egress_refusal(self, data: Mapping[str, Any]) -> None:
        self._print_line(Text(f"! refused: {one_line(data.get('host', '?'))}", style="yellow"))

    def _print_steer(self, data: Mapping[str, Any]) -> None:
        self._view.flush_partial()
        self._print_line(Text(f"> {one_line(data.get('text', ''))}", style="cyan"))

    def _print_budget(self, data: Mapping[str, Any]) -> None:
        self._print_line(Text(f"! {one_line(budget_near_text(data), _MAX_WARNING_LENGTH)}", style="yellow"))


_HANDLERS = {
    "text.delta": EventPrinter._print_delta,  # noqa: SLF001  # the table of this very class
    "message": EventPrinter._print_message,  # noqa: SLF001
    "thinking": EventPrinter._print_thinking,  # noqa: SLF001
    "tool.started": EventPrinter._print_tool_started,  # noqa: SLF001
    "tool.finished": EventPrinter._print_tool_finished,  # noqa: SLF001
    "usage": EventPrinter._add_usage,  # noqa: SLF001
    "state.changed": EventPrinter._print_state,  # noqa: SLF001
    "phase": EventPrinter._print_phase,  # noqa: SLF001
    "phase.progress": EventPrinter._show_phase_progress,  # noqa: SLF001
    "warning": EventPrinter._print_warning,  # noqa: SLF001
    "steer.accepted": EventPrinter._print_steer,  # noqa: SLF001
    "egress.refused": EventPrinter._print_egress_refusal,  # noqa: SLF001
    "budget.near": EventPrinter._print_budget,  # noqa: SLF001
}


def create_view(
    console: Console, progress: Progress, *, live: bool = True
) -> PlainProgressView | LiveProgressView:
    """Return the view that fits this console."""
    if live and console.is_terminal and not console.is_dumb_terminal:
        return LiveProgressView(console, progress)
    return PlainProgressView(console)


def summary_line(job: Mapping[str, Any]) -> Text:
    """Return the result of a job on one line: state, time, turns, tokens, cost, changes."""
    state = one_line(job.get("state", "?"), 20)
    usage, cost = as_mapping(job.get("usage")), as_mapping(job.get("cost"))
    tokens = sum(usage[name] for name in _TOKEN_FIELDS if isinstance(usage.get(name), int))
    parts = [
        format_turns(usage.get("turns", 0)),
        f"{format_count(tokens)} tokens",
        display_usd(cost.get("usd", "0")),
    ]
    seconds = run_seconds(job)
    if seconds is not None:
        parts.insert(0, format_duration(seconds))
    parts.append(format_changes(job.get("changes")))
    if (branch := format_branch(job.get("changes"))) is not None:
        parts.append(f"branch {branch}")
    line = Text.assemble(
        (state, STATE_STYLES.get(state, "")), ("  " + " · ".join(map(one_line, parts)), "dim")
    )
    error = job.get("error")
    if isinstance(error, Mapping):
        line.append(f"\n{one_line(error.get('message', ''), 400)}", style="red")
    return line


def run_seconds(job: Mapping[str, Any]) -> float | None:
    """Return the seconds that an ended job ran, or `None`."""
    start, end = parse_time(job.get("started_at")), parse_time(job.get("finished_at"))
    return None if start is None or end is None else (end - start).total_seconds()
