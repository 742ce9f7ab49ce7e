"""The figures of a service: what they count, that labels are bounded, and that their text can be parsed."""

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import timedelta
from itertools import accumulate
from typing import Any

import pytest
from prometheus_client.openmetrics import parser as openmetrics_parser
from prometheus_client.parser import text_string_to_metric_families as parse_text

from steadyhand.events import StateChanged
from steadyhand.job import Job, Outcome, OutcomeType, State
from steadyhand.metrics import METRICS, OTHER, Reading, ServiceMetrics
from steadyhand.metrics.exposition import scrape
from steadyhand.metrics.figures import MAX_SERIES, Distribution, Series
from steadyhand.ports import ModelCall, TokenCounts
from steadyhand.testing.contracts.samples import NOON, make_job

HOSTILE = (
    '"} evil 1',
    "a\nb",
    "a\\",
    "{",
    "\x00",
    "\u202eabc",
    "\U0001d49c" * 500,
    "",
    "other",
    "k_7h2m4q9x1c",
)
"""Names that a repository may give its agents."""


ACCEPT_OF_PROMETHEUS = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
"""What a server of version 3 sends."""


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def read(metrics: ServiceMetrics, accept: str = "", *, scopes: Iterable[str] = ("read", "read:all")) -> str:
    return asyncio.run(scrape(metrics, accept, frozenset(scopes))).body.decode("utf-8")  # type: ignore[arg-type]


def samples(text: str) -> Mapping[tuple[str, ...], float]:
    """Return each sample of a scrape by its name and the values of its labels, in the order of their names."""
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in parse_text(text)
        for sample in family.samples
    }


def call(agent: str = "chat", **fields: object) -> ModelCall:
    made = ModelCall("c", "j", 1, "k_secret", agent, "default", "some-model", NOON, settled=True, status=200)
    return replace(made, **fields)  # type: ignore[arg-type]


def run_through(metrics: ServiceMetrics, clock: Clock, job: Job) -> None:
    """Let a job be accepted, run through two phases and succeed."""
    metrics.job_accepted(job)
    job = replace(job, state=State.RUNNING, queued_at=NOON, started_at=NOON + timedelta(seconds=20))
    metrics.state_changed(job, "queued", "running")
    metrics.phase_began(job.id, "checking_out")
    clock.now += 2
    metrics.phase_began(job.id, "checking_out")  # the same twice in a row is one
    clock.now += 1
    metrics.phase_began(job.id, "running")
    clock.now += 40
    ended = replace(job, state=State.COMPLETED, outcome=Outcome(OutcomeType.SUCCESS))
    metrics.state_changed(ended, "running", "completed")


def test_a_job_counts_with_its_wait_its_phases_and_its_end() -> None:
    clock = Clock()
    metrics = ServiceMetrics(["chat"], clock=clock)
    run_through(metrics, clock, make_job(agent="chat", last_event=2))
    found = samples(read(metrics))
    assert found["steadyhand_jobs_accepted_total", "chat"] == 1
    assert found["steadyhand_jobs_ended_total", "chat", "success"] == 1
    assert found["steadyhand_events_total",] == 2
    for state in ("queued", "running", "completed"):
        assert found["steadyhand_job_changes_total", state] == 1
    assert found["steadyhand_queue_wait_seconds_sum",] == 20
    assert found["steadyhand_run_seconds_sum", "chat"] == 43
    assert found["steadyhand_phase_seconds_sum", "checking_out"] == 3
    assert found["steadyhand_phase_seconds_sum", "running"] == 40
    assert found["steadyhand_phase_seconds_count", "running"] == 1
    assert found["steadyhand_phase_seconds_bucket", "30.0", "running"] == 0
    assert found["steadyhand_phase_seconds_bucket", "60.0", "running"] == 1


def test_an_end_of_a_run_that_began_before_this_start_has_an_outcome_and_no_time() -> None:
    metrics = ServiceMetrics(["chat"])
    metrics.phase_began("unknown", "running")
    ended = make_job(agent="chat", state=State.INTERRUPTED, outcome=Outcome(OutcomeType.INTERRUPTED))
    metrics.state_changed(ended, "running", "interrupted")
    found = samples(read(metrics))
    assert found["steadyhand_jobs_ended_total", "chat", "interrupted"] == 1
    assert not any(name.startswith("steadyhand_run_seconds") for name, *_ in found)
    assert not any(name.startswith("steadyhand_phase_seconds") for name, *_ in found)


