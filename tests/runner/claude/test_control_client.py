"""The control requests, over a process that really runs; and hostile control messages."""

import asyncio
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import structlog
from claude_agent_sdk._cli_version import __cli_version__
from structlog.testing import capture_logs
from tests.docs.pages import PROJECT

from steadyhand.job import ClientTool
from steadyhand.outcome import StopReason
from steadyhand.ports import Command
from steadyhand.redact import NO_REDACTION
from steadyhand.runner.claude.control_client import ControlClient, ControlError
from steadyhand.runner.claude.runner import ClaudeRunner
from steadyhand.runner.process.agent_process import AgentProcess, LaunchSpec
from steadyhand.sandbox.sandbox import NoSandbox
from steadyhand.testing.contracts.runner_harness import RunnerHarness, resident_bytes
from steadyhand.testing.standin.frames import VERSION

Python = Callable[..., Command]
ECHO = "import sys\nfor line in sys.stdin: print('got', line, end='', flush=True)\nprint('end', flush=True)"


def test_the_page_and_the_stand_in_name_the_cli_that_the_sdk_brings() -> None:
    page = (PROJECT / "docs" / "architecture.md").read_text("utf-8")
    assert f"version {__cli_version__}, from `claude-agent-sdk` {version('claude-agent-sdk')}." in page
    assert __cli_version__ == VERSION


def test_a_request_to_an_agent_that_reads_no_more_is_an_error(python: Python) -> None:
    async def scenario() -> None:
        async with asyncio.timeout(10), AgentProcess.start(LaunchSpec(python(ECHO))) as process:
            client = ControlClient(process)
            process.end_input()
            with pytest.raises(ControlError, match="reads no more"):
                await client.initialize()
            assert not client.first_request_sent.is_set()
            with pytest.raises(ControlError):
                await client.interrupt()

    asyncio.run(scenario())


def test_only_answers_to_its_own_requests_are_taken_and_each_once(python: Python) -> None:
    async def scenario() -> list[bool]:
        async with asyncio.timeout(10), AgentProcess.start(LaunchSpec(python(ECHO))) as process:
            client = ControlClient(process, {"appendSystemPrompt": "more"})
            connecting = asyncio.create_task(client.initialize())
            await client.first_request_sent.wait()
            sent = json.loads((await process.stdout.readline()).removeprefix(b"got "))
            assert sent["request"] == {"subtype": "initialize", "hooks": None, "appendSystemPrompt": "more"}
            own = sent["request_id"]
            answer = {"request_id": own, "subtype": "success", "response": {"agents": []}}
            hostile: list[dict[str, Any]] = [
                {"type": "control_response"},
                {"type": "control_response", "response": own},
                {"type": "control_response", "response": {"request_id": [own]}},
                {"type": "control_response", "response": {"request_id": "another"}},
            ]
            valid = {"type": "control_response", "response": answer}
            accepted = [client.deliver(each, 100) for each in [*hostile, valid, valid]]
            await connecting
            assert client.server_info == {"agents": []}
            return accepted

    assert asyncio.run(scenario()) == [False] * 4 + [True, False]


def test_a_refused_request_is_an_error_with_the_agents_reason(python: Python) -> None:
    async def scenario() -> None:
        async with asyncio.timeout(10), AgentProcess.start(LaunchSpec(python(ECHO))) as process:
            client = ControlClient(process)
            asking = asyncio.create_task(client.interrupt())
            sent = json.loads((await process.stdout.readline()).removeprefix(b"got "))
            refusal = {"request_id": sent["request_id"], "subtype": "error", "error": "not now"}
            assert client.deliver({"type": "control_response", "response": refusal}, 100)
            with pytest.raises(ControlError, match="not now"):
                await asking

    asyncio.run(scenario())


