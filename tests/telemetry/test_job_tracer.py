"""The spans of jobs, without a service: waits, ends, retries, hostile names and bounds."""

import random
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from structlog.testing import capture_logs

from steadyhand.events import Event, StateChanged
from steadyhand.job import Outcome, OutcomeType, Run, State
from steadyhand.ports import Delivery, TokenCounts
from steadyhand.redact import Redactor
from steadyhand.retry import requeued
from steadyhand.telemetry import job_tracer, names
from steadyhand.telemetry.job_tracer import JobTracer
from steadyhand.telemetry.spans import MAX_TEXT, MAX_VALUE, FinishedSpan
from steadyhand.telemetry.trace_ids import JobTrace, job_span_id, new_traceparent, run_span_id, trace_of
from steadyhand.testing.contracts.samples import NOON, FakeClock, make_call, make_job

SECOND = timedelta(seconds=1)
CALLER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


class Sink:
    """Keeps the spans."""

    def __init__(self, *, sampled: bool = True) -> None:
        self.spans: list[FinishedSpan] = []
        self.sampled = sampled

    def is_sampled(self, _trace: JobTrace) -> bool:
        return self.sampled

    def add(self, span: FinishedSpan) -> None:
        self.spans.append(span)

    def named(self, name: str) -> list[FinishedSpan]:
        return [span for span in self.spans if span.spec.name == name]

    def faults(self) -> list[str]:
        """Return what keeps the spans from being one whole trace."""
        ids = [span.span_id for span in self.spans]
        roots = [
            span.name for span in self.spans if span.parent_id in {None, trace_of_span(span).caller_span_id}
        ]
        orphans = [span.name for span in self.spans if span.parent_id not in {*ids, None}]
        orphans = [name for name in orphans if name not in roots]
        return [*roots[1:], *orphans, *(["a double"] if len(set(ids)) < len(ids) else [])]


def trace_of_span(span: FinishedSpan) -> JobTrace:
    return span.trace


class World:
    """A tracer and a job that moves through its states as the service moves it."""

    def __init__(self, *, with_content: bool = False, secrets: Sequence[str] = (), **job: Any) -> None:
        self.sink, self.clock = Sink(), FakeClock()
        self.tracer = JobTracer(
            self.sink, Redactor(secrets), self.clock, {"cloud": "bedrock"}, with_content=with_content
        )
        self.job = make_job(**job)
        self.seq = 0

    def change(self, state: State, **changes: Any) -> None:
        self.clock.advance(SECOND)
        source, self.job = self.job.state, replace(self.job, state=state, **changes)
        self.tracer.state_changed(self.job, source, state)

    def start(self) -> None:
        self.clock.advance(SECOND)
        run = Run(len(self.job.runs) + 1, State.RUNNING, started_at=self.clock())
        self.change(State.RUNNING, started_at=self.clock(), runs=(*self.job.runs, run))

    def end(self, state: State, outcome: OutcomeType, **changes: Any) -> None:
        now = self.clock() + SECOND
        run = replace(self.job.runs[-1], state=state, outcome=Outcome(outcome), finished_at=now)
        runs = (*self.job.runs[:-1], run)
        finished = now if state.ended else None
        self.change(state, outcome=Outcome(outcome), finished_at=finished, runs=runs, **changes)

    def queue(self) -> None:
        """Queue the job again: as the service does after a parked run, or as a request does after its end."""
        now = self.clock() + SECOND
        if self.job.state.ended:
            self.job = replace(requeued(self.job, "fresh", now), state=self.job.state)
        self.change(State.QUEUED, queued_at=now)

    def restart(self) -> None:
        """Kill the service: a new one knows the job alone."""
        self.tracer = JobTracer(self.sink, Redactor(), self.clock, {})

    def event(self, kind: str, **data: Any) -> Event:
        self.seq += 1
        return Event(self.seq, self.job.id, self.job.run, self.clock(), kind, data)

    def tool(self, tool_id: str = "t", name: str = "Bash") -> None:
        started = self.event("tool.started", tool_id=tool_id, name=name, input={"command": "x"})
        self.tracer.events_stored([started])

    def tool_ended(self, tool_id: str = "t", *, is_error: bool = False, output: str = "") -> None:
        self.clock.advance(SECOND)
        data = {"tool_id": tool_id, "is_error": is_error, "output": output}
        self.tracer.events_stored([self.event("tool.finished", **data)])


