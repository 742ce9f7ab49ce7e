"""Cancel, retry and resume of all jobs of a filter, over a real socket."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import httpx2
import pytest
from tests.api.api_service import LIMITED, OTHER, RunningService, run_job, wait_until

from steadyhand.api.native.serializers import bulk_json
from steadyhand.api.schemas import bulk_bodies
from steadyhand.control import BulkResult, Caller
from steadyhand.errors import StoreUnavailable
from steadyhand.job import State
from steadyhand.ports import ALL_SCOPES
from steadyhand.testing.contracts.samples import NOON

_NUMBERS = count()


@pytest.fixture
def batch() -> dict[str, str]:
    """Metadata that only the jobs of one test have."""
    return {"batch": f"b{next(_NUMBERS)}"}


def post(client: httpx2.Client, operation: str, **body: Any) -> dict[str, Any]:
    reply = client.post(f"/v1/jobs/{operation}", json=body)
    assert reply.status_code == 200, reply.text
    result: dict[str, Any] = reply.json()
    assert result["matched"] >= len(result["data"]) == result["changed"] + result["failed"]
    return result


def ids(result: dict[str, Any]) -> list[str]:
    return [item["id"] for item in result["data"]]


def get(client: httpx2.Client, job_id: str) -> dict[str, Any]:
    job: dict[str, Any] = client.get(f"/v1/jobs/{job_id}").json()
    return job


def held_jobs(client: httpx2.Client, number: int, batch: dict[str, str]) -> list[str]:
    """Return the ids of jobs that end only if they are stopped, newest first."""
    replies = [client.post("/v1/jobs", json={"prompt": "hold", "metadata": batch}) for _ in range(number)]
    return [reply.json()["id"] for reply in reversed(replies)]


def test_a_cancel_stops_the_jobs_of_the_filter_and_no_others(
    client: httpx2.Client, batch: dict[str, str]
) -> None:
    done = run_job(client, "say x", metadata=batch)
    held = held_jobs(client, 3, batch)
    (other,) = held_jobs(client, 1, {"batch": "another"})
    result = post(client, "cancel", metadata=batch)
    assert ids(result) == held
    assert (result["matched"], result["changed"], result["failed"], result["stopped"]) == (3, 3, 0, None)
    assert (result["has_more"], result["next_cursor"], result["dry_run"]) == (False, None, False)
    wait_until(lambda: all(get(client, job_id)["state"] == "cancelled" for job_id in held))
    assert get(client, done["id"])["state"] == "completed"
    assert get(client, other)["state"] in ("queued", "running")
    assert post(client, "cancel", metadata=batch)["matched"] == 0
    client.post(f"/v1/jobs/{other}/cancel")


def test_a_dry_run_tells_what_would_be_changed_and_changes_nothing(
    client: httpx2.Client, batch: dict[str, str]
) -> None:
    held = held_jobs(client, 2, batch)
    result = post(client, "cancel", metadata=batch, dry_run=True)
    assert (ids(result), result["dry_run"], result["changed"]) == (held, True, 2)
    assert all(get(client, job_id)["state"] in ("queued", "running") for job_id in held)
    post(client, "cancel", metadata=batch)
    wait_until(lambda: all(get(client, job_id)["state"] == "cancelled" for job_id in held))
    failed = run_job(client, "fail x", metadata=batch)
    assert ids(post(client, "retry", metadata=batch, dry_run=True)) == [failed["id"]]
    assert ids(post(client, "resume", metadata=batch, dry_run=True)) == [failed["id"]]
    assert get(client, failed["id"])["run"] == 1


def test_calls_go_on_with_the_cursor_until_all_are_changed(
    client: httpx2.Client, batch: dict[str, str]
) -> None:
    failed = [run_job(client, "fail x", metadata=batch)["id"] for _ in range(3)][::-1]
    first = post(client, "retry", metadata=batch, limit=2)
    assert (ids(first), first["has_more"]) == (failed[:2], True)
    second = post(client, "retry", metadata=batch, limit=2, as_of=first["as_of"], cursor=first["next_cursor"])
    assert (ids(second), second["has_more"], second["next_cursor"]) == (failed[2:], False, None)


def test_a_repeat_with_the_time_of_the_first_call_runs_no_job_twice(
    client: httpx2.Client, batch: dict[str, str]
) -> None:
    failed = run_job(client, "fail x", metadata=batch)["id"]
    first = post(client, "retry", metadata=batch)
    wait_until(lambda: get(client, failed)["run"] == 2 and get(client, failed)["state"] == "failed")
    late = run_job(client, "fail y", metadata=batch)["id"]
    assert post(client, "retry", metadata=batch, as_of=first["as_of"])["matched"] == 0
    assert get(client, failed)["run"] == 2
    assert ids(post(client, "retry", metadata=batch, dry_run=True)) == [late, failed]


def test_a_repeat_of_a_cancel_leaves_alone_what_was_started_since(
    client: httpx2.Client, batch: dict[str, str]
) -> None:
    (held,) = held_jobs(client, 1, batch)
    first = post(client, "cancel", metadata=batch)
    wait_until(lambda: get(client, held)["state"] == "cancelled")
    assert client.post(f"/v1/jobs/{held}/retry").status_code == 202
    (new,) = held_jobs(client, 1, batch)
    assert post(client, "cancel", metadata=batch, as_of=first["as_of"])["matched"] == 0
    assert ids(post(client, "cancel", metadata=batch)) == [new, held]


@pytest.mark.parametrize("operation", ["retry", "resume"])
def test_a_job_that_was_run_again_since_its_selection_is_not_run_twice(
    service: RunningService,
    client: httpx2.Client,
    batch: dict[str, str],
    operation: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    failed = run_job(client, "fail x", metadata=batch)["id"]
    list_jobs = service.store.list_jobs

    async def list_then_retry(*arguments: Any) -> Any:
        page = await list_jobs(*arguments)
        monkeypatch.undo()
        await service.control.retry(Caller("k_admin", ALL_SCOPES), failed)
        return page

    monkeypatch.setattr(service.store, "list_jobs", list_then_retry)
    assert post(client, operation, metadata=batch)["changed"] == 1
    wait_until(lambda: get(client, failed)["state"] == "failed")
    assert get(client, failed)["run"] == 2


def test_a_job_that_cannot_be_resumed_is_named_with_its_code_and_the_others_go_on(
    service: RunningService, client: httpx2.Client, batch: dict[str, str]
) -> None:
    blockers = held_jobs(client, 2, {"batch": "blocker"})
    wait_until(lambda: all(get(client, job_id)["state"] == "running" for job_id in blockers))
    (never_ran,) = held_jobs(client, 1, batch)
    client.post(f"/v1/jobs/{never_ran}/cancel")
    for job_id in blockers:
        client.post(f"/v1/jobs/{job_id}/cancel")
    failed = run_job(client, "fail x", metadata=batch)["id"]
    selection = {"metadata": batch, "state": ["failed", "cancelled", "running"]}
    for dry_run in (True, False):
        result = post(client, "resume", **selection, prompt="Go on, please.", budget_usd=8, dry_run=dry_run)
        assert ids(result) == [failed, never_ran]
        assert (result["changed"], result["failed"]) == (1, 1)
        assert result["data"][0]["error"] is None
        assert result["data"][1]["error"]["code"] == "invalid_state"
        assert "session" in result["data"][1]["error"]["detail"]
    wait_until(lambda: get(client, failed)["run"] == 2 and get(client, failed)["state"] == "failed")
    assert get(client, failed)["budget_usd"] == "8.000000"
    assert service.runner.specs[-1].continue_prompt == "Go on, please."


def test_without_a_state_jobs_run_again_that_nobody_wanted_to_end_so(
    client: httpx2.Client, batch: dict[str, str]
) -> None:
    (cancelled,) = held_jobs(client, 1, batch)
    client.post(f"/v1/jobs/{cancelled}/cancel")
    wait_until(lambda: get(client, cancelled)["state"] == "cancelled")
    completed = run_job(client, "say x", metadata=batch)["id"]
    failed, broken = (run_job(client, text, metadata=batch)["id"] for text in ("fail x", "broken x"))
    assert ids(post(client, "retry", metadata=batch, dry_run=True)) == [broken, failed]
    named = post(client, "retry", metadata=batch, state=["completed", "cancelled"], dry_run=True)
    assert ids(named) == [completed, cancelled]


@contextmanager
def new_key(service: RunningService, client: httpx2.Client, **fields: Any) -> Iterator[httpx2.Client]:
    reply = client.post("/v1/keys", json={"name": f"key {next(_NUMBERS)}", **fields})
    assert reply.status_code == 201, reply.text
    with service.client(reply.json()["secret"]) as made:
        yield made


def test_a_call_stops_at_a_limit_of_the_key_and_the_next_one_begins_there(
    service: RunningService, client: httpx2.Client, batch: dict[str, str]
) -> None:
    with new_key(service, client, limits={"requests_per_minute": 11}) as mine:
        failed = [run_job(mine, "fail x", metadata=batch)["id"] for _ in range(10)][::-1]
        result = post(mine, "retry", metadata=batch)
        assert result["matched"] == 10
        assert ids(result) == failed[:8]  # no further one is tried in vain
        assert (result["changed"], result["failed"]) == (1, 7)
        assert {item["error"]["code"] for item in result["data"] if item["error"]} == {"rate_limited"}
        assert result["stopped"]["code"] == "rate_limited"
        assert 1 <= result["stopped"]["retry_after"] <= 60
        assert (result["has_more"], result["next_cursor"]) == (True, None)
        rest = post(client, "retry", metadata=batch, as_of=result["as_of"])
        assert (rest["matched"], rest["changed"], rest["has_more"]) == (9, 9, False)
        assert not set(ids(rest)) & {item["id"] for item in result["data"] if item["error"] is None}


def test_a_stop_of_the_store_has_the_pause_of_an_outage_and_a_redacted_reason() -> None:
    stop = StoreUnavailable("The disk is full.")
    result = BulkResult(NOON, False, 1, [], None, has_more=True, stopped_by=stop)
    body = bulk_json(result, lambda text: text.replace("disk", "[redacted]"))
    assert set(body) == set(bulk_bodies.BulkResult.__annotations__)
    assert body["stopped"] == {"code": "unavailable", "detail": "The [redacted] is full.", "retry_after": 5}


def test_a_key_changes_only_jobs_that_it_sees(
    service: RunningService, client: httpx2.Client, batch: dict[str, str]
) -> None:
    with service.client(LIMITED) as mine, service.client(OTHER) as others:
        (held,) = held_jobs(mine, 1, batch)
        failed = run_job(mine, "fail x", metadata=batch)["id"]
        key_id = get(mine, held)["api_key_id"]
        for selection in ({"metadata": batch}, {"metadata": batch, "api_key": key_id}, {"id_prefix": held}):
            assert post(others, "cancel", **selection)["matched"] == 0
            assert post(others, "retry", **selection)["matched"] == 0
        assert ids(post(mine, "retry", metadata=batch, dry_run=True)) == [failed]
        assert ids(post(client, "cancel", api_key=key_id, metadata=batch)) == [held]


@pytest.mark.parametrize(
    ("scopes", "allowed"),
    [
        (["read", "cancel"], {"cancel"}),
        (["read", "submit"], {"retry", "resume"}),
        (["cancel", "submit"], set()),
    ],
)
def test_each_operation_needs_the_scopes_of_the_single_one_also_if_it_only_tells(
    service: RunningService, client: httpx2.Client, scopes: list[str], allowed: set[str]
) -> None:
    with new_key(service, client, scopes=scopes) as mine:
        for operation in ("cancel", "retry", "resume"):
            for dry_run in (True, False):
                reply = mine.post(f"/v1/jobs/{operation}", json={"all": True, "dry_run": dry_run})
                if operation in allowed:
                    assert (reply.status_code, reply.json()["matched"]) == (200, 0)
                else:
                    assert (reply.status_code, reply.json()["code"]) == (403, "scope_missing")


def test_all_means_all_jobs_of_the_key(service: RunningService, client: httpx2.Client) -> None:
    with new_key(service, client) as mine:
        held = held_jobs(mine, 2, {})
        assert ids(post(mine, "cancel", all=True)) == held


@pytest.mark.parametrize(
    ("body", "code", "pointer"),
    [
        ({}, "invalid_field", ""),
        ({"all": False}, "invalid_field", ""),
        ({"metadata": {}, "state": None}, "invalid_field", ""),
        ({"dry_run": True, "limit": 5, "as_of": "2026-01-01T00:00:00Z"}, "invalid_field", ""),
        ({"all": True, "agent": "claude"}, "invalid_field", "/all"),
        ({"all": "yes"}, "invalid_field", "/all"),
        ({"agent": "x", "limit": 201}, "invalid_field", "/limit"),
        ({"agent": "x", "limit": 0}, "invalid_field", "/limit"),
        ({"state": []}, "invalid_field", "/state"),
        ({"state": ["gone"]}, "invalid_field", "/state/0"),
        ({"state": "failed"}, "invalid_field", "/state"),
        ({"agent": "x", "as_of": "2026-01-01T00:00:00"}, "invalid_field", "/as_of"),
        ({"created_after": 0}, "invalid_field", "/created_after"),
        ({"id_prefix": "xyz"}, "invalid_field", "/id_prefix"),
        ({"q": "..."}, "invalid_field", "?q"),
        ({"metadata": {"a": 1}}, "invalid_field", "/metadata/a"),
        ({"agents": "x"}, "unknown_field", "/agents"),
        ({"agent": "x", "after_run": 1}, "unknown_field", "/after_run"),
        ({"agent": "x", "cursor": "x"}, "bad_cursor", "?cursor"),
    ],
)
def test_a_selection_that_is_empty_or_wrong_is_refused(
    client: httpx2.Client, body: dict[str, Any], code: str, pointer: str
) -> None:
    for operation in ("cancel", "retry", "resume"):
        reply = client.post(f"/v1/jobs/{operation}", json=body)
        assert (reply.status_code, reply.json()["code"]) == (422, code), reply.text
        assert [error["pointer"] for error in reply.json()["errors"]] == [pointer]


@pytest.mark.parametrize(
    ("operation", "state"), [("cancel", "completed"), ("retry", "running"), ("resume", "queued")]
)
def test_a_state_from_which_it_cannot_be_done_is_refused_unless_another_is_there(
    client: httpx2.Client, batch: dict[str, str], operation: str, state: str
) -> None:
    reply = client.post(f"/v1/jobs/{operation}", json={"state": [state]})
    assert (reply.status_code, reply.json()["errors"][0]["pointer"]) == (422, "/state")
    assert post(client, operation, metadata=batch, state=list(State))["matched"] == 0
