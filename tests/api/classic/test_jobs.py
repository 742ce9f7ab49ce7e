"""The classic routes over a real socket."""

import re
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import httpx2
import pytest
from tests.api.api_service import CATALOGUE, LIMITED, OTHER, RunningService, running_service, wait_until

from steadyhand.agents import Limits
from steadyhand.api import ApiOptions


def execute(client: httpx2.Client, prompt: str, **fields: Any) -> str:
    reply = client.post("/execute", json={"prompt": prompt, "agent": "claude", **fields})
    assert reply.status_code == 202, reply.text
    job_id: str = reply.json()["job_id"]
    return job_id


def ended(client: httpx2.Client, job_id: str) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        job: dict[str, Any] = client.get(f"/jobs/{job_id}").json()
        return None if job["status"] == "running" else job

    found: dict[str, Any] = wait_until(look)
    return found


def test_health_needs_no_key_and_says_how_full_the_service_is(service: RunningService) -> None:
    with service.client(token=None) as client:
        reply = client.get("/health")
    assert reply.status_code == 200
    assert reply.json() == {"status": "ok", "busy": False, "active": 0, "queued": 0, "capacity": 2}
    assert reply.headers["x-request-id"].startswith("req_")


def test_execute_answers_with_an_id_and_running(client: httpx2.Client) -> None:
    reply = client.post("/execute", json={"prompt": "say hello", "agent": "claude"})
    assert reply.status_code == 202
    assert reply.json()["status"] == "running"
    assert set(reply.json()) == {"job_id", "status"}
    assert re.fullmatch("[0-9a-f]{12}", reply.json()["job_id"])


def test_a_completed_job_shows_what_its_agent_printed(client: httpx2.Client) -> None:
    job = ended(client, execute(client, "say hello", metadata={"a": [1, None]}))
    assert job["status"] == job["state"] == "completed"
    assert job["exit_code"] == 0
    assert job["output"][0] == "a line\n"
    assert '"result": "hello"' in "".join(job["output"])
    assert job["stderr"] == "some stderr"
    assert job["metadata"] == {"a": [1, None]}
    assert job["agent"] == "claude"
    assert job["prompt"] == "say hello"
    assert "error" not in job
    assert datetime.fromisoformat(job["started_at"]) <= datetime.fromisoformat(job["finished_at"])
    assert job["started_at"].endswith("+00:00")


def test_metadata_null_comes_back_null(client: httpx2.Client) -> None:
    assert ended(client, execute(client, "say x", metadata=None))["metadata"] is None


def test_a_failed_job_has_its_exit_code_and_no_error_key(client: httpx2.Client) -> None:
    job = ended(client, execute(client, "fail badly"))
    assert (job["status"], job["exit_code"]) == ("failed", 1)
    assert "error" not in job


def test_a_job_that_could_not_start_is_an_error_of_one_line(client: httpx2.Client) -> None:
    job = ended(client, execute(client, "broken no\nsuch program"))
    assert job["status"] == "error"
    assert job["exit_code"] is None
    assert job["output"] == []
    assert job["stderr"] == ""
    assert "no such program" in job["error"]
    assert "\n" not in job["error"]


def test_a_cancelled_job_says_error_and_its_exact_state(client: httpx2.Client) -> None:
    job_id = execute(client, "hold")
    shown = client.get(f"/jobs/{job_id}").json()
    assert shown["status"] == "running"
    assert "finished_at" not in shown
    assert "output" not in shown
    client.post(f"/v1/jobs/{job_id}/cancel")
    job = ended(client, job_id)
    assert (job["status"], job["state"]) == ("error", "cancelled")
    assert job["error"]


@pytest.mark.parametrize(
    "asked",
    [
        "issue-responder",
        ".claude/agents/issue-responder",
        ".claude/agents/issue-responder.md",
        "issue-responder.md",
    ],
)
def test_a_path_means_the_agent_of_its_last_part(client: httpx2.Client, asked: str) -> None:
    job_id = execute(client, "say x", agent=asked)
    assert client.get(f"/jobs/{job_id}").json()["agent"] == "issue-responder"


def test_defaults_are_five_dollars_and_45_minutes(client: httpx2.Client) -> None:
    job = client.get(f"/v1/jobs/{execute(client, 'say x')}").json()
    assert (job["budget_usd"], job["timeout_seconds"], job["origin"]) == ("5.000000", 2700, "classic")


