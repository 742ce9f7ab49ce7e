"""Cancel, retry and resume of many jobs: their number first, then what was done and what is left, and why."""

import html
import re
from collections.abc import Mapping
from typing import Any

import pytest
from tests.api.api_service import LIMITED, OTHER, RunningService, run_job, wait_until
from tests.web.page_client import PageClient

from steadyhand.web import bulk_page
from steadyhand.web.list_filter import ListFilter

_HIDDEN = re.compile(r'<input type="hidden" name="(\w+)" value="([^"]*)">')


def run(service: RunningService, prompt: str, **fields: Any) -> str:
    with service.client() as client:
        return str(run_job(client, prompt, **fields)["id"])


def submit(service: RunningService, prompt: str, token: str | None = None, **fields: Any) -> str:
    with service.client() if token is None else service.client(token) as client:
        return str(client.post("/v1/jobs", json={"prompt": prompt, **fields}).json()["id"])


def states(service: RunningService, *ids: str) -> list[str]:
    with service.client() as client:
        return [client.get(f"/v1/jobs/{each}").json()["state"] for each in ids]


def form_of(text: str) -> dict[str, str]:
    """Return the hidden fields of the form that does it."""
    found = re.search(r'<form[^>]*method="post" action="/ui/jobs/bulk">(.*?)</form>', text, re.DOTALL)
    assert found is not None, text
    return {name: html.unescape(value) for name, value in _HIDDEN.findall(found[1])}


def apply(page: PageClient, text: str, **more: str) -> str:
    answer = page.http.post("/ui/jobs/bulk", data={**form_of(text), **more})
    assert answer.status_code == 200, answer.text
    return answer.text


def heading(text: str) -> str:
    found = re.search(r"<h1>(.*?)</h1>", text, re.DOTALL)
    assert found is not None
    return html.unescape(found[1])


def cancel_all(service: RunningService, *ids: str) -> None:
    with service.client() as client:
        for each in ids:
            client.post(f"/v1/jobs/{each}/cancel")
        wait_until(lambda: not {"running", "queued"} & set(states(service, *ids)))


def test_jobs_of_a_filter_are_counted_first_and_then_cancelled(
    service: RunningService, page: PageClient
) -> None:
    ended = run(service, "say walrus ended")
    jobs = [submit(service, f"hold walrus {number}") for number in range(4)]
    wait_until(lambda: states(service, *jobs).count("running") == 2)
    other = submit(service, "hold seal")
    text = page.get("/ui/jobs/bulk?action=cancel&of=all&q=walrus").text
    assert heading(text) == "Cancel 4 jobs?"
    assert "<bdi>words walrus</bdi>" in text
    assert "2 queued, 2 running" in text
    assert "cancelled" not in states(service, *jobs)  # nothing has happened
    late = submit(service, "hold walrus late")
    assert heading(apply(page, text)) == "4 jobs cancelled"
    wait_until(lambda: states(service, *jobs) == ["cancelled"] * 4)
    assert states(service, ended) == ["completed"]
    assert "cancelled" not in states(service, other, late)
    assert heading(apply(page, text)) == "0 jobs cancelled"  # a form that is sent twice
    cancel_all(service, other, late)


def test_selected_jobs_are_retried_once_and_those_that_cannot_be_are_named(
    service: RunningService, page: PageClient
) -> None:
    failed, completed = run(service, "fail otter"), run(service, "say otter")
    left_alone, held = run(service, "fail otter too"), submit(service, "hold otter")
    query = "&".join(f"job={each}" for each in (failed, completed, held, "0" * 12))
    text = page.get(f"/ui/jobs/bulk?action=retry&of=selected&q=otter&{query}").text
    assert heading(text) == "Retry 2 jobs?"
    assert "2 jobs of those that were selected are left" in text
    assert heading(apply(page, text)) == "2 jobs queued again"
    assert heading(apply(page, text)) == "0 jobs queued again"
    with service.client() as client:

        def has_run(job_id: str) -> int:
            return int(client.get(f"/v1/jobs/{job_id}").json()["run"])

        wait_until(lambda: has_run(failed) == has_run(completed) == 2)
        assert has_run(left_alone) == 1
    cancel_all(service, held)


def test_jobs_are_resumed_with_a_message_and_a_budget_and_the_rest_says_why_not(
    service: RunningService, page: PageClient
) -> None:
    good, gone = run(service, "fail heron <b>one</b>"), run(service, "fail heron two")
    service.checkouts.job_paths(gone).config_dir.rmdir()  # its session
    text = page.get("/ui/jobs/bulk?action=resume&of=all&state=failed&q=heron").text
    assert heading(text) == "Resume 1 job?"
    assert "<h2>1 job cannot be changed so</h2>" in text
    assert f'href="/ui/jobs/{gone}"' in text
    assert "&lt;b&gt;one&lt;/b&gt;" in text
    done = apply(page, text, prompt="go on, herons", budget_usd="$3")
    assert heading(done) == "1 job resumed"
    with service.client() as client:
        job = wait_until(
            lambda: (found := client.get(f"/v1/jobs/{good}").json())["state"] == "failed" and found
        )
    assert (job["run"], job["budget_usd"]) == (2, "3.000000")
    assert service.runner.specs[-1].continue_prompt == "go on, herons"


