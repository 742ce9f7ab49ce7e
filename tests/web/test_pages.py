"""The lists and the page of a job: filters, scopes, figures, forms, files."""

import html
import re
from typing import Any

import pytest
from tests.api.api_service import LIMITED, OTHER, RunningService, run_job, wait_until
from tests.web.page_client import PageClient

from steadyhand.events import Message, Thinking, ToolFinished, ToolStarted
from steadyhand.job import Cost
from steadyhand.ports import Emit
from steadyhand.web.renderer import cost_text


def submit(service: RunningService, prompt: str, *, token: str | None = None, **fields: Any) -> str:
    with service.client() if token is None else service.client(token) as client:
        answer = client.post("/v1/jobs", json={"prompt": prompt, **fields})
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])


def listed(page: PageClient, query: str) -> set[str]:
    answer = page.get(f"/ui/jobs?{query}")
    assert answer.status_code == 200
    return set(re.findall(r'href="/ui/jobs/([0-9a-f]{12})"', answer.text))


def run_as(service: RunningService, prompt: str, token: str | None = None, **fields: Any) -> str:
    with service.client() if token is None else service.client(token) as client:
        return str(run_job(client, prompt, **fields)["id"])


def test_filters_compose_and_live_in_the_url(service: RunningService, page: PageClient) -> None:
    good = run_as(service, "say zebra one")
    bad = run_as(service, "fail zebra two")
    dear = run_as(service, "say zebra three", agent="dear")
    infra = run_as(service, "say zebra four", workspace="infra")
    assert {good, bad, dear, infra} <= listed(page, "q=zebra")
    assert listed(page, "q=zebra&state=failed") == {bad}
    assert {bad, good} <= listed(page, "q=zebra&state=failed&state=completed")
    assert listed(page, "q=zebra&agent=dear&state=completed") == {dear}
    assert listed(page, "q=zebra&workspace=infra") == {infra}
    assert listed(page, "q=zebra&key=k_other") == set()
    assert listed(page, "q=zebra&since=2999-01-01") == set()
    assert good in listed(page, "q=zebra&until=2999-01-01")
    text = page.get("/ui/jobs?q=zebra&state=failed&agent=dear").text
    assert 'value="zebra"' in text
    assert 'value="failed" checked' in text
    assert 'value="dear"' in text


def test_the_runner_stands_beside_an_agent_of_another_name(service: RunningService, page: PageClient) -> None:
    beside = re.compile(r"<bdi>(\w+)</bdi>(?:</b>)? <span class=\"dim\">claude</span>")
    assert beside.findall(page.get(f"/ui/jobs/{run_as(service, 'say so', agent='dear')}").text) == ["dear"]
    assert beside.findall(page.get(f"/ui/jobs/{run_as(service, 'say so')}").text) == []
    named = beside.findall(page.get("/ui/agents").text)
    assert "dear" in named
    assert "claude" not in named


@pytest.mark.parametrize(("query", "says"), [("since=tomorrow", "has to be a day"), ("cursor=zzz", "cursor")])
def test_a_wrong_filter_says_so_and_keeps_the_form(page: PageClient, query: str, says: str) -> None:
    answer = page.get(f"/ui/jobs?{query}&q=zebra")
    assert answer.status_code == 200
    assert says in answer.text
    assert 'value="zebra"' in answer.text


def test_older_jobs_are_on_further_pages(service: RunningService, page: PageClient) -> None:
    made = {submit(service, "say pages", title=f"pages {number}") for number in range(55)}
    first = page.get("/ui/jobs?q=pages").text
    link = re.search(r'rel="next" href="([^"]+)"', first)
    assert link is not None
    second = page.get(html.unescape(link[1])).text
    found = [set(re.findall(r'href="/ui/jobs/([0-9a-f]{12})"', text)) for text in (first, second)]
    assert (len(found[0]), found[0] & found[1]) == (50, set())
    assert made <= found[0] | found[1]
    assert 'rel="next"' not in second


def test_a_key_sees_its_own_jobs_alone(service: RunningService) -> None:
    own, foreign = run_as(service, "say mine", LIMITED), run_as(service, "say theirs", OTHER)
    with PageClient(service) as client:
        client.sign_in(LIMITED)
        assert own in listed(client, "")
        assert foreign not in client.get("/ui/jobs").text + client.get("/").text
        for path in ("", "/diff", "/head", "/files/diff"):
            expected = 404 if path == "/files/diff" else 200  # it worked in no repository
            assert client.get(f"/ui/jobs/{own}{path}").status_code == expected
            assert client.get(f"/ui/jobs/{foreign}{path}").status_code == 404
        assert client.get(f"/ui/jobs/{foreign}").status_code == 404
        assert client.get(f"/ui/stream?on={foreign}+0").status_code == 404
        for action in ("cancel", "retry", "resume"):
            assert client.send(f"/ui/jobs/{foreign}/{action}").status_code == 404


