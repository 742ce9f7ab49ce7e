"""The native job routes over a real socket."""

import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any

import httpx2
import pytest
from tests.api.api_service import (
    LIMITED,
    OTHER,
    TIMEOUT_SECONDS,
    RunningService,
    run_job,
    wait_until,
)

from steadyhand.api.native import jobs
from steadyhand.api.native.serializers import job_item_json
from steadyhand.api.schemas import native_bodies
from steadyhand.job import Job, Run
from steadyhand.store import brief_jobs
from steadyhand.store.mapping import job_from_row

KEYS = set(native_bodies.Job.__required_keys__)
"""Those that are always there."""


def test_the_documented_keys_are_those_of_the_contract() -> None:
    assert " ".join(sorted(KEYS)) == (
        "agent answer api_key_id budget_usd changes commit cost created_at error finished_at id "
        "idle_timeout_seconds last_event links metadata model object on_interrupt origin outcome "
        "parent_job_id parked_until priority prompt prompt_start publish queue_position ref run runner runs "
        "session_id started_at state structured_output timeout_seconds title usage warnings "
        "will_run_again workspace"
    )


def refused(client: httpx2.Client, code: str, **fields: Any) -> dict[str, Any]:
    reply = client.post("/v1/jobs", json={"prompt": "say x", **fields})
    assert reply.status_code == 422, reply.text
    body: dict[str, Any] = reply.json()
    assert body["code"] == code, body
    return body


def test_an_accepted_job_has_every_key_and_a_location(client: httpx2.Client) -> None:
    reply = client.post("/v1/jobs", json={"prompt": "hold", "title": "t"})
    assert reply.status_code == 202
    job = reply.json()
    assert set(job) == KEYS
    assert reply.headers["location"] == job["links"]["self"] == f"/v1/jobs/{job['id']}"
    assert "preference-applied" not in reply.headers
    assert job["budget_usd"] == "5.000000"
    assert (job["timeout_seconds"], job["idle_timeout_seconds"]) == (2700, 600)
    assert (job["agent"], job["metadata"], job["origin"], job["title"]) == ("claude", {}, "api", "t")
    assert job["created_at"].endswith("Z")
    assert job["api_key_id"] == "k_admin"
    client.post(f"/v1/jobs/{job['id']}/cancel")


def test_a_completed_job_shows_answer_runs_usage_and_cost(client: httpx2.Client) -> None:
    job = run_job(client, "say hello", metadata={"n": 1}, priority=5)
    assert set(job) == KEYS
    assert (job["state"], job["answer"], job["outcome"]) == (
        "completed",
        "hello",
        {"type": "success", "detail": None},
    )
    assert job["runs"][0]["exit_code"] == 0
    assert job["run"] == 1
    assert job["cost"] == {
        "usd": "0.041200",
        "source": "reported",
        "priced": True,
        "reported_usd": "0.041200",
    }
    assert job["usage"]["cache_read_input_tokens"] == 200
    assert job["error"] is None
    assert job["queue_position"] is None


def test_a_job_that_did_not_complete_has_an_error(client: httpx2.Client) -> None:
    error = run_job(client, "fail badly")["error"]
    assert error["code"] == "agent_error"
    assert "badly" in error["message"]
    assert error["retryable"] is True


def test_a_fault_of_ours_ends_the_job_and_says_nothing_of_its_cause(client: httpx2.Client) -> None:
    job = run_job(client, "fault a-name-inside-the-service")
    assert (job["state"], job["outcome"]) == ("error", {"type": "internal", "detail": None})
    assert (job["runs"][0]["state"], job["runs"][0]["outcome"]["type"]) == ("error", "internal")
    assert "a-name-inside" not in str(job | {"prompt": None, "prompt_start": None})
    assert run_job(client, "say x")["state"] == "completed"


