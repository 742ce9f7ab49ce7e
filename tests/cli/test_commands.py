"""Commands as a user runs them: exit codes, JSON, short ids, hostile text; the service's answers are laid out."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
import typer
from tests.cli.command_line import (
    COMMAND,
    JOB_ID,
    KEY,
    CommandLine,
    ScriptedAnswer,
    ScriptedService,
    event_json,
    job_json,
    read_until,
    wait_until,
)
from typer.core import TyperGroup

from steadyhand.cli.app import app
from steadyhand.testing.example import make_repository

JOB = f"/v1/jobs/{JOB_ID}"
EVENTS = f"{JOB}/events"
ENDED = event_json(9, "state.changed", **{"from": "running", "to": "completed", "outcome": "success"})


def lay_out_run(service: ScriptedService, job: dict[str, object], *events: dict[str, object]) -> None:
    service.respond("POST", "/v1/jobs", ScriptedAnswer.of(job_json(state="queued", answer=None), 202))
    service.respond("GET", EVENTS, ScriptedAnswer.stream(*events, ENDED))
    service.respond("GET", JOB, ScriptedAnswer.of(job))


def ended_as(state: str, outcome: str) -> dict[str, object]:
    error = (
        None
        if state == "completed"
        else {"code": outcome, "message": f"It was {outcome}.", "retryable": False}
    )
    return job_json(state=state, outcome={"type": outcome, "detail": None}, error=error)


OUTCOMES = [
    ("completed", "success", 0),
    ("failed", "agent_error", 1),
    ("failed", "budget", 5),
    ("cancelled", "cancelled", 6),
    ("interrupted", "interrupted", 7),
    ("error", "workspace", 8),
    ("timeout", "timeout", 124),
    ("timeout", "stalled", 124),
]


@pytest.mark.parametrize(("state", "outcome", "code"), OUTCOMES)
def test_run_exits_with_the_code_of_the_job(
    steadyhand: CommandLine, service: ScriptedService, state: str, outcome: str, code: int
) -> None:
    lay_out_run(service, ended_as(state, outcome))
    ran = steadyhand.run_process("run", "Say hello.")
    assert ran.code == code
    assert ran.out == "Hello.\n"
    assert state in ran.err


@pytest.mark.parametrize(("state", "outcome", "code"), OUTCOMES)
def test_wait_and_logs_with_exit_status_exit_with_the_code_of_the_job(
    steadyhand: CommandLine, service: ScriptedService, state: str, outcome: str, code: int
) -> None:
    lay_out_run(service, ended_as(state, outcome))
    assert steadyhand("wait", JOB_ID).code == code
    assert steadyhand("logs", "-f", "--exit-status", JOB_ID).code == code
    assert steadyhand("logs", "-f", JOB_ID).code == 0
    assert steadyhand("show", JOB_ID).code == 0


@pytest.mark.parametrize(
    ("status", "code", "exit_code"),
    [
        (401, "unauthenticated", 4),
        (403, "scope_missing", 4),
        (404, "not_found", 3),
        (409, "invalid_state", 1),
        (422, "invalid_field", 2),
        (429, "queue_full", 75),
        (503, "draining", 75),
        (500, "internal", 9),
    ],
)
def test_an_error_of_the_service_has_its_exit_code_and_one_clear_line(
    steadyhand: CommandLine, service: ScriptedService, status: int, code: str, exit_code: int
) -> None:
    problem = ScriptedAnswer.problem(status, code, "Something is the matter.", retry_after="7")
    service.respond("POST", "/v1/jobs", problem).respond("GET", JOB, problem).respond(
        "GET", "/v1/jobs", problem
    )
    for arguments in (("run", "x"), ("show", JOB_ID), ("wait", JOB_ID), ("jobs", "--json"), ("diff", "3f")):
        ran = steadyhand(*arguments)
        assert (ran.code, ran.out) == (exit_code, "")
        assert ran.err.startswith("steadyhand: ")
        assert "Something is the matter." in ran.err
        assert "Traceback" not in ran.err
        assert len(ran.err.splitlines()) <= 2


def test_a_service_that_fails_is_not_taken_for_something_else(
    steadyhand: CommandLine, service: ScriptedService
) -> None:
    service.respond("GET", JOB, ScriptedAnswer.problem(500, "internal", "The service failed."))
    service.respond("GET", "/v1/jobs", ScriptedAnswer(502, b"bad gateway", "text/plain"))
    failed, foreign = steadyhand("show", JOB_ID), steadyhand("jobs")
    assert "The service has an internal error" in failed.err
    assert "Is that the address of a Steadyhand service?" not in failed.err
    assert "Is that the address of a Steadyhand service?" in foreign.err


def test_each_wrong_field_is_named(steadyhand: CommandLine, service: ScriptedService) -> None:
    faults = [{"pointer": "/ref", "detail": "is bad"}, {"pointer": "/title", "detail": "is long"}]
    service.respond(
        "POST",
        "/v1/jobs",
        ScriptedAnswer.of({"detail": "Two.", "code": "invalid_field", "errors": faults}, 422),
    )
    ran = steadyhand("run", "x")
    assert ran.code == 2
    assert "/ref: is bad" in ran.err
    assert "/title: is long" in ran.err


def test_a_service_that_is_not_there_is_9_and_says_what_to_do(steadyhand: CommandLine) -> None:
    for arguments in (("jobs",), ("run", "x"), ("show", JOB_ID), ("agents",), ("cancel", JOB_ID)):
        ran = steadyhand(*arguments, STEADYHAND_URL="http://127.0.0.1:9")
        assert ran.code == 9
        assert "steadyhand serve" in ran.err
    assert steadyhand("jobs", "--server", "http://127.0.0.1:9").code == 9


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("run", "--nonsense", "x"),
        ("show",),
        ("jobs", "--limit", "0"),
        ("run", "--timeout", "soon", "x"),
        ("run", "--metadata", "novalue", "x"),
        ("run", "--schema", "/no/such/file", "x"),
        ("run", "--repo", "/no/such/directory", "x"),
        ("run", "--repo", ".", "--workspace", "w", "x"),
        ("jobs", "--server", "nonsense"),
    ],
)
def test_what_cannot_be_meant_is_2_and_nothing_is_sent(
    steadyhand: CommandLine, service: ScriptedService, arguments: tuple[str, ...]
) -> None:
    ran = steadyhand(*arguments)
    assert ran.code == 2
    assert ran.err
    assert "Traceback" not in ran.err
    assert service.requests == []


def test_every_option_of_run_reaches_the_service(
    steadyhand: CommandLine, service: ScriptedService, tmp_path: Path
) -> None:
    lay_out_run(service, job_json())
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "object"}')
    ran = steadyhand(
        *("run", "--workspace", "infra", "--agent", "a", "--model", "m", "--ref", "main", "--budget", "1.5"),
        *(
            "--timeout",
            "15m",
            "--title",
            "T",
            "--metadata",
            "k=v=w",
            "--metadata",
            "l=",
            "--schema",
            str(schema),
        ),
        *("--", "--version"),
    )
    assert ran.code == 0
    assert service.requests[0].body == {
        "prompt": "--version",
        "workspace": "infra",
        "agent": "a",
        "model": "m",
        "ref": "main",
        "budget_usd": 1.5,
        "timeout_seconds": 900,
        "title": "T",
        "metadata": {"k": "v=w", "l": ""},
        "output_schema": {"type": "object"},
    }


@pytest.mark.parametrize("arguments", [("run", "-"), ("run",)])
def test_the_prompt_comes_from_stdin_to_the_letter(
    steadyhand: CommandLine, service: ScriptedService, arguments: tuple[str, ...]
) -> None:
    lay_out_run(service, job_json())
    prompt = "  first ☃\nsecond\n" + "x" * 200_000
    assert steadyhand(*arguments, given=prompt).code == 0
    assert service.requests[0].body["prompt"] == prompt
    assert service.requests[0].body["title"] == "first ☃"


def test_a_path_becomes_absolute_and_a_url_stays(steadyhand: CommandLine, service: ScriptedService) -> None:
    lay_out_run(service, job_json())
    make_repository(steadyhand.home)
    for given in (".", "https://git.example.org/a.git", "git@example.org:a.git"):
        assert steadyhand("run", "--repo", given, "x").code == 0
    sent = [asked.body["workspace"] for asked in service.requests if asked.method == "POST"]
    assert sent == [str(steadyhand.home), "https://git.example.org/a.git", "git@example.org:a.git"]


def test_a_path_on_a_remote_service_is_refused_with_the_reason(steadyhand: CommandLine) -> None:
    for option in ("--repo", "--workspace"):
        ran = steadyhand("run", option, "./", "x", "--server", "http://192.0.2.1:8080")
        assert ran.code == 2
        assert "is a path on this machine" in ran.err


def test_the_local_key_is_used_here_and_never_sent_to_another_machine(
    steadyhand: CommandLine, service: ScriptedService
) -> None:
    (steadyhand.home / "data").mkdir()
    (steadyhand.home / "data" / "admin.key").write_text("the-local-key\n")
    del steadyhand.env["STEADYHAND_TOKEN"]
    service.respond("GET", "/v1/jobs", ScriptedAnswer.of({"object": "list", "data": []}))
    assert steadyhand("jobs").code == 0
    assert service.requests[-1].headers["authorization"] == "Bearer the-local-key"
    # A proxy is how a request to another machine can be looked at from here.
    ran = steadyhand("jobs", STEADYHAND_URL="http://steadyhand.example.org", HTTP_PROXY=service.url)
    assert ran.code == 3  # the scripted service knows no such address
    assert "authorization" not in service.requests[-1].headers
    assert service.requests[-1].path.startswith("http://steadyhand.example.org/")


@pytest.mark.parametrize(
    ("found", "code", "said"),
    [
        ([JOB_ID], 0, JOB_ID),
        ([], 3, "no job whose id begins with 3f"),
        ([JOB_ID, "3f0000000000"], 2, f"3f0000000000, {JOB_ID}"),
    ],
)
def test_an_id_may_be_cut_short_when_it_is_not_ambiguous(
    steadyhand: CommandLine, service: ScriptedService, found: list[str], code: int, said: str
) -> None:
    rows = [{"object": "job", "id": each, "state": "completed"} for each in found]
    service.respond("GET", "/v1/jobs", ScriptedAnswer.of({"object": "list", "data": rows}))
    service.respond("GET", JOB, ScriptedAnswer.of(job_json()))
    ran = steadyhand("show", "3F")
    assert ran.code == code
    assert said in ran.out + ran.err
    assert "id_prefix=3f" in service.requests[0].path


def test_a_whole_id_is_asked_for_at_once(steadyhand: CommandLine, service: ScriptedService) -> None:
    service.respond("GET", JOB, ScriptedAnswer.of(job_json()))
    assert steadyhand("show", JOB_ID).code == 0
    assert [asked.path for asked in service.requests] == [JOB]


def test_jobs_are_searched_by_the_words_of_their_titles_and_prompts(
    steadyhand: CommandLine, service: ScriptedService
) -> None:
    page = {"object": "list", "data": [job_json()], "has_more": False, "next_cursor": None}
    service.respond("GET", "/v1/jobs", ScriptedAnswer.of(page))
    assert steadyhand("jobs", "--search", '"main branch" red', "--json").code == 0
    (asked,) = service.requests
    assert parse_qs(urlsplit(asked.path).query) == {"q": ['"main branch" red'], "limit": ["20"]}


def test_json_is_one_document_on_stdout_for_every_command(
    steadyhand: CommandLine, service: ScriptedService
) -> None:
    lay_out_run(service, job_json())
    page = {"object": "list", "data": [job_json()], "has_more": False, "next_cursor": None}
    service.respond("GET", "/v1/jobs", ScriptedAnswer.of(page))
    service.respond("POST", f"{JOB}/cancel", ScriptedAnswer.of(job_json())).respond(
        "POST", f"{JOB}/retry", ScriptedAnswer.of(job_json())
    )
    service.respond("DELETE", JOB, ScriptedAnswer(204))
    service.respond("GET", f"{JOB}/diff", ScriptedAnswer(200, b"diff --git a/x b/x\n", "text/x-diff"))
    for path in ("/v1/agents", "/v1/workspaces"):
        service.respond("GET", path, ScriptedAnswer.of({"object": "list", "data": [{"name": "claude"}]}))
    for arguments in (
        *(("run", "x"), ("jobs",), ("show", JOB_ID), ("wait", JOB_ID), ("cancel", JOB_ID), ("retry", JOB_ID)),
        *(("diff", JOB_ID), ("agents",), ("workspaces",), ("delete", JOB_ID), ("config",)),
    ):
        ran = steadyhand(*arguments, "--json")
        assert ran.code == 0, ran.err
        assert isinstance(json.loads(ran.out), dict), arguments
    assert json.loads(steadyhand("run", "x", "--json").out) == job_json()


def commands_of(group: TyperGroup, before: tuple[str, ...] = ()) -> dict[tuple[str, ...], set[str]]:
    """Give each command of the program by its words, with the names of its options."""
    found: dict[tuple[str, ...], set[str]] = {}
    for name, command in group.commands.items():
        if isinstance(command, TyperGroup):
            found |= commands_of(command, (*before, name))
        else:
            found[*before, name] = {word for option in command.params for word in option.opts}
    return found


def test_every_command_takes_json() -> None:
    program = typer.main.get_command(app)
    assert isinstance(program, TyperGroup)
    commands = commands_of(program)
    assert {words[0] for words in commands} >= {
        *("serve", "run", "jobs", "show", "wait", "logs", "cancel", "retry", "resume", "diff", "transcript"),
        *("agents", "workspaces", "doctor", "demo", "config", "delete", "keys", "usage"),
    }
    without = {words for words, options in commands.items() if "--json" not in options}
    assert without <= {("completion",)}  # a script for a shell; it is loaded once it is asked for


def test_followed_logs_as_json_are_one_event_a_line(
    steadyhand: CommandLine, service: ScriptedService
) -> None:
    events = [
        event_json(1, "message", role="assistant", text="a\nb"),
        event_json(2, "unheard.of", x=1),
        ENDED,
    ]
    service.respond("GET", EVENTS, ScriptedAnswer.stream(*events))
    ran = steadyhand("logs", "-f", "--json", JOB_ID)
    assert [json.loads(line) for line in ran.out.splitlines()] == events


def test_run_tells_in_plain_lines_what_the_agent_does(
    steadyhand: CommandLine, service: ScriptedService
) -> None:
    lay_out_run(
        service,
        job_json(changes={"files": 2, "insertions": 14, "deletions": 3}),
        event_json(None, "text.delta", message_id="m", text="I'll ru"),
        event_json(1, "message", role="assistant", text="I'll run the tests."),
        event_json(2, "tool.started", tool_id="t", name="Bash", input={"command": "pytest -q"}),
        event_json(3, "tool.finished", tool_id="t", is_error=False, output="1 passed", duration_ms=5),
        event_json(4, "unheard.of", strange=True),
    )
    ran = steadyhand("run", "x")
    assert ran.out == "Hello.\n"
    assert "I'll run the tests.\n● Bash  pytest -q\n  └ 1 passed\n" in ran.err
    assert ran.err.count("I'll ru") == 1
    assert "2 files changed, 14 insertions(+), 3 deletions(-)" in ran.err
    assert "$0.0412" in ran.err
    assert "\x1b" not in ran.err + ran.out
    assert "\r" not in ran.err + ran.out


def test_a_follower_is_told_until_when_a_job_is_parked(
    steadyhand: CommandLine, service: ScriptedService
) -> None:
    when = "2026-01-01T05:00:00Z"
    parked = {"from": "running", "to": "parked", "reason": "the model's rate limit", "parked_until": when}
    back = {"from": "parked", "to": "queued", "reason": "the wait is over", "parked_until": None}
    lay_out_run(
        service, job_json(), event_json(1, "state.changed", **parked), event_json(2, "state.changed", **back)
    )
    for words in (("run", "x"), ("logs", "-f", JOB_ID), ("wait", JOB_ID)):
        told = steadyhand(*words)
        assert told.code == 0
        said = told.out + told.err
        assert (f"parked until {when} (the model's rate limit)" in said) is (words[0] != "wait")
        assert ("queued (the wait is over)" in said) is (words[0] != "wait")
    service.respond(
        "GET", JOB, ScriptedAnswer.of(job_json(state="parked", parked_until=when, finished_at=None))
    )
    assert f"parked until {when}" in steadyhand("show", JOB_ID).out


def test_an_answer_that_is_the_error_is_printed_once(
    steadyhand: CommandLine, service: ScriptedService
) -> None:
    error = {"code": "x", "message": "It failed. The model said no.", "retryable": False}
    lay_out_run(service, job_json(state="failed", answer="The model said no.", error=error))
    ran = steadyhand("run", "do it")
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.count("The model said no.") == 1


HOSTILE = "\x1b]0;owned\x07\x1b[2J\x1b[31mred\x1b[0m [bold]x[/bold] \x9b5n\u202e\x00 :smile:"


def hostile_job() -> dict[str, object]:
    return job_json(
        title=HOSTILE,
        prompt=HOSTILE,
        answer=HOSTILE,
        agent=HOSTILE,
        state="failed",
        error={"code": "x", "message": HOSTILE, "retryable": False},
        parked_until=HOSTILE,
        metadata={HOSTILE: HOSTILE},
        warnings=[{"code": "x", "message": HOSTILE}],
        cost={"usd": HOSTILE},
        usage={"turns": HOSTILE, "input_tokens": HOSTILE},
        changes={"files": HOSTILE, "insertions": None, "deletions": []},
    )


def lay_out_hostility(service: ScriptedService) -> None:
    lay_out_run(
        service,
        hostile_job(),
        event_json(None, "text.delta", message_id="m", text=HOSTILE),
        event_json(1, "message", role="assistant", text=HOSTILE + "\nsecond"),
        event_json(2, "tool.started", tool_id=HOSTILE, name=HOSTILE, input={"command": HOSTILE}),
        event_json(3, "tool.finished", tool_id=HOSTILE, is_error=True, output=HOSTILE),
        event_json(4, "warning", code="x", message=HOSTILE),
        event_json(5, "thinking", text=HOSTILE),
        event_json(6, "egress.refused", host=HOSTILE),
        event_json(
            7, "state.changed", **{"from": "x", "to": HOSTILE, "reason": HOSTILE, "parked_until": HOSTILE}
        ),
        event_json(8, "usage", input_tokens="many", turns=None, cost_usd=HOSTILE),
    )
    page = {"object": "list", "data": [hostile_job()]}
    row = {"name": HOSTILE, "description": HOSTILE, "repository": HOSTILE, "timeout_seconds": HOSTILE}
    service.respond("GET", "/v1/jobs", ScriptedAnswer.of(page))
    for path in ("/v1/agents", "/v1/workspaces"):
        service.respond("GET", path, ScriptedAnswer.of({"object": "list", "data": [row, {}]}))
    service.respond("POST", f"{JOB}/cancel", ScriptedAnswer.problem(409, "invalid_state", HOSTILE))
    service.respond("GET", f"{JOB}/diff", ScriptedAnswer(200, f"+{HOSTILE}\n".encode(), "text/x-diff"))
    service.respond(
        "GET", f"{JOB}/transcript", ScriptedAnswer(200, f"{HOSTILE}\n".encode(), "application/x-ndjson")
    )


EVERYWHERE = [
    ("run", "x"),
    ("jobs",),
    ("show", JOB_ID),
    ("wait", JOB_ID),
    ("logs", "-f", JOB_ID),
    ("agents",),
    ("workspaces",),
    ("cancel", JOB_ID),
]


@pytest.mark.parametrize("arguments", EVERYWHERE)
def test_hostile_text_puts_no_control_character_into_a_pipe(
    steadyhand: CommandLine, service: ScriptedService, arguments: tuple[str, ...]
) -> None:
    lay_out_hostility(service)
    ran = steadyhand(*arguments)
    shown = ran.out + ran.err
    assert "Traceback" not in shown
    assert "red" in shown
    assert not {
        c for c in shown if (ord(c) < 32 and c not in "\n\t") or 0x7F <= ord(c) < 0xA0 or c == "\u202e"
    }
    assert "[bold]x[/bold]" in shown
    assert ":smile:" in shown


@pytest.mark.parametrize(
    "arguments", [*EVERYWHERE, ("diff", JOB_ID), ("transcript", JOB_ID), ("show", JOB_ID, "--json")]
)
def test_hostile_text_does_not_reach_a_terminal_as_a_command(
    steadyhand: CommandLine, service: ScriptedService, arguments: tuple[str, ...]
) -> None:
    lay_out_hostility(service)
    ran = steadyhand.on_terminal(*arguments)
    assert "Traceback" not in ran.out
    assert "red" in ran.out
    for command in ("\x1b]", "\x1b[2J", "\x9b", "\u202e", "\x00", "\x07"):
        assert command not in ran.out


def test_a_diff_goes_into_a_pipe_to_the_letter(steadyhand: CommandLine, service: ScriptedService) -> None:
    patch = b"diff --git a/x b/x\n+\x1b[31m\xff\r\n"
    service.respond("GET", f"{JOB}/diff", ScriptedAnswer(200, patch, "text/x-diff"))
    done = subprocess.run(
        [*COMMAND, "diff", JOB_ID], env=steadyhand.env, capture_output=True, check=True, timeout=60
    )
    assert done.stdout == patch


def test_a_job_that_changed_nothing_has_an_empty_diff(
    steadyhand: CommandLine, service: ScriptedService
) -> None:
    service.respond("GET", f"{JOB}/diff", ScriptedAnswer.problem(404, "not_found", "This job has no diff."))
    service.respond("GET", JOB, ScriptedAnswer.of(job_json()))
    ran = steadyhand("diff", JOB_ID)
    assert (ran.code, ran.out) == (0, "")
    assert "changed nothing" in ran.err


def test_no_color_means_no_colour_on_a_terminal(steadyhand: CommandLine, service: ScriptedService) -> None:
    service.respond("GET", "/v1/jobs", ScriptedAnswer.of({"object": "list", "data": [job_json()]}))
    assert "\x1b[32m" in steadyhand.on_terminal("jobs").out
    assert "\x1b[32m" not in steadyhand.on_terminal("jobs", NO_COLOR="1").out


def test_a_terminal_shows_the_text_once_and_the_progress_line(
    steadyhand: CommandLine, service: ScriptedService
) -> None:
    lay_out_run(
        service,
        job_json(answer="It is done now."),
        event_json(None, "text.delta", message_id="m", text="It is do"),
        event_json(None, "text.delta", message_id="m", text="ne now."),
        event_json(1, "usage", input_tokens=1200, output_tokens=34, turns=1),
        event_json(2, "message", role="assistant", text="It is done now."),
    )
    ran = steadyhand.on_terminal("run", "x")
    assert ran.code == 0
    assert "1 turn · 1.2k tokens" in ran.out
    whole_lines = [
        line for line in ran.out.replace("\r", "\n").split("\n") if line.endswith("It is done now.")
    ]
    assert whole_lines


def test_ctrl_c_in_run_cancels_the_job(steadyhand: CommandLine, service: ScriptedService) -> None:
    service.respond("POST", "/v1/jobs", ScriptedAnswer.of(job_json(state="queued"), 202))
    message = event_json(1, "message", role="assistant", text="I am at it.")
    service.respond("GET", EVENTS, ScriptedAnswer.stream(message, cut=True), ScriptedAnswer.stream(cut=True))
    service.respond("POST", f"{JOB}/cancel", ScriptedAnswer.of(job_json(state="running"), 202))
    service.respond("GET", JOB, ScriptedAnswer.of(job_json(state="cancelled")))
    with steadyhand.running("run", "x") as process:
        read_until(process.stderr, "I am at it.")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert [asked.path for asked in service.requests if asked.path.endswith("/cancel")] == [f"{JOB}/cancel"]
    assert b"is cancelled" in err


@pytest.mark.parametrize("arguments", [("logs", "-f", JOB_ID), ("wait", JOB_ID)])
def test_ctrl_c_in_logs_and_wait_leaves_the_job_alone(
    steadyhand: CommandLine, service: ScriptedService, arguments: tuple[str, ...]
) -> None:
    service.respond(
        "GET",
        EVENTS,
        ScriptedAnswer.stream(event_json(1, "warning", message="x"), cut=True),
        ScriptedAnswer.stream(cut=True),
    )
    service.respond("GET", JOB, ScriptedAnswer.of(job_json(state="running")))
    with steadyhand.running(*arguments) as process:
        wait_until(lambda: service.requests)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert not [asked for asked in service.requests if asked.method != "GET"]
    assert b"Traceback" not in err


def test_sigterm_in_run_cancels_the_job_too(steadyhand: CommandLine, service: ScriptedService) -> None:
    service.respond("POST", "/v1/jobs", ScriptedAnswer.of(job_json(state="queued"), 202))
    service.respond(
        "GET",
        EVENTS,
        ScriptedAnswer.stream(event_json(1, "message", role="assistant", text="At it."), cut=True),
    )
    service.respond("POST", f"{JOB}/cancel", ScriptedAnswer.of(job_json(state="cancelled"), 200))
    service.respond("GET", JOB, ScriptedAnswer.of(job_json(state="cancelled")))
    with steadyhand.running("run", "x") as process:
        read_until(process.stderr, "At it.")
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    assert process.returncode == 143
    assert [asked for asked in service.requests if asked.path.endswith("/cancel")]


def test_a_reader_that_goes_away_is_no_error(steadyhand: CommandLine, service: ScriptedService) -> None:
    rows = [job_json(title="x" * 80) for _ in range(2000)]
    service.respond("GET", "/v1/jobs", ScriptedAnswer.of({"object": "list", "data": rows}))
    with steadyhand.running("jobs") as process:
        assert process.stdout is not None
        os.read(process.stdout.fileno(), 10)
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""
        assert process.wait(30) == 0


def test_a_locale_without_the_signs_is_no_reason_to_fail(
    steadyhand: CommandLine, service: ScriptedService
) -> None:
    lay_out_run(service, job_json(answer="snow ☃"), event_json(1, "tool.started", name="Bash", input={}))
    ran = steadyhand.run_process("run", "x", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert ran.code == 0
    assert ran.out == "snow \\u2603\n"


def test_the_help_and_the_lists_do_not_load_the_service(
    steadyhand: CommandLine, service: ScriptedService
) -> None:
    service.respond("GET", "/v1/jobs", ScriptedAnswer.of({"object": "list", "data": [job_json()]}))
    script = (
        "import sys\nfrom steadyhand.cli import main\n"
        "try:\n    main()\nfinally:\n"
        "    heavy = {'fastapi', 'sqlalchemy', 'claude_agent_sdk', 'alembic', 'uvicorn', 'steadyhand.testing'}\n"
        "    print(sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    for arguments in (["--help"], ["jobs"], ["--version"]):
        done = subprocess.run(
            [sys.executable, "-c", script, *arguments],
            env=steadyhand.env,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert done.stderr.splitlines()[-1] == "[]", arguments


def test_the_settings_are_shown_with_their_source_and_no_secret(steadyhand: CommandLine) -> None:
    ran = steadyhand("config", STEADYHAND_CONCURRENCY="7", STEADYHAND_API_KEY="a-secret-nobody-may-see")
    assert ran.code == 0
    [line] = [line for line in ran.out.splitlines() if line.startswith("service.concurrency")]
    assert line.split() == ["service.concurrency", "7", "STEADYHAND_CONCURRENCY"]
    assert "a-secret-nobody-may-see" not in ran.out
    ran = steadyhand("config", STEADYHAND_CONCURENCY="7")
    assert ran.code == 2
    assert "STEADYHAND_CONCURRENCY" in ran.err


def test_the_key_of_the_environment_is_sent(steadyhand: CommandLine, service: ScriptedService) -> None:
    service.respond("GET", "/v1/agents", ScriptedAnswer.of({"object": "list", "data": []}))
    assert steadyhand("agents").code == 0
    assert service.requests[0].headers["authorization"] == f"Bearer {KEY}"