def test_a_parked_job_counts_until_it_goes_on_or_is_cancelled() -> None:
    metrics = ServiceMetrics(["chat"])
    jobs = [make_job(agent="chat") for _ in range(3)]
    metrics.parked.add(jobs[0].id)  # as the start does
    for job in jobs[1:]:
        metrics.state_changed(job, "running", "parked")
    assert samples(read(metrics))["steadyhand_jobs", "parked"] == 3
    metrics.state_changed(jobs[0], "parked", "cancelled")
    metrics.state_changed(jobs[1], "parked", "queued")
    assert samples(read(metrics))["steadyhand_jobs", "parked"] == 1


def test_nothing_of_a_job_is_kept_after_its_run() -> None:
    clock = Clock()
    metrics = ServiceMetrics(["chat"], clock=clock)
    for number in range(50):
        run_through(metrics, clock, make_job(id=f"{number:012x}", agent="chat"))
    assert metrics._runs == {}


def test_model_calls_count_by_result_with_tokens_and_cost() -> None:
    clock = Clock()
    metrics = ServiceMetrics(["chat"], clock=clock)
    began = [metrics.call_began() for _ in range(5)]
    assert samples(read(metrics))["steadyhand_model_calls_open",] == 5
    clock.now += 3
    tokens = TokenCounts(input=1, output=2, cache_read=4, cache_write_5m=8, cache_write_1h=16)
    statuses = (200, 429, 404, 529, None)
    for status, at in zip(statuses, began, strict=True):
        metrics.call_ended(call(status=status, tokens=tokens, micros=250_000, priced=status != 404), at)
    found = samples(read(metrics))
    for result in ("ok", "rate_limited", "client_error", "server_error", "no_answer"):
        assert found["steadyhand_model_calls_total", "chat", result] == 1
    assert [
        found["steadyhand_model_tokens_total", "chat", kind]
        for kind in ("input", "output", "cache_read", "cache_write")
    ] == [5, 10, 20, 120]
    assert found["steadyhand_model_cost_dollars_total", "chat"] == 1.25
    assert found["steadyhand_model_unpriced_calls_total", "chat"] == 1
    assert found["steadyhand_model_calls_open",] == 0
    assert found["steadyhand_model_call_seconds_sum", "default"] == 15


def test_a_call_that_an_agent_reports_counts_as_one_that_was_answered() -> None:
    metrics = ServiceMetrics(["chat"])
    metrics.call_counted(call(status=None, source="reported", micros=1_000_000))
    found = samples(read(metrics))
    assert found["steadyhand_model_calls_total", "chat", "ok"] == 1
    assert found["steadyhand_model_cost_dollars_total", "chat"] == 1


def test_agents_that_are_not_configured_share_one_label_however_they_are_called() -> None:
    clock = Clock()
    metrics = ServiceMetrics(["chat"], clock=clock)
    before = len(samples(read(metrics)))
    names = (*HOSTILE, *(f"agent-{number}" for number in range(2_000)))
    for number, name in enumerate(names):
        run_through(metrics, clock, make_job(id=f"{number:012x}", agent=name))
        metrics.call_ended(call(name), metrics.call_began())
    text = read(metrics)
    found = samples(text)
    assert found["steadyhand_jobs_accepted_total", OTHER] == len(names)
    assert found["steadyhand_model_calls_total", OTHER, "ok"] == len(names)
    labels = {
        sample.labels["agent"] for f in parse_text(text) for sample in f.samples if "agent" in sample.labels
    }
    assert labels == {"chat", OTHER}
    assert len(found) - before < 150
    assert "evil" not in text
    assert "k_" not in text


@pytest.mark.parametrize("name", [*HOSTILE[:8], "a name of the configuration"])
def test_a_configured_name_is_a_label_as_it_is(name: str) -> None:
    metrics = ServiceMetrics([name])
    metrics.job_accepted(make_job(agent=name))
    assert samples(read(metrics))["steadyhand_jobs_accepted_total", name] == 1


def test_a_metric_has_no_more_series_than_its_bound() -> None:
    series = Series(METRICS["steadyhand_gateway_refused_total"])
    for number in range(MAX_SERIES + 100):
        series.child(f"reason-{number}").n += 1
    assert len(list(series.items())) == MAX_SERIES


def test_a_value_is_in_the_bucket_of_the_first_bound_that_is_not_below_it() -> None:
    found = Distribution((1.0, 5.0))
    for value in (-3.0, 0.5, 1.0, 1.5, 5.0, 6.0):
        found.observe(value)
    assert list(accumulate(found.counts)) == [3, 5, 6]
    assert found.total == 14.0