def test_an_amount_below_a_micro_dollar_is_not_rounded_to_nothing(client: httpx2.Client) -> None:
    job_id = execute(client, "say x", max_budget_usd=1e-9)
    assert client.get(f"/v1/jobs/{job_id}").json()["budget_usd"] == "0.000001"


def test_unknown_fields_are_passed_over(client: httpx2.Client) -> None:
    execute(client, "say x", colour="red", session="s")


def test_a_body_that_does_not_say_what_it_is_is_taken_as_json(client: httpx2.Client) -> None:
    reply = client.post("/execute", content=b'{"prompt": "say x", "agent": "claude"}')
    assert "content-type" not in reply.request.headers
    assert reply.status_code == 202


def test_two_megabytes_and_an_option_are_good_prompts(service: RunningService, client: httpx2.Client) -> None:
    for prompt in ("say " + "x" * 2_000_000, "--version"):
        job = ended(client, execute(client, prompt))
        assert job["prompt"] == prompt
        assert service.runner.specs[-1].spec.prompt == prompt


WRONG: list[Any] = [
    {},
    [],
    "text",
    {"prompt": "x"},
    {"agent": "claude"},
    {"prompt": "", "agent": "claude"},
    {"prompt": " \n\t", "agent": "claude"},
    {"prompt": 5, "agent": "claude"},
    {"prompt": "x", "agent": None},
    {"prompt": "x", "agent": ""},
    {"prompt": "x", "agent": "a b"},
    {"prompt": "x", "agent": "../.."},
    {"prompt": "x", "agent": "name\n"},
    {"prompt": "x", "agent": "nаme"},  # noqa: RUF001  # a Cyrillic letter
    {"prompt": "x", "agent": "claude", "max_budget_usd": 0},
    {"prompt": "x", "agent": "claude", "max_budget_usd": -1},
    {"prompt": "x", "agent": "claude", "max_budget_usd": "5"},
    {"prompt": "x", "agent": "claude", "max_budget_usd": True},
    {"prompt": "x", "agent": "claude", "max_budget_usd": 10**400},
    {"prompt": "x", "agent": "claude", "timeout_seconds": 0},
    {"prompt": "x", "agent": "claude", "timeout_seconds": 1.5},
    {"prompt": "x", "agent": "claude", "timeout_seconds": "60"},
    {"prompt": "x", "agent": "claude", "timeout_seconds": 2**63},
    {"prompt": "x", "agent": "claude", "metadata": []},
    {"prompt": "x", "agent": "claude", "metadata": "m"},
]


@pytest.mark.parametrize("body", WRONG, ids=lambda body: repr(body)[:60])
def test_a_wrong_body_is_422_and_stores_nothing(
    service: RunningService, client: httpx2.Client, body: Any
) -> None:
    before = service.count()
    reply = client.post("/execute", json=body)
    assert reply.status_code == 422, reply.text
    assert isinstance(reply.json()["detail"], str)
    assert reply.headers["content-type"] == "application/json"
    assert service.count() == before


@pytest.mark.parametrize(
    ("raw", "pointer"),
    [
        (b'{"prompt":"x","agent":"claude","max_budget_usd":NaN}', "/max_budget_usd"),
        (b'{"prompt":"x","agent":"claude","max_budget_usd":Infinity}', "/max_budget_usd"),
        (b'{"prompt":"x","agent":"claude","max_budget_usd":1e400}', "/max_budget_usd"),
        (b'{"prompt":"x","agent":"claude","timeout_seconds":-Infinity}', "/timeout_seconds"),
        (b'{"prompt":"a\\u0000b","agent":"claude"}', "/prompt"),
        (b'{"prompt":"a\\ud800b","agent":"claude"}', "/prompt"),
        (b'{"prompt":"x","agent":"claude","metadata":{"a":{"b":["\\udfff"]}}}', "/metadata/a/b/0"),
        (b'{"prompt":"x","agent":"claude","metadata":{"a":{"k\\u0000":1}}}', "/metadata/a"),
        (b'{"prompt":"x","agent":"claude","metadata":{"a/b":NaN}}', "/metadata/a~1b"),
    ],
)
def test_what_no_field_may_hold_is_422_with_its_place(
    client: httpx2.Client, raw: bytes, pointer: str
) -> None:
    reply = client.post("/execute", content=raw, headers={"content-type": "application/json"})
    assert reply.status_code == 422
    assert reply.json()["errors"][0]["pointer"] == pointer


