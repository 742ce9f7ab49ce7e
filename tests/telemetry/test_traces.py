"""The trace of a job of a real service, as a receiver of OTLP gets it; that of a whole run is with the real CLI."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from tests.callbacks.receiver import Receiver, receiving
from tests.service_fixtures import make_repository
from tests.telemetry.otlp_receiver import OtlpReceiver, Span, faults_of, receiving_otlp

from steadyhand.telemetry import names
from steadyhand.testing.cli import cli_path
from steadyhand.testing.model import ScriptedModel
from steadyhand.testing.service import MakeService, Service, wait_until

TRACE_ID, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
CALLER_TRACE = {"traceparent": f"00-{TRACE_ID}-{CALLER}-01"}
QUICK = {"OTEL_BSP_SCHEDULE_DELAY": "50", "OTEL_METRIC_EXPORT_INTERVAL": "200"}
CONFIG = """\
[telemetry]
endpoint = "{url}"

[workspaces.code]
repository = "{repository}"
setup = ["true"]

[callbacks]
allow = ["127.0.0.1:{port}"]
"""


@pytest.fixture(scope="module")
def otlp() -> Iterator[OtlpReceiver]:
    with receiving_otlp() as started:
        yield started


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with receiving() as started:
        yield started


@pytest.fixture(scope="module")
def service(
    make_service_in: MakeService, model: ScriptedModel, otlp: OtlpReceiver, receiver: Receiver
) -> Iterator[Service]:
    made = make_service_in(claude=cli_path(), model=model.url, env=QUICK)
    repository = made.root / "code"
    make_repository(repository, {"a.txt": "a\n"})
    made.config_path.write_text(CONFIG.format(url=otlp.url, port=receiver.port, repository=repository))
    with made as started:
        yield started


@pytest.fixture(scope="module")
def cheap_service(make_service_in: MakeService, otlp: OtlpReceiver) -> Iterator[Service]:
    """A service with the stand-in, for what the agent has no part in."""
    config = f'[telemetry]\nendpoint = "{otlp.url}"\n'
    with make_service_in(config=config, env=QUICK | {"STEADYHAND_ISOLATION": "none"}) as started:
        yield started


def submit(service: Service, prompt: str, headers: dict[str, str] | None = None, **fields: Any) -> str:
    body = {"prompt": prompt, "workspace": "scratch", **fields}
    answer = service.client.post("/v1/jobs", json=body, headers=headers or {})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def spans_until(otlp: OtlpReceiver, job_id: str, name: str, number: int = 1) -> list[Span]:
    """Return the spans of a job once so many of them have a name that begins so."""

    def found() -> list[Span] | None:
        spans = otlp.of(job_id)
        return spans if sum(span.name.startswith(name) for span in spans) >= number else None

    return wait_until(found, 30)


def named(spans: list[Span], name: str) -> list[Span]:
    return [span for span in spans if span.name.split(" ")[0] == name]


def test_the_trace_of_a_job_is_whole_from_its_caller_to_its_callback(
    service: Service, otlp: OtlpReceiver, receiver: Receiver
) -> None:
    prompt = "[[scenario:bash]] a-word-of-the-prompt"
    hook = f"{receiver.url}/hook?a-word-of-the-url"
    job_id = submit(service, prompt, CALLER_TRACE, callback_url=hook, workspace="code")
    job = service.wait_until_ended(job_id)
    assert job["state"] == "completed", job
    spans = spans_until(otlp, job_id, "callback")
    assert faults_of(spans, CALLER) == []
    assert {span.trace_id for span in spans} == {TRACE_ID}
    (root,) = named(spans, "job")
    (run,) = named(spans, "invoke_agent")
    (tool,) = named(spans, "execute_tool")
    (callback,) = named(spans, "callback")
    (queue,) = named(spans, "queue")
    phases = [span for span in spans if span.name in names.PHASE_SPANS]
    calls = named(spans, "chat")
    assert {"checking_out", "setup", "starting", "running", "harvesting"} <= {span.name for span in phases}
    assert {span.parent_id for span in (run, queue, callback)} == {root.span_id}
    assert {span.parent_id for span in (tool, *calls, *phases)} == {run.span_id}
    assert (run.name, root.name) == ("invoke_agent claude", "job claude")
    assert tool.attributes[names.TOOL] == "Bash"
    assert len(calls) >= 2
    for call in calls:
        assert call.name == f"chat {call.attributes[names.MODEL]}"
        assert call.attributes[names.PROVIDER] == "anthropic"
        assert run.begin <= call.begin <= call.end <= run.end
    usage = job["usage"]
    total = usage["input_tokens"] + usage["cache_read_input_tokens"] + usage["cache_creation_input_tokens"]
    assert sum(call.attributes[names.INPUT_TOKENS] for call in calls) == total
    assert run.attributes[names.INPUT_TOKENS] == total
    assert root.attributes[names.OUTCOME] == "success"
    assert f"{root.attributes[names.COST]:.6f}" == f"{float(job['cost']['usd']):.6f}"
    assert receiver.messages[-1].headers["traceparent"] == f"00-{TRACE_ID}-{callback.span_id}-01"
    assert root.attributes[names.WORKSPACE] == "code"
    assert root.resource["service.name"] == "steadyhand"
    assert not any(span.is_error for span in spans)
    for word in ("a-word-of-the-prompt", "a-word-of-the-url", "hello from bash"):
        assert not [body for body in otlp.bodies if word.encode() in body]


def test_a_resumed_job_goes_on_in_its_trace_with_a_link_to_the_run_before(
    cheap_service: Service, otlp: OtlpReceiver
) -> None:
    service = cheap_service
    job_id = submit(service, "Say ok.")
    service.wait_until_ended(job_id)
    first = spans_until(otlp, job_id, "job")
    assert faults_of(first) == []
    again = {"prompt": "Say it again."}
    answer = service.client.post(f"/v1/jobs/{job_id}/resume", json=again, headers=CALLER_TRACE)
    assert answer.status_code == 202, answer.text
    service.wait_until_ended(job_id)
    spans = spans_until(otlp, job_id, "job", 2)
    assert faults_of(spans) == []
    earlier, later = named(spans, "invoke_agent")
    assert later.links == [
        (earlier.trace_id, earlier.span_id, {names.LINK: "earlier_run", names.RUN: 1}),
        (TRACE_ID, CALLER, {names.LINK: "request"}),
    ]
    root, resumed = named(spans, "job")
    assert (root.parent_id, resumed.parent_id, later.parent_id) == ("", root.span_id, resumed.span_id)
    assert resumed.begin >= root.end


def test_a_later_turn_has_a_trace_of_its_own_with_a_link_to_the_turn_before(
    cheap_service: Service, otlp: OtlpReceiver
) -> None:
    service = cheap_service
    first = submit(service, "Say ok.")
    service.wait_until_ended(first)
    answer = service.client.post(f"/v1/jobs/{first}/turns", json={"prompt": "And again."})
    assert answer.status_code == 202, answer.text
    second = answer.json()["id"]
    service.wait_until_ended(second)
    (root,) = named(spans_until(otlp, first, "job"), "job")
    turn = spans_until(otlp, second, "job")
    assert faults_of(turn) == []
    link = (root.trace_id, root.span_id, {names.LINK: "earlier_job", names.JOB_ID: first})
    assert [span.name for span in turn if link in span.links] == ["invoke_agent claude", "job claude"]
    assert turn[0].trace_id != root.trace_id


def test_the_lines_of_the_log_have_the_trace_that_is_exported(
    cheap_service: Service, otlp: OtlpReceiver
) -> None:
    service = cheap_service
    job_id = submit(service, "Say ok.", {"traceparent": f"00-{TRACE_ID}-{CALLER}-01-"})
    service.wait_until_ended(job_id)
    spans = spans_until(otlp, job_id, "job")
    assert faults_of(spans) == []
    lines = [json.loads(line) for line in service.log.splitlines() if line.startswith("{")]
    about = [line for line in lines if line.get("job") == job_id]
    assert {"job.accepted", "job.started", "job.ended"} <= {line["event"] for line in about}
    assert {line["trace_id"] for line in about} == {spans[0].trace_id}
