"""Keys over HTTP: made, listed, revoked, rotated; what each may ask for; hostile input."""

import json
import re
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.api.api_service import (
    ADMIN,
    LIMITED,
    OTHER,
    SUBMITTER,
    RunningService,
    run_job,
    running_service,
    wait_until,
)

JSON = {"content-type": "application/json"}
CHAT = {"model": "claude", "messages": [{"role": "user", "content": "say x"}]}
NO_LIMITS = dict.fromkeys(
    (
        "agents",
        "workspaces",
        "requests_per_minute",
        "running_jobs",
        "queued_jobs",
        "budget_usd_per_day",
        "budget_usd_per_month",
        "max_budget_usd",
        "max_timeout_seconds",
        "models",
    )
)


def make(service: RunningService, name: str = "ci", **fields: Any) -> dict[str, Any]:
    with service.client() as client:
        reply = client.post("/v1/keys", json={"name": name, **fields})
    assert reply.status_code == 201, reply.text
    made: dict[str, Any] = reply.json()
    return made


def limited(service: RunningService, **limits: Any) -> httpx2.Client:
    """A client whose new key has these limits."""
    return service.client(make(service, limits=limits)["secret"])


def check(reply: httpx2.Response, status: int, code: str) -> dict[str, Any]:
    assert (reply.status_code, reply.json()["code"]) == (status, code), reply.text
    body: dict[str, Any] = reply.json()
    return body


def test_a_new_key_tells_its_secret_once_and_opens_the_service(service: RunningService) -> None:
    with service.client() as client:
        reply = client.post("/v1/keys", json={"name": "ci"})
        assert reply.status_code == 201
        assert reply.headers["cache-control"] == "no-store"
        key = reply.json()
        secret = key.pop("secret")
        assert reply.headers["location"] == f"/v1/keys/{key['id']}"
        assert re.fullmatch(rf"sh_{key['id']}_\w{{43}}", secret)
        assert key["scopes"] == ["submit", "read", "cancel"]
        assert (key["object"], key["name"], key["origin"]) == ("api_key", "ci", "service")
        assert key["limits"] == NO_LIMITS
        assert client.get(f"/v1/keys/{key['id']}").json() == key
        listed = client.get("/v1/keys").json()
        assert (listed["object"], listed["has_more"], listed["next_cursor"]) == ("list", False, None)
        assert key in listed["data"]
        assert secret not in json.dumps(listed)
        assert ADMIN not in json.dumps([each["id"] for each in listed["data"]])
    with service.client(secret) as own:
        assert run_job(own, "say x")["api_key_id"] == key["id"]


def test_keys_of_the_environment_come_first_and_cannot_be_changed_here(service: RunningService) -> None:
    make(service)
    with service.client() as client:
        listed = client.get("/v1/keys").json()["data"]
        origins = [each["origin"] for each in listed]
        assert origins[:4] == ["environment"] * 4
        assert set(origins[4:]) == {"service"}
        for method, path in (("DELETE", "/v1/keys/k_other"), ("POST", "/v1/keys/k_other/rotate")):
            assert "change it there" in check(client.request(method, path), 409, "invalid_state")["detail"]
    with service.client(OTHER) as other:
        assert other.get("/v1/jobs").status_code == 200


def test_scopes_hold_on_every_route(service: RunningService) -> None:
    for scopes, allowed in (
        (["submit"], {"submit"}),
        (["read"], {"read"}),
        (["cancel", "read"], {"read", "cancel"}),
        (["admin"], {"submit", "read", "cancel", "admin"}),
    ):
        key = make(service, scopes=scopes)
        assert key["scopes"] == [each for each in ("submit", "read", "cancel", "admin") if each in scopes]
        with service.client(key["secret"]) as client:
            asked = {
                "submit": client.post("/v1/jobs", json={"prompt": "say x"}),
                "read": client.get("/v1/jobs"),
                "cancel": client.post("/v1/jobs/000000000000/cancel"),
                "admin": client.get("/v1/keys"),
            }
        for scope, reply in asked.items():
            if scope not in allowed:
                check(reply, 403, "scope_missing")
                assert scope in reply.json()["detail"]
            else:
                assert reply.status_code in (200, 202, 404)


