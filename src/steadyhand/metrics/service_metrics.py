"""The figures of one service. The parts of the service add to them; a scrape reads them.

What adds often keeps the numbers that it adds to, so that a call of a model or an event costs a few integer adds.
All but `store_write` and `log_lines` are used on the event loop's thread only.
"""

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from steadyhand.events import Event
from steadyhand.job import Job, OutcomeType, State
from steadyhand.metrics.figures import Distribution, Histogram, Series, Value
from steadyhand.metrics.names import (
    CALL_RESULTS,
    LOG_LEVELS,
    METRICS,
    OTHER,
    RATE_LIMIT_ACTIONS,
    TOKEN_KINDS,
)
from steadyhand.ports import ModelCall

_RATE_LIMITED, _CLIENT_ERROR, _SERVER_ERROR = 429, 400, 500
_STATUS_CLASSES: Final = {2: "2xx", 3: "3xx", 4: "4xx", 5: "5xx"}


class Reading(NamedTuple):
    """A figure that is read at the scrape, such as the length of the queue."""

    name: str
    value: float
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _AgentFigures:
    """The numbers of one agent that each of its model calls adds to."""

    results: dict[str, Value]
    tokens: tuple[Value, Value, Value, Value]
    """In the order of `TOKEN_KINDS`."""
    cost: Value
    unpriced: Value
    by_status: dict[tuple[int | None, str], Value] = field(default_factory=dict)
    """The results again, by what they are found by."""


class _RunClock:
    """The begin of a run and of its newest phase, by a monotonic clock."""

    __slots__ = ("began", "phase", "phase_began")

    def __init__(self, now: float) -> None:
        self.began = now
        self.phase: str | None = None
        self.phase_began = now