def test_prefer_wait_gives_up_after_its_seconds(client: httpx2.Client) -> None:
    before = time.monotonic()
    reply = client.post("/v1/jobs", json={"prompt": "hold"}, headers={"prefer": "respond-async, wait=1"})
    assert reply.status_code == 202
    assert reply.headers["preference-applied"] == "wait=1"
    assert time.monotonic() - before >= 1
    job_id = reply.json()["id"]
    reply = client.get(f"/v1/jobs/{job_id}", headers={"prefer": "wait=1"})
    assert (reply.status_code, reply.json()["state"]) == (200, "running")
    client.post(f"/v1/jobs/{job_id}/cancel")


def test_prefer_wait_is_cut_to_a_minute(client: httpx2.Client) -> None:
    reply = client.post("/v1/jobs", json={"prompt": "say x"}, headers={"prefer": "wait=86400"})
    assert reply.status_code == 200
    assert reply.headers["preference-applied"] == "wait=60"


def test_the_same_idempotency_key_gives_the_same_job(client: httpx2.Client, service: RunningService) -> None:
    headers = {"idempotency-key": "once", "content-type": "application/json"}
    first = client.post("/v1/jobs", content=b'{"prompt":"say x","priority":1}', headers=headers)
    again = client.post("/v1/jobs", content=b'{ "priority": 1, "prompt": "say x" }', headers=headers)
    assert first.json()["id"] == again.json()["id"]
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    other = client.post("/v1/jobs", json={"prompt": "say y"}, headers={"idempotency-key": "once"})
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_mismatch")
    with service.client(LIMITED) as mine:
        assert (
            mine.post("/v1/jobs", json={"prompt": "z"}, headers={"idempotency-key": "once"}).status_code
            == 202
        )


@pytest.mark.parametrize("key", ["", "x" * 256, "tab\there", "ü"])
def test_a_bad_idempotency_key_is_422(client: httpx2.Client, key: str) -> None:
    reply = client.post("/v1/jobs", json={"prompt": "say x"}, headers={b"idempotency-key": key.encode()})
    assert (reply.status_code, reply.json()["code"]) == (422, "invalid_field")


def test_an_unknown_field_is_named_with_the_nearest(client: httpx2.Client) -> None:
    body = refused(client, "unknown_field", budget=5)
    assert body["errors"][0]["pointer"] == "/budget"
    assert "did you mean 'budget_usd'" in body["detail"]
    reply = client.post("/v1/jobs", json={"promt": "say x"})
    assert (reply.status_code, reply.json()["code"]) == (422, "unknown_field")
    assert "prompt: is required" in reply.json()["detail"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("prompt", "  "),
        ("agent", ".claude/agents/claude"),
        ("agent", "-x"),
        ("model", "--dangerous"),
        ("model", "a b"),
        ("workspace", ""),
        ("workspace", "-x"),
        ("workspace", "/" + "x" * 2048),
        ("ref", "-x"),
        ("ref", "a..b"),
        ("ref", "a b"),
        ("ref", "a\nb"),
        ("ref", "x" * 256),
        ("budget_usd", 0),
        ("budget_usd", 1_000_001),
        ("timeout_seconds", 8 * 24 * 3600),
        ("idle_timeout_seconds", -1),
        ("priority", 101),
        ("priority", 1.0),
        ("priority", True),
        ("metadata", {"a": "x" * 17_000}),
        ("metadata", []),
        ("title", "x" * 201),
        ("output_schema", "text"),
        ("output_schema", {"a": "x" * 70_000}),
        ("on_interrupt", "nonsense"),
        ("publish", "nonsense"),
        ("expires_in_seconds", 0),
        ("max_turns", 0),
        ("max_turns", 10_001),
        ("effort", "enormous"),
        ("append_system_prompt", ""),
    ],
)
def test_a_wrong_field_is_named(client: httpx2.Client, name: str, value: Any) -> None:
    body = refused(client, "invalid_field", **{name: value})
    assert body["errors"][0]["pointer"] == f"/{name}"
    assert name in body["detail"]