@pytest.mark.parametrize("token", [LIMITED, SUBMITTER])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/keys"),
        ("POST", "/v1/keys"),
        ("GET", "/v1/keys/k_admin"),
        ("DELETE", "/v1/keys/k_admin"),
        ("POST", "/v1/keys/k_admin/rotate"),
    ],
)
def test_keys_are_for_admin_alone_and_that_is_said_before_anything_else(
    service: RunningService, token: str, method: str, path: str
) -> None:
    with service.client(token) as client:
        reply = client.request(method, path, content=b"not json" if method == "POST" else None)
        check(reply, 403, "scope_missing")


def test_a_revoked_key_is_401_at_once_and_revoking_it_again_changes_nothing(service: RunningService) -> None:
    key = make(service)
    with service.client(key["secret"]) as own, service.client() as client:
        assert own.get("/v1/jobs").status_code == 200
        reply = client.delete(f"/v1/keys/{key['id']}")
        assert reply.status_code == 200
        revoked = reply.json()
        assert datetime.fromisoformat(revoked["revoked_at"]) <= datetime.now(UTC)
        check(own.get("/v1/jobs"), 401, "unauthenticated")
        assert client.delete(f"/v1/keys/{key['id']}").json() == revoked
        assert client.get(f"/v1/keys/{key['id']}").json() == revoked
        check(client.post(f"/v1/keys/{key['id']}/rotate"), 409, "invalid_state")


def test_a_stream_that_a_revoked_key_follows_is_cut_and_tells_nothing_more(service: RunningService) -> None:
    key = make(service)
    with service.client(key["secret"]) as own, service.client() as client:
        job_id = own.post("/v1/jobs", json={"prompt": "hold"}).json()["id"]
        said: list[str] = []
        heard, ended = threading.Event(), threading.Event()

        def follow() -> None:
            with own.stream("GET", f"/v1/jobs/{job_id}/events") as reply:
                for line in reply.iter_lines():
                    said.append(line)
                    if '"to":"running"' in line:
                        heard.set()
            ended.set()

        thread = threading.Thread(target=follow)
        thread.start()
        assert heard.wait(20)
        client.delete(f"/v1/keys/{key['id']}")
        # The job goes on; its end is the next event, and it is not told.
        assert client.get(f"/v1/jobs/{job_id}").json()["state"] == "running"
        client.post(f"/v1/jobs/{job_id}/cancel")
        assert ended.wait(20)
        thread.join()
        wait_until(lambda: client.get(f"/v1/jobs/{job_id}").json()["state"] == "cancelled")
        assert not any('"to":"cancelled"' in line for line in said)


def test_rotation_keeps_the_key_and_ends_the_old_secret(service: RunningService) -> None:
    key = make(service, limits={"running_jobs": 2})
    with service.client() as client:
        reply = client.post(f"/v1/keys/{key['id']}/rotate")
        assert reply.status_code == 200
        assert reply.headers["cache-control"] == "no-store"
        rotated = reply.json()
        assert rotated["secret"] != key["secret"]
        assert {**rotated, "secret": ""} == {**key, "secret": ""}
        graced = client.post(f"/v1/keys/{key['id']}/rotate", json={"grace_seconds": 3600}).json()
        assert graced["former_secret_until"] is not None
    answers = []
    for secret in (key["secret"], rotated["secret"], graced["secret"]):
        with service.client(secret) as own:
            answers.append(own.get("/v1/jobs").status_code)
    assert answers == [401, 200, 200]


def test_the_lists_name_only_what_a_key_may_ask_for(service: RunningService) -> None:
    with limited(service, agents=["dear", "helper"], workspaces=["nowhere"]) as own:
        assert [each["name"] for each in own.get("/v1/agents").json()["data"]] == ["dear", "helper"]
        assert [each["id"] for each in own.get("/v1/models").json()["data"]] == ["dear", "helper"]
        assert own.get("/v1/workspaces").json()["data"] == []