def test_a_job_that_is_parked_and_goes_on_has_its_waits_in_one_trace() -> None:
    there = World(traceparent=CALLER)
    there.start()
    there.end(State.PARKED, OutcomeType.RATE_LIMITED)
    there.queue()
    there.start()
    there.end(State.COMPLETED, OutcomeType.SUCCESS)
    assert there.sink.faults() == []
    assert [span.name for span in there.sink.spans] == [
        "queue", "invoke_agent claude", "parked", "queue", "invoke_agent claude", "job claude",
    ]  # fmt: skip
    (parked,), (root,) = there.sink.named("parked"), there.sink.named("job")
    assert (parked.begin, parked.end) == (there.job.runs[0].finished_at, there.job.queued_at)
    assert root.parent_id == int("00f067aa0ba902b7", 16)
    assert {span.parent_id for span in there.sink.named("invoke_agent")} == {root.span_id}
    assert there.sink.named("invoke_agent")[0].error is None


def test_a_job_that_never_ran_has_its_wait_and_one_that_is_queued_again_stays_whole() -> None:
    there = World()
    for _ in range(2):
        there.change(State.CANCELLED, outcome=Outcome(OutcomeType.CANCELLED), finished_at=there.clock())
        there.queue()
    there.start()
    there.end(State.FAILED, OutcomeType.KILLED)
    assert there.sink.faults() == []
    jobs = there.sink.named("job")
    assert [job.error for job in jobs] == [None, None, "killed"]
    assert jobs[0].span_id == job_span_id(there.job.id)
    assert {job.parent_id for job in jobs[1:]} == {jobs[0].span_id}


def test_a_job_that_was_cancelled_while_it_was_parked_and_is_retried_has_one_root() -> None:
    there = World()
    for _ in range(2):
        there.start()
        there.end(State.PARKED, OutcomeType.RATE_LIMITED)
        there.change(State.CANCELLED, outcome=Outcome(OutcomeType.CANCELLED), finished_at=there.clock())
        there.restart()
        there.queue()
    there.start()
    there.end(State.COMPLETED, OutcomeType.SUCCESS)
    assert there.sink.faults() == []
    root, *others = there.sink.named("job")
    assert (root.parent_id, [span.parent_id for span in others]) == (None, [root.span_id, root.span_id])
    runs = there.sink.named("invoke_agent")
    assert [span.parent_id for span in runs] == [root.span_id, *(span.span_id for span in others)]


def test_random_lives_of_jobs_leave_whole_traces() -> None:
    chance = random.Random(7)  # noqa: S311  # the same lives each time
    for _ in range(200):
        there = World(traceparent=chance.choice([None, CALLER]))
        for _ in range(chance.randint(1, 6)):
            is_cancelled = chance.random() < 0.3
            if not is_cancelled or chance.random() < 0.5:
                there.start()
                if chance.random() < 0.3:
                    there.restart()
                is_parked = is_cancelled or chance.random() < 0.5
                state = State.PARKED if is_parked else chance.choice([State.COMPLETED, State.INTERRUPTED])
                there.end(state, OutcomeType.RATE_LIMITED if is_parked else OutcomeType.SUCCESS)
            if chance.random() < 0.3:
                there.restart()
            if is_cancelled:
                there.change(
                    State.CANCELLED, outcome=Outcome(OutcomeType.CANCELLED), finished_at=there.clock()
                )
            there.queue()
        there.start()
        there.end(State.COMPLETED, OutcomeType.SUCCESS)
        assert there.sink.faults() == [], [span.name for span in there.sink.spans]