def test_every_field_that_is_built_reaches_the_agent(client: httpx2.Client, service: RunningService) -> None:
    fields: dict[str, Any] = {
        "agent": "helper",
        "model": "sonnet[1m]",
        "workspace": "infra",
        "ref": "feature/x-1",
        "budget_usd": 0.25,
        "timeout_seconds": 90.5,
        "idle_timeout_seconds": 60,
        "priority": -3,
        "metadata": {"deep": {"list": [1, 2.5, None, "ü"]}},
        "title": "A title",
        "output_schema": {"type": "object"},
        "on_interrupt": "fail",
        "publish": "none",
        "expires_in_seconds": 3600,
        "max_turns": 7,
        "effort": "low",
        "append_system_prompt": "Be brief.",
        "session": None,
    }
    run_job(client, "say x", **fields)
    job = service.runner.specs[-1]
    assert job.budget_micros == 250_000
    for name in fields.keys() - {"budget_usd", "session"}:
        assert getattr(job.spec if hasattr(job.spec, name) else job, name) == fields[name], name


def test_unknown_agents_workspaces_and_limits_are_422(client: httpx2.Client) -> None:
    assert "helper" in refused(client, "unknown_agent", agent="helpr")["detail"]
    unknown = refused(client, "unknown_workspace", workspace="infar")
    assert "did you mean 'infra'? There are: infra" in unknown["detail"]
    refused(client, "limit_exceeded", budget_usd=101)
    refused(client, "limit_exceeded", timeout_seconds=86_401)


def test_an_etag_that_still_fits_is_304(client: httpx2.Client) -> None:
    job = run_job(client, "say x")
    first = client.get(f"/v1/jobs/{job['id']}")
    for tag in (first.headers["etag"], f'"other", W/{first.headers["etag"]}', "*"):
        reply = client.get(f"/v1/jobs/{job['id']}", headers={"if-none-match": tag})
        assert (reply.status_code, reply.content) == (304, b"")
    assert client.get(f"/v1/jobs/{job['id']}", headers={"if-none-match": '"other"'}).status_code == 200


def test_cancel_ends_a_running_job_and_is_200_when_it_has_ended(client: httpx2.Client) -> None:
    job_id = client.post("/v1/jobs", json={"prompt": "hold"}).json()["id"]
    wait_until(lambda: client.get(f"/v1/jobs/{job_id}").json()["state"] == "running")
    reply = client.post(f"/v1/jobs/{job_id}/cancel")
    assert reply.status_code in (200, 202)
    assert client.get(f"/v1/jobs/{job_id}", headers={"prefer": "wait=20"}).json()["state"] == "cancelled"
    assert client.post(f"/v1/jobs/{job_id}/cancel", json={}).status_code == 200
    assert client.post(f"/v1/jobs/{job_id}/cancel", json={"now": True}).json()["code"] == "unknown_field"


def test_retry_runs_again_and_a_repeat_is_harmless(client: httpx2.Client) -> None:
    job_id = run_job(client, "say x")["id"]
    reply = client.post(f"/v1/jobs/{job_id}/retry", json={"after_run": 1})
    assert reply.status_code == 202
    job = client.get(f"/v1/jobs/{job_id}", headers={"prefer": "wait=20"}).json()
    assert (job["state"], job["run"], len(job["runs"])) == ("completed", 2, 2)
    again = client.post(f"/v1/jobs/{job_id}/retry", json={"after_run": 1})
    assert (again.status_code, again.json()["run"]) == (202, 2)
    assert client.post(f"/v1/jobs/{job_id}/retry", json={"after_run": "1"}).status_code == 422


def test_forty_retries_at_once_make_one_run_and_all_are_answered_with_the_job(
    client: httpx2.Client, service: RunningService
) -> None:
    job_id = run_job(client, "say x")["id"]
    gate = threading.Barrier(40)

    def retry(_number: int) -> httpx2.Response:
        gate.wait(TIMEOUT_SECONDS)
        return client.post(f"/v1/jobs/{job_id}/retry", json={"after_run": 1})

    with ThreadPoolExecutor(40) as pool:
        replies = list(pool.map(retry, range(40)))
    assert {reply.status_code for reply in replies} == {202}
    assert {reply.json()["id"] for reply in replies} == {job_id}
    assert client.get(f"/v1/jobs/{job_id}", headers={"prefer": "wait=20"}).json()["run"] == 2


