"""Translates the CLI's stream messages into events. Pure: the time is a parameter.

Messages of the agent are not trusted: one of a wrong shape is skipped, at most with a warning, and never raises.
Unknown types are skipped, as each release of the CLI adds some.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal, InvalidOperation
from typing import Any

from steadyhand.events import (
    EventBody,
    Message,
    TextDelta,
    Thinking,
    ThinkingDelta,
    ToolFinished,
    ToolStarted,
    UsageReported,
    WarningEvent,
)
from steadyhand.job import OutcomeType, Usage
from steadyhand.job_warnings import WarningCode
from steadyhand.money import format_dollars, to_micros
from steadyhand.outcome import AgentResult
from steadyhand.runner.process.event_limits import (
    MAX_EVENTS,
    MAX_OUTPUT_BYTES,
    MAX_TEXT_BYTES,
    EventLimits,
    as_mapping,
    as_name,
    as_text,
    limit_input,
    parse_session_id,
    truncate,
)

_SUBTYPE_OUTCOMES = {
    "success": OutcomeType.SUCCESS,
    "error_max_turns": OutcomeType.MAX_TURNS,
    "error_max_budget_usd": OutcomeType.BUDGET,
    "error_max_structured_output_retries": OutcomeType.INVALID_OUTPUT,
}
"""The outcome of each subtype of a result; any other is an error."""
PART_SEPARATOR = "\n\n"
"""Stands between the parts of an answer that the CLI continued; streams have it between two messages."""
_HOOK_RESULTS = {
    "tool_deferred": "A hook deferred a call of a tool, and nobody decides on it.",
    "hook_stopped": "A hook stopped the agent.",
}
"""The sentence for each `terminal_reason` of a result that a hook has caused."""
_HOOK_BLOCKED_PROMPT = frozenset({"blocked_by_hook", "stopped_by_hook"})
_HOOK_BLOCKED_END = "stop-hook-block-cap"
_MAX_TASKS = 100
_MAX_HOOKS = 100
_MAX_TOKENS = 1 << 53
_MAX_DOLLARS = Decimal(1_000_000)
_MAX_ERRORS = 20
_MAX_MODELS = 20
_MAX_ERROR_LENGTH = 2000
_Reader = Callable[[Mapping[str, Any], float], Iterator[EventBody | TextDelta]]
_SYNTHETIC_MODEL = "<synthetic>"  # the model in a message that the CLI wrote itself


class MessageReader:
    """Reads one run's messages in order. `usage` is the run's so far; `session_id` is the one that the CLI reports."""

    def __init__(self) -> None:
        self.usage = Usage()
        self.session_id: str | None = None
        self.state: str | None = None
        """The state that the CLI reports, `running` or `idle`; None if it never did."""
        self.background: Mapping[str, str] = {}
        """The tasks that the CLI reports in the background: descriptions by ids."""
        self.result: AgentResult | None = None
        """The last result, with the usage and the cost of all results of the run."""
        self._hook: str | None = None
        self._running_hooks: dict[str, str] = {}
        self._limits = EventLimits()
        self._tool_started_at: dict[str, float] = {}
        self._counted_messages: set[str] = set()
        self._open_message: tuple[str, Usage] | None = None
        self._message_texts: list[str] = []
        self._cut_texts: list[str] = []
        self._message_is_cut = False
        self._readers: Mapping[str, _Reader] = {
            "assistant": self._assistant,
            "user": self._user,
            "stream_event": self._stream,
            "system": self._system,
            "rate_limit_event": self._rate_limit,
            "result": self._result,
        }

    @property
    def limit_reached(self) -> bool:
        """Return True once the run has too many events; only results are read from then on."""
        return self._limits.reached

    @property
    def running_hook(self) -> str | None:
        """The sentence about a hook that has not ended, or None."""
        name = next(iter(self._running_hooks.values()), None)
        return None if name is None else f"The hook {name} has not ended."

    def feed(self, message: Mapping[str, Any], now: float) -> Sequence[EventBody | TextDelta]:
        """Return the events of a message. `now` is in seconds of a monotonic clock."""
        kind = message.get("type")
        reader = self._readers.get(kind) if isinstance(kind, str) else None
        if reader is None:
            return ()
        return [
            self._limits.count(event)
            for event in reader(message, now)
            if not self.limit_reached or isinstance(event, TextDelta) or kind == "result"
        ]

    def whole_answer(self, result: AgentResult) -> AgentResult:
        """Return a result with its whole text: the CLI's has only the part after the last limit of tokens."""
        if not self._cut_texts or result.is_error or not result.text or result.structured_output is not None:
            return result
        head = truncate(PART_SEPARATOR.join(self._cut_texts), MAX_TEXT_BYTES)[0]
        return replace(result, text=f"{head}{PART_SEPARATOR}{result.text}")

    def _assistant(self, message: Mapping[str, Any], now: float) -> Iterator[EventBody]:
        inner = as_mapping(message.get("message"))
        from_subagent = message.get("parent_tool_use_id") is not None
        is_synthetic = message.get("error") is not None or inner.get("model") == _SYNTHETIC_MODEL
        for block in _content_blocks(inner.get("content")):
            kind = block.get("type")
            if kind == "text" and not from_subagent:
                text = truncate(as_text(block.get("text")), MAX_TEXT_BYTES)[0]
                if not is_synthetic and text:
                    self._message_texts.append(text)
                yield (
                    WarningEvent(WarningCode.MODEL_ERROR, text)
                    if is_synthetic
                    else Message("assistant", text)
                )
            elif kind in ("thinking", "redacted_thinking") and not from_subagent:
                yield Thinking(truncate(as_text(block.get("thinking")), MAX_TEXT_BYTES)[0])
            elif kind in ("tool_use", "server_tool_use"):
                yield self._tool_started(block, as_name(message.get("parent_tool_use_id")), now)
            elif isinstance(kind, str) and kind.endswith("_tool_result"):
                yield self._tool_finished(block, now)
        if not is_synthetic:
            yield from self._count_usage(as_text(inner.get("id")), parse_usage(inner.get("usage"), turns=1))

    def _user(self, message: Mapping[str, Any], now: float) -> Iterator[EventBody]:
        for block in _content_blocks(as_mapping(message.get("message")).get("content")):
            if block.get("type") == "tool_result":
                yield self._tool_finished(block, now)

    def _tool_started(self, block: Mapping[str, Any], parent: str, now: float) -> ToolStarted:
        tool_id = as_name(block.get("id"))
        if len(self._tool_started_at) < MAX_EVENTS:
            self._tool_started_at[tool_id] = now
        arguments = as_mapping(block.get("input"))
        return ToolStarted(tool_id, as_name(block.get("name")), limit_input(arguments), parent or None)

    def _tool_finished(self, block: Mapping[str, Any], now: float) -> ToolFinished:
        tool_id = as_name(block.get("tool_use_id"))
        started_at = self._tool_started_at.pop(tool_id, None)
        output, truncated = truncate(_tool_output_text(block.get("content")), MAX_OUTPUT_BYTES)
        duration = None if started_at is None else round((now - started_at) * 1000)
        return ToolFinished(tool_id, block.get("is_error") is True, output, truncated, duration)

    def _stream(self, message: Mapping[str, Any], _now: float) -> Iterator[EventBody | TextDelta]:
        if message.get("parent_tool_use_id") is not None:
            return
        event = as_mapping(message.get("event"))
        kind = event.get("type")
        if kind == "message_start":
            inner = as_mapping(event.get("message"))
            self._cut_texts = [*self._cut_texts, *self._message_texts] if self._message_is_cut else []
            self._message_texts, self._message_is_cut = [], False
            self._open_message = (as_name(inner.get("id")), parse_usage(inner.get("usage"), turns=1))
        elif kind == "content_block_delta":
            message_id = self._open_message[0] if self._open_message else ""
            delta = as_mapping(event.get("delta"))
            if delta.get("type") == "text_delta" and as_text(delta.get("text")):
                yield TextDelta(message_id, as_text(delta.get("text")))
            elif delta.get("type") == "thinking_delta" and as_text(delta.get("thinking")):
                yield ThinkingDelta(message_id, as_text(delta.get("thinking")))
        elif kind == "message_delta" and self._open_message is not None:
            self._message_is_cut = as_mapping(event.get("delta")).get("stop_reason") == "max_tokens"
            self._open_message = (
                self._open_message[0],
                _merge_usage(self._open_message[1], event.get("usage")),
            )
        elif kind == "message_stop" and self._open_message is not None:
            (message_id, usage), self._open_message = self._open_message, None
            yield from self._count_usage(message_id, usage)

    def _count_usage(self, message_id: str, usage: Usage) -> Iterator[UsageReported]:
        """Add one model turn's tokens, only once: the CLI sends a message again for each of its blocks."""
        is_open = self._open_message is not None and self._open_message[0] == message_id
        if (
            not message_id
            or message_id in self._counted_messages
            or is_open
            or len(self._counted_messages) >= MAX_EVENTS
        ):
            return
        self._counted_messages.add(message_id)
        self.usage = self.usage.plus(usage)
        yield usage_event(self.usage)

    def _system(self, message: Mapping[str, Any], _now: float) -> Iterator[EventBody]:
        subtype = message.get("subtype")
        self._hooks(subtype, message)
        if subtype == "init":
            self.session_id = parse_session_id(message.get("session_id")) or self.session_id
        elif subtype == "background_tasks_changed":
            self.background = _background_tasks(message.get("tasks"))
        elif subtype == "session_state_changed":
            self.state = as_name(message.get("state"))
        elif subtype == "api_retry":
            yield WarningEvent(WarningCode.API_RETRY, _retry_text(message))
        elif subtype == "compact_boundary":
            yield WarningEvent(
                WarningCode.COMPACTED, "The agent summarized the conversation because it was too long."
            )

    def _hooks(self, subtype: Any, message: Mapping[str, Any]) -> None:
        hook_id = as_name(message.get("hook_id"))
        if subtype == "hook_started" and len(self._running_hooks) < _MAX_HOOKS:
            self._running_hooks[hook_id] = as_name(message.get("hook_name"))
        elif subtype == "hook_response" and message.get("outcome") == "success":
            self._running_hooks.pop(hook_id, None)
        elif subtype == "init":
            self._running_hooks.clear()  # the CLI goes on; a hook that it ended to stop itself is still known
        elif subtype == "informational":
            submitted = as_mapping(message.get("prompt_submit_outcome"))
            if as_name(submitted.get("kind")) in _HOOK_BLOCKED_PROMPT:
                self._hook = f"It blocked the prompt: {as_name(submitted.get('reason')) or 'no reason'}"
        elif subtype == "notification" and message.get("key") == _HOOK_BLOCKED_END:
            self._hook = "It refused the end of the turn again and again."

    def _rate_limit(self, message: Mapping[str, Any], _now: float) -> Iterator[EventBody]:
        status = as_name(as_mapping(message.get("rate_limit_info")).get("status"))
        if status and status != "allowed":
            yield WarningEvent(WarningCode.RATE_LIMIT, f"The model's rate limit: {status}.")

    def _result(self, message: Mapping[str, Any], _now: float) -> Iterator[EventBody]:
        result, earlier = parse_result(message), self.result
        if self._hook is not None:
            result, self._hook = replace(result, hook=self._hook), None
        self.result = result if earlier is None else _added(earlier, result)
        self._open_message = None
        if self.result.usage is not None:
            yield usage_event(self.result.usage, self.result.cost_micros, _context_windows(message))