def test_a_422_names_every_wrong_field(client: httpx2.Client) -> None:
    body = {"prompt": "", "agent": "claude", "max_budget_usd": -1, "timeout_seconds": "x"}
    found = client.post("/execute", json=body).json()
    assert [each["pointer"] for each in found["errors"]] == ["/prompt", "/max_budget_usd", "/timeout_seconds"]
    for name in ("prompt", "max_budget_usd", "timeout_seconds"):
        assert name in found["detail"]


def test_unknown_and_foreign_jobs_are_not_found(service: RunningService) -> None:
    with service.client(LIMITED) as mine, service.client(OTHER) as theirs:
        job_id = execute(mine, "say x")
        for asked, client in ((job_id, theirs), ("0" * 12, mine), ("nonsense", mine), ("%00", mine)):
            reply = client.get(f"/jobs/{asked}")
            assert (reply.status_code, reply.json()["detail"]) == (404, "Job not found")


def test_a_full_service_is_409_with_retry_after_and_stores_nothing(tmp_path: Path) -> None:
    with running_service(tmp_path, capacity=1, max_queued=1) as service, service.client() as client:
        held = [execute(client, "hold"), execute(client, "hold")]
        assert client.get("/health").json()["busy"] is True
        reply = client.post("/execute", json={"prompt": "say x", "agent": "claude"})
        assert reply.status_code == 409
        assert reply.json()["detail"] == "Agent is busy"
        assert reply.json()["code"] == "queue_full"
        assert int(reply.headers["retry-after"]) >= 1
        assert service.count() == 2
        for job_id in held:
            client.post(f"/v1/jobs/{job_id}/cancel")


def test_a_form_as_curl_sends_it_is_taken_by_execute_alone(client: httpx2.Client) -> None:
    body = b'{"prompt":"say x","agent":"claude"}'
    for media_type in ("application/x-www-form-urlencoded", "application/x-www-form-urlencoded; charset=x"):
        reply = client.post("/execute", content=body, headers={"content-type": media_type})
        assert (reply.status_code, reply.json()["status"]) == (202, "running")
        assert client.post("/v1/jobs", content=body, headers={"content-type": media_type}).status_code == 415
    reply = client.post("/execute", data={"prompt": "say x", "agent": "claude"})
    assert (reply.status_code, reply.json()["code"]) == (415, "unsupported_media_type")
    assert client.post("/execute", content=body, headers={"content-type": "text/plain"}).status_code == 415


UNLIMITED = {"prompt": "say x", "agent": "claude", "max_budget_usd": None, "timeout_seconds": None}


def test_null_means_the_nearest_limit_on_execute_alone(client: httpx2.Client) -> None:
    accepted = client.post("/execute", json=UNLIMITED)
    assert accepted.status_code == 202, accepted.text
    job = client.get(f"/v1/jobs/{accepted.json()['job_id']}").json()
    assert (job["budget_usd"], job["timeout_seconds"], job["warnings"]) == ("100.000000", 86_400, [])
    native = client.post("/v1/jobs", json={"prompt": "say x", "budget_usd": None, "timeout_seconds": None})
    assert (native.json()["budget_usd"], native.json()["timeout_seconds"]) == ("5.000000", 2_700)


@pytest.mark.parametrize("profile", ["default", "classic"])
def test_null_without_a_limit_is_422_or_in_the_classic_profile_no_limit_and_a_warning(
    tmp_path: Path, profile: Literal["default", "classic"]
) -> None:
    catalog = replace(CATALOGUE, limits=Limits())
    with (
        running_service(tmp_path, options=ApiOptions(profile=profile), catalog=catalog) as service,
        service.client() as client,
    ):
        reply = client.post("/execute", json=UNLIMITED)
        if profile == "default":
            assert reply.status_code == 422
            assert "limits.max_budget_usd is not set" in reply.json()["detail"]
            reply = client.post("/execute", json={**UNLIMITED, "max_budget_usd": 1})
            assert "limits.max_timeout_seconds is not set" in reply.json()["detail"]
            assert service.count() == 0
            return
        job = client.get(f"/v1/jobs/{reply.json()['job_id']}", headers={"prefer": "wait=20"}).json()
        assert (job["budget_usd"], job["timeout_seconds"]) == ("1000000.000000", 604_800)
        assert [warning["code"] for warning in job["warnings"]] == ["no_limit", "no_limit"]
        events = client.get(f"/v1/jobs/{job['id']}/events", headers={"accept": "application/json"}).json()
        assert [event["type"] for event in events["data"]][:3] == ["state.changed", "warning", "warning"]
