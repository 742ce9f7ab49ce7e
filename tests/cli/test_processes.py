"""Each command once in an interpreter that was started for it, and the same command forked: no difference shows."""

import json
import os
import signal
from collections.abc import Mapping

import pytest
from tests.cli.command_line import (
    JOB_ID,
    CommandLine,
    ScriptedAnswer,
    ScriptedService,
    event_json,
    job_json,
    read_until,
)

from steadyhand.api.examples import examples

JOB = f"/v1/jobs/{JOB_ID}"
ENDED = event_json(9, "state.changed", **{"from": "running", "to": "failed", "outcome": "agent_error"})


def lay_out_everything(service: ScriptedService) -> None:
    error = {"code": "agent_error", "message": "It failed \u2603.", "retryable": False}
    failed = ScriptedAnswer.of(job_json(state="failed", error=error))
    events = event_json(1, "warning", code="x", message="\u2603"), ENDED
    service.respond("POST", "/v1/jobs", ScriptedAnswer.of(job_json(state="queued", answer=None), 202))
    service.respond("GET", JOB, failed).respond("DELETE", JOB, ScriptedAnswer(204))
    service.respond("GET", f"{JOB}/events", ScriptedAnswer.stream(*events))
    for name in ("cancel", "retry", "resume"):
        service.respond("POST", f"{JOB}/{name}", failed)
    service.respond("GET", f"{JOB}/diff", ScriptedAnswer(200, b"+\x1b[31m\r\n", "text/x-diff"))
    service.respond("GET", f"{JOB}/transcript", ScriptedAnswer(200, b'{"a":1}\n', "application/x-ndjson"))
    for name in ("jobs", "agents", "workspaces", "keys", "usage"):
        service.respond("GET", f"/v1/{name}", ScriptedAnswer.of(examples()[name.upper()]))


COMMANDS: Mapping[tuple[str, ...], int] = {
    ("run", "-"): 1,
    ("jobs",): 0,
    ("show", JOB_ID): 0,
    ("wait", JOB_ID): 1,
    ("logs", "-f", "--json", JOB_ID): 0,
    ("cancel", JOB_ID): 0,
    ("retry", JOB_ID): 0,
    ("resume", JOB_ID): 0,
    ("diff", JOB_ID): 0,
    ("transcript", JOB_ID): 0,
    ("delete", JOB_ID): 0,
    ("agents",): 0,
    ("workspaces",): 0,
    ("keys", "list"): 0,
    ("usage",): 0,
    ("config", "--json"): 0,
    ("doctor",): 1,
    ("--version",): 0,
    ("nonsense",): 2,
}
KINDS = {
    ("run", "-"),
    ("logs", "-f", "--json", JOB_ID),
    ("diff", JOB_ID),
    ("doctor",),
    ("nonsense",),
}
"""What they do differs: stdin and a job, a stream, bytes as they are, the service's code, and a wrong use."""


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        pytest.param(arguments, code, marks=[] if arguments in KINDS else [pytest.mark.long])
        for arguments, code in COMMANDS.items()
    ],
)
def test_a_command_does_the_same_in_a_fresh_interpreter_as_in_a_forked_one(
    steadyhand: CommandLine, service: ScriptedService, arguments: tuple[str, ...], code: int
) -> None:
    lay_out_everything(service)
    if arguments == (
        "doctor",
    ):  # what it finds of the machine may change in between; what is wrong here stays so
        (steadyhand.home / "steadyhand.toml").write_text("[service]\nconcurency = 2\n")
    fresh = steadyhand.run_process(*arguments, given="Do it \u2603.\n", fresh=True)
    asked = [(each.method, each.path, each.body) for each in service.requests]
    service.requests.clear()
    forked = steadyhand.run_process(*arguments, given="Do it \u2603.\n")
    assert (forked.code, forked.out, forked.err) == (fresh.code, fresh.out, fresh.err)
    assert [(each.method, each.path, each.body) for each in service.requests] == asked
    assert fresh.code == code, fresh.err
    assert bool(fresh.out or fresh.err)


def test_a_terminal_shows_the_same_of_a_fresh_interpreter_and_of_a_forked_one(
    steadyhand: CommandLine, service: ScriptedService
) -> None:
    lay_out_everything(service)
    fresh = steadyhand.on_terminal("show", JOB_ID, fresh=True)
    forked = steadyhand.on_terminal("show", JOB_ID)
    assert (forked.code, forked.out) == (fresh.code, fresh.out)
    assert "\x1b[" in fresh.out


@pytest.mark.parametrize("fresh", [True, False])
def test_a_signal_and_a_reader_that_goes_away_end_a_fresh_interpreter_as_a_forked_one(
    steadyhand: CommandLine, service: ScriptedService, *, fresh: bool
) -> None:
    rows = [job_json(title="x" * 80) for _ in range(500)]
    service.respond("GET", "/v1/jobs", ScriptedAnswer.of({"object": "list", "data": rows}))
    with steadyhand.running("jobs", fresh=fresh) as process:
        assert process.stdout is not None
        os.read(process.stdout.fileno(), 10)
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""
        assert process.wait(30) == 0
    event = event_json(1, "message", role="assistant", text="At it.")
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        service.respond(
            "GET", f"{JOB}/events", ScriptedAnswer.stream(event, cut=True), ScriptedAnswer.stream(cut=True)
        )
        with steadyhand.running("logs", "-f", "--json", JOB_ID, fresh=fresh) as process:
            assert json.loads(read_until(process.stdout, "\n"))["seq"] == 1
            process.send_signal(number)
            process.communicate(timeout=30)
        assert process.returncode == code
