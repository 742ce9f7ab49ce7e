"""One line of the log each for a request and for what becomes of a job."""

import json
from typing import Any

import pytest

from steadyhand.testing.service import MakeService, Service


@pytest.fixture
def service(sealed_service: Service) -> Service:
    return sealed_service


def lines(service: Service, event: str, **fields: Any) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in service.log_since_start.splitlines() if line.startswith("{")]
    return [line for line in found if line["event"] == event and fields.items() <= line.items()]


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


def test_a_request_has_one_line_and_a_probe_has_none(service: Service) -> None:
    reply = service.client.get("/v1/jobs?metadata.a=a-value-of-the-query")
    for path in ("/health", "/livez", "/readyz"):
        service.client.get(path)
    (line,) = lines(service, "request", request_id=reply.headers["x-request-id"])
    assert (line["method"], line["path"], line["status"], line["level"]) == ("GET", "/v1/jobs", 200, "info")
    assert line["key"]
    assert line["seconds"] >= 0
    assert "a-value-of-the-query" not in service.log_since_start
    assert not [
        each for each in lines(service, "request") if each["path"] in {"/health", "/livez", "/readyz"}
    ]


def test_a_request_that_is_refused_has_a_line_too(service: Service) -> None:
    reply = service.client.get("/v1/jobs", headers={"authorization": "Bearer nobody"})
    (line,) = lines(service, "request", request_id=reply.headers["x-request-id"])
    assert (line["status"], line["key"]) == (401, None)


def test_a_start_warns_of_settings_that_do_not_do_what_they_seem_to_do_and_goes_on(
    make_service: MakeService,
) -> None:
    config = '[agents.reader]\ntools = ["Reed"]\nsecrets = ["/nowhere/secret"]\n'
    config += '[workspaces.open]\nrepository = "/srv/open"\ntrust = "full"\n'
    service = make_service(config=config).start()
    found = [line["setting"] for line in lines(service, "config.warning")]
    assert found == ["agents.reader.secrets", "agents.reader.tools", "workspaces.open.trust"]
    assert service.run_job("hello", workspace="scratch")["state"] == "completed"
