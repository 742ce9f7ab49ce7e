"""The page of tools: calls, failures and times, by agent, key and job."""

import asyncio
import re
from collections.abc import Iterator

import pytest
from tests.api.api_service import LIMITED, RunningService, run_job
from tests.web.page_client import PageClient

from steadyhand.testing.contracts.store.sampling import tool_call


@pytest.fixture
def mine(service: RunningService) -> Iterator[tuple[PageClient, list[str]]]:
    """A browser of a key, with two jobs that have called tools."""
    with service.client() as admin:
        fields = {"name": "tools", "scopes": ["submit", "read"]}
        secret = admin.post("/v1/keys", json=fields).json()["secret"]
    with service.client(secret) as client:
        jobs = [run_job(client, "say x", agent=agent)["id"] for agent in ("claude", "dear")]
    first = [*tool_call("t1", "Bash"), *tool_call("t2", "Bash", failed=True), *tool_call("t3", "<b>Read")]
    for job_id, drafts in zip(jobs, (first, tool_call("t1", "Bash", finished=False)), strict=True):
        storing = service.store.append_events(job_id, drafts)
        asyncio.run_coroutine_threadsafe(storing, service.loop).result(20)
    with PageClient(service) as page:
        page.sign_in(secret)
        yield page, jobs


def rows(text: str) -> list[list[str]]:
    """Return the cells of each row of the table."""
    body = text.partition("<tbody>")[2].partition("</tbody>")[0]
    return [
        [
            " ".join(re.sub(r"<[^>]+>", " ", cell).split())
            for cell in re.findall(r"<td.*?</td>", row, re.DOTALL)
        ]
        for row in body.split("</tr>")[:-1]
    ]


def test_calls_of_tools_are_counted_with_failures_and_times(mine: tuple[PageClient, list[str]]) -> None:
    page, jobs = mine
    text = page.get("/ui/tools").text
    found = rows(text)
    assert [row[:4] for row in found] == [["Bash", "3", "1 33 %", "1"], ["&lt;b&gt;Read", "1", "0", "0"]]
    assert all(row[5] != "—" for row in found)
    assert "this key sees: 2." in text
    by_agent = rows(page.get("/ui/tools?by=agent").text)
    assert [row[:3] for row in by_agent] == [
        ["Bash", "claude", "2"],
        ["&lt;b&gt;Read", "claude", "1"],
        ["Bash", "dear", "1"],
    ]
    assert rows(page.get("/ui/tools?agent=dear").text) == [["Bash", "1", "0", "1", by_agent[2][5], "—"]]
    by_job = page.get("/ui/tools?by=job").text
    assert {row[1] for row in rows(by_job)} == set(jobs)
    assert f'href="/ui/jobs/{jobs[0]}"' in by_job
    assert [row[1] for row in rows(page.get("/ui/tools?by=api_key").text)] == ["tools", "tools"]


def test_the_pages_of_a_job_and_of_agents_lead_there(mine: tuple[PageClient, list[str]]) -> None:
    page, jobs = mine
    assert f'href="/ui/tools?job={jobs[1]}"' in page.get(f"/ui/jobs/{jobs[1]}").text
    assert [row[:2] for row in rows(page.get(f"/ui/tools?job={jobs[1]}").text)] == [["Bash", "1"]]
    assert 'href="/ui/tools?agent=dear"' in page.get("/ui/agents").text


def test_a_key_sees_the_calls_of_its_own_jobs_alone(
    service: RunningService, mine: tuple[PageClient, list[str]]
) -> None:
    _, jobs = mine
    with PageClient(service) as other:
        other.sign_in(LIMITED)
        for query in (f"job={jobs[0]}", "job=nonsense"):
            text = other.get(f"/ui/tools?{query}").text
            assert "Job not found" in text
            assert rows(text) == []
        assert "&lt;b&gt;Read" not in other.get("/ui/tools").text
