"""The export of a service: what gets out, what does not, and that nothing waits for a receiver."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.telemetry.otlp_receiver import OtlpReceiver, Span, faults_of, receiving_otlp
from tests.telemetry.test_traces import QUICK, named, spans_until, submit

from steadyhand.telemetry import names
from steadyhand.testing.cli import cli_path
from steadyhand.testing.model import ScriptedModel
from steadyhand.testing.service import MakeService, Service, wait_until

UNSANDBOXED = {"STEADYHAND_ISOLATION": "none"}
AGENT_WITH_TELEMETRY = """\
[telemetry]
endpoint = "@URL@"

[agents.trusted]
egress = ["127.0.0.1:@PORT@"]

[agents.trusted.env]
CLAUDE_CODE_ENABLE_TELEMETRY = "1"
CLAUDE_CODE_ENHANCED_TELEMETRY_BETA = "1"
OTEL_TRACES_EXPORTER = "otlp"
OTEL_EXPORTER_OTLP_PROTOCOL = "http/protobuf"
OTEL_EXPORTER_OTLP_ENDPOINT = "http://[::ffff:127.0.0.1]:@PORT@"
"""
"""What docs/telemetry.md says for an agent that may export its own spans. The CLI asks 127.0.0.1 without the proxy."""


def start(make_service: MakeService, otlp: OtlpReceiver, settings: str = "", **env: str) -> Service:
    config = f'[telemetry]\nendpoint = "{otlp.url}"\n{settings}'
    return make_service(config=config, env=UNSANDBOXED | QUICK | env).start()


@pytest.fixture(scope="module")
def shared_otlp() -> Iterator[OtlpReceiver]:
    with receiving_otlp() as started:
        yield started


@pytest.fixture(scope="module")
def shared(make_service_in: MakeService, shared_otlp: OtlpReceiver) -> Iterator[Service]:
    """A service with the standard variables alone, for what needs no settings."""
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": shared_otlp.url, "OTEL_SERVICE_NAME": "agents"}
    with make_service_in(env=UNSANDBOXED | QUICK | env) as started:
        yield started


def assert_only_their_attributes(spans: list[Span]) -> None:
    for span in spans:
        spec = names.SPANS[span.name.split(" ")[0]]
        assert set(span.attributes) <= set(spec.attributes), span.name
        assert span.is_error == (names.ERROR_TYPE in span.attributes), span.name


def log_lines(service: Service, event: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in service.log.splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"] == event]


def test_a_trace_is_whole_after_the_service_was_killed_and_its_job_was_run_again(
    otlp: OtlpReceiver, make_service: MakeService, tmp_path: Path
) -> None:
    service = start(make_service, otlp)
    flag = service.root / "runs-again"
    prompt = f"[[standin: run='echo first' run='test -e {flag} || sleep 60']]"
    job_id = submit(service, prompt, on_interrupt="restart")
    spans_until(otlp, job_id, "execute_tool")
    service.kill()
    flag.touch()
    service.restart()
    job = service.wait_until_ended(job_id)
    assert job["state"] == "completed", job
    spans = spans_until(otlp, job_id, "job", 2)
    assert faults_of(spans) == []
    killed, completed = named(spans, "invoke_agent")
    assert (killed.is_error, killed.attributes[names.OUTCOME]) == (True, "interrupted")
    assert not completed.is_error
    assert [link[1] for link in completed.links] == [killed.span_id]
    assert {span.parent_id for span in named(spans, "execute_tool")} == {killed.span_id, completed.span_id}


def test_a_receiver_that_hangs_holds_no_job_and_no_stop(
    otlp: OtlpReceiver, make_service: MakeService
) -> None:
    otlp.hangs = True
    service = start(make_service, otlp, "stop_seconds = 1")
    assert service.run_job("one")["state"] == "completed"
    assert otlp.asked.wait(30)
    assert service.run_job("two")["state"] == "completed"
    assert service.terminate() == 0
    assert not otlp.released.is_set()
    assert [line["seconds"] for line in log_lines(service, "telemetry.incomplete")] == [1.0]


def test_a_receiver_that_refuses_has_one_line_of_the_log_and_what_comes_later_once_it_takes_it(
    otlp: OtlpReceiver, make_service: MakeService
) -> None:
    otlp.status = 400
    service = start(make_service, otlp)
    for _ in range(3):
        assert service.run_job("x")["state"] == "completed"
    wait_until(lambda: len(log_lines(service, "telemetry.failed")) == 2)
    otlp.status = 200
    wait_until(lambda: log_lines(service, "telemetry.exporting_again"))
    job_id = service.run_job("x")["id"]
    assert faults_of(spans_until(otlp, job_id, "job")) == []
    assert sorted(line["signal"] for line in log_lines(service, "telemetry.failed")) == ["metrics", "traces"]
    assert otlp.url not in service.log


@pytest.mark.long  # one that hangs is worse, and one that refuses has the same wiring
def test_a_receiver_that_is_not_there_holds_nothing(make_service: MakeService) -> None:
    nobody = OtlpReceiver(url="http://127.0.0.1:9")
    service = start(make_service, nobody, "stop_seconds = 1")
    assert service.run_job("x")["state"] == "completed"
    assert service.terminate() == 0


def test_the_figures_that_are_exported_are_those_of_a_scrape(
    shared: Service, shared_otlp: OtlpReceiver
) -> None:
    assert shared.run_job("x")["state"] == "completed"
    wait_until(lambda: shared_otlp.metrics.get("steadyhand_jobs_ended_total", {}).get(("claude", "success")))
    stable = [
        "steadyhand_jobs_accepted_total", "steadyhand_jobs_ended_total", "steadyhand_events_total",
        "steadyhand_job_changes_total", "steadyhand_model_calls_total", "steadyhand_queue_limit", "steadyhand_slots",
        "steadyhand_build_info", "steadyhand_callbacks_total",
    ]  # fmt: skip

    def scrape_once_it_is_exported() -> tuple[str, set[str], dict[tuple[str, tuple[str, ...]], float]] | None:
        text = shared.client.get("/metrics").text
        scraped = {
            (sample.name, tuple(sample.labels.values())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }
        count = scraped.get(("steadyhand_run_seconds_count", ("claude",)), 0.0)
        expected = {
            name: {labels: value for (sample, labels), value in scraped.items() if sample == name}
            for name in stable
        }
        expected["steadyhand_run_seconds"] = {("claude",): count}
        expected["gen_ai.invoke_agent.duration"] = {("invoke_agent", "claude"): count}
        with shared_otlp.lock:
            found = dict(shared_otlp.metrics)
        if any(found.get(name) != figures for name, figures in expected.items()):
            return None
        return text, {name for name in found if name.startswith("steadyhand_")}, scraped

    # The export goes out now and again: what it has of this job comes later than the scrape's.
    text, exported, scraped = wait_until(scrape_once_it_is_exported)
    in_text = set(re.findall(r"^# TYPE (steadyhand_\w+) ", text, re.MULTILINE))
    assert exported <= {name if name in in_text else f"{name}_total" for name in in_text} | exported
    assert {name.removesuffix("_total") for name in exported} == {
        name.removesuffix("_total") for name in in_text if any(key[0].startswith(name) for key in scraped)
    }


def test_texts_are_exported_only_if_that_is_set_and_then_without_secrets(
    otlp: OtlpReceiver, make_service: MakeService, tmp_path: Path
) -> None:
    headers = tmp_path / "headers"
    headers.write_text("x-receiver-key: a-key-of-the-receiver\n")
    settings = f'content = true\nheaders_file = "{headers}"'
    service = start(make_service, otlp, settings)
    prompt = (
        "[[standin: run='echo a-key-of-the-receiver and-more']] a-word-of-the-prompt a-key-of-the-receiver"
    )
    job_id = submit(service, prompt)
    assert service.wait_until_ended(job_id)["state"] == "completed"
    spans = spans_until(otlp, job_id, "job")
    (run,), (tool,) = named(spans, "invoke_agent"), named(spans, "execute_tool")
    (message,) = json.loads(run.attributes[names.INPUT_MESSAGES])
    assert message["role"] == "user"
    assert "a-word-of-the-prompt" in message["parts"][0]["content"]
    assert json.loads(run.attributes[names.OUTPUT_MESSAGES])[0]["role"] == "assistant"
    assert "and-more" in tool.attributes[names.TOOL_ARGUMENTS]
    assert "and-more" in tool.attributes[names.TOOL_RESULT]
    assert not [body for body in otlp.bodies if b"a-key-of-the-receiver" in body]
    assert_only_their_attributes(spans)
    assert {headers.get("x-receiver-key") for headers in otlp.headers} == {"a-key-of-the-receiver"}


def test_each_span_has_only_the_attributes_of_its_kind(shared: Service, shared_otlp: OtlpReceiver) -> None:
    job_id = submit(shared, "[[standin: run='false' exit_now=3]]")
    shared.wait_until_ended(job_id)
    assert_only_their_attributes(spans_until(shared_otlp, job_id, "job"))


def test_an_unsampled_caller_has_no_spans_and_a_callers_sampled_one_has(
    shared: Service, shared_otlp: OtlpReceiver
) -> None:
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-"
    unsampled = submit(shared, "x", {"traceparent": f"{trace}00"})
    shared.wait_until_ended(unsampled)
    sampled = submit(shared, "x", {"traceparent": f"{trace}01"})
    shared.wait_until_ended(sampled)
    spans_until(shared_otlp, sampled, "job")
    assert shared_otlp.of(unsampled) == []


def test_the_agent_and_its_tools_find_the_span_of_the_run(shared: Service, shared_otlp: OtlpReceiver) -> None:
    job_id = submit(shared, "[[standin: run='echo $TRACEPARENT' text='{last}']]")
    job = shared.wait_until_ended(job_id)
    (run,) = named(spans_until(shared_otlp, job_id, "job"), "invoke_agent")
    assert job["answer"].strip() == f"00-{run.trace_id}-{run.span_id}-01"


def test_the_standard_variables_turn_it_on(shared: Service, shared_otlp: OtlpReceiver) -> None:
    spans = spans_until(shared_otlp, shared.run_job("x")["id"], "job")
    assert faults_of(spans) == []
    assert {span.resource["service.name"] for span in spans} == {"agents"}


def test_the_own_spans_of_an_agent_in_a_sandbox_join_the_trace_below_the_run(
    otlp: OtlpReceiver, make_service: MakeService, model: ScriptedModel
) -> None:
    config = AGENT_WITH_TELEMETRY.replace("@URL@", otlp.url).replace("@PORT@", otlp.url.rpartition(":")[2])
    service = make_service(claude=cli_path(), model=model.url, config=config, env=QUICK).start()
    job_id = submit(service, "Say ok.", agent="trusted")
    assert service.wait_until_ended(job_id)["state"] == "completed"
    (run,) = named(spans_until(otlp, job_id, "job"), "invoke_agent")

    def of_cli() -> list[Span]:
        with otlp.lock:
            spans = [span for span in otlp.spans if span.name.startswith("claude_code.")]
        return spans if named(spans, "claude_code.interaction") else []

    spans = wait_until(of_cli)
    assert {span.trace_id for span in spans} == {run.trace_id}
    (interaction,) = [span for span in spans if span.name == "claude_code.interaction"]
    assert interaction.parent_id == run.span_id
    assert faults_of([*otlp.of(job_id), *spans]) == []