def test_an_agent_or_workspace_that_is_not_allowed_is_403_at_every_door(service: RunningService) -> None:
    before = service.count()
    with limited(service, agents=["dear"]) as own:
        for reply in (
            own.post("/v1/jobs", json={"prompt": "say x"}),
            own.post("/v1/jobs", json={"prompt": "say x", "agent": "no-such-agent"}),
            own.post("/execute", json={"prompt": "say x", "agent": ".claude/agents/claude.md"}),
            own.post("/v1/chat/completions", json=CHAT),
            own.post("/v1/chat/completions", json={**CHAT, "model": "helper"}),
        ):
            assert "may use dear" in check(reply, 403, "agent_not_allowed")["detail"]
            assert reply.json()["error"]["type"] == "permission_error"
        assert own.post("/v1/jobs", json={"prompt": "say x", "agent": "dear"}).status_code == 202
    with limited(service, workspaces=["infra"]) as own:
        check(own.post("/v1/jobs", json={"prompt": "say x"}), 403, "workspace_not_allowed")
        check(own.post("/execute", json={"prompt": "x", "agent": "claude"}), 403, "workspace_not_allowed")
        assert own.post("/v1/jobs", json={"prompt": "say x", "workspace": "infra"}).status_code == 202
    assert service.count() == before + 2


def test_a_listed_workspace_may_be_an_address_but_still_needs_its_scope(service: RunningService) -> None:
    address = "https://git.example.org/other.git"
    limits = {"workspaces": [address]}
    for scopes, listed, status in (
        (["submit"], address, 403),
        (["submit", "workspace:any"], address, 202),
        (["submit", "workspace:any"], address + "/x", 403),
    ):
        with service.client(make(service, scopes=scopes, limits=limits)["secret"]) as own:
            reply = own.post("/v1/jobs", json={"prompt": "say x", "workspace": listed})
            assert reply.status_code == status
            assert status == 202 or reply.json()["code"] == "workspace_not_allowed"


def test_a_rate_is_held_at_every_door_and_refused_requests_store_nothing(service: RunningService) -> None:
    with limited(service, requests_per_minute=2) as own:
        assert own.post("/v1/jobs", json={"promt": "x"}).status_code == 422  # it was no request for work
        job = run_job(own, "say x")
        assert own.post("/execute", json={"prompt": "say x", "agent": "claude"}).status_code == 202
        before = service.count()
        for reply in (
            own.post("/v1/jobs", json={"prompt": "say x"}),
            own.post("/execute", json={"prompt": "say x", "agent": "claude"}),
            own.post("/v1/chat/completions", json=CHAT),
            own.post(f"/v1/jobs/{job['id']}/retry"),
        ):
            body = check(reply, 429, "rate_limited")
            assert 50 <= int(reply.headers["retry-after"]) <= 60
            assert "2 times a minute" in body["detail"]
            assert f"in {reply.headers['retry-after']} s" in body["detail"]
            assert body["error"]["type"] == "rate_limit_error"
        assert service.count() == before
        assert own.get(f"/v1/jobs/{job['id']}").json()["run"] == 1


def test_a_repeated_request_gets_its_job_and_is_not_counted_again(service: RunningService) -> None:
    with limited(service, requests_per_minute=2) as own:
        again = {"idempotency-key": "once"}
        first = own.post("/v1/jobs", json={"prompt": "say x"}, headers=again)
        for _ in range(5):
            reply = own.post("/v1/jobs", json={"prompt": "say x"}, headers=again)
            assert (reply.status_code, reply.json()["id"]) == (202, first.json()["id"])
            assert reply.headers["idempotent-replayed"] == "true"
        assert own.post("/v1/jobs", json={"prompt": "say x"}).status_code == 202
        check(own.post("/v1/jobs", json={"prompt": "say x"}), 429, "rate_limited")
        # The limit is reached, and the repeat still gets its job.
        assert own.post("/v1/jobs", json={"prompt": "say x"}, headers=again).status_code == 202