def test_a_retry_after_a_run_that_has_not_happened_yet_is_409(client: httpx2.Client) -> None:
    job_id = run_job(client, "say x")["id"]
    for operation in ("retry", "resume"):
        reply = client.post(f"/v1/jobs/{job_id}/{operation}", json={"after_run": 2})
        assert (reply.status_code, reply.json()["code"]) == (409, "invalid_state")
    assert client.get(f"/v1/jobs/{job_id}").json()["run"] == 1


@pytest.mark.parametrize("second", ["key-a", "key-b"])
def test_two_idempotency_keys_are_refused(
    client: httpx2.Client, service: RunningService, second: str
) -> None:
    before = service.count()
    for path, body in (
        ("/v1/jobs", {"prompt": "say x"}),
        ("/v1/chat/completions", {"model": "claude", "messages": [{"role": "user", "content": "say x"}]}),
    ):
        headers = [("idempotency-key", "key-a"), ("idempotency-key", second)]
        reply = client.post(path, json=body, headers=headers)
        assert (reply.status_code, reply.json()["code"]) == (422, "invalid_field")
    assert service.count() == before


@pytest.mark.parametrize("number", ["1" + "0" * 290 + "e99", "1" + "0" * 290 + ".5E+99", "9" * 309 + ".0"])
def test_a_number_that_json_cannot_carry_is_refused_where_it_stands(
    client: httpx2.Client, service: RunningService, number: str
) -> None:
    before = service.count()
    chat = '{"model":"claude","messages":[{"role":"user","content":"say x"}],"metadata":{"n":%s}}'
    for path, text, pointer in (
        ("/v1/jobs", '{"prompt":"say x","metadata":{"n":[%s]}}', "/metadata/n/0"),
        ("/execute", '{"prompt":"say x","agent":"claude","metadata":{"n":%s}}', "/metadata/n"),
        ("/v1/chat/completions", chat, "/metadata/n"),
    ):
        reply = client.post(path, content=text % number, headers={"content-type": "application/json"})
        assert (reply.status_code, reply.json()["errors"][0]["pointer"]) == (422, pointer), reply.text
    assert service.count() == before


def test_delete_forgets_an_ended_job_only(client: httpx2.Client) -> None:
    held = client.post("/v1/jobs", json={"prompt": "hold"}).json()["id"]
    reply = client.delete(f"/v1/jobs/{held}")
    assert (reply.status_code, reply.json()["code"]) == (409, "invalid_state")
    assert client.post(f"/v1/jobs/{held}/retry").json()["code"] == "invalid_state"
    client.post(f"/v1/jobs/{held}/cancel")
    wait_until(lambda: client.delete(f"/v1/jobs/{held}").status_code == 204)
    for path in ("", "/events", "/diff", "/transcript", "/bundle"):
        assert client.get(f"/v1/jobs/{held}{path}").status_code == 404


def test_diff_commits_and_transcript_are_there_when_the_job_has_ended(client: httpx2.Client) -> None:
    held = client.post("/v1/jobs", json={"prompt": "hold"}).json()["id"]
    for what in ("diff", "transcript", "bundle"):
        reply = client.get(f"/v1/jobs/{held}/{what}")
        assert (reply.status_code, reply.json()["code"]) == (409, "not_ready")
    client.post(f"/v1/jobs/{held}/cancel")
    job = run_job(client, "say x", workspace="infra")
    diff = client.get(f"/v1/jobs/{job['id']}/diff")
    assert diff.headers["content-type"] == "text/x-diff; charset=utf-8"
    assert diff.content == b"diff --git a/a b/a\n"
    transcript = client.get(f"/v1/jobs/{job['id']}/transcript")
    assert transcript.headers["content-type"] == "application/x-ndjson"
    bundle = client.get(f"/v1/jobs/{job['id']}/bundle")
    assert bundle.headers["content-type"] == "application/x-git-bundle"
    assert bundle.content == b"# v2 git bundle\n"
    assert job["changes"]["insertions"] == 2
    assert client.get(f"/v1/jobs/{run_job(client, 'say x')['id']}/diff").status_code == 404