class ServiceMetrics:
    """Counters and histograms of a service, and the readings that a scrape asks for.

    `agents` are the names that are labels; any other is `other`. It is the `JobObserver` of the event log.
    """

    def __init__(
        self, agents: Iterable[str] = (), *, version: str = "0", clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self.series = {name: Series(spec) for name, spec in METRICS.items() if spec.type == "counter"}
        self.histograms = {
            name: Histogram(spec) for name, spec in METRICS.items() if spec.type == "histogram"
        }
        self.sources: list[Callable[[], Iterable[Reading]]] = [self._own_readings]
        """The functions that return the readings, on the event loop's thread."""
        self._version = version
        self._agents = {name: name for name in agents}
        self._figures = {name: self._figures_of(name) for name in (*self._agents, OTHER)}
        self._runs: dict[str, _RunClock] = {}
        self.parked: set[str] = set()
        """The ids of the parked jobs; a start adds those of the store."""
        self._open = Value()
        self._call_seconds: dict[str, Distribution] = {}
        self._events = self.series["steadyhand_events_total"].child()
        self._changes = {state: self.series["steadyhand_job_changes_total"].child(state) for state in State}
        self._wait_seconds = self.histograms["steadyhand_queue_wait_seconds"].child()
        self._write_seconds = self.histograms["steadyhand_store_write_seconds"].child()
        self._writes = self.series["steadyhand_store_writes_total"].child()
        self._requests: dict[tuple[str, int], Value] = {}
        self._response_seconds: dict[str, Distribution] = {}
        self._log_lock = threading.Lock()
        self._log_lines = {
            level: self.series["steadyhand_log_lines_total"].child(level) for level in LOG_LEVELS
        }

    def _figures_of(self, agent: str) -> _AgentFigures:
        """Return the numbers of an agent; what no job of it has done yet is 0, so that a rate sees the first one."""
        self.series["steadyhand_jobs_accepted_total"].child(agent)
        self.series["steadyhand_jobs_ended_total"].child(agent, OutcomeType.SUCCESS)
        given, made, read, written = (
            self.series["steadyhand_model_tokens_total"].child(agent, kind) for kind in TOKEN_KINDS
        )
        return _AgentFigures(
            {each: self.series["steadyhand_model_calls_total"].child(agent, each) for each in CALL_RESULTS},
            (given, made, read, written),
            self.series["steadyhand_model_cost_dollars_total"].child(agent),
            self.series["steadyhand_model_unpriced_calls_total"].child(agent),
        )

    def agent_label(self, agent: str) -> str:
        """Return the label of an agent: its name if it is configured, else `other`."""
        return self._agents.get(agent, OTHER)

    # --- jobs ------------------------------------------------------------------------------

    def job_accepted(self, job: Job) -> None:
        """Count a new job."""
        self.series["steadyhand_jobs_accepted_total"].child(self.agent_label(job.agent)).n += 1
        self._changes[State.QUEUED].n += 1
        self._events.n += job.last_event

    def events_stored(self, events: Sequence[Event]) -> None:
        """Count events."""
        self._events.n += len(events)

    def phase_began(self, job_id: str, phase: str) -> None:
        """Begin a phase of a running job and end the one before; a job whose run is not known here is left out."""
        run = self._runs.get(job_id)
        if run is None or run.phase == phase:
            return
        now = self._clock()
        self._end_phase(run, now)
        run.phase, run.phase_began = phase, now

    def _end_phase(self, run: _RunClock, now: float) -> None:
        if run.phase is not None:
            self.histograms["steadyhand_phase_seconds"].child(run.phase).observe(now - run.phase_began)

    def state_changed(self, job: Job, source: str | None, target: str) -> None:
        """Count a change of state that is stored; `job` is the job after it."""
        state = State(target)
        self._changes[state].n += 1
        if state is State.PARKED:
            self.parked.add(job.id)
        elif source == State.PARKED:
            self.parked.discard(job.id)
        if state is State.RUNNING:
            self._runs[job.id] = _RunClock(self._clock())
            if job.started_at is not None:
                # By the stored times, since the wait may have begun before the service did.
                waited = job.started_at - (job.queued_at or job.created_at)
                self._wait_seconds.observe(waited.total_seconds())
            return
        agent = self.agent_label(job.agent)
        if source == State.RUNNING:
            run = self._runs.pop(job.id, None)
            if run is not None:
                now = self._clock()
                self._end_phase(run, now)
                self.histograms["steadyhand_run_seconds"].child(agent).observe(now - run.began)
        if state.ended and job.outcome is not None:
            self.series["steadyhand_jobs_ended_total"].child(agent, job.outcome.type).n += 1

    def schedule_ticked(self, result: str, count: int) -> None:
        """Count ticks of a schedule by their result."""
        self.series["steadyhand_schedule_ticks_total"].child(result).n += count

    def schedule_paused(self, reason: str) -> None:
        """Count a schedule that paused itself."""
        self.series["steadyhand_schedule_pauses_total"].child(reason).n += 1

    # --- model calls -----------------------------------------------------------------------

    def call_began(self) -> float:
        """Count a call that begins, and return the time for `call_ended`."""
        self._open.n += 1
        return self._clock()

    def call_ended(self, call: ModelCall, began: float) -> None:
        """Count a settled call."""
        self._open.n -= 1
        seconds = self._call_seconds.get(call.provider)
        if seconds is None:
            seconds = self.histograms["steadyhand_model_call_seconds"].child(call.provider)
            self._call_seconds[call.provider] = seconds
        seconds.observe(self._clock() - began)
        self.call_counted(call)

    def call_counted(self, call: ModelCall) -> None:
        """Count a call with its tokens and its cost, also one that an agent without the gateway reports."""
        figures = self._figures.get(call.agent) or self._figures[OTHER]
        key = call.status, call.source
        result = figures.by_status.get(key)
        if result is None:
            result = figures.results[_call_result(call.status, reported=call.source == "reported")]
            figures.by_status[key] = result
        result.n += 1
        tokens = call.tokens
        given, made, read, written = figures.tokens
        given.n += tokens.input
        made.n += tokens.output
        read.n += tokens.cache_read
        written.n += tokens.cache_write_5m + tokens.cache_write_1h
        figures.cost.n += call.micros
        if not call.priced:
            figures.unpriced.n += 1

    def provider_failed(self, provider: str) -> None:
        """Count a call to which a provider did not answer, or broke off."""
        self.series["steadyhand_gateway_errors_total"].child(provider).n += 1

    def provider_limited(self, provider: str, *, blocked: bool) -> None:
        """Count an answer with a rate limit, which blocks the credential or is waited for."""
        self.series["steadyhand_gateway_rate_limits_total"].child(
            provider, RATE_LIMIT_ACTIONS[blocked]
        ).n += 1

    def request_refused(self, reason: str) -> None:
        """Count a request that the gateway answered itself; `reason` is one of its own error types."""
        self.series["steadyhand_gateway_refused_total"].child(reason).n += 1

    # --- the store, HTTP and the log -------------------------------------------------------

    def store_written(self, operations: int, seconds: float) -> None:
        """Count one commit. Called on the store's writer thread, and on no other."""
        self._write_seconds.observe(seconds)
        self._writes.n += operations

    def response_began(self, routes: str, status: int, seconds: float) -> None:
        """Count a response by the group of its route; `seconds` is the time until its head."""
        key = routes, status // 100
        value = self._requests.get(key)
        if value is None:
            status_class = _STATUS_CLASSES.get(key[1], OTHER)
            value = self.series["steadyhand_http_requests_total"].child(routes, status_class)
            self._requests[key] = value
            self._response_seconds[routes] = self.histograms["steadyhand_http_response_seconds"].child(routes)
        value.n += 1
        self._response_seconds[routes].observe(seconds)

    def line_logged(self, level: str) -> None:
        """Count a line of the log; any thread may log."""
        value = self._log_lines.get(level)
        if value is not None:
            with self._log_lock:
                value.n += 1

    # --- readings --------------------------------------------------------------------------

    def _own_readings(self) -> list[Reading]:
        return [
            Reading("steadyhand_build_info", 1, (self._version,)),
            Reading("steadyhand_jobs", len(self.parked), (State.PARKED,)),
            Reading("steadyhand_model_calls_open", self._open.n),
        ]

    def read(self) -> list[Reading]:
        """Return the figures that are read at a scrape."""
        return [reading for source in self.sources for reading in source()]


def _call_result(status: int | None, *, reported: bool) -> str:
    if status is None:
        return "ok" if reported else "no_answer"
    if status < _CLIENT_ERROR:
        return "ok"
    if status == _RATE_LIMITED:
        return "rate_limited"
    return "client_error" if status < _SERVER_ERROR else "server_error"