def test_of_many_repeats_at_once_one_is_counted(service: RunningService) -> None:
    key = make(service, limits={"requests_per_minute": 2})
    codes: list[int] = []

    def ask() -> None:
        with service.client(key["secret"]) as own:
            headers = {"idempotency-key": "all-at-once"}
            codes.append(own.post("/v1/jobs", json={"prompt": "say x"}, headers=headers).status_code)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes == [202, 202]
    with service.client(key["secret"]) as own:
        assert own.post("/v1/jobs", json={"prompt": "say x"}).status_code == 202
        check(own.post("/v1/jobs", json={"prompt": "say x"}), 429, "rate_limited")


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    with running_service(tmp_path_factory.mktemp("narrow"), capacity=3, max_queued=1) as found:
        yield found


def test_a_key_s_jobs_wait_their_turn_and_more_are_refused(narrow: RunningService) -> None:
    with limited(narrow, running_jobs=1, queued_jobs=1) as own, narrow.client() as client:
        held = own.post("/v1/jobs", json={"prompt": "hold"}).json()["id"]
        wait_until(lambda: own.get(f"/v1/jobs/{held}").json()["state"] == "running")
        waits = own.post("/v1/jobs", json={"prompt": "say it"}).json()["id"]
        before = narrow.count()
        for reply in (
            own.post("/v1/jobs", json={"prompt": "say x"}),
            own.post("/execute", json={"prompt": "say x", "agent": "claude"}),
            own.post("/v1/chat/completions", json=CHAT),
        ):
            body = check(reply, 429, "too_many_jobs")
            assert int(reply.headers["retry-after"]) >= 1
            assert "1 job waiting" in body["detail"]
        assert narrow.count() == before
        # Two slots are free, for others.
        assert run_job(client, "say x")["state"] == "completed"
        assert own.get(f"/v1/jobs/{waits}").json()["state"] == "queued"
        own.post(f"/v1/jobs/{held}/cancel")
        wait_until(lambda: own.get(f"/v1/jobs/{waits}").json()["state"] == "completed")


def test_of_many_requests_at_once_no_more_wait_than_the_key_may_have(narrow: RunningService) -> None:
    key = make(narrow, limits={"running_jobs": 1, "queued_jobs": 0})
    codes: list[int] = []
    ids: list[str] = []

    def ask() -> None:
        with narrow.client(key["secret"]) as own:
            reply = own.post("/v1/jobs", json={"prompt": "hold"})
            codes.append(reply.status_code)
            ids.extend([reply.json()["id"]] if reply.status_code == 202 else [])

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(codes) == [202, *[429] * 7]
    with narrow.client() as client:
        client.post(f"/v1/jobs/{ids[0]}/cancel")
        wait_until(lambda: client.get(f"/v1/jobs/{ids[0]}").json()["state"] == "cancelled")


def test_keys_survive_a_restart(tmp_path: Path) -> None:
    with running_service(tmp_path) as service:
        kept = make(service, "kept", limits={"requests_per_minute": 1})
        lost = make(service, "lost")
        with service.client() as client:
            client.delete(f"/v1/keys/{lost['id']}")
            listed = client.get("/v1/keys").json()["data"][4:]
    with running_service(tmp_path) as service:
        with service.client() as client:
            assert client.get("/v1/keys").json()["data"][4:] == listed
        with service.client(kept["secret"]) as own:
            assert own.post("/v1/jobs", json={"prompt": "say x"}).status_code == 202
            check(own.post("/v1/jobs", json={"prompt": "say x"}), 429, "rate_limited")
        with service.client(lost["secret"]) as own:
            check(own.get("/v1/jobs"), 401, "unauthenticated")