def test_a_request_that_is_not_answered_ends_in_an_error(
    python: Python, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with asyncio.timeout(10), AgentProcess.start(LaunchSpec(python(ECHO))) as process:
            with pytest.raises(ControlError, match="did not answer 'interrupt' in time"):
                await ControlClient(process).interrupt()

    monkeypatch.setattr("steadyhand.runner.claude.control_client.ANSWER_SECONDS", 0.05)
    asyncio.run(scenario())


def test_requests_of_the_agent_are_refused_and_bounded(python: Python) -> None:
    async def scenario() -> list[bool]:
        async with asyncio.timeout(10), AgentProcess.start(LaunchSpec(python(ECHO))) as process:
            client = ControlClient(process)
            request: dict[str, Any] = {
                "type": "control_request",
                "request_id": "x",
                "request": {"subtype": "hook_callback"},
            }
            hostile: list[dict[str, Any]] = [
                {"type": "control_request"},
                {"type": "control_request", "request_id": 1, "request": {"subtype": "x"}},
                {"type": "control_request", "request_id": "x", "request": {"subtype": {}}},
                {"type": "control_request", "request_id": "x", "request": []},
            ]
            accepted = [client.deliver(each, 100) for each in [*hostile, request]]
            refusing = asyncio.create_task(client.refuse_requests())
            answer = json.loads((await process.stdout.readline()).removeprefix(b"got "))
            refusing.cancel()
            assert answer["response"]["subtype"] == "error"
            assert answer["response"]["request_id"] == "x"
            accepted.append(client.deliver(request, 1 << 20))
            return [*accepted, *(client.deliver(request, 100) for _ in range(100))]

    accepted = asyncio.run(scenario())
    assert accepted[:6] == [False] * 4 + [True, False]
    assert 0 < sum(accepted[6:]) < 64


HOSTILE = """
import os, sys
asked = b'{"type":"control_request","request_id":"x","request":{"subtype":"can_use_tool","input":"'
block = (asked + b"x" * 4000 + b'"}}\\n'
         b'{"type":"control_response","response":7}\\n{"type":"result"\\n{"type":"assistant","message":[1]}\\n') * 64
for _ in range(250):
    os.write(1, block)
os.write(1, b'{"type":"result","subtype":"success","result":"done"}\\n')
"""


def test_hostile_control_messages_are_dropped_and_cost_no_memory(python: Python, world_dir: Path) -> None:
    interpreter = python("").argv[0]
    program = world_dir / "hostile"
    program.write_text(f"#!{interpreter} -IS\n{HOSTILE}", encoding="utf-8")
    program.chmod(0o755)
    before = resident_bytes()
    ran = asyncio.run(
        RunnerHarness.make(ClaudeRunner(program, NoSandbox(), NO_REDACTION), world_dir, "hello").run()
    )
    assert ran.outcome == "success"
    assert resident_bytes() - before < 50 * 1024 * 1024


REFUSING = """
import json, os, sys
for line in sys.stdin.buffer:
    message = json.loads(line)
    if message["type"] == "control_request":
        answer = {"request_id": message["request_id"], "subtype": "success", "response": {}}
        if message["request"]["subtype"] == "REFUSED":
            answer |= {"subtype": "error", "error": "refused by the test"}
        os.write(1, json.dumps({"type": "control_response", "response": answer}).encode() + b"\\n")
    else:
        os.write(1, b'{"type":"assistant","message":{"content":[{"type":"text","text":"hi"}]}}\\n')
"""


def _refusing_agent(python: Python, folder: Path, subtype: str) -> Path:
    program = folder / f"refuses-{subtype}"
    code = REFUSING.replace("REFUSED", subtype)
    program.write_text(f"#!{python('').argv[0]} -IS\n{code}", encoding="utf-8")
    program.chmod(0o755)
    return program


RECORDING = """
import json, os, sys
subtypes = []
for line in sys.stdin.buffer:
    message = json.loads(line)
    if message["type"] == "control_request":
        subtypes.append(message["request"]["subtype"])
        answer = {"request_id": message["request_id"], "subtype": "success", "response": {}}
        os.write(1, json.dumps({"type": "control_response", "response": answer}).encode() + b"\\n")
    else:
        result = {"type": "result", "subtype": "success", "result": " ".join(subtypes) or "none"}
        os.write(1, json.dumps(result).encode() + b"\\n")
"""


@pytest.mark.parametrize(
    ("prompt", "fields", "requests"),
    [
        ("hello", {}, "none"),
        ("/hello", {}, "initialize"),
        ("hello", {"tools": (ClientTool("get_time", "", {"type": "object"}),)}, "initialize"),
    ],
    ids=["plain", "command", "tools"],
)
def test_a_run_sends_initialize_only_if_it_depends_on_it(
    python: Python, world_dir: Path, prompt: str, fields: Mapping[str, Any], requests: str
) -> None:
    program = world_dir / "recording"
    program.write_text(f"#!{python('').argv[0]} -IS\n{RECORDING}", encoding="utf-8")
    program.chmod(0o755)
    harness = RunnerHarness.make(
        ClaudeRunner(program, NoSandbox(), NO_REDACTION), world_dir, prompt, **fields
    )
    result = asyncio.run(harness.run()).report.evidence.result
    assert result is not None
    assert result.text == requests


def _assert_logged(logged: Sequence[Mapping[str, Any]], event: str, job_id: str) -> None:
    assert {"event": event, "job": job_id, "exc_info": True, "log_level": "debug"} in logged


def test_a_refused_initialize_is_logged(python: Python, world_dir: Path) -> None:
    structlog.reset_defaults()
    program = _refusing_agent(python, world_dir, "initialize")
    harness = RunnerHarness.make(ClaudeRunner(program, NoSandbox(), NO_REDACTION), world_dir, "/hello")
    with capture_logs() as logged:
        assert asyncio.run(harness.run()).outcome == "no_result"
    _assert_logged(logged, "agent.connect_failed", harness.spec.job.id)


def test_a_refused_interrupt_is_logged(python: Python, world_dir: Path) -> None:
    structlog.reset_defaults()
    program = _refusing_agent(python, world_dir, "interrupt")
    harness = RunnerHarness.make(ClaudeRunner(program, NoSandbox(), NO_REDACTION), world_dir, "hello")

    async def cancel_after_the_first_message() -> None:
        await harness.wait_until(lambda: bool(harness.events))
        harness.stop.request(StopReason.CANCEL)

    with capture_logs() as logged:
        assert asyncio.run(harness.run_with(cancel_after_the_first_message)).outcome == "cancelled"
    _assert_logged(logged, "agent.interrupt_failed", harness.spec.job.id)


def test_an_agent_that_is_silent_from_the_start_stalls_and_is_ended(python: Python, world_dir: Path) -> None:
    program = world_dir / "mute"
    program.write_text(f"#!{python('').argv[0]} -IS\nimport time\ntime.sleep(60)\n", encoding="utf-8")
    program.chmod(0o755)
    stage = RunnerHarness.make(
        ClaudeRunner(program, NoSandbox(), NO_REDACTION),
        world_dir,
        "hello",
        definition="x",
        idle_timeout_seconds=0.3,
    )
    assert asyncio.run(stage.run()).outcome == "stalled"


def test_an_emit_that_fails_is_the_callers_to_know_and_ends_the_agent(standin: Path, world_dir: Path) -> None:
    stage = RunnerHarness.make(
        ClaudeRunner(standin, NoSandbox(), NO_REDACTION), world_dir, "[[standin: say=x sleep=60]]"
    )

    async def broken(_body: object) -> None:
        raise OSError("the store is gone")

    async def scenario() -> None:
        async with asyncio.timeout(10):
            await stage.runner.run(stage.spec, broken, stage.stop)

    with pytest.raises(OSError, match=re.escape("the store is gone")):
        asyncio.run(scenario())


def test_a_session_id_that_is_no_uuid_is_replaced(standin: Path, world_dir: Path) -> None:
    stage = RunnerHarness.make(ClaudeRunner(standin, NoSandbox(), NO_REDACTION), world_dir, "hello")
    stage.spec = replace(stage.spec, job=replace(stage.spec.job, session_id="--bad"))
    assert asyncio.run(stage.run()).outcome == "success"