def test_the_first_page_has_what_runs_and_what_needs_a_look(
    service: RunningService, page: PageClient
) -> None:
    failed = run_as(service, "fail at once")
    running = submit(service, "hold on")
    text = wait_until(lambda: (found := page.get("/").text) and "s-running" in found and found)
    active, needs_a_look = text.partition("Needs a look")[::2]
    assert running in active
    assert failed in needs_a_look
    page.send(f"/ui/jobs/{running}/cancel")


def test_a_job_is_cancelled_from_its_page(service: RunningService, page: PageClient) -> None:
    job_id = submit(service, "hold on")
    wait_until(lambda: "s-running" in page.get(f"/ui/jobs/{job_id}").text)
    assert "Cancel" in page.get(f"/ui/jobs/{job_id}").text
    answer = page.send(f"/ui/jobs/{job_id}/cancel")
    assert (answer.status_code, answer.headers["location"]) == (303, f"/ui/jobs/{job_id}")
    text = wait_until(
        lambda: (found := page.get(f"/ui/jobs/{job_id}").text) and "s-cancelled" in found and found
    )
    assert ">Cancel<" not in text


def test_a_job_is_resumed_with_a_message_and_a_higher_budget_once(
    service: RunningService, page: PageClient
) -> None:
    job_id = run_as(service, "say hello")
    form = {"prompt": "now more", "budget_usd": "$7,50", "after_run": "1"}
    for _ in range(2):  # a double click
        assert page.send(f"/ui/jobs/{job_id}/resume", **form).status_code == 303
    with service.client() as client:
        job = wait_until(
            lambda: (found := client.get(f"/v1/jobs/{job_id}").json())["state"] == "completed" and found
        )
    assert (job["run"], job["budget_usd"]) == (2, "7.500000")
    assert service.runner.specs[-1].continue_prompt == "now more"


def test_a_job_is_retried_once_for_a_form_that_is_sent_twice(
    service: RunningService, page: PageClient
) -> None:
    job_id = run_as(service, "fail first")
    for _ in range(2):
        assert page.send(f"/ui/jobs/{job_id}/retry", after_run="1").status_code == 303
    with service.client() as client:
        job = wait_until(
            lambda: (found := client.get(f"/v1/jobs/{job_id}").json())["state"] == "failed" and found
        )
        assert job["run"] == 2


def test_the_next_turn_is_a_job_of_its_own_and_started_once(
    service: RunningService, page: PageClient
) -> None:
    job_id = run_as(service, "say hello")
    answers = [page.send(f"/ui/jobs/{job_id}/turn", prompt="say again", once="abc") for _ in range(2)]
    assert [answer.status_code for answer in answers] == [303, 303]
    assert answers[0].headers["location"] == answers[1].headers["location"]
    turn = answers[0].headers["location"]
    text = page.get(turn).text
    assert f'href="/ui/jobs/{job_id}"' in text
    assert "Turn after" in text


@pytest.mark.parametrize(
    ("action", "fields", "says"),
    [
        ("resume", {"budget_usd": "a lot"}, "has to be a number"),
        ("resume", {"budget_usd": "-1"}, "greater than 0"),
        ("resume", {"budget_usd": "nan"}, "budget_usd"),
        ("resume", {"after_run": "1e999"}, "has to be a whole number"),
        ("turn", {}, "is required"),
        ("turn", {"prompt": "   "}, "is required"),
    ],
)
def test_a_wrong_field_of_a_form_is_named(
    service: RunningService, page: PageClient, action: str, fields: dict[str, str], says: str
) -> None:
    job_id = run_as(service, "say hello")
    answer = page.send(f"/ui/jobs/{job_id}/{action}", **fields)
    assert answer.status_code == 422
    assert says in answer.text


def test_a_key_without_a_scope_has_no_form_for_it_and_is_refused(service: RunningService) -> None:
    with service.client() as admin:
        reader = admin.post("/v1/keys", json={"name": "reader", "scopes": ["read", "read:all"]}).json()[
            "secret"
        ]
    done, running = run_as(service, "say hello"), submit(service, "hold on")
    with PageClient(service) as client:
        client.sign_in(reader)
        for job_id in (done, running):
            assert "/cancel" not in client.get(f"/ui/jobs/{job_id}").text
            assert "/resume" not in client.get(f"/ui/jobs/{job_id}").text
            for action in ("cancel", "retry", "resume"):
                answer = client.send(f"/ui/jobs/{job_id}/{action}")
                assert answer.status_code == 403, action
                assert "lacks the scope" in answer.text
    with service.client() as admin:
        admin.post(f"/v1/jobs/{running}/cancel")