def test_a_service_that_was_killed_leaves_a_run_whose_spans_have_the_same_parents() -> None:
    there = World()
    there.start()
    there.tool()
    there.tool_ended()
    other = World()
    other.job = there.job  # the service that starts next
    other.end(State.INTERRUPTED, OutcomeType.INTERRUPTED)
    (tool,), (run,), (job,) = (
        there.sink.named("execute_tool"), other.sink.named("invoke_agent"), other.sink.named("job"),
    )  # fmt: skip
    assert tool.parent_id == run.span_id == run_span_id(there.job.id, 1)
    assert run.parent_id == job.span_id
    assert {each.trace.trace_id for each in (tool, run, job)} == {tool.trace.trace_id}
    assert run.error == "interrupted"


def test_phases_follow_each_other_and_the_last_one_ends_with_the_run() -> None:
    there = World()
    there.tracer.phase_began(there.job.id, "starting")  # of no run that is known
    there.start()
    for phase in ("checking_out", "checking_out", "running", "a-phase-of-a-newer-service"):
        there.clock.advance(SECOND)
        there.tracer.phase_began(there.job.id, phase)
    there.end(State.COMPLETED, OutcomeType.SUCCESS)
    (first,), (second,) = there.sink.named("checking_out"), there.sink.named("running")
    assert (first.end - first.begin, second.end - second.begin) == (2 * SECOND, SECOND)
    assert first.end == second.begin
    assert there.sink.faults() == []


def test_a_tool_that_fails_and_one_that_does_not_end_have_an_error() -> None:
    there = World()
    there.start()
    there.tool("one")
    there.tool("two", "a\x1bname\u202e" + "x" * 1000)
    there.tool_ended("one", is_error=True)
    there.tool_ended("unknown")
    there.end(State.COMPLETED, OutcomeType.SUCCESS)
    failed, unfinished = there.sink.named("execute_tool")
    assert (failed.error, unfinished.error) == ("tool_error", "unfinished")
    assert failed.end - failed.begin == SECOND
    name = unfinished.attributes[names.TOOL]
    assert isinstance(name, str)
    assert name.isprintable()
    assert len(name) == MAX_VALUE
    assert there.tracer._runs == {}


def test_the_open_tools_of_a_run_and_the_jobs_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_tracer, "MAX_OPEN_TOOLS", 3)
    monkeypatch.setattr(job_tracer, "MAX_RUNS", 2)
    there = World()
    for _ in range(5):
        there.job = make_job()
        there.start()
        for number in range(9):
            there.tool(str(number))
    assert len(there.tracer._runs) == 2
    assert {len(run.tools) for run in there.tracer._runs.values()} == {3}
    for _ in range(5):
        there.job = make_job()
        there.start()
        there.end(State.COMPLETED, OutcomeType.SUCCESS)


def test_a_call_of_a_model_has_its_tokens_its_cost_and_its_error() -> None:
    there = World()
    there.start()
    tokens = TokenCounts(input=1, output=2, cache_read=4, cache_write_5m=8, cache_write_1h=16)
    calls = [
        make_call(job_id=there.job.id, status=200, tokens=tokens, micros=1_500_000),
        make_call(job_id=there.job.id, status=529, provider="cloud"),
        make_call(job_id=there.job.id, status=None, model="a\nmodel"),
    ]
    for call in calls:
        there.tracer.model_called(there.job, call)
    there.end(State.COMPLETED, OutcomeType.SUCCESS)
    good, busy, silent = there.sink.named("chat")
    expected = {
        names.INPUT_TOKENS: 29, names.OUTPUT_TOKENS: 2, names.CACHE_READ_TOKENS: 4, names.CACHE_WRITE_TOKENS: 24,
        names.COST: 1.5,
    }  # fmt: skip
    assert expected.items() <= good.attributes.items()
    assert (good.error, busy.error, silent.error) == (None, "529", "no_answer")
    assert (good.attributes[names.PROVIDER], busy.attributes[names.PROVIDER]) == ("anthropic", "aws.bedrock")
    assert silent.name == "chat a\N{REPLACEMENT CHARACTER}model"
    (run,) = there.sink.named("invoke_agent")
    assert expected.items() <= run.attributes.items()
    assert there.sink.faults() == []


