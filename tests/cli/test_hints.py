"""Names for ids, what a job that hangs is doing, and the next step where it is known."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.cli.command_line import JOB_ID, CommandLine, ScriptedAnswer, ScriptedService, event_json, job_json

from steadyhand.api.examples import examples

JOB = f"/v1/jobs/{JOB_ID}"
KEY_ID = "k_7h2m4q9x1z"


def a_list(*rows: Any) -> ScriptedAnswer:
    return ScriptedAnswer.of({"object": "list", "data": list(rows), "has_more": False, "next_cursor": None})


@pytest.fixture
def named_keys(service: ScriptedService) -> ScriptedService:
    key = examples()["KEY"] | {"id": KEY_ID, "name": "ci"}
    return service.respond("GET", "/v1/keys", a_list(key))


def test_jobs_of_http_callers_have_a_title_and_the_name_of_their_key(
    steadyhand: CommandLine, named_keys: ScriptedService
) -> None:
    job = job_json(title=None, api_key_id=KEY_ID, prompt_start="Fix the failing test.")
    del job["prompt"]
    named_keys.respond("GET", "/v1/jobs", a_list(job))
    head, row = steadyhand("jobs").out.splitlines()
    assert head.split() == ["ID", "STATE", "AGENT", "KEY", "AGE", "TIME", "COST", "TITLE"]
    assert row.split()[3] == "ci"
    assert row.endswith("Fix the failing test.")


@pytest.mark.parametrize("given", ["ci", KEY_ID, "7h2"])
def test_jobs_are_filtered_by_key(steadyhand: CommandLine, named_keys: ScriptedService, given: str) -> None:
    named_keys.respond("GET", "/v1/jobs", a_list())
    assert steadyhand("jobs", "--key", given).code == 0
    assert f"api_key={KEY_ID}" in named_keys.requests[-1].path


def test_without_the_right_to_list_keys_their_ids_are_shown_and_taken(
    steadyhand: CommandLine, service: ScriptedService
) -> None:
    service.respond("GET", "/v1/keys", ScriptedAnswer.problem(403, "scope_missing", "Not allowed."))
    service.respond("GET", "/v1/jobs", a_list(job_json(api_key_id=KEY_ID)))
    ran = steadyhand("jobs", "--key", KEY_ID)
    assert (ran.code, ran.err) == (0, "")
    assert KEY_ID in ran.out


def test_usage_by_key_has_names_for_ids(steadyhand: CommandLine, named_keys: ScriptedService) -> None:
    row = examples()["USAGE"]["data"][0] | {"api_key_id": KEY_ID}
    named_keys.respond("GET", "/v1/usage", a_list(row, row | {"api_key_id": "k_gone"}))
    head, first, second = steadyhand("usage", "--by", "api_key", "--since", "yesterday").out.splitlines()
    assert (head.split()[0], first.split()[0], second.split()[0]) == ("KEY", "ci", "k_gone")
    rows = json.loads(steadyhand("usage", "--by", "api_key", "--json").out)["data"]
    assert [each["api_key_id"] for each in rows] == [KEY_ID, "k_gone"]
    assert steadyhand("usage", "--api-key", "ci").code == 0
    assert f"api_key={KEY_ID}" in named_keys.requests[-1].path


def test_a_wait_takes_a_time_with_a_unit(steadyhand: CommandLine, service: ScriptedService) -> None:
    service.respond("GET", JOB, ScriptedAnswer.of(job_json()))
    assert steadyhand("wait", JOB_ID, "--timeout", "2m").code == 0
    assert service.requests[-1].headers["prefer"] == "wait=30"
    for wrong in ("soon", "-1"):
        assert steadyhand("wait", JOB_ID, f"--timeout={wrong}").code == 2


@pytest.mark.parametrize("command", [("show", JOB_ID), ("wait", JOB_ID), ("run", "x")])
def test_an_interrupted_job_has_the_command_that_resumes_it(
    steadyhand: CommandLine, service: ScriptedService, command: tuple[str, ...]
) -> None:
    ended = job_json(state="interrupted", outcome={"type": "interrupted", "detail": None})
    service.respond("GET", JOB, ScriptedAnswer.of(ended))
    service.respond("POST", "/v1/jobs", ScriptedAnswer.of(ended, 202))
    end = event_json(1, "state.changed", **{"from": "running", "to": "interrupted", "outcome": "interrupted"})
    service.respond("GET", f"{JOB}/events", ScriptedAnswer.stream(end))
    ran = steadyhand(*command)
    assert f"steadyhand resume {JOB_ID}" in ran.err
    completed = ScriptedAnswer.of(job_json())
    assert (
        "steadyhand resume"
        not in steadyhand(*command, STEADYHAND_URL=service.respond("GET", JOB, completed).url).err
    )


def test_a_job_that_the_service_runs_again_needs_no_command(
    steadyhand: CommandLine, service: ScriptedService
) -> None:
    ended = job_json(
        state="interrupted", outcome={"type": "interrupted", "detail": None}, will_run_again=True
    )
    service.respond("GET", JOB, ScriptedAnswer.of(ended))
    assert "the next start of the service runs it again" in steadyhand("show", JOB_ID).err
    service.respond("GET", JOB, ScriptedAnswer.of(ended), ScriptedAnswer.of(job_json()))
    waited = steadyhand("wait", JOB_ID)
    assert (waited.code, waited.out) == (0, "Hello.\n")


def a_hanging_job(service: ScriptedService) -> None:
    now = datetime.now(UTC)
    started, silent = now - timedelta(minutes=20), now - timedelta(minutes=7)
    job = job_json(
        state="running",
        outcome=None,
        started_at=started.isoformat(),
        finished_at=None,
        answer=None,
        timeout_seconds=2700,
        idle_timeout_seconds=600,
        last_event=3,
    )
    events = [
        event_json(1, "state.changed", **{"from": "queued", "to": "running"}) | {"at": started.isoformat()},
        event_json(2, "phase", phase="setup", detail="npm ci") | {"at": started.isoformat()},
        event_json(3, "tool.started", tool_id="t", name="Bash", input={"command": "sleep 9"})
        | {"at": silent.isoformat()},
    ]
    service.respond("GET", JOB, ScriptedAnswer.of(job))
    service.respond("GET", f"{JOB}/events", a_list(*events))


def test_show_tells_what_a_job_that_hangs_is_doing(steadyhand: CommandLine, service: ScriptedService) -> None:
    a_hanging_job(service)
    shown = {
        line.split("  ")[0].strip(): " ".join(line.split())
        for line in steadyhand("show", JOB_ID).out.splitlines()
    }
    assert shown["phase"] == "phase setup: npm ci (20m ago)"
    assert shown["last event"] == "last event tool.started (7m ago)"
    assert shown["idle limit"] == "idle limit 10m 00s"
    assert shown["deadline"].startswith("deadline in 2")
    logs = steadyhand("logs", JOB_ID)
    assert "last event: tool.started (7m ago)" in logs.err
    assert "phase" not in json.loads(steadyhand("show", JOB_ID, "--json").out)


def test_logs_that_are_followed_begin_with_what_the_job_is_doing(
    steadyhand: CommandLine, service: ScriptedService
) -> None:
    a_hanging_job(service)
    # The first request for events is for a page, the second for the stream.
    answers = [a_list(event_json(3, "phase", phase="fetching", detail=None))]
    answers.append(
        ScriptedAnswer.stream(event_json(4, "state.changed", **{"from": "running", "to": "completed"}))
    )
    service.respond("GET", f"{JOB}/events", *answers)
    followed = steadyhand("logs", "-f", JOB_ID)
    assert "phase: fetching" in followed.err
    assert "idle limit: 10m 00s" in followed.err


def test_timestamps_stand_before_each_event(steadyhand: CommandLine, service: ScriptedService) -> None:
    service.respond("GET", JOB, ScriptedAnswer.of(job_json()))
    stream = [
        event_json(1, "phase", phase="fetching", detail=None),
        event_json(None, "text.delta", message_id="m", text="Hel"),
        event_json(2, "message", role="assistant", text="Hello."),
        event_json(3, "state.changed", **{"from": "running", "to": "completed", "outcome": "success"}),
    ]
    service.respond("GET", f"{JOB}/events", ScriptedAnswer.stream(*stream))
    lines = steadyhand("logs", "-f", "--timestamps", JOB_ID).out.splitlines()
    assert lines == ["2026-01-01T00:00:01Z  fetching", "2026-01-01T00:00:01Z  Hello."]
    assert steadyhand("logs", "-f", JOB_ID).out.splitlines() == ["fetching", "Hello."]


def test_a_file_here_names_the_service_and_a_file_by_name_wins(
    steadyhand: CommandLine, service: ScriptedService
) -> None:
    service.respond("GET", "/v1/jobs", a_list())
    port = service.url.rpartition(":")[2]
    del steadyhand.env["STEADYHAND_URL"]
    (steadyhand.home / "steadyhand.toml").write_text(f"[server]\nport = {port}\n")
    assert steadyhand("jobs").code == 0
    (steadyhand.home / "steadyhand.toml").write_text("[server]\nhost = 'evil.example.org'\nport = 9\n")
    (steadyhand.home / "named.toml").write_text(f"[server]\nport = {port}\n")
    assert steadyhand("--config", "named.toml", "jobs").code == 0
    assert steadyhand("jobs", STEADYHAND_CONFIG="named.toml").code == 0
    assert steadyhand("--config", "none.toml", "jobs").code == 2


def test_what_the_system_refuses_is_one_line_and_no_traceback(steadyhand: CommandLine) -> None:
    too_long = "x" * 300
    for arguments in (("run", "--repo", f"./{too_long}", "x"), ("doctor", "--data-dir", f"/{too_long}")):
        ran = steadyhand.run_process(*arguments)
        assert ran.code in {1, 2}
        assert "File name too long" in ran.out + ran.err
        assert "Traceback" not in ran.out + ran.err


def test_the_template_of_the_settings_is_printed(steadyhand: CommandLine) -> None:
    ran = steadyhand("config", "--template")
    assert ran.code == 0
    assert "#: concurrency = 4" in ran.out


@pytest.mark.parametrize("published", [True, False])
@pytest.mark.parametrize("command", [("show", JOB_ID), ("wait", JOB_ID), ("run", "x")])
def test_the_branch_of_a_job_is_said_and_that_it_is_pushed_or_not(
    steadyhand: CommandLine, service: ScriptedService, command: tuple[str, ...], *, published: bool
) -> None:
    changes = {"files": 2, "insertions": 1, "deletions": 0, "branch": f"steadyhand/{JOB_ID}"}
    ended = job_json(changes=changes | {"published": published})
    service.respond("GET", JOB, ScriptedAnswer.of(ended))
    service.respond("POST", "/v1/jobs", ScriptedAnswer.of(ended, 202))
    end = event_json(1, "state.changed", **{"from": "running", "to": "completed"})
    service.respond("GET", f"{JOB}/events", ScriptedAnswer.stream(end))
    ran = steadyhand(*command)
    words = " ".join((ran.out + ran.err).split())
    state = "pushed" if published else "not pushed"
    assert f"branch steadyhand/{JOB_ID} {state}" in words
    # A job that was not asked for a branch has no word of one.
    service.respond("GET", JOB, ScriptedAnswer.of(job_json(changes=changes | {"branch": None})))
    assert "branch" not in steadyhand("show", JOB_ID).out
