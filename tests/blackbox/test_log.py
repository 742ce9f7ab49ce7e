"""One line of the log each for a request and for what becomes of a job."""

import json
from typing import Any

import httpx2
import pytest

from steadyhand.testing.service import MakeService, Service, wait_until


@pytest.fixture
def service(sealed_service: Service) -> Service:
    return sealed_service


def lines(service: Service, event: str, **fields: Any) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in service.log_since_start.splitlines() if line.startswith("{")]
    return [line for line in found if line["event"] == event and fields.items() <= line.items()]


def line_of(service: Service, reply: httpx2.Response) -> dict[str, Any]:
    """Return the one line of an answered request, which is written right after its answer."""
    (line,) = wait_until(lambda: lines(service, "request", request_id=reply.headers["x-request-id"]))
    return line


def test_a_job_has_one_line_each_for_its_acceptance_its_start_and_its_end(service: Service) -> None:
    job = service.run_job("say x")
    (accepted,) = lines(service, "job.accepted", job=job["id"])
    (started,) = lines(service, "job.started", job=job["id"])
    (ended,) = lines(service, "job.ended", job=job["id"])
    for line in (accepted, started, ended):
        assert (line["key"], line["agent"], line["level"]) == (job["api_key_id"], "claude", "info")
    assert (started["run"], ended["state"], ended["outcome"]) == (1, "completed", "success")
    assert ended["seconds"] >= 0
    assert ended["usd"] == job["cost"]["usd"]
    assert "say x" not in service.log_since_start


TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/responses"])
def test_the_lines_of_a_request_and_of_its_job_are_joined_by_their_ids(service: Service, path: str) -> None:
    body = {
        "/v1/jobs": {"prompt": "x", "workspace": "scratch"},
        "/v1/responses": {"input": "x", "model": "claude"},
    }
    trace = {"traceparent": f"00-{TRACE_ID}-00f067aa0ba902b7-01"}
    reply = service.client.post(path, json=body[path], headers=trace)
    assert reply.is_success, reply.text
    request = line_of(service, reply)
    (accepted,) = lines(service, "job.accepted", request_id=request["request_id"])
    service.wait_until_ended(accepted["job"])
    (started,) = lines(service, "job.started", job=accepted["job"])
    (ended,) = lines(service, "job.ended", job=accepted["job"])
    for line in (request, accepted, started, ended):
        assert (line["trace_id"], line["key"]) == (TRACE_ID, request["key"])
    assert "request_id" not in started
    assert "request_id" not in ended


def test_a_trace_is_kept_with_its_job_for_later_runs_and_no_other_job_has_it(service: Service) -> None:
    trace = {"traceparent": f"00-{TRACE_ID}-00f067aa0ba902b7-01"}
    body = {"prompt": "[[standin: exit_now=9]]", "workspace": "scratch"}
    job = service.client.post("/v1/jobs", json=body, headers=trace).json()
    service.wait_until_ended(job["id"])
    assert service.client.post(f"/v1/jobs/{job['id']}/retry").status_code == 202
    service.wait_until_ended(job["id"])
    started = lines(service, "job.started", job=job["id"])
    assert [line["trace_id"] for line in started] == [TRACE_ID] * 2
    other = service.client.post("/v1/jobs", json=body, headers={"traceparent": "00-no-trace-01"}).json()
    service.wait_until_ended(other["id"])
    (ended,) = lines(service, "job.ended", job=other["id"])
    assert "trace_id" not in ended


def test_a_request_has_one_line_and_a_probe_has_none(service: Service) -> None:
    reply = service.client.get("/v1/jobs?metadata.a=a-value-of-the-query")
    for path in ("/health", "/livez", "/readyz"):
        service.client.get(path)
    line = line_of(service, reply)
    assert (line["method"], line["path"], line["status"], line["level"]) == ("GET", "/v1/jobs", 200, "info")
    assert line["key"]
    assert line["seconds"] >= 0
    assert "a-value-of-the-query" not in service.log_since_start
    assert not [
        each for each in lines(service, "request") if each["path"] in {"/health", "/livez", "/readyz"}
    ]


def test_a_request_that_is_refused_has_a_line_too(service: Service) -> None:
    reply = service.client.get("/v1/jobs", headers={"authorization": "Bearer nobody"})
    line = line_of(service, reply)
    assert (line["status"], line["key"]) == (401, None)


@pytest.mark.long  # as in `tests/serve/test_config_warnings`
def test_a_start_warns_of_settings_that_do_not_do_what_they_seem_to_do_and_goes_on(
    make_service: MakeService,
) -> None:
    config = '[agents.reader]\ntools = ["Reed"]\nsecrets = ["/nowhere/secret"]\n'
    config += '[workspaces.open]\nrepository = "/srv/open"\ntrust = "full"\n'
    service = make_service(config=config).start()
    found = [line["setting"] for line in lines(service, "config.warning")]
    assert found == ["agents.reader.secrets", "agents.reader.tools", "workspaces.open.trust"]
    assert service.run_job("hello", workspace="scratch")["state"] == "completed"
