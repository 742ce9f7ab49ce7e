"""`GET /v1/usage` and the budgets of keys, from calls in the real ledger."""

import asyncio
import itertools
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from tests.api.api_service import ADMIN, LIMITED, OTHER, SUBMITTER, RunningService
from tests.api.native.test_keys import check, limited, make

from steadyhand.ports import ALL_SCOPES, ModelCall, TokenCounts, period_bounds

DAY = datetime(2026, 1, 31, 12, tzinfo=UTC)
_numbers = itertools.count()


def spend(
    service: RunningService, micros: int, *, key: str = "k_limit", at: datetime = DAY, **fields: Any
) -> None:
    values = {
        "agent": "claude",
        "provider": "default",
        "model": "claude-opus-5-5",
        "settled": True,
        "tokens": TokenCounts(10, 5, 200, 30, 4),
        **fields,
    }
    call = ModelCall(f"call_{next(_numbers)}", "0" * 12, 1, key, at=at, micros=micros, **values)
    asyncio.run_coroutine_threadsafe(service.store.save_call(call), service.loop).result(20)


@pytest.fixture(scope="module", autouse=True)
def spending(service: RunningService) -> None:
    spend(service, 41_200)
    spend(service, 800, model="claude-haiku-4-5", at=DAY + timedelta(days=1))
    spend(service, 3, key="k_other", agent="dear", priced=False)
    spend(service, 7, key="k_other", complete=False, at=DAY + timedelta(days=1))
    spend(service, 10**9, settled=False)


def rows(service: RunningService, token: str = ADMIN, **query: Any) -> list[dict[str, Any]]:
    with service.client(token) as client:
        reply = client.get("/v1/usage", params=query)
        assert reply.status_code == 200, reply.text
        document = client.get("/openapi.json").json()
    schema = {"$ref": "#/components/schemas/UsageList", "components": document["components"]}
    Draft202012Validator(schema).validate(reply.json())
    found: list[dict[str, Any]] = reply.json()["data"]
    return found


def costs(found: list[dict[str, Any]], *names: str) -> dict[Any, str]:
    return {tuple(row[name] for name in names): row["cost"]["usd"] for row in found}


def test_without_groups_there_is_one_row_of_everything_settled(service: RunningService) -> None:
    (row,) = rows(service)
    assert row == {
        "object": "usage",
        "api_key_id": None,
        "agent": None,
        "model": None,
        "provider": None,
        "workspace": None,
        "day": None,
        "calls": 4,
        "usage": {
            "input_tokens": 40,
            "output_tokens": 20,
            "cache_read_input_tokens": 800,
            "cache_creation_input_tokens": 136,
        },
        "cost": {"usd": "0.042010", "priced": False, "complete": False},
    }


def test_it_is_added_up_by_what_is_asked(service: RunningService) -> None:
    assert costs(rows(service, by="api_key"), "api_key_id") == {
        ("k_limit",): "0.042000",
        ("k_other",): "0.000010",
    }
    assert costs(rows(service, by=["day", "api_key", "day"]), "api_key_id", "day") == {
        ("k_limit", "2026-01-31"): "0.041200",
        ("k_limit", "2026-02-01"): "0.000800",
        ("k_other", "2026-01-31"): "0.000003",
        ("k_other", "2026-02-01"): "0.000007",
    }
    assert costs(rows(service, by="agent"), "agent") == {("claude",): "0.042007", ("dear",): "0.000003"}
    assert set(costs(rows(service, by="model"), "model")) == {("claude-haiku-4-5",), ("claude-opus-5-5",)}
    assert costs(rows(service, by="provider"), "provider") == {("default",): "0.042010"}


def test_it_is_bounded_by_time_key_agent_and_model(service: RunningService) -> None:
    noon, later = "2026-01-31T12:00:00Z", "2026-01-31T13:00:00+01:00"
    assert rows(service, since=noon)[0]["calls"] == 4
    assert rows(service, since="2026-01-31T12:00:00.000001Z")[0]["calls"] == 2
    assert rows(service, until=later)[0]["calls"] == 0
    assert rows(service, until="2026-02-01T00:00:00Z")[0]["calls"] == 2
    assert rows(service, api_key="k_other", agent="dear")[0]["calls"] == 1
    assert rows(service, model="claude-haiku-4-5")[0]["calls"] == 1
    assert rows(service, by="agent", api_key="nobody") == []


def test_a_key_that_is_not_admin_sees_its_own_alone(service: RunningService) -> None:
    assert costs(rows(service, LIMITED, by="api_key"), "api_key_id") == {("k_limit",): "0.042000"}
    assert rows(service, OTHER)[0]["calls"] == 2
    assert rows(service, OTHER, api_key="k_other")[0]["calls"] == 2
    assert rows(service, OTHER, api_key="k_limit") == []
    everything = make(service, scopes=["read", "read:all"])["secret"]
    assert rows(service, everything)[0]["calls"] == 0
    with service.client(SUBMITTER) as client:
        check(client.get("/v1/usage"), 403, "scope_missing")


