"""The SDK's transport, each method of it, over a process that really runs; and hostile control messages."""

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
from claude_agent_sdk import ClaudeAgentOptions, ClaudeSDKClient, CLIConnectionError, Transport
from claude_agent_sdk._cli_version import __cli_version__
from structlog.testing import capture_logs
from tests.docs.pages import PROJECT

from steadyhand.outcome import StopReason
from steadyhand.ports import Command
from steadyhand.redact import NO_REDACTION
from steadyhand.runner.claude.runner import ClaudeRunner
from steadyhand.runner.claude.transport import ProcessTransport
from steadyhand.runner.process.agent_process import AgentProcess, LaunchSpec
from steadyhand.sandbox.sandbox import NoSandbox
from steadyhand.testing.contracts.runner_harness import RunnerHarness, resident_bytes
from steadyhand.testing.standin.frames import VERSION

Python = Callable[..., Command]
ECHO = "import sys\nfor line in sys.stdin: print('got', line, end='', flush=True)\nprint('end', flush=True)"


def test_the_sdk_is_pinned_and_its_transport_asks_for_what_we_give() -> None:
    assert version("claude-agent-sdk") == "0.2.189"
    wanted = {"connect", "write", "read_messages", "close", "is_ready", "end_input"}
    assert Transport.__abstractmethods__ == wanted


def test_the_page_and_the_stand_in_name_the_cli_that_the_sdk_brings() -> None:
    page = (PROJECT / "docs" / "architecture.md").read_text("utf-8")
    assert f"version {__cli_version__}, from `claude-agent-sdk` {version('claude-agent-sdk')}." in page
    assert __cli_version__ == VERSION


def test_it_is_ready_between_connect_and_close(python: Python) -> None:
    async def scenario() -> None:
        async with AgentProcess.start(LaunchSpec(python(ECHO))) as process:
            transport = ProcessTransport(process)
            assert not transport.is_ready()
            with pytest.raises(CLIConnectionError):
                await transport.write("early\n")
            await transport.connect()
            assert transport.is_ready()
            await transport.write("a line\n")
            assert await process.stdout.readline() == b"got a line\n"
            await transport.close()
            assert not transport.is_ready()
            assert await process.stdout.readline() == b"end\n"
            with pytest.raises(CLIConnectionError):
                await transport.write("late\n")

    asyncio.run(scenario())


def test_ending_the_input_lets_the_agent_end(python: Python) -> None:
    async def scenario() -> None:
        async with asyncio.timeout(10), AgentProcess.start(LaunchSpec(python(ECHO))) as process:
            transport = ProcessTransport(process)
            await transport.connect()
            await transport.end_input()
            await transport.end_input()
            assert (await process.wait()).code == 0

    asyncio.run(scenario())


async def _write_for_ever(transport: ProcessTransport) -> None:
    while True:
        await transport.write("x" * 65536)


def test_writing_to_an_agent_that_is_gone_is_the_sdks_own_error(python: Python) -> None:
    async def scenario() -> None:
        async with asyncio.timeout(10), AgentProcess.start(LaunchSpec(python("pass"))) as process:
            transport = ProcessTransport(process)
            await transport.connect()
            await process.wait()
            # The loop sees that the pipe has broken when it comes round to it, or when it is written to.
            with pytest.raises(CLIConnectionError):
                await _write_for_ever(transport)

    asyncio.run(scenario())


def test_only_answers_to_its_own_questions_reach_the_sdk(python: Python) -> None:
    async def scenario() -> list[bool]:
        async with AgentProcess.start(LaunchSpec(python(ECHO))) as process:
            transport = ProcessTransport(process)
            await transport.connect()
            assert not transport.first_request_sent.is_set()
            await transport.write(json.dumps({"type": "control_request", "request_id": "r1"}) + "\n")
            assert transport.first_request_sent.is_set()
            answer: dict[str, Any] = {
                "type": "control_response",
                "response": {"request_id": "r1", "subtype": "success"},
            }
            request: dict[str, Any] = {
                "type": "control_request",
                "request_id": "x",
                "request": {"subtype": "hook_callback"},
            }
            hostile: list[dict[str, Any]] = [
                {"type": "control_response"},
                {"type": "control_response", "response": "r1"},
                {"type": "control_response", "response": {"request_id": ["r1"]}},
                {"type": "control_response", "response": {"request_id": "r2"}},
                {"type": "control_request"},
                {"type": "control_request", "request_id": 1, "request": {"subtype": "x"}},
                {"type": "control_request", "request_id": "x", "request": {"subtype": {}}},
            ]
            taken = [transport.deliver(each, 100) for each in [*hostile, answer, answer, request]]
            messages = transport.read_messages()
            async with asyncio.timeout(5):
                assert await anext(messages) == answer
                assert await anext(messages) == request
            taken.append(transport.deliver(request, 1 << 20))
            return [*taken, *(transport.deliver(request, 100) for _ in range(100))]

    taken = asyncio.run(scenario())
    assert taken[:11] == [False] * 7 + [True, False, True, False]
    assert 0 < sum(taken[11:]) < 64


def test_the_sdks_client_works_over_it(standin: Path, world_dir: Path) -> None:
    async def scenario() -> list[str]:
        env = {"HOME": str(world_dir), "IS_SANDBOX": "1", "PATH": "/usr/bin:/bin"}
        argv = [
            str(standin),
            "-p",
            "--input-format",
            "stream-json",
            "--output-format",
            "stream-json",
            "--verbose",
        ]
        async with (
            asyncio.timeout(20),
            AgentProcess.start(LaunchSpec(Command(argv, env, world_dir))) as process,
        ):
            transport = ProcessTransport(process)
            client = ClaudeSDKClient(ClaudeAgentOptions(), transport=transport)
            async with asyncio.TaskGroup() as group:
                connecting = group.create_task(client.connect())
                while not connecting.done():
                    line = asyncio.ensure_future(process.stdout.readline())
                    await asyncio.wait({line, connecting}, return_when=asyncio.FIRST_COMPLETED)
                    if line.done():
                        transport.deliver(json.loads(line.result()), 100)
                    else:
                        line.cancel()
                    await asyncio.sleep(0)
            info = await client.get_server_info()
            await client.disconnect()
            assert (await process.wait()).code == 0
        assert info is not None
        return [agent["name"] for agent in info["agents"]]

    assert "general-purpose" in asyncio.run(scenario())


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


def _assert_logged(logged: Sequence[Mapping[str, Any]], event: str, job_id: str) -> None:
    assert {"event": event, "job": job_id, "exc_info": True, "log_level": "debug"} in logged


def test_an_error_of_the_sdk_while_it_connects_is_logged(python: Python, world_dir: Path) -> None:
    structlog.reset_defaults()
    program = _refusing_agent(python, world_dir, "initialize")
    harness = RunnerHarness.make(ClaudeRunner(program, NoSandbox(), NO_REDACTION), world_dir, "hello")
    with capture_logs() as logged:
        assert asyncio.run(harness.run()).outcome == "no_result"
    _assert_logged(logged, "agent.connect_failed", harness.spec.job.id)


def test_an_error_of_the_sdk_while_it_interrupts_is_logged(python: Python, world_dir: Path) -> None:
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