def test_what_becomes_of_the_commits_is_the_jobs_to_say(client: httpx2.Client) -> None:
    assert run_job(client, "say x")["publish"] == "none"
    assert run_job(client, "say x", publish="branch")["publish"] == "branch"


def test_the_list_pages_newest_first_without_what_is_long(client: httpx2.Client) -> None:
    made = [run_job(client, "say x", metadata={"batch": "seven"})["id"] for _ in range(5)]
    first = client.get("/v1/jobs", params={"metadata.batch": "seven", "limit": 3}).json()
    assert [job["id"] for job in first["data"]] == made[:1:-1]
    assert first["has_more"] is True
    assert set(first["data"][0]) == KEYS - {"prompt", "answer", "structured_output", "runs"}
    rest = client.get(
        "/v1/jobs", params={"metadata.batch": "seven", "limit": 3, "cursor": first["next_cursor"]}
    ).json()
    assert [job["id"] for job in rest["data"]] == made[1::-1]
    assert (rest["has_more"], rest["next_cursor"], rest["object"]) == (False, None, "list")


def test_a_listed_job_is_read_and_rendered_once_until_it_changes(
    client: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    created: list[str] = []
    rendered: list[str] = []

    def create(row: Mapping[str, Any], runs: Sequence[Run]) -> Job:
        created.append(row["id"])
        return job_from_row(row, runs)

    def render(job: Job, position: int | None) -> native_bodies.JobItem:
        rendered.append(job.id)
        return job_item_json(job, position)

    monkeypatch.setattr(brief_jobs, "job_from_row", create)
    monkeypatch.setattr(jobs, "job_item_json", render)
    metadata = {"batch": "rendered"}
    ids = [run_job(client, "say x", metadata=metadata)["id"] for _ in range(3)]

    def page() -> list[dict[str, Any]]:
        created.clear()
        rendered.clear()
        body: dict[str, Any] = client.get("/v1/jobs", params={"metadata.batch": "rendered"}).json()
        return list(body["data"])

    first = page()
    assert [item["id"] for item in first] == ids[::-1]
    for item in first:
        job = client.get(f"/v1/jobs/{item['id']}").json()
        assert item == {name: job[name] for name in item}
    assert page() == first
    assert (created, rendered) == ([], [])
    client.post(f"/v1/jobs/{ids[1]}/retry")
    wait_until(lambda: client.get(f"/v1/jobs/{ids[1]}").json()["run"] == 2)
    run_job(client, "say x", metadata=metadata)
    wait_until(lambda: client.get(f"/v1/jobs/{ids[1]}").json()["state"] == "completed")
    again = page()
    assert [item["run"] for item in again] == [1, 1, 2, 1]
    assert again[1] == first[0]
    assert set(created) == set(rendered) == {again[0]["id"], ids[1]}
    client.delete(f"/v1/jobs/{ids[0]}")
    assert page() == again[:3]
    assert (created, rendered) == ([], [])


def test_a_page_of_the_list_has_20_jobs_unless_asked_otherwise(client: httpx2.Client) -> None:
    for _ in range(21):
        run_job(client, "say x", metadata={"batch": "of 21"})
    first = client.get("/v1/jobs", params={"metadata.batch": "of 21"}).json()
    assert (len(first["data"]), first["has_more"]) == (20, True)
    assert len(client.get("/v1/jobs", params={"metadata.batch": "of 21", "limit": 200}).json()["data"]) == 21


def test_the_list_filters(client: httpx2.Client, service: RunningService) -> None:
    job = run_job(client, "fail x", agent="dear", workspace="infra")
    params: list[dict[str, Any]] = [
        {"state": ["failed", "queued"]},
        {"agent": "dear"},
        {"workspace": "infra"},
        {"api_key": "k_admin"},
        {"id_prefix": job["id"][:8]},
        {"created_after": "2020-01-01T00:00:00Z"},
        {"created_before": "2999-01-01T00:00:00+02:00"},
    ]
    for wanted in params:
        found = client.get("/v1/jobs", params=wanted).json()["data"]
        assert job["id"] in [each["id"] for each in found], wanted
    nothing: list[dict[str, Any]] = [
        {"state": "parked"},
        {"agent": "nobody"},
        {"created_before": "2020-01-01T00:00:00Z"},
        {"id_prefix": job["id"][:8], "agent": "nobody"},
    ]
    for wanted in nothing:
        assert client.get("/v1/jobs", params=wanted).json()["data"] == [], wanted


def test_the_list_finds_words_of_titles_and_prompts(client: httpx2.Client) -> None:
    job = run_job(client, "say quokkas are marsupials", title="A zoological remark")
    for search in ("quokkas", "ZOOLOGICAL marsupials", '"quokkas are"'):
        found = client.get("/v1/jobs", params={"q": search}).json()["data"]
        assert [each["id"] for each in found] == [job["id"]], search
    assert client.get("/v1/jobs", params={"q": "quokkas", "agent": "nobody"}).json()["data"] == []
    assert client.get("/v1/jobs", params={"q": '"are quokkas"'}).json()["data"] == []


@pytest.mark.parametrize(
    ("params", "code"),
    [
        ({"q": ""}, "invalid_field"),
        ({"q": "?!"}, "invalid_field"),
        ({"q": ["a", "b"]}, "invalid_field"),
        ({"q": "x" * 257}, "invalid_field"),
        ({"limit": "0"}, "invalid_field"),
        ({"limit": "201"}, "invalid_field"),
        ({"limit": "x"}, "invalid_field"),
        ({"state": "done"}, "invalid_field"),
        ({"created_after": "yesterday"}, "invalid_field"),
        ({"created_after": "2026-01-01T00:00:00"}, "invalid_field"),
        ({"created_after": "0001-01-01T00:00:00+14:00"}, "invalid_field"),
        ({"cursor": "nonsense"}, "bad_cursor"),
        ({"cursor": ""}, "bad_cursor"),
        ({"id_prefix": "xyz"}, "invalid_field"),
        ({"agent": ["a", "b"]}, "invalid_field"),
        ({"agent": "\0"}, "invalid_field"),
        ({"limt": "5"}, "unknown_field"),
        ({"metadata": "x"}, "unknown_field"),
    ],
)
def test_a_wrong_parameter_is_422(client: httpx2.Client, params: dict[str, Any], code: str) -> None:
    reply = client.get("/v1/jobs", params=params)
    assert (reply.status_code, reply.json()["code"]) == (422, code)
    assert reply.json()["errors"][0]["pointer"].startswith("?")


def test_a_key_sees_its_own_jobs_and_read_all_sees_all(
    service: RunningService, client: httpx2.Client
) -> None:
    with service.client(LIMITED) as mine, service.client(OTHER) as theirs:
        job = run_job(mine, "say mine")
        path = f"/v1/jobs/{job['id']}"
        assert theirs.get(path).status_code == 404
        assert theirs.post(f"{path}/cancel").status_code == 404
        assert theirs.delete(path).status_code == 404
        assert theirs.get(f"{path}/events").status_code == 404
        assert job["id"] not in [each["id"] for each in theirs.get("/v1/jobs").json()["data"]]
        assert theirs.get("/v1/jobs", params={"api_key": "k_limit"}).json()["data"] == []
        assert client.get(path).status_code == 200


def test_times_are_utc_with_a_z(client: httpx2.Client) -> None:
    job = run_job(client, "say x")
    for name in ("created_at", "started_at", "finished_at"):
        assert job[name].endswith("Z")
        assert datetime.fromisoformat(job[name]).utcoffset() is not None
