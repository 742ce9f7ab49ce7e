"""The spans of jobs, made when they end from what is known of the job; no span is open over a wait.

What a service that was killed knew is not lost for the trace: the next start ends the run, and the span of a run and of
a job has the same id then.
"""

import json
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import wraps
from typing import ParamSpec, TypeVar

import structlog

from steadyhand.events import Event, ToolFinished, ToolStarted
from steadyhand.job import Job, Run, State
from steadyhand.money import format_dollars
from steadyhand.ports import Delivery, ModelCall
from steadyhand.redact import Redactor
from steadyhand.telemetry import names
from steadyhand.telemetry.spans import (
    MAX_TEXT,
    AttributeValue,
    FinishedSpan,
    SpanLink,
    SpanSink,
    short_text,
)
from steadyhand.telemetry.trace_ids import (
    JobTrace,
    format_traceparent,
    job_span_id,
    new_span_id,
    new_traceparent,
    parse_context,
    run_span_id,
    trace_of,
)

MAX_OPEN_TOOLS = 1_000
"""The tool calls of one run that are waited for; further ones have no span."""
MAX_RUNS = 10_000
_FAILED_STATES = frozenset({State.FAILED, State.TIMEOUT, State.ERROR, State.INTERRUPTED})
_CLIENT_ERROR = 400
NO_ANSWER, TOOL_ERROR, UNFINISHED = "no_answer", "tool_error", "unfinished"

_Attributes = dict[str, AttributeValue]
_K = TypeVar("_K")
_V = TypeVar("_V")
_P = ParamSpec("_P")


def _guarded(method: Callable[_P, None]) -> Callable[_P, None]:
    """Return a method whose errors are logged: a span is not worth a job."""

    @wraps(method)
    def guarded(*args: _P.args, **kwargs: _P.kwargs) -> None:
        try:
            method(*args, **kwargs)
        except Exception:  # noqa: BLE001  # the boundary of the tracing
            structlog.get_logger("steadyhand.telemetry").exception("telemetry.span_lost")

    return guarded


@dataclass(slots=True)
class _OpenTool:
    name: str
    begin: datetime
    arguments: str | None


@dataclass(slots=True)
class _OpenRun:
    """A run of which this process has seen the begin, with its sums so far."""

    job: Job
    phase: str | None = None
    phase_began: datetime | None = None
    tools: dict[str, _OpenTool] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    micros: int = 0
    provider: str | None = None


@dataclass(frozen=True, slots=True)
class CallbackSpan:
    """The span of one attempt at a delivery; see `ports.DeliverySpan`."""

    headers: Mapping[str, str]
    begin: datetime
    tracer: "JobTracer"
    job: Job
    delivery: Delivery
    span_id: int

    def end(self, status: int | None, *, delivered: bool) -> None:
        """Make the span of the attempt."""
        self.tracer.callback_ended(self, status, delivered=delivered)


