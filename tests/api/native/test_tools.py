"""`GET /v1/tools`, from events in the real store."""

import asyncio
from typing import Any

import httpx2
import pytest
from jsonschema import Draft202012Validator
from tests.api.api_service import LIMITED, OTHER, SUBMITTER, RunningService, run_job

from steadyhand.events import EventDraft
from steadyhand.testing.contracts.store.sampling import tool_call


def add_events(service: RunningService, job_id: str, *drafts: EventDraft) -> None:
    asyncio.run_coroutine_threadsafe(service.store.append_events(job_id, drafts), service.loop).result(20)


@pytest.fixture(scope="module")
def job_ids(service: RunningService) -> dict[str, str]:
    """A job of each of two keys, with calls of tools."""
    found = {}
    for token, agent in ((LIMITED, "claude"), (OTHER, "dear")):
        with service.client(token) as client:
            found[token] = run_job(client, "say x", agent=agent)["id"]
    drafts = [*tool_call("t1", "Bash"), *tool_call("t2", "Bash", failed=True), *tool_call("t3", "Read")]
    add_events(service, found[LIMITED], *drafts)
    add_events(service, found[OTHER], *tool_call("t1", "Bash", finished=False))
    return found


def tools(client: httpx2.Client, **query: Any) -> dict[str, Any]:
    reply = client.get("/v1/tools", params=query)
    assert reply.status_code == 200, reply.text
    document = client.get("/openapi.json").json()
    schema = {"$ref": "#/components/schemas/ToolList", "components": document["components"]}
    Draft202012Validator(schema).validate(reply.json())
    found: dict[str, Any] = reply.json()
    return found


def counts(found: dict[str, Any], *names: str) -> list[Any]:
    return [
        (*(row[name] for name in ("tool", *names)), row["calls"], row["failures"], row["unfinished"])
        for row in found["data"]
    ]


@pytest.mark.usefixtures("job_ids")
def test_all_calls_are_added_up_by_tool_with_the_most_calls_first(client: httpx2.Client) -> None:
    found = tools(client)
    assert counts(found) == [("Bash", 3, 1, 1), ("Read", 1, 0, 0)]
    assert found["data"][0]["seconds"] == 0.5
    assert (found["jobs"], found["has_more"], found["next_cursor"]) == (2, False, None)
    cut = tools(client, limit=1)
    assert (counts(cut), cut["has_more"]) == ([("Bash", 3, 1, 1)], True)


def test_they_are_split_by_agent_key_and_job(client: httpx2.Client, job_ids: dict[str, str]) -> None:
    by_agent = tools(client, by="agent")
    assert counts(by_agent, "agent") == [
        ("Bash", "claude", 2, 1, 0),
        ("Bash", "dear", 1, 0, 1),
        ("Read", "claude", 1, 0, 0),
    ]
    assert counts(tools(client, by="api_key"), "api_key_id")[0] == ("Bash", "k_limit", 2, 1, 0)
    by_all = tools(client, by=["job", "agent", "api_key"], agent="dear")
    assert counts(by_all, "job_id", "api_key_id", "agent") == [
        ("Bash", job_ids[OTHER], "k_other", "dear", 1, 0, 1)
    ]


def test_a_key_sees_the_calls_of_its_own_jobs_alone(service: RunningService, job_ids: dict[str, str]) -> None:
    with service.client(OTHER) as client:
        assert counts(tools(client)) == [("Bash", 1, 0, 1)]
        assert tools(client, api_key="k_limit")["data"] == []
        assert counts(tools(client, job=job_ids[OTHER])) == [("Bash", 1, 0, 1)]
        reply = client.get("/v1/tools", params={"job": job_ids[LIMITED]})
        assert (reply.status_code, reply.json()["code"]) == (404, "not_found")
    with service.client(SUBMITTER) as client:
        assert client.get("/v1/tools").json()["code"] == "scope_missing"


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ({"by": "tool"}, 422),
        ({"jobs": 501}, 422),
        ({"days": 0}, 422),
        ({"limit": 0}, 422),
        ({"job": "x"}, 404),
    ],
)
def test_a_wrong_parameter_is_refused(client: httpx2.Client, query: dict[str, Any], status: int) -> None:
    assert client.get("/v1/tools", params=query).status_code == status