def test_the_transcript_is_readable_with_results_in_their_calls(
    service: RunningService, page: PageClient
) -> None:
    async def play(emit: Emit) -> None:
        await emit(Thinking("let me see"))
        await emit(Message("assistant", "# Plan\n\nI *fix* `it`."))
        await emit(ToolStarted("t1", "Bash", {"command": "pytest -q", "description": "Run the tests"}))
        await emit(
            ToolFinished(
                "t1", is_error=True, output="\x1b[31m1 failed\x1b[0m", truncated=False, duration_ms=1500
            )
        )
        await emit(ToolStarted("t2", "TodoWrite", {"todos": [{"content": "fix it", "status": "completed"}]}))

    service.runner.play = play
    job_id = run_as(service, "play done")
    text = page.get(f"/ui/jobs/{job_id}").text
    assert '<p class="md-heading">Plan</p>' in text
    assert "<p>I <em>fix</em> <code>it</code>.</p>" in text
    call = text.partition("<b>Bash</b>")[2].partition("</li>")[0]
    assert "Run the tests" in call
    assert '<span class="bad">failed</span>' in call
    assert "1.5 s" in call
    assert ">1 failed</pre>" in call
    assert '<li class="t-done"><span class="hidden">completed: </span><bdi>fix it</bdi></li>' in text
    assert "<summary>Thinking</summary>" in text


def test_a_cost_without_a_price_says_so(service: RunningService, page: PageClient) -> None:
    assert cost_text(Cost(0, "ledger", priced=False)) == "not priced"
    assert cost_text(Cost(1_250_000, "ledger", priced=False)) == "over $1.25"
    assert cost_text(Cost(41)) == "$0.0000"
    assert cost_text(Cost(0)) == "$0.00"
    assert "$0.04" in page.get(f"/ui/jobs/{run_as(service, 'say hello')}").text


def test_the_files_of_an_ended_job_are_downloads(service: RunningService, page: PageClient) -> None:
    job_id = run_as(service, "say hello", workspace="infra")
    for kind, suffix, content in (
        ("diff", "patch", b"diff --git a/a b/a\n"),
        ("transcript", "jsonl", b'{"type":"user"}\n'),
        ("bundle", "bundle", b"# v2 git bundle\n"),
    ):
        answer = page.get(f"/ui/jobs/{job_id}/files/{kind}")
        assert answer.content == content
        assert answer.headers["content-disposition"] == f'attachment; filename="{job_id}.{suffix}"'
    assert page.get(f"/ui/jobs/{job_id}/files/other").status_code == 404
    assert page.get(f"/ui/jobs/{job_id}/diff").status_code == 200


def test_the_request_is_there_to_copy_without_a_key_or_a_credential(
    service: RunningService, page: PageClient
) -> None:
    job_id = run_as(service, 'say it\'s "here"', workspace="infra")
    text = html.unescape(page.get(f"/ui/jobs/{job_id}").text)
    assert "Authorization: Bearer $STEADYHAND_TOKEN" in text
    assert "client.run(" in text
    assert "user:secret" not in text


def test_earlier_events_are_on_further_pages(service: RunningService, page: PageClient) -> None:
    async def play(emit: Emit) -> None:
        for number in range(900):
            await emit(Message("assistant", f"number {number}."))

    service.runner.play = play
    job_id = run_as(service, "play done")
    path, seen = f"/ui/jobs/{job_id}", []
    while path:
        text = page.get(path).text
        seen += re.findall(r"<p>(number \d+)\.</p>", text)
        link = re.search(r'href="([^"]+before=\d+)"', text)
        path = html.unescape(link[1]) if link else ""
    assert sorted(seen) == sorted(f"number {number}" for number in range(900))


@pytest.mark.parametrize(
    "path", ["/ui/jobs/nothex", "/ui/jobs/000000000000", "/ui/jobs/..%2f..", "/ui/jobs/000000000000/diff"]
)
def test_an_unknown_job_is_a_page_that_says_so(page: PageClient, path: str) -> None:
    answer = page.get(path) if "%2f" not in path else page.http.get(path)
    assert answer.status_code == 404


def test_the_document_does_not_list_the_page_and_the_api_has_no_cookie(
    service: RunningService, page: PageClient
) -> None:
    with service.client() as client:
        assert not [path for path in client.get("/openapi.json").json()["paths"] if path.startswith("/ui")]
    assert page.http.get("/v1/jobs").status_code == 401
    assert page.http.post("/v1/jobs", json={"prompt": "say x"}).status_code == 401
