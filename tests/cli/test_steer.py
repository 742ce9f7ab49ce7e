"""`steadyhand steer`: a message to the agent of a running job."""

import json

from tests.cli.command_line import JOB_ID, CommandLine, ScriptedAnswer, ScriptedService

STEER = f"/v1/jobs/{JOB_ID}/steer"
READ = {"object": "steer", "id": "st_0123456789abcdef0123", "job_id": JOB_ID, "run": 1}


def test_a_message_is_sent_once_and_told_to_be_read(
    steadyhand: CommandLine, service: ScriptedService
) -> None:
    service.respond("POST", STEER, ScriptedAnswer.of(READ, 202))
    ran = steadyhand("steer", JOB_ID, "go left")
    assert (ran.code, ran.out) == (0, "")
    assert f"The agent of {JOB_ID} has read the message." in ran.err
    (request,) = [each for each in service.requests if each.path == STEER]
    assert request.body == {"text": "go left"}
    assert request.headers["idempotency-key"]
    assert json.loads(steadyhand("steer", "--json", JOB_ID, "go left").out) == READ


def test_a_job_that_takes_no_message_says_so(steadyhand: CommandLine, service: ScriptedService) -> None:
    problem = {
        "title": "Conflict",
        "status": 409,
        "code": "not_running",
        "detail": "The job is completed; too late.",
    }
    service.respond("POST", STEER, ScriptedAnswer.of(problem, 409))
    ran = steadyhand("steer", JOB_ID, "go left")
    assert ran.code != 0
    assert "The job is completed; too late." in ran.err
