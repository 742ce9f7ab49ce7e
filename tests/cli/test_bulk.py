"""Cancel, retry and resume of all jobs that options select: the question, the calls, the exit code."""

import json
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from tests.cli.command_line import JOB_ID, CommandLine, ScriptedAnswer, ScriptedService, job_json

AS_OF = "2026-01-01T00:00:00.000000Z"
OTHER_ID = "0123456789ab"


def item(job_id: str = JOB_ID, state: str = "queued", error: dict[str, str] | None = None) -> dict[str, Any]:
    return {
        "object": "bulk_item",
        "id": job_id,
        "state": state,
        "run": 1,
        "title": "A title\x1b[31m",
        "agent": "claude",
        "workspace": None,
        "api_key_id": "k_1",
        "error": error,
    }


def answer(*items: dict[str, Any], cursor: str | None = None, **fields: Any) -> ScriptedAnswer:
    failed = sum(1 for each in items if each["error"])
    body = {
        "object": "list",
        "data": list(items),
        "has_more": cursor is not None,
        "next_cursor": cursor,
        "dry_run": False,
        "as_of": AS_OF,
        "matched": len(items),
        "changed": len(items) - failed,
        "failed": failed,
        "stopped": None,
    }
    return ScriptedAnswer.of(body | fields)


def bodies(service: ScriptedService, path: str) -> list[dict[str, Any]]:
    return [request.body for request in service.requests if request.path == path]


@pytest.mark.parametrize("operation", ["cancel", "retry", "resume"])
def test_options_become_the_filter_and_all_pages_are_asked_for(
    steadyhand: CommandLine, service: ScriptedService, operation: str
) -> None:
    path = f"/v1/jobs/{operation}"
    service.respond("POST", path, answer(item(), cursor="next"), answer(item(OTHER_ID)))
    options = (
        "--state",
        "queued",
        "--state",
        "failed",
        "--agent",
        "a",
        "--workspace",
        "w",
        "--search",
        "parser",
    )
    ran = steadyhand(operation, *options, "--metadata", "n=1", "--since", "2026-01-31", "--yes", "--json")
    assert ran.code == 0, ran.err
    selection = {
        "state": ["queued", "failed"],
        "agent": "a",
        "workspace": "w",
        "q": "parser",
        "metadata": {"n": "1"},
        "created_after": "2026-01-31T00:00:00Z",
    }
    assert bodies(service, path) == [selection, selection | {"as_of": AS_OF, "cursor": "next"}]
    result = json.loads(ran.out)
    assert [each["id"] for each in result["data"]] == [JOB_ID, OTHER_ID]
    assert (result["matched"], result["changed"], result["failed"]) == (2, 2, 0)


def test_a_resume_of_many_takes_a_prompt_and_a_budget(
    steadyhand: CommandLine, service: ScriptedService
) -> None:
    service.respond("POST", "/v1/jobs/resume", answer(item()))
    assert steadyhand("resume", "--all", "--prompt", "Go on.", "--budget", "10", "-y").code == 0
    assert bodies(service, "/v1/jobs/resume") == [{"all": True, "prompt": "Go on.", "budget_usd": 10}]


@pytest.mark.parametrize(("typed", "is_changed"), [("y\n", True), ("n\n", False), ("\n", False)])
def test_a_person_sees_the_jobs_and_is_asked_first(
    steadyhand: CommandLine, service: ScriptedService, *, typed: str, is_changed: bool
) -> None:
    service.respond("POST", "/v1/jobs/cancel", answer(item(), dry_run=True), answer(item(state="cancelled")))
    ran = steadyhand.on_terminal("cancel", "--agent", "a", given=typed)
    assert ran.code == 0
    assert JOB_ID in ran.out
    assert "Cancel 1 job (1 queued)? [y/N]" in ran.out
    assert ("1 job changed" in ran.out, "Nothing was changed" in ran.out) == (is_changed, not is_changed)
    # What came since the question is not part of the answer.
    real_calls = [{"agent": "a", "as_of": AS_OF}] if is_changed else []
    assert bodies(service, "/v1/jobs/cancel") == [{"agent": "a", "dry_run": True}, *real_calls]


def test_nobody_is_asked_where_nothing_matches(steadyhand: CommandLine, service: ScriptedService) -> None:
    service.respond("POST", "/v1/jobs/cancel", answer(dry_run=True))
    ran = steadyhand("cancel", "--agent", "a")
    assert (ran.code, ran.out) == (0, "")
    assert "cancel would change 0 jobs." in ran.err
    assert len(bodies(service, "/v1/jobs/cancel")) == 1