def test_texts_are_left_out_unless_they_are_asked_for_and_then_redacted_and_cut() -> None:
    for with_content in (False, True):
        there = World(with_content=with_content, secrets=["a-long-secret-of-the-service"])
        there.job = replace(
            there.job, spec=replace(there.job.spec, prompt="a-prompt a-long-secret-of-the-service")
        )
        there.start()
        there.tool()
        there.tool_ended(output="an-output" * MAX_TEXT)
        there.end(State.COMPLETED, OutcomeType.SUCCESS, answer="an-answer")
        values = [value for span in there.sink.spans for value in span.attributes.values()]
        text = " ".join(value for value in values if isinstance(value, str))
        assert "a-long-secret" not in text
        for word in ("a-prompt", "an-output", "an-answer"):
            assert (word in text) is with_content
        assert max(len(value) for value in values if isinstance(value, str)) <= MAX_TEXT
        used = {name for span in there.sink.spans for name in span.attributes}
        assert (used >= names.CONTENT_ATTRIBUTES) is with_content
        assert with_content or not names.CONTENT_ATTRIBUTES & used


@pytest.mark.parametrize(
    "workspace", ["/srv/secret/code", "https://user:key@git.example/x", "git@host:x", "code"]
)
def test_only_the_name_of_a_configured_workspace_is_exported(workspace: str) -> None:
    there = World(workspace=workspace)
    there.change(State.CANCELLED, outcome=Outcome(OutcomeType.CANCELLED))
    (job,) = there.sink.named("job")
    assert job.attributes.get(names.WORKSPACE) == ("code" if workspace == "code" else None)


def test_a_callback_has_no_address_and_carries_the_trace_on() -> None:
    there = World(traceparent=CALLER)
    delivery = Delivery(
        1,
        "msg_1",
        there.job.id,
        "k_one",
        None,
        "https://host/secret",
        "c",
        "job.ended",
        "{}",
        NOON,
        NOON,
        NOON,
    )
    span = there.tracer.begin_callback(there.job, delivery)
    there.clock.advance(SECOND)
    span.end(503, delivered=False)
    (made,) = there.sink.spans
    assert span.headers == {"traceparent": f"00-4bf92f3577b34da6a3ce929d0e0e4736-{made.span_id:016x}-01"}
    assert (made.error, made.end - made.begin) == ("503", SECOND)
    assert "secret" not in str(made)
    there.sink.sampled = False
    assert there.tracer.begin_callback(there.job, delivery).headers["traceparent"].endswith("-00")


def test_the_trace_of_a_job_is_the_same_for_each_that_asks_and_of_no_other_job() -> None:
    first, second = make_job(), make_job()
    traced = replace(first, traceparent=new_traceparent(first.id))
    assert trace_of(first) == trace_of(traced) != trace_of(second)
    assert trace_of(traced).caller_span_id is None
    assert trace_of(replace(first, traceparent=CALLER)).caller_span_id == int("00f067aa0ba902b7", 16)
    # The trace of another job is a caller's like any other.
    assert trace_of(replace(second, traceparent=new_traceparent(first.id))).caller_span_id == job_span_id(
        first.id
    )


def test_events_of_a_job_that_is_not_known_are_left_out() -> None:
    there = World()
    there.tracer.events_stored([])
    there.tool()
    there.tool_ended()
    there.tracer.state_changed(there.job, None, StateChanged(None, State.QUEUED).target)
    assert there.sink.spans == []


def test_an_error_of_the_export_is_logged_and_ends_no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    there = World()

    def fail(_span: FinishedSpan) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr(there.sink, "add", fail)
    with capture_logs() as logs:
        there.start()
        there.tracer.model_called(there.job, make_call(job_id=there.job.id, status=200))
        there.tool()
        there.tool_ended()
        there.end(State.COMPLETED, OutcomeType.SUCCESS)
    assert [line["event"] for line in logs] == ["telemetry.span_lost"] * 4
    assert there.job.state is State.COMPLETED