def test_more_jobs_than_one_request_changes_are_left_for_a_form_of_their_own(
    service: RunningService, page: PageClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk_page, "_PAGE", 2)
    monkeypatch.setattr(bulk_page, "MAX_CHANGED", 2)
    monkeypatch.setattr(bulk_page, "MAX_COUNTED", 4)
    jobs = [submit(service, f"hold heap {number}") for number in range(5)]
    text = page.get("/ui/jobs/bulk?action=cancel&of=all&q=heap").text
    assert heading(text) == "Cancel 4 or more jobs?"
    done = [apply(page, text)]
    while "Go on with the rest" in done[-1]:
        done.append(apply(page, done[-1]))
    assert [heading(each) for each in done] == ["2 jobs cancelled", "2 jobs cancelled", "1 job cancelled"]
    wait_until(lambda: states(service, *jobs) == ["cancelled"] * 5)


def test_a_limit_of_the_key_stops_it_and_the_rest_can_be_done_later(service: RunningService) -> None:
    with service.client() as admin:
        body = {"name": "slow", "limits": {"requests_per_minute": 3}}
        secret = admin.post("/v1/keys", json=body).json()["secret"]
    jobs = [submit(service, f"fail stoat {number}", secret) for number in range(3)]
    wait_until(lambda: states(service, *jobs) == ["failed"] * 3)
    with PageClient(service) as client:
        client.sign_in(secret)
        text = client.get("/ui/jobs/bulk?action=retry&of=all&q=stoat").text
        assert heading(text) == "Retry 3 jobs?"
        stopped = apply(client, text)
    assert heading(stopped) == "0 jobs queued again"
    assert "It stopped before its end" in stopped
    assert "Go on with the rest" in stopped
    assert "left as" not in stopped


def test_a_key_changes_only_jobs_that_it_sees_and_needs_the_scope(service: RunningService) -> None:
    own, foreign = submit(service, "hold crane", LIMITED), submit(service, "hold crane", OTHER)
    with service.client() as admin:
        reader = admin.post("/v1/keys", json={"name": "reader", "scopes": ["read"]}).json()["secret"]
    with PageClient(service) as client:
        client.sign_in(LIMITED)
        text = client.get("/ui/jobs/bulk?action=cancel&of=all").text
        assert "There is no filter: these are all jobs that this key may see." in text
        assert own in text
        assert foreign not in text
        chosen = client.get(f"/ui/jobs/bulk?action=cancel&of=selected&job={foreign}").text
        assert heading(chosen) == "Cancel: no job"
        forged = {**form_of(text), "of": "selected", "jobs": foreign}
        assert heading(client.http.post("/ui/jobs/bulk", data=forged).text) == "0 jobs cancelled"
    assert states(service, foreign) != ["cancelled"]
    with PageClient(service) as client:
        client.sign_in(reader)
        assert 'id="bulk"' not in client.get("/ui/jobs").text
        for action in ("cancel", "retry", "resume"):
            assert client.get(f"/ui/jobs/bulk?action={action}&of=all").status_code == 403
    cancel_all(service, own, foreign)


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("action=delete&of=all", "has to be cancel, retry or resume"),
        ("action=cancel&of=all&state=completed", "has none of the states"),
        ("action=cancel&of=all&since=tomorrow", "has to be a day"),
        ("action=cancel&of=selected&job=../x", "Job not found"),
        ("action=cancel&of=selected", "No job is selected."),
    ],
)
def test_what_cannot_be_done_says_so_and_has_no_form(page: PageClient, query: str, says: str) -> None:
    text = page.get(f"/ui/jobs/bulk?{query}").text
    assert says in text
    assert 'action="/ui/jobs/bulk"' not in text


@pytest.mark.parametrize(
    ("changed", "status"),
    [
        ({"csrf": "x"}, 403),
        ({"as_of": ""}, 422),
        ({"as_of": "yesterday"}, 422),
        ({"cursor": "zzz"}, 422),
        ({"jobs": "not-an-id", "of": "selected"}, 404),
        ({"filter": "&".join("state=x" for _ in range(200))}, 422),
    ],
)
def test_a_form_that_was_changed_on_its_way_changes_nothing(
    service: RunningService, page: PageClient, changed: Mapping[str, str], status: int
) -> None:
    job_id = submit(service, "hold forged")
    form = form_of(page.get("/ui/jobs/bulk?action=cancel&of=all&q=forged").text)
    assert page.http.post("/ui/jobs/bulk", data={**form, **changed}).status_code == status
    assert states(service, job_id) != ["cancelled"]
    cancel_all(service, job_id)


def test_a_filter_is_the_same_in_a_url_and_in_words() -> None:
    query = "state=failed&state=error&agent=a+b&q=%22x%26y%22&unknown=1&until=2026-01-02"
    found = ListFilter.from_query(query)
    assert ListFilter.from_query(found.query) == found
    assert found.words == 'state failed or error, agent a b, to 2026-01-02, words "x&y"'
    assert ListFilter.from_query("").words == ""