def parse_result(message: Mapping[str, Any]) -> AgentResult:
    """Parse the CLI's result object; a field that is missing or of a wrong type is None."""
    subtype = as_name(message.get("subtype"))
    status = message.get("api_error_status")
    raw_errors = message.get("errors")
    errors = raw_errors if isinstance(raw_errors, list) else []
    text = message.get("result")
    stop_reason = message.get("stop_reason")
    usage = message.get("usage")
    turns = _as_token_count(message.get("num_turns"))
    terminal_reason = as_name(message.get("terminal_reason"))
    return AgentResult(
        reported=_SUBTYPE_OUTCOMES.get(subtype, OutcomeType.AGENT_ERROR),
        is_error=message.get("is_error") is True,
        text=text if isinstance(text, str) else None,
        label=subtype,
        structured_output=message.get("structured_output"),
        api_error_status=status if isinstance(status, int) and not isinstance(status, bool) else None,
        stop_reason=stop_reason if isinstance(stop_reason, str) else None,
        errors=tuple(text[:_MAX_ERROR_LENGTH] for text in errors[:_MAX_ERRORS] if isinstance(text, str)),
        session_id=parse_session_id(message.get("session_id")),
        cost_micros=_result_cost(message),
        usage=parse_usage(usage, turns=turns) if isinstance(usage, dict) else None,
        hook=_HOOK_RESULTS.get(terminal_reason),
        raw=message,
    )