class JobTracer:
    """Makes the spans of jobs; see `ports.JobTracing`.

    `providers` are the kinds of the configured providers by name. Texts are in the spans only if `with_content`.
    """

    def __init__(
        self,
        sink: SpanSink,
        redactor: Redactor,
        clock: Callable[[], datetime],
        providers: Mapping[str, str],
        *,
        with_content: bool = False,
    ) -> None:
        self._sink = sink
        self._redactor = redactor
        self._clock = clock
        self._providers = providers
        self._with_content = with_content
        self._runs: OrderedDict[str, _OpenRun] = OrderedDict()
        self._earlier: OrderedDict[str, Job] = OrderedDict()
        self._requests: OrderedDict[str, SpanLink] = OrderedDict()

    # --- the trace -------------------------------------------------------------------------

    def begin_trace(self, job_id: str) -> str | None:
        """Return the trace of a new job that came without one; see `ports.JobTracing`."""
        return new_traceparent(job_id)

    def environment(self, job: Job) -> Mapping[str, str]:
        """Return `TRACEPARENT` with the span of the newest run."""
        trace = trace_of(job)
        flags = trace.flags if self._sink.is_sampled(trace) else 0
        return {"TRACEPARENT": format_traceparent(trace.trace_id, run_span_id(job.id, job.run), flags)}

    def run_continues(self, job_id: str, earlier: Job) -> None:
        """Link the run that begins to the job whose conversation it continues."""
        _put(self._earlier, job_id, earlier, MAX_RUNS)

    def queued_again(self, job_id: str, traceparent: str) -> None:
        """Link the next run of a job to the caller's span of the request that asked for it."""
        link = SpanLink(*parse_context(traceparent), {names.LINK: "request"})
        _put(self._requests, job_id, link, MAX_RUNS)

    # --- the job ---------------------------------------------------------------------------

    @_guarded
    def state_changed(self, job: Job, source: str | None, target: str) -> None:
        """Make the spans that end with a change of state; `job` is the job after it."""
        state, now = State(target), self._clock()
        if state is State.RUNNING:
            _put(self._runs, job.id, _OpenRun(job), MAX_RUNS)
            self._add_queue_span(job, job.started_at or now)
            return
        if source == State.RUNNING:
            self._end_run(job, now)
        elif source == State.QUEUED and state.ended:
            self._add_queue_span(job, now)
        elif source == State.PARKED:
            self._add_parked_span(job, now)
        if state.ended:
            self._add_job_span(job, now)
            self._earlier.pop(job.id, None)

    def _job_attributes(self, job: Job) -> _Attributes:
        attributes: _Attributes = {
            names.AGENT: short_text(job.agent),
            names.JOB_ID: job.id,
            names.KEY: job.api_key_id,
        }
        if job.workspace is not None and not {"/", ":"} & set(
            job.workspace
        ):  # a path or a URL is its caller's
            attributes[names.WORKSPACE] = short_text(job.workspace)
        return attributes

    def _add_queue_span(self, job: Job, end: datetime) -> None:
        self._add(
            FinishedSpan(
                names.QUEUE_SPAN,
                trace_of(job),
                new_span_id(),
                job_span_id(job.id, job.requeues),
                job.queued_at or job.created_at,
                end,
                {names.JOB_ID: job.id},
            )
        )

    def _add_parked_span(self, job: Job, end: datetime) -> None:
        begin = next((run.finished_at for run in reversed(job.runs) if run.finished_at is not None), None)
        if begin is not None:
            span_id, parent_id = new_span_id(), job_span_id(job.id, job.requeues)
            self._add(
                FinishedSpan(
                    names.PARKED_SPAN, trace_of(job), span_id, parent_id, begin, end, {names.JOB_ID: job.id}
                )
            )

    def _add_job_span(self, job: Job, now: datetime) -> None:
        """Add the span of a job that ends; one that had ended before is below the first one."""
        trace, is_first = trace_of(job), job.requeues == 0
        attributes = self._job_attributes(job) | {
            names.JOB_STATE: job.state.value,
            names.RUN: job.run,
            names.COST: float(format_dollars(job.cost.micros)),
        }
        outcome = None if job.outcome is None else job.outcome.type.value
        if outcome is not None:
            attributes[names.OUTCOME] = outcome
        self._add(
            FinishedSpan(
                names.JOB_SPAN,
                trace,
                job_span_id(job.id, job.requeues),
                trace.caller_span_id if is_first else job_span_id(job.id),
                job.created_at if is_first else job.queued_at or job.created_at,
                job.finished_at or now,
                attributes,
                outcome if job.state in _FAILED_STATES else None,
                self._links_to_earlier_job(job) if is_first else (),
            )
        )

    def _links_to_earlier_job(self, job: Job) -> tuple[SpanLink, ...]:
        earlier = self._earlier.get(job.id)
        if earlier is None:
            return ()
        link = {names.LINK: "earlier_job", names.JOB_ID: earlier.id}
        return (SpanLink(trace_of(earlier).trace_id, job_span_id(earlier.id), link),)

    # --- a run -----------------------------------------------------------------------------

    def _end_run(self, job: Job, now: datetime) -> None:
        seen, run = self._runs.pop(job.id, None), job.runs[-1]
        end = run.finished_at or job.finished_at or now
        if seen is not None:
            self._end_phase(seen, end)
            for tool_id, tool in seen.tools.items():
                self._add_tool_span(job, tool_id, tool, end, error=UNFINISHED)
        trace = trace_of(job)
        links = self._links_to_earlier_job(job) if run.number == 1 else self._link_to_earlier_run(job, trace)
        request = self._requests.pop(job.id, None)
        if request is not None:
            links = (*links, request)
        outcome = None if run.outcome is None else run.outcome.type.value
        self._add(
            FinishedSpan(
                names.RUN_SPAN,
                trace,
                run_span_id(job.id, run.number),
                job_span_id(job.id, job.requeues),
                run.started_at or job.started_at or end,
                end,
                self._run_attributes(job, run, seen) | ({} if outcome is None else {names.OUTCOME: outcome}),
                outcome if run.state in _FAILED_STATES else None,
                links,
            )
        )

    def _run_attributes(self, job: Job, run: Run, seen: _OpenRun | None) -> _Attributes:
        attributes = self._job_attributes(job) | {names.OPERATION: "invoke_agent", names.RUN: run.number}
        if job.session_id is not None:
            attributes[names.CONVERSATION] = job.session_id
        if job.spec.model is not None:
            attributes[names.MODEL] = short_text(job.spec.model)
        if seen is not None:
            attributes |= seen.tokens
            attributes[names.COST] = float(format_dollars(seen.micros))
            if seen.provider is not None:
                attributes[names.PROVIDER] = seen.provider
        if self._with_content:
            prompt = job.spec.prompt if job.continue_prompt is None else job.continue_prompt
            attributes[names.INPUT_MESSAGES] = self._messages("user", prompt)
            if job.answer is not None:
                attributes[names.OUTPUT_MESSAGES] = self._messages("assistant", job.answer)
        return attributes

    def _link_to_earlier_run(self, job: Job, trace: JobTrace) -> tuple[SpanLink, ...]:
        number = job.run - 1
        link: _Attributes = {names.LINK: "earlier_run", names.RUN: number}
        return (SpanLink(trace.trace_id, run_span_id(job.id, number), link),)

    @_guarded
    def phase_began(self, job_id: str, phase: str) -> None:
        """End the span of the phase before, and begin one."""
        seen = self._runs.get(job_id)
        if seen is None or seen.phase == phase:
            return
        now = self._clock()
        self._end_phase(seen, now)
        seen.phase, seen.phase_began = phase, now

    def _end_phase(self, seen: _OpenRun, end: datetime) -> None:
        spec = None if seen.phase is None else names.PHASE_SPANS.get(seen.phase)
        if spec is not None and seen.phase_began is not None:
            self._add_in_run(spec, seen.job, (seen.phase_began, end), {})

    # --- tools -----------------------------------------------------------------------------

    @_guarded
    def events_stored(self, events: Sequence[Event]) -> None:
        """Make the spans of the tool calls that end in these events, which are of one job."""
        seen = self._runs.get(events[0].job_id) if events else None
        if seen is None:
            return
        for event in events:
            if event.type == ToolStarted.type:
                self._begin_tool(seen, event)
            elif event.type == ToolFinished.type:
                tool = seen.tools.pop(str(event.data["tool_id"]), None)
                if tool is not None:
                    self._end_tool(seen.job, tool, event)

    def _begin_tool(self, seen: _OpenRun, event: Event) -> None:
        if len(seen.tools) < MAX_OPEN_TOOLS:
            arguments = self._text(event.data["input"]) if self._with_content else None
            tool = _OpenTool(short_text(str(event.data["name"])), event.at, arguments)
            seen.tools[str(event.data["tool_id"])] = tool

    def _end_tool(self, job: Job, tool: _OpenTool, event: Event) -> None:
        error = TOOL_ERROR if event.data["is_error"] else None
        result = self._text(event.data["output"]) if self._with_content else None
        self._add_tool_span(job, str(event.data["tool_id"]), tool, event.at, error=error, result=result)

    def _add_tool_span(
        self,
        job: Job,
        tool_id: str,
        tool: _OpenTool,
        end: datetime,
        *,
        error: str | None,
        result: str | None = None,
    ) -> None:
        attributes: _Attributes = {
            names.OPERATION: "execute_tool",
            names.TOOL: tool.name,
            names.TOOL_CALL: short_text(tool_id),
        }
        if tool.arguments is not None:
            attributes[names.TOOL_ARGUMENTS] = tool.arguments
        if result is not None:
            attributes[names.TOOL_RESULT] = result
        self._add_in_run(names.TOOL_SPAN, job, (tool.begin, end), attributes, error)

    # --- model calls -----------------------------------------------------------------------

    @_guarded
    def model_called(self, job: Job, call: ModelCall) -> None:
        """Make the span of a settled call; `job` is the job as its run began."""
        tokens = call.tokens
        cache_written = tokens.cache_write_5m + tokens.cache_write_1h
        usage = {
            names.INPUT_TOKENS: tokens.input + tokens.cache_read + cache_written,
            names.OUTPUT_TOKENS: tokens.output,
            names.CACHE_READ_TOKENS: tokens.cache_read,
            names.CACHE_WRITE_TOKENS: cache_written,
        }
        provider = names.GENAI_PROVIDERS[self._providers.get(call.provider, "anthropic")]
        seen = self._runs.get(job.id)
        if seen is not None and seen.job.run == call.run:
            for name, number in usage.items():
                seen.tokens[name] = seen.tokens.get(name, 0) + number
            seen.micros += call.micros
            seen.provider = provider
        attributes: _Attributes = {
            names.OPERATION: "chat",
            names.PROVIDER: provider,
            names.MODEL: short_text(call.model),
            names.CONFIGURED_PROVIDER: call.provider,
            names.CALL_ID: call.id,
            names.COST: float(format_dollars(call.micros)),
            **usage,
        }
        error: str | None = None
        if call.status is None:
            error = NO_ANSWER
        else:
            attributes[names.STATUS_CODE] = call.status
            if call.status >= _CLIENT_ERROR:
                error = str(call.status)
        times = call.at, self._clock()
        self._add_in_run(names.MODEL_SPAN, job, times, attributes, error, run=call.run)

    # --- callbacks -------------------------------------------------------------------------

    def begin_callback(self, job: Job, delivery: Delivery) -> CallbackSpan:
        """Begin the span of an attempt at a delivery about a job."""
        trace, span_id = trace_of(job), new_span_id()
        flags = trace.flags if self._sink.is_sampled(trace) else 0
        headers = {"traceparent": format_traceparent(trace.trace_id, span_id, flags)}
        return CallbackSpan(headers, self._clock(), self, job, delivery, span_id)

    @_guarded
    def callback_ended(self, span: CallbackSpan, status: int | None, *, delivered: bool) -> None:
        """Make the span of an attempt at a delivery. It has no address, which may hold a secret."""
        delivery = span.delivery
        attributes: _Attributes = {
            names.JOB_ID: span.job.id,
            names.CALLBACK_ID: delivery.id,
            names.CALLBACK_TYPE: delivery.type,
            names.CALLBACK_ATTEMPT: delivery.attempts + 1,
        }
        if delivery.endpoint is not None:
            attributes[names.CALLBACK_ENDPOINT] = delivery.endpoint
        if status is not None:
            attributes[names.STATUS_CODE] = status
        error = None
        if not delivered:
            error = NO_ANSWER if status is None else str(status)
        self._add(
            FinishedSpan(
                names.CALLBACK_SPAN,
                trace_of(span.job),
                span.span_id,
                job_span_id(span.job.id),
                span.begin,
                self._clock(),
                attributes,
                error,
            )
        )

    # --- all of them -----------------------------------------------------------------------

    def _add_in_run(
        self,
        spec: names.SpanSpec,
        job: Job,
        times: tuple[datetime, datetime],
        attributes: _Attributes,
        error: str | None = None,
        *,
        run: int | None = None,
    ) -> None:
        """Add a span of a run, by default of the newest one."""
        attributes[names.JOB_ID] = job.id
        parent_id = run_span_id(job.id, job.run if run is None else run)
        self._add(FinishedSpan(spec, trace_of(job), new_span_id(), parent_id, *times, attributes, error))

    def _add(self, span: FinishedSpan) -> None:
        self._sink.add(span)

    def _text(self, value: object) -> str:
        """Return an attribute with a text that may hold secrets."""
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        return self._redactor.text(text)[:MAX_TEXT]

    def _messages(self, role: str, text: str) -> str:
        """Return a message in the form of the conventions."""
        part = {"type": "text", "content": self._text(text)}
        return json.dumps([{"role": role, "parts": [part]}], ensure_ascii=False)


def _put(values: "OrderedDict[_K, _V]", key: _K, value: _V, limit: int) -> None:
    """Set a value; without a change for long the oldest one gives room."""
    values[key] = value
    values.move_to_end(key)
    while len(values) > limit:
        values.popitem(last=False)