def test_with_the_scope_read_alone_no_metric_tells_of_an_agent() -> None:
    clock = Clock()
    metrics = ServiceMetrics(["secret-agent"], clock=clock)
    run_through(metrics, clock, make_job(agent="secret-agent"))
    metrics.call_ended(call("secret-agent", micros=5), metrics.call_began())
    text = read(metrics, scopes=["read"])
    assert "secret-agent" not in text
    shown = {name for name, *_ in samples(text)}
    assert "steadyhand_model_cost_dollars_total" not in shown
    assert "steadyhand_job_changes_total" in shown
    assert "process_cpu_seconds_total" in shown
    assert "secret-agent" in read(metrics)


def test_the_service_counts_its_responses_its_commits_and_its_log() -> None:
    metrics = ServiceMetrics()
    metrics.response_began("native", 200, 0.004)
    metrics.response_began("native", 204, 0.004)
    metrics.response_began("openai", 503, 2)
    metrics.response_began("native", 999, 2)
    metrics.store_written(3, 0.02)
    for level in ("info", "error", "unheard-of"):
        metrics.line_logged(level)
    metrics.request_refused("billing_error")
    metrics.provider_failed("default")
    metrics.provider_limited("default", blocked=False)
    metrics.provider_limited("default", blocked=True)
    found = samples(read(metrics))
    assert found["steadyhand_http_requests_total", "native", "2xx"] == 2
    assert found["steadyhand_http_requests_total", "openai", "5xx"] == 1
    assert found["steadyhand_http_requests_total", "native", OTHER] == 1
    assert found["steadyhand_http_response_seconds_count", "native"] == 3
    assert found["steadyhand_store_writes_total",] == 3
    assert found["steadyhand_store_write_seconds_count",] == 1
    assert found["steadyhand_log_lines_total", "info"] == 1
    assert found["steadyhand_log_lines_total", "error"] == 1
    assert found["steadyhand_gateway_refused_total", "billing_error"] == 1
    assert found["steadyhand_gateway_errors_total", "default"] == 1
    assert found["steadyhand_gateway_rate_limits_total", "waited", "default"] == 1
    assert found["steadyhand_gateway_rate_limits_total", "blocked", "default"] == 1


def test_a_scrape_shows_the_readings_of_that_moment() -> None:
    metrics = ServiceMetrics(version="1.2.3")
    lengths = iter([4, 7])
    metrics.sources.append(lambda: [Reading("steadyhand_jobs", next(lengths), ("queued",))])
    assert samples(read(metrics))["steadyhand_jobs", "queued"] == 4
    found = samples(read(metrics))
    assert found["steadyhand_jobs", "queued"] == 7
    assert found["steadyhand_build_info", "1.2.3"] == 1


def test_a_scrape_in_the_format_of_openmetrics_can_be_parsed() -> None:
    clock = Clock()
    metrics = ServiceMetrics(["chat"], clock=clock)
    run_through(metrics, clock, make_job(agent="chat"))
    accept = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"
    result = asyncio.run(scrape(metrics, accept))
    assert result.content_type.startswith("application/openmetrics-text")
    parse_open: Any = openmetrics_parser.text_string_to_metric_families
    families = {family.name: family for family in parse_open(result.body.decode("utf-8"))}
    assert families["steadyhand_jobs_accepted"].type == "counter"
    assert families["steadyhand_run_seconds"].type == "histogram"
    assert asyncio.run(scrape(metrics, "")).content_type.startswith("text/plain; version=0.0.4")


@pytest.mark.parametrize(
    ("accept", "is_open"),
    [
        (ACCEPT_OF_PROMETHEUS, True),
        ("application/openmetrics-text", True),
        ("application/openmetrics-text;version=0.0.1,text/plain;version=0.0.4;q=0.5", False),
        ("application/openmetrics-text;version=2.0.0", False),
        (";;;,,,=", False),
        ("text/html,*/*", False),
        ("", False),
    ],
)
def test_whatever_a_client_accepts_it_gets_a_format_of_prometheus(accept: str, *, is_open: bool) -> None:
    content_type = asyncio.run(scrape(ServiceMetrics(), accept)).content_type
    if is_open:
        assert (
            content_type == "application/openmetrics-text; version=1.0.0; charset=utf-8; escaping=underscores"
        )
    else:
        assert content_type == "text/plain; version=0.0.4; charset=utf-8"


def test_every_state_change_that_the_code_makes_has_a_state_of_the_table() -> None:
    metrics = ServiceMetrics()
    for state in State:
        metrics.state_changed(make_job(state=state), None, StateChanged(None, state).target)
    found = samples(read(metrics))
    assert {labels[0] for name, *labels in found if name == "steadyhand_job_changes_total"} == set(State)
