"""Ceilings of agents, keys and the service: each route refuses what is above them and lowers a default to them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.api.api_service import CATALOGUE, RunningService, running_service

from steadyhand.agents import BUILT_IN_AGENTS, Agent, Limits
from steadyhand.api import ApiOptions

TIGHT = Agent(
    "tight",
    budget_micros=1_000_000,
    max_budget_micros=2_000_000,
    timeout_seconds=60,
    max_timeout_seconds=120,
    models=("haiku", "sonnet"),
)
OPEN = Agent("open", model="opus")
CATALOG = replace(
    CATALOGUE,
    agents={
        **BUILT_IN_AGENTS,
        "tight": TIGHT,
        "open": OPEN,
        "chat": replace(BUILT_IN_AGENTS["chat"], max_budget_micros=100_000, models=("haiku",)),
    },
    limits=Limits(),
)
EXECUTE = {"prompt": "say x", "agent": "tight"}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    options = ApiOptions(openai_default_agent="tight")
    with running_service(tmp_path_factory.mktemp("ceilings"), options=options, catalog=CATALOG) as running:
        yield running


@contextmanager
def client_with(service: RunningService, **limits: Any) -> Iterator[httpx2.Client]:
    with service.client() as admin:
        made = admin.post("/v1/keys", json={"name": "bound", "limits": limits})
    assert made.status_code == 201, made.text
    with service.client(made.json()["secret"]) as client:
        yield client


def newest(client: httpx2.Client) -> tuple[str, float, str | None]:
    job = client.get("/v1/jobs", params={"limit": 1}).json()["data"][0]
    return job["budget_usd"], job["timeout_seconds"], job["model"]


def submit(client: httpx2.Client, **fields: Any) -> httpx2.Response:
    return client.post(
        "/v1/jobs", json={"prompt": "say x", "agent": "tight", **fields}, headers={"prefer": "wait=20"}
    )


def refused(reply: httpx2.Response, status: int, code: str) -> str:
    assert (reply.status_code, reply.json()["code"]) == (status, code), reply.text
    return str(reply.json()["detail"])


def test_a_job_may_ask_for_what_is_up_to_the_ceilings_of_its_agent(service: RunningService) -> None:
    with service.client() as client:
        assert submit(client, budget_usd=2, timeout_seconds=120, model="sonnet").status_code == 200
        assert newest(client) == ("2.000000", 120, "sonnet")
        assert submit(client).status_code == 200
        assert newest(client) == ("1.000000", 60, "haiku")
        above = refused(submit(client, budget_usd=2.01), 422, "limit_exceeded")
        assert above == "budget_usd: is above the limit of 2 of the agent 'tight'"
        above = refused(submit(client, timeout_seconds=36_000), 422, "limit_exceeded")
        assert above == "timeout_seconds: is above the limit of 120 of the agent 'tight'"
        detail = refused(submit(client, model="opus"), 403, "model_not_allowed")
        assert "haiku, sonnet" in detail
        # Figures without a ceiling are defaults.
        assert submit(client, agent="open", budget_usd=99, model="sonnet").status_code == 200
        assert newest(client) == ("99.000000", 2_700, "sonnet")


def test_a_key_has_ceilings_of_its_own_and_the_lowest_counts(service: RunningService) -> None:
    with client_with(service, max_budget_usd=0.5, max_timeout_seconds=30, models=["sonnet"]) as client:
        assert submit(client).status_code == 200
        assert newest(client) == ("0.500000", 30, "sonnet")
        assert submit(client, agent="open").status_code == 200
        assert newest(client) == ("0.500000", 30, "sonnet")
        assert "of this key" in refused(submit(client, budget_usd=1), 422, "limit_exceeded")
        assert "of this key" in refused(submit(client, timeout_seconds=31), 422, "limit_exceeded")
        assert "This key" in refused(submit(client, model="haiku"), 403, "model_not_allowed")
        listed = {agent["name"]: agent for agent in client.get("/v1/agents").json()["data"]}
        assert listed["tight"]["limits"] == {
            "max_budget_usd": "0.500000",
            "max_timeout_seconds": 30,
            "models": ["sonnet"],
        }
        assert (listed["tight"]["budget_usd"], listed["tight"]["timeout_seconds"]) == ("0.500000", 30)
    with client_with(service, models=["opus"]) as client:
        assert "none of the models" in refused(submit(client), 403, "model_not_allowed")


@pytest.mark.parametrize("ceiling", ["agent", "key"])
def test_on_execute_null_means_the_nearest_ceiling_and_absence_a_default_below_it(
    service: RunningService, ceiling: str
) -> None:
    limits = {"max_budget_usd": 3, "max_timeout_seconds": 150} if ceiling == "key" else {}
    body = {**EXECUTE, "agent": "open" if ceiling == "key" else "tight"}
    expected = ("3.000000", 150) if ceiling == "key" else ("2.000000", 120)
    with client_with(service, **limits) as client:
        reply = client.post("/execute", json={**body, "max_budget_usd": None, "timeout_seconds": None})
        assert reply.status_code == 202, reply.text
        assert newest(client)[:2] == expected
        assert client.post("/execute", json=body).status_code == 202
        assert newest(client)[:2] == expected
        refused(client.post("/execute", json={**body, "max_budget_usd": 99}), 422, "limit_exceeded")
        refused(client.post("/execute", json={**body, "timeout_seconds": 36_000}), 422, "limit_exceeded")


def test_null_on_execute_without_a_ceiling_names_every_setting(service: RunningService) -> None:
    with service.client() as client:
        reply = client.post("/execute", json={"prompt": "say x", "agent": "open", "max_budget_usd": None})
    detail = refused(reply, 422, "invalid_field")
    assert "limits.max_budget_usd is not set" in detail
    assert "agents.open.max_budget_usd or the key's max_budget_usd" in detail


def test_turns_and_resumes_keep_to_the_ceilings_of_the_caller(service: RunningService) -> None:
    with service.client() as admin:
        job = submit(admin, agent="open", budget_usd=50, timeout_seconds=600).json()
        path = f"/v1/jobs/{job['id']}"
        scopes = ["submit", "read", "cancel", "read:all"]
        limits = {"max_budget_usd": 4, "max_timeout_seconds": 45, "models": ["haiku"]}
        key = {"name": "other", "scopes": scopes, "limits": limits}
        secret = admin.post("/v1/keys", json=key).json()["secret"]
    with service.client(secret) as client:
        refused(
            client.post(f"{path}/turns", json={"prompt": "say y", "budget_usd": 5}), 422, "limit_exceeded"
        )
        refused(
            client.post(f"{path}/turns", json={"prompt": "say y", "model": "opus"}), 403, "model_not_allowed"
        )
        turn = client.post(f"{path}/turns", json={"prompt": "say y"}, headers={"prefer": "wait=20"})
        assert turn.status_code == 200, turn.text
        assert newest(client) == ("4.000000", 45, "haiku")
        refused(client.post(f"{path}/resume", json={"budget_usd": 5}), 422, "limit_exceeded")
        for action in ("resume", "retry"):
            again = client.post(f"{path}/{action}", json={})
            assert again.status_code == 202, again.text
            ended = client.get(path, headers={"prefer": "wait=20"}).json()
            found = ended["budget_usd"], ended["timeout_seconds"], ended["model"]
            assert (ended["state"], found) == ("completed", ("4.000000", 45, "haiku")), action


@pytest.mark.parametrize("route", ["chat", "responses"])
def test_the_routes_of_openai_keep_to_the_ceilings(service: RunningService, route: str) -> None:
    def ask(client: httpx2.Client, model: str) -> httpx2.Response:
        if route == "chat":
            body = {"model": model, "messages": [{"role": "user", "content": "say x"}]}
            return client.post("/v1/chat/completions", json=body)
        return client.post("/v1/responses", json={"model": model, "input": "say x"})

    with client_with(service, max_budget_usd=0.25, max_timeout_seconds=20) as client:
        assert ask(client, "tight").status_code == 200
        assert newest(client) == ("0.250000", 20, "haiku")
        assert ask(client, "tight/sonnet").status_code == 200
        assert newest(client) == ("0.250000", 20, "sonnet")
        reply = ask(client, "tight/opus")
        assert (reply.status_code, reply.json()["error"]["code"]) == (403, "model_not_allowed")


def test_conversational_keeps_to_the_ceilings(service: RunningService) -> None:
    def ask(client: httpx2.Client, **fields: Any) -> httpx2.Response:
        body = {"session_id": f"s{len(fields)}", "message": "say x", **fields}
        return client.post("/v1/conversational", json=body)

    with client_with(service, max_timeout_seconds=20) as client:
        assert ask(client).status_code == 200
        assert newest(client) == ("0.100000", 20, "haiku")
        refused(ask(client, model="opus"), 403, "model_not_allowed")


def test_the_classic_chat_is_lowered_to_the_ceilings(tmp_path: Path) -> None:
    options = ApiOptions(profile="classic", openai_default_agent="tight")
    with (
        running_service(tmp_path, options=options, catalog=CATALOG) as service,
        service.client() as client,
    ):
        body = {"model": "any", "messages": [{"role": "user", "content": "say x"}]}
        reply = client.post("/v1/chat/completions", json=body)
        assert reply.status_code == 200, reply.text
        assert newest(client) == ("2.000000", 120, "haiku")


def test_ceilings_of_a_key_are_stored_and_listed(service: RunningService) -> None:
    limits = {
        "max_budget_usd": 1.5,
        "max_timeout_seconds": 90,
        "models": ["haiku", "haiku", "claude-opus-4-8"],
    }
    with service.client() as client:
        made = client.post("/v1/keys", json={"name": "stored", "limits": limits}).json()
        shown = client.get(f"/v1/keys/{made['id']}").json()["limits"]
        assert (shown["max_budget_usd"], shown["max_timeout_seconds"]) == ("1.500000", 90)
        assert shown["models"] == ["haiku", "claude-opus-4-8"]
        refused_limits: list[dict[str, Any]] = [
            {"max_budget_usd": 0},
            {"max_timeout_seconds": -1},
            {"models": []},
            {"models": ["-x"]},
        ]
        for bad in refused_limits:
            reply = client.post("/v1/keys", json={"name": "bad", "limits": bad})
            assert refused(reply, 422, "invalid_field")
