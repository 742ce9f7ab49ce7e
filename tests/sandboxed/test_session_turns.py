"""The next turn in a session: a new job, which knows what was said and finds what was done."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from tests.sandboxed.conftest import CONFIG
from tests.sandboxed.host_inspection import leftover_job_files
from tests.sandboxed.test_resume import levels, started, workspace_of

from steadyhand.testing.service import MakeService, Service, wait_until

FIRST = "[[standin: write=a.txt:one commit=first write=left.txt:more text=done]]"
LOOK = "[[standin: run='cat a.txt left.txt greeting.txt' history]]"


@pytest.fixture(scope="module")
def service(request: pytest.FixtureRequest, make_service_in: MakeService) -> Iterator[Service]:
    """One at each level; shared, so a test leaves no job in it that runs."""
    env = {"STEADYHAND_CONCURRENCY": "3"}
    if request.param == "limited":
        env["STEADYHAND_DEFAULTS__DISK"] = "64M"
    if request.param == "none":
        env["STEADYHAND_ISOLATION"] = "none"
    with make_service_in(env=env, config=CONFIG) as service:
        yield service


def turn(service: Service, job_id: str, prompt: str, status: int = 202, **fields: Any) -> dict[str, Any]:
    answer = service.client.post(f"/v1/jobs/{job_id}/turns", json={"prompt": prompt, **fields})
    assert answer.status_code == status, answer.text
    return dict(answer.json())


def read(service: Service, job_id: str) -> list[str]:
    return [event["data"]["output"] for event in service.events(job_id) if event["type"] == "tool.finished"]


def said(job: dict[str, Any]) -> list[str]:
    return [text for role, text in json.loads(job["answer"]) if role == "user"]


@levels("sealed")
def test_a_turn_is_a_job_that_knows_what_was_said_and_finds_what_was_done(service: Service) -> None:
    first = service.run_job(FIRST, workspace=workspace_of(service), metadata={"a": "b"})
    accepted = turn(service, first["id"], LOOK)
    assert accepted["parent_job_id"] == first["id"]
    assert (accepted["agent"], accepted["workspace"]) == (first["agent"], first["workspace"])
    second = service.wait_until_ended(accepted["id"])
    assert (second["state"], said(second)) == ("completed", [FIRST, LOOK]), (second["error"], service.log)
    assert read(service, second["id"]) == ["onemorehello"]
    assert second["session_id"] == first["session_id"]
    assert (second["commit"], second["changes"]["files"]) == (first["commit"], 2)
    third = service.wait_until_ended(
        service.submit("[[standin: history]]", session=first["session_id"], workspace=workspace_of(service))[
            "id"
        ]
    )
    assert third["parent_job_id"] == second["id"]
    assert said(third) == [FIRST, LOOK, "[[standin: history]]"]
    wait_until(lambda: not leftover_job_files(service), 10)


@levels("sealed")
def test_two_turns_on_one_job_are_two_sessions_from_there_on(service: Service) -> None:
    first = service.run_job(FIRST, workspace=workspace_of(service))
    left, right = (
        turn(service, first["id"], f"[[standin: write=a.txt:{word} history]]") for word in ("left", "right")
    )
    jobs = [service.wait_until_ended(each["id"]) for each in (left, right)]
    assert [said(job)[0] for job in jobs] == [FIRST, FIRST]
    assert [len(said(job)) for job in jobs] == [2, 2]
    ends = [
        service.wait_until_ended(turn(service, job["id"], "[[standin: run='cat a.txt']]")["id"])
        for job in jobs
    ]
    assert [read(service, job["id"]) for job in ends] == [["left"], ["right"]]


@levels("sealed")
def test_a_turn_on_a_job_that_runs_waits_for_its_end(service: Service) -> None:
    script = "[[standin: say=here sleep=4 write=a.txt:one write=left.txt:two text=done]]"
    first = service.submit(script, workspace=workspace_of(service))["id"]
    started(service, first)
    second = turn(service, first, LOOK)["id"]
    other = service.run_job("[[standin: text=meanwhile]]")
    assert other["answer"] == "meanwhile"
    assert service.get_job(second)["state"] == "queued"
    done = service.wait_until_ended(second)
    assert said(done) == [script, LOOK]
    assert read(service, second) == ["onetwohello"]


@levels("sealed")
def test_what_would_be_another_session_is_refused(service: Service) -> None:
    first = service.run_job(FIRST, workspace=workspace_of(service))
    assert turn(service, first["id"], "x", 422, agent="chat")["code"] == "unknown_field"
    assert turn(service, "0" * 12, "x", 404)["code"] == "not_found"
    answer = service.client.post(
        "/v1/jobs", json={"prompt": "x", "session": first["session_id"], "agent": "chat"}
    )
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == "/agent"