BAD: dict[str, tuple[Any, str, str]] = {
    "no name": ({}, "/name", "invalid_field"),
    "an empty name": ({"name": ""}, "/name", "invalid_field"),
    "a name of spaces": ({"name": "  "}, "/name", "invalid_field"),
    "a NUL in the name": ({"name": "a\0b"}, "/name", "invalid_field"),
    "a line feed in the name": ({"name": "a\nb"}, "/name", "invalid_field"),
    "an escape in the name": ({"name": "\x1b[2J"}, "/name", "invalid_field"),
    "half a surrogate pair": (b'{"name": "\\ud800"}', "/name", "invalid_field"),
    "a name of 101 letters": ({"name": "x" * 101}, "/name", "invalid_field"),
    "a name that is a number": ({"name": 1}, "/name", "invalid_field"),
    "no scopes": ({"name": "x", "scopes": []}, "/scopes", "invalid_field"),
    "a scope that is none": ({"name": "x", "scopes": ["sudo"]}, "/scopes/0", "invalid_field"),
    "scopes that are text": ({"name": "x", "scopes": "admin"}, "/scopes", "invalid_field"),
    "10,000 scopes": ({"name": "x", "scopes": ["read"] * 10_000}, "/scopes", "invalid_field"),
    "an unknown field": ({"name": "x", "scope": ["read"]}, "/scope", "unknown_field"),
    "limits that are a list": ({"name": "x", "limits": []}, "/limits", "invalid_field"),
}
BAD_LIMITS: dict[str, tuple[Any, str]] = {
    "10,000 agents": ({"agents": [f"a{number}" for number in range(10_000)]}, "/limits/agents"),
    "no agent at all": ({"agents": []}, "/limits/agents"),
    "an agent that is an option": ({"agents": ["--version"]}, "/limits/agents/0"),
    "an agent that is a number": ({"agents": [1]}, "/limits/agents/0"),
    "a NUL in a workspace": ({"workspaces": ["a\0"]}, "/limits/workspaces/0"),
    "a workspace of 3,000 letters": ({"workspaces": ["x" * 3000]}, "/limits/workspaces/0"),
    "a rate of zero": ({"requests_per_minute": 0}, "/limits/requests_per_minute"),
    "a rate below zero": ({"requests_per_minute": -1}, "/limits/requests_per_minute"),
    "a rate that is a fraction": ({"requests_per_minute": 1.5}, "/limits/requests_per_minute"),
    "a rate that is true": ({"requests_per_minute": True}, "/limits/requests_per_minute"),
    "a huge rate": ({"requests_per_minute": 10**30}, "/limits/requests_per_minute"),
    "no running job": ({"running_jobs": 0}, "/limits/running_jobs"),
    "huge running jobs": ({"running_jobs": 2**63}, "/limits/running_jobs"),
    "a queue below zero": ({"queued_jobs": -1}, "/limits/queued_jobs"),
    "a huge queue": ({"queued_jobs": 2**64}, "/limits/queued_jobs"),
    "a budget of zero": ({"budget_usd_per_day": 0}, "/limits/budget_usd_per_day"),
    "a budget below zero": ({"budget_usd_per_month": -0.01}, "/limits/budget_usd_per_month"),
    "a budget that is text": ({"budget_usd_per_day": "5"}, "/limits/budget_usd_per_day"),
    "a huge budget": ({"budget_usd_per_day": 1e300}, "/limits/budget_usd_per_day"),
}


def refused_key(service: RunningService, body: Any, pointer: str, code: str) -> dict[str, Any]:
    with service.client() as client:
        before = client.get("/v1/keys").json()
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        answer = check(client.post("/v1/keys", content=raw, headers=JSON), 422, code)
        assert pointer in [fault["pointer"] for fault in answer["errors"]]
        assert len(answer["errors"]) <= 20
        assert client.get("/v1/keys").json() == before
    return answer


@pytest.mark.parametrize("case", BAD)
def test_bad_input_makes_no_key_and_names_the_field(service: RunningService, case: str) -> None:
    refused_key(service, *BAD[case])