def _result_cost(message: Mapping[str, Any]) -> int | None:
    """Return the cost since the result before, in micro-dollars.

    The total in a result is that of the whole session, resumed turns and what a fork was copied from included.
    """
    models = message.get("model_usage_since_last_result")
    if not isinstance(models, dict):
        return parse_dollars(message.get("total_cost_usd"))
    costs = [parse_dollars(as_mapping(usage).get("costUSD")) for usage in models.values()]
    return sum(cost or 0 for cost in costs)


def _added(earlier: AgentResult, result: AgentResult) -> AgentResult:
    """Return the later result of a run with the usage and the cost of both."""
    usage, cost = result.usage, result.cost_micros
    if earlier.usage is not None:
        usage = earlier.usage if usage is None else earlier.usage.plus(usage)
    if earlier.cost_micros is not None:
        cost = earlier.cost_micros + (cost or 0)
    return replace(result, usage=usage, cost_micros=cost)


def _background_tasks(tasks: Any) -> Mapping[str, str]:
    if not isinstance(tasks, list):
        return {}
    return {
        as_name(task.get("task_id")): as_name(task.get("description")) or as_name(task.get("task_type"))
        for task in tasks[:_MAX_TASKS]
        if isinstance(task, dict)
    }


def parse_dollars(dollars: Any) -> int | None:
    """Return an amount of dollars, a JSON number, in micro-dollars; None if it is no number or out of range.

    The number is converted by its shortest decimal text, which is the text that the CLI printed.
    """
    if isinstance(dollars, bool) or not isinstance(dollars, int | float):
        return None
    try:
        amount = Decimal(str(dollars))
        if not amount.is_finite() or not 0 <= amount <= _MAX_DOLLARS:
            return None
        return to_micros(amount)
    except (InvalidOperation, ValueError):
        return None