def test_without_a_terminal_it_needs_yes_and_a_dry_run_does_not(
    steadyhand: CommandLine, service: ScriptedService
) -> None:
    reason = {"code": "invalid_state", "detail": "The job has left no session to resume; retry it."}
    planned = answer(item(state="failed"), item(OTHER_ID, "failed", reason), dry_run=True)
    service.respond("POST", "/v1/jobs/resume", planned)
    ran = steadyhand("resume", "--state", "failed")
    assert (ran.code, ran.out) == (2, "")
    assert "resume of 1 job needs --yes" in ran.err
    ran = steadyhand("resume", "--state", "failed", "--dry-run")
    assert ran.code == 0
    assert "no session to resume" in ran.out
    assert "\x1b" not in ran.out + ran.err
    assert "would not change 1 job" in ran.err
    assert json.loads(steadyhand("resume", "--all", "--dry-run", "--json").out)["failed"] == 1
    assert all(body["dry_run"] for body in bodies(service, "/v1/jobs/resume"))


def test_a_job_that_could_not_be_changed_is_named_and_makes_the_exit_code_1(
    steadyhand: CommandLine, service: ScriptedService
) -> None:
    reason = {"code": "invalid_state", "detail": "The job is completed by now."}
    service.respond("POST", "/v1/jobs/cancel", answer(item(), item(OTHER_ID, error=reason)))
    ran = steadyhand("cancel", "--all", "--yes")
    assert (ran.code, ran.out) == (1, "")
    assert f"{OTHER_ID}  invalid_state: The job is completed by now.\n" in ran.err
    assert "cancel: 1 job changed, 1 failed." in ran.err


def test_a_call_that_stopped_is_told_and_makes_the_exit_code_75(
    steadyhand: CommandLine, service: ScriptedService
) -> None:
    stop = {"code": "rate_limited", "detail": "Too often.", "retry_after": 31}
    stopped = answer(item(), has_more=True, stopped=stop)
    service.respond("POST", "/v1/jobs/retry", stopped)
    ran = steadyhand("retry", "--agent", "a", "--yes")
    assert ran.code == 75
    assert "Too often." in ran.err
    assert "in 31 s" in ran.err
    assert len(bodies(service, "/v1/jobs/retry")) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ("cancel",),
        ("retry", "--yes"),
        ("cancel", JOB_ID, "--state", "queued"),
        ("resume", JOB_ID, "--all"),
        ("retry", JOB_ID, "--dry-run"),
        ("retry", "--agent", "a", "--after-run", "1", "--yes"),
        ("resume", JOB_ID, "one", "--prompt", "two"),
        ("cancel", "--metadata", "n", "--yes"),
        ("cancel", "--since", "soon", "--yes"),
    ],
)
def test_a_command_without_one_clear_target_changes_nothing(
    steadyhand: CommandLine, service: ScriptedService, arguments: tuple[str, ...]
) -> None:
    ran = steadyhand(*arguments)
    assert (ran.code, ran.out) == (2, "")
    assert [request for request in service.requests if request.method == "POST"] == []


def test_a_key_is_found_by_its_name(steadyhand: CommandLine, service: ScriptedService) -> None:
    keys = {"object": "list", "data": [{"id": "k_7", "name": "nightly", "revoked_at": None}]}
    service.respond("GET", "/v1/keys", ScriptedAnswer.of(keys))
    service.respond("POST", "/v1/jobs/cancel", answer(item()))
    assert steadyhand("cancel", "--key", "nightly", "--yes").code == 0
    assert bodies(service, "/v1/jobs/cancel") == [{"api_key": "k_7"}]


def test_one_job_is_changed_by_its_id_as_before(steadyhand: CommandLine, service: ScriptedService) -> None:
    service.respond("POST", f"/v1/jobs/{JOB_ID}/resume", ScriptedAnswer.of(job_json(state="queued"), 202))
    page = {"object": "list", "data": [job_json()], "has_more": False, "next_cursor": None}
    service.respond("GET", "/v1/jobs", ScriptedAnswer.of(page))
    assert (
        "asked to go on" in steadyhand("resume", JOB_ID[:6], "More.", "--budget", "2", "--after-run", "1").err
    )
    assert bodies(service, f"/v1/jobs/{JOB_ID}/resume") == [
        {"prompt": "More.", "budget_usd": 2, "after_run": 1}
    ]
    listed = next(request for request in service.requests if request.method == "GET")
    assert parse_qs(urlsplit(listed.path).query)["id_prefix"] == [JOB_ID[:6]]


def test_a_real_service_cancels_and_runs_again_what_the_options_select(live: CommandLine) -> None:
    batch = ("--metadata", "batch=of-this-test")
    prompt = '[[standin: text="Done." cost=0.01]]'
    job_ids = [json.loads(live("run", "--json", *batch, prompt).out)["id"] for _ in range(2)]
    assert json.loads(live("cancel", *batch, "--dry-run", "--json").out)["matched"] == 0
    ran = live("retry", *batch, "--state", "completed", "--yes", "--json")
    assert ran.code == 0, ran.err
    assert [each["id"] for each in json.loads(ran.out)["data"]] == job_ids[::-1]
    for job_id in job_ids:
        assert live("wait", job_id).out == "Done.\n"
        assert json.loads(live("show", job_id, "--json").out)["run"] == 2
