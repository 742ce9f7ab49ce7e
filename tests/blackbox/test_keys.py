"""Keys and their limits on a whole service: what each door says, and what a restart keeps."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.blackbox.test_errors import check_body

from steadyhand.testing.live_folders import contents_below
from steadyhand.testing.service import CLASSIC_KEY, MakeService, Service, wait_until

EXECUTE = {"prompt": "hello", "agent": "claude"}
CHAT = {"model": "claude", "messages": [{"role": "user", "content": "hello"}]}
DOORS = {
    "/v1/jobs": {"prompt": "hello", "workspace": "scratch"},
    "/execute": EXECUTE,
    "/v1/chat/completions": CHAT,
}


def made(service: Service, **asked: Any) -> dict[str, Any]:
    answer = service.client.post("/v1/keys", json={"name": "a caller", **asked})
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


@contextmanager
def limited(service: Service, **limits: Any) -> Iterator[httpx2.Client]:
    with service.new_client(made(service, limits=limits)["secret"]) as caller:
        yield caller


def jobs(service: Service) -> list[str]:
    return [job["id"] for job in service.client.get("/v1/jobs", params={"limit": 200}).json()["data"]]


def refused_at_every_door(
    service: Service, caller: httpx2.Client, status: int, code: str
) -> list[dict[str, Any]]:
    before = jobs(service)
    bodies = []
    for path, body in DOORS.items():
        answer = caller.post(path, json=body)
        if status == 429:
            assert int(answer.headers["retry-after"]) >= 1
            if service.classic and path == "/v1/chat/completions":  # in the earlier service's own words
                assert answer.status_code == 503
                assert set(answer.json()) == {"error", "detail"}
                bodies.append(answer.json())
                continue
        bodies.append(check_body(answer, status, code, native=path == "/v1/jobs"))
        if status == 429:
            assert bodies[-1]["error"]["type"] == "rate_limit_error"
    assert jobs(service) == before
    return bodies


@pytest.mark.parametrize("scope", ["submit", "read", "cancel", "admin"])
def test_scope_missing_names_the_scope(service: Service, scope: str) -> None:
    others = [each for each in ("submit", "read", "cancel") if each != scope]
    with service.new_client(made(service, scopes=others)["secret"]) as caller:
        answer = {
            "submit": lambda: caller.post("/v1/jobs", json={"prompt": "hello"}),
            "read": lambda: caller.get("/v1/jobs"),
            "cancel": lambda: caller.post("/v1/jobs/000000000000/cancel"),
            "admin": lambda: caller.get("/v1/keys"),
        }[scope]()
    assert repr(scope) in check_body(answer, 403, "scope_missing", native=True)["detail"]


def test_agent_not_allowed(service: Service) -> None:
    with limited(service, agents=["issue-responder"]) as caller:
        for body in refused_at_every_door(service, caller, 403, "agent_not_allowed"):
            assert "issue-responder" in body["detail"]
        answer = caller.post("/execute", json={**EXECUTE, "agent": ".claude/agents/issue-responder.md"})
        assert answer.status_code == 202
    assert service.poll_classic(answer.json()["job_id"])["status"] == "completed"


def test_workspace_not_allowed(service: Service) -> None:
    with limited(service, workspaces=["infra"]) as caller:
        refused_at_every_door(service, caller, 403, "workspace_not_allowed")


def test_rate_limited(service: Service) -> None:
    with limited(service, requests_per_minute=1) as caller:
        headers = {"idempotency-key": "the one"}
        first = caller.post("/v1/jobs", json=DOORS["/v1/jobs"], headers=headers)
        assert first.status_code == 202
        service.wait_until_ended(first.json()["id"])
        for body in refused_at_every_door(service, caller, 429, "rate_limited"):
            assert "1 time a minute" in body["detail"]
        again = caller.post("/v1/jobs", json=DOORS["/v1/jobs"], headers=headers)
        assert (again.status_code, again.json()["id"]) == (202, first.json()["id"])


def test_budget_exhausted(service: Service) -> None:
    with limited(service, budget_usd_per_day=0.25) as caller:
        body = {"prompt": "[[standin: cost=0.3 input=3 output=4]]", "workspace": "scratch"}
        first = caller.post("/v1/jobs", json=body, headers={"prefer": "wait=30"})
        assert (first.status_code, first.json()["state"]) == (200, "completed")
        for refusal in refused_at_every_door(service, caller, 429, "budget_exhausted"):
            assert "0.25 USD a day" in refusal["detail"]


@pytest.mark.long  # as in `tests/api/native/test_keys`
def test_too_many_jobs_and_a_key_s_jobs_hold_up_nobody_else_s(
    make_service: MakeService, common_dir: Path
) -> None:
    service = make_service(env={"STEADYHAND_CONCURRENCY": "2"}).start()
    go = common_dir / "go"
    with limited(service, running_jobs=1, queued_jobs=1) as caller:
        held = caller.post(
            "/v1/jobs", json={"prompt": f"[[standin: wait_for={go}]]", "workspace": "scratch"}
        ).json()["id"]
        wait_until(lambda: caller.get(f"/v1/jobs/{held}").json()["state"] == "running")
        waits = caller.post("/v1/jobs", json=DOORS["/v1/jobs"]).json()["id"]
        for body in refused_at_every_door(service, caller, 429, "too_many_jobs"):
            assert "1 job waiting" in body["detail"]
        assert service.run_job("hello")["state"] == "completed"
        assert service.get_job(waits)["state"] == "queued"
        go.touch()
    assert [service.wait_until_ended(each)["state"] for each in (held, waits)] == ["completed", "completed"]


def test_keys_limits_and_waiting_jobs_survive_a_crash(make_service: MakeService, common_dir: Path) -> None:
    service = make_service(env={"STEADYHAND_CONCURRENCY": "3"}).start()
    on, go = common_dir / "on", common_dir / "go"
    key = made(service, limits={"running_jobs": 1})
    gone = made(service)
    service.client.delete(f"/v1/keys/{gone['id']}")
    old = made(service)
    new = service.client.post(f"/v1/keys/{old['id']}/rotate", json={"grace_seconds": 3600}).json()
    with service.new_client(key["secret"]) as caller:
        held = caller.post(
            "/v1/jobs", json={"prompt": f"[[standin: touch={on} wait_for={go}]]", "workspace": "scratch"}
        ).json()["id"]
        waiting = [caller.post("/v1/jobs", json=DOORS["/v1/jobs"]).json()["id"] for _ in range(2)]
    wait_until(on.exists)
    listed = service.client.get("/v1/keys").json()["data"]
    service.kill()
    service.restart()
    after = service.client.get("/v1/keys").json()["data"]
    assert [each for each in after if each["origin"] == "service"] == [
        each for each in listed if each["origin"] == "service"
    ]
    for secret, status in (
        (key["secret"], 200),
        (gone["secret"], 401),
        (old["secret"], 200),
        (new["secret"], 200),
    ):
        with service.new_client(secret) as caller:
            assert caller.get("/v1/jobs").status_code == status
    assert service.get_job(held)["state"] == "interrupted"
    ended = [service.wait_until_ended(each) for each in waiting]
    assert [job["state"] for job in ended] == ["completed", "completed"]
    # One at a time, as the key's limit says: the second began when the first had ended.
    assert ended[0]["finished_at"] <= ended[1]["started_at"]


def test_a_revoked_key_is_401_at_every_door_while_its_job_goes_on(
    default_service: Service, common_dir: Path
) -> None:
    go = common_dir / "go"
    key = made(default_service)
    with default_service.new_client(key["secret"]) as caller:
        prompt = f"[[standin: wait_for={go}]]"
        job_id = caller.post("/v1/jobs", json={"prompt": prompt, "workspace": "scratch"}).json()["id"]
        assert default_service.client.delete(f"/v1/keys/{key['id']}").status_code == 200
        refused_at_every_door(default_service, caller, 401, "unauthenticated")
    go.touch()
    assert default_service.wait_until_ended(job_id)["state"] == "completed"


def test_neither_secret_nor_digest_is_ever_told_again_or_logged(default_service: Service) -> None:
    key = made(default_service)
    tail = key["secret"].rpartition("_")[2]
    for path in ("/v1/keys", f"/v1/keys/{key['id']}"):
        assert tail not in default_service.client.get(path).text
        assert "digest" not in default_service.client.get(path).text
    assert tail not in default_service.log
    kept = b"".join(content for _, content in contents_below(default_service.data_dir, "steadyhand.db*"))
    assert key["id"].encode() in kept
    assert tail.encode() not in kept


def test_the_classic_profile_has_keys_and_limits_too(classic_service: Service) -> None:
    with limited(classic_service, requests_per_minute=1) as caller:
        job_id = caller.post("/execute", json=EXECUTE).json()["job_id"]
        classic_service.poll_classic(job_id)
        check_body(caller.post("/execute", json=EXECUTE), 429, "rate_limited")
        answer = caller.post("/v1/chat/completions", json=CHAT)
        assert answer.status_code == 503
        assert "1 time a minute" in answer.json()["detail"]
        assert int(answer.headers["retry-after"]) >= 1


def test_who_is_not_admin_sees_and_changes_no_keys(service: Service) -> None:
    with service.new_client(CLASSIC_KEY) as caller:
        for method, path in (
            ("GET", "/v1/keys"),
            ("POST", "/v1/keys"),
            ("GET", "/v1/keys/k_admin"),
            ("DELETE", "/v1/keys/k_admin"),
            ("POST", "/v1/keys/k_admin/rotate"),
        ):
            check_body(caller.request(method, path), 403, "scope_missing", native=True)
    assert service.client.get("/v1/jobs").status_code == 200