def test_pages_hold_every_row_once(service: RunningService) -> None:
    whole = rows(service, by=["api_key", "day"])
    found: list[dict[str, Any]] = []
    cursor: dict[str, Any] = {}
    with service.client() as client:
        while True:
            reply = client.get("/v1/usage", params={"by": ["api_key", "day"], "limit": 3, **cursor}).json()
            found += reply["data"]
            if not reply["has_more"]:
                break
            cursor = {"cursor": reply["next_cursor"]}
    assert found == whole


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ({"by": "hour"}, "invalid_field"),
        ({"by": ["day", "day; drop table calls"]}, "invalid_field"),
        ({"by": ""}, "invalid_field"),
        ({"since": "yesterday"}, "invalid_field"),
        ({"since": "2026-01-31"}, "invalid_field"),
        ({"until": "0001-01-01T00:00:00+14:00"}, "invalid_field"),
        ({"limit": 0}, "invalid_field"),
        ({"limit": 1001}, "invalid_field"),
        ({"cursor": "x"}, "bad_cursor"),
        ({"cursor": "-1"}, "bad_cursor"),
        ({"cursor": "W10="}, "bad_cursor"),  # []
        ({"cursor": "WyJhIl0="}, "bad_cursor"),  # ["a"], and no group
        ({"cursor": "WyJhIl0=", "by": "day"}, "bad_cursor"),
        ({"cursor": "WzFd", "by": "agent"}, "bad_cursor"),  # [1]
        ({"cursor": "Ww==", "by": "agent"}, "bad_cursor"),  # [
        ({"cursor": "MTI=", "by": "agent"}, "bad_cursor"),  # 12
        ({"agent": ["a", "b"]}, "invalid_field"),
        ({"agent": "a\0"}, "invalid_field"),
        ({"agents": "a"}, "unknown_field"),
    ],
)
def test_what_makes_no_sense_is_422(service: RunningService, query: dict[str, Any], code: str) -> None:
    with service.client() as client:
        check(client.get("/v1/usage", params=query), 422, code)


@pytest.mark.parametrize("period", ["day", "month"])
def test_a_key_whose_budget_is_spent_is_refused_at_every_door_until_it_begins_anew(
    service: RunningService, period: Any
) -> None:
    limits = {f"budget_usd_per_{period}": 0.01}
    key = make(service, limits=limits)
    now = datetime.now(UTC)
    since, until = period_bounds(period, now)
    spend(service, 10**9, key=key["id"], at=since - timedelta(microseconds=1))  # of the one before
    spend(service, 9_999, key=key["id"], at=since)
    spend(service, 10**9, key="k_other", at=now)
    with service.client(key["secret"]) as own:
        job = own.post(
            "/v1/jobs", json={"prompt": "say x"}, headers={"idempotency-key": "one", "prefer": "wait=30"}
        )
        assert job.status_code == 200
        spend(service, 1, key=key["id"], at=now)
        before = service.count()
        for reply in (
            own.post("/v1/jobs", json={"prompt": "say x"}),
            own.post("/execute", json={"prompt": "say x", "agent": "claude"}),
            own.post(
                "/v1/chat/completions",
                json={"model": "claude", "messages": [{"role": "user", "content": "x"}]},
            ),
        ):
            body = check(reply, 429, "budget_exhausted")
            assert f"0.01 USD a {period} is spent (0.0512 USD)" in body["detail"]
            seconds = (until - datetime.now(UTC)).total_seconds()
            assert seconds <= int(reply.headers["retry-after"]) <= (until - now).total_seconds() + 1
            assert f"{until:%Y-%m-%d}T00:00:00Z" in body["detail"]
        assert service.count() == before
        again = own.post("/v1/jobs", json={"prompt": "say x"}, headers={"idempotency-key": "one"})
        assert again.json()["id"] == job.json()["id"]
    with limited(service, **limits) as other:
        assert other.post("/v1/jobs", json={"prompt": "say x"}).status_code == 202


def test_usage_is_grouped_by_workspace_without_credentials_of_a_url(service: RunningService) -> None:
    with service.client() as client:
        created = client.post(
            "/v1/keys", json={"name": "by workspace", "scopes": [*ALL_SCOPES - {"admin"}]}
        ).json()
    with service.client(created["secret"]) as own:
        url = "https://user:secret@git.example.org/shop.git?token=x"
        for workspace in ("infra", url, url, "scratch"):
            job = {"prompt": "say x", "workspace": workspace}
            assert own.post("/v1/jobs", json=job, headers={"prefer": "wait=20"}).status_code == 200
    clean = "https://git.example.org/shop.git"
    found = rows(service, created["secret"], by="workspace")
    assert costs(found, "workspace") == {
        ("",): "0.041200",
        (clean,): "0.082400",
        ("infra",): "0.041200",
    }
    today = f"{datetime.now(UTC):%Y-%m-%d}"
    by_day = rows(
        service, created["secret"], by=["workspace", "day"], since=f"{today}T00:00:00Z", workspace=url
    )
    assert costs(by_day, "workspace", "day") == {(clean, today): "0.082400"}
    assert costs(rows(service, api_key=created["id"], workspace=clean)) == {(): "0.082400"}
    assert costs(rows(service, api_key=created["id"], by="model", workspace="infra")) != {}
    assert rows(service, by="workspace", workspace="nowhere") == []
    with service.client(created["secret"]) as own:
        pages: list[list[str]] = []
        cursor = None
        while cursor is not None or not pages:
            query = "by=workspace&limit=1" + ("" if cursor is None else f"&cursor={cursor}")
            page = own.get(f"/v1/usage?{query}").json()
            pages.append([row["workspace"] for row in page["data"]])
            cursor = page["next_cursor"]
    assert pages == [[""], [clean], ["infra"]]