@pytest.mark.parametrize("case", BAD_LIMITS)
def test_bad_limits_make_no_key_and_name_the_field(service: RunningService, case: str) -> None:
    limits, pointer = BAD_LIMITS[case]
    refused_key(service, {"name": "x", "limits": limits}, pointer, "invalid_field")


def test_endless_numbers_are_refused(service: RunningService) -> None:
    for number in (b"NaN", b"Infinity", b"1e999", b"9" * 5000):
        raw = b'{"name": "x", "limits": {"budget_usd_per_day": ' + number + b"}}"
        with service.client() as client:
            check(client.post("/v1/keys", content=raw, headers=JSON), 422, "invalid_field")


def test_an_unknown_limit_comes_with_the_nearest_name(service: RunningService) -> None:
    body = {"name": "x", "limits": {"request_per_minute": 1}}
    answer = refused_key(service, body, "/limits/request_per_minute", "unknown_field")
    assert "did you mean 'requests_per_minute'" in answer["detail"]
    assert (
        "did you mean 'limits'"
        in refused_key(service, {"name": "x", "limit": {}}, "/limit", "unknown_field")["detail"]
    )


@pytest.mark.parametrize("grace", [-1, 1e300, "60", True, 604_801])
def test_a_grace_that_is_none_rotates_nothing(service: RunningService, grace: Any) -> None:
    key = make(service)
    with service.client() as client:
        check(
            client.post(f"/v1/keys/{key['id']}/rotate", json={"grace_seconds": grace}), 422, "invalid_field"
        )
    with service.client(key["secret"]) as own:
        assert own.get("/v1/jobs").status_code == 200


@pytest.mark.parametrize(
    "key_id", ["k_none", "none", "k_", "k_" + "a" * 500, "K_ADMIN", "..", "k_admin%00", "%ff"]
)
def test_a_key_that_is_not_there_is_404(service: RunningService, key_id: str) -> None:
    with service.client() as client:
        for method, tail in (("GET", ""), ("DELETE", ""), ("POST", "/rotate")):
            check(client.request(method, f"/v1/keys/{key_id}{tail}"), 404, "not_found")


def test_a_wrong_method_or_query_is_refused(service: RunningService) -> None:
    with service.client() as client:
        check(client.put("/v1/keys", json={}), 405, "method_not_allowed")
        check(client.get("/v1/keys", params={"limit": 1}), 422, "unknown_field")
        check(client.post("/v1/keys", content=b"{}"), 415, "unsupported_media_type")


def test_a_strict_request_refuses_unknown_agents_and_a_name_that_a_valid_key_has(
    service: RunningService,
) -> None:
    with service.client() as client:

        def create(name: str, **fields: Any) -> httpx2.Response:
            return client.post("/v1/keys", json={"name": name, **fields})

        # `dear` is configured, `helper` is defined in a repository.
        body = {"strict": True, "limits": {"agents": ["dear", "helper", "nosuch"]}}
        error = check(create("strict", **body), 422, "unknown_agent")
        assert [each["pointer"] for each in error["errors"]] == ["/limits/agents/2"]
        assert create("strict", limits=body["limits"]).status_code == 201
        body = {"strict": True, "limits": {"workspaces": ["infra", "scratch", "/srv/x", "infar"]}}
        error = check(create("strict", **body), 422, "unknown_workspace")
        assert [each["pointer"] for each in error["errors"]] == ["/limits/workspaces/3"]
        assert "did you mean 'infra'?" in error["detail"]
        key = create("once", strict=True, limits={"agents": ["dear", "helper"]}).json()
        error = check(create("once", strict=True), 422, "key_exists")
        assert key["id"] in error["detail"]
        assert create("once").status_code == 201
        for each in client.get("/v1/keys").json()["data"]:
            if each["name"] == "once":
                assert client.delete(f"/v1/keys/{each['id']}").status_code == 200
        assert create("once", strict=True).status_code == 201