def parse_usage(raw: Any, *, turns: int) -> Usage:
    """Parse the API's usage figures; a missing one is 0."""
    counts = as_mapping(raw)
    return Usage(
        _as_token_count(counts.get("input_tokens")),
        _as_token_count(counts.get("output_tokens")),
        _as_token_count(counts.get("cache_read_input_tokens")),
        _as_token_count(counts.get("cache_creation_input_tokens")),
        turns,
    )


def _context_windows(message: Mapping[str, Any]) -> Mapping[str, int] | None:
    models = list(as_mapping(message.get("modelUsage")).items())[:_MAX_MODELS]
    sizes = {as_name(name): _as_token_count(as_mapping(usage).get("contextWindow")) for name, usage in models}
    return {name: size for name, size in sizes.items() if size} or None


def usage_event(
    usage: Usage, cost_micros: int | None = None, context_windows: Mapping[str, int] | None = None
) -> UsageReported:
    """Return the event with the usage of the run so far."""
    return UsageReported(
        usage.input_tokens,
        usage.output_tokens,
        usage.cache_read_input_tokens,
        usage.cache_creation_input_tokens,
        usage.turns,
        None if cost_micros is None else format_dollars(cost_micros),
        context_windows,
    )


def _merge_usage(usage: Usage, raw: Any) -> Usage:
    # Figures of a `message_delta` are totals of the message; those that it leaves out do not change.
    counts = as_mapping(raw)

    def newer(name: str, old: int) -> int:
        return _as_token_count(counts[name]) if name in counts else old

    return Usage(
        newer("input_tokens", usage.input_tokens),
        newer("output_tokens", usage.output_tokens),
        newer("cache_read_input_tokens", usage.cache_read_input_tokens),
        newer("cache_creation_input_tokens", usage.cache_creation_input_tokens),
        usage.turns,
    )


def _retry_text(message: Mapping[str, Any]) -> str:
    status = message.get("error_status")
    delay = message.get("retry_delay_ms")
    cause = f"status {status}" if isinstance(status, int) else as_name(message.get("error")) or "no answer"
    when = f" in {delay / 1000:.1f} s" if isinstance(delay, int | float) and 0 <= delay < _MAX_TOKENS else ""
    return f"The model's service failed ({cause}); the agent tries again{when}."


def _tool_output_text(content: Any) -> str:
    """Return a tool's output as text; a block that is not text becomes its type in brackets."""
    if isinstance(content, str):
        return content
    parts = []
    for block in _content_blocks(content):
        kind = block.get("type")
        parts.append(as_text(block.get("text")) if kind == "text" else f"[{as_name(kind) or 'unknown'}]")
    return "\n".join(parts)


def _content_blocks(value: Any) -> list[Mapping[str, Any]]:
    if isinstance(value, str):
        return [{"type": "text", "text": value}]
    return [block for block in value if isinstance(block, dict)] if isinstance(value, list) else []


def _as_token_count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        return 0
    return value if 0 <= value < _MAX_TOKENS else 0
