"""The `stream` mode: the CLI's own protocol, by the SDK's client over a transport of ours.

The SDK speaks the control protocol (`initialize`, `interrupt`) and sees nothing else: what the agent says goes from
the pipe through `messages.py` into events, so that it is bounded and paced by the store, which the SDK's buffer of a
hundred messages of any size is not.
"""

import asyncio
import contextlib
import json
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from claude_agent_sdk import ClaudeAgentOptions, ClaudeSDKClient, CLIConnectionError, Transport

from steadyhand.claude_sessions import session_file
from steadyhand.events import ToolStarted
from steadyhand.job import Turn
from steadyhand.outcome import Stop
from steadyhand.ports import Command, Emit, Report, RunSpec, Sandbox, StopSignal
from steadyhand.redact import Redactor
from steadyhand.runner.claude.argv import appended, option, options
from steadyhand.runner.claude.attachments import attached, files_of, told_at
from steadyhand.runner.claude.mcp_tools import CONFIG, ClientCalls
from steadyhand.runner.claude.messages import Conversation, read_result
from steadyhand.runner.output import Spool, parse
from steadyhand.runner.process.agent_process import AgentProcess, Launch
from steadyhand.runner.process.run_loop import (
    Drive,
    bounded,
    budget_text,
    environment,
    goes_on,
    said,
    scratch,
    session_of,
    where,
)

INTERRUPT_SECONDS = 0.7
"""How long the agent may take to answer an interrupt with a result, so that what it used is known."""
LEAVE_SECONDS = 0.2
"""How long it may then take to leave before it is stopped."""
BUILT_IN_AGENTS = frozenset({"claude", "Explore", "general-purpose", "Plan", "statusline-setup"})
"""Agents of the CLI itself, which nobody can ask for by name."""

STRUCTURED_OUTPUT = "StructuredOutput"
"""The tool that the CLI gives an agent whose answer has to fit a schema."""
_REQUESTS = 64  # control requests of the agent that are passed on; it has no reason for any
_REQUEST_SIZE = 64 * 1024
_CALL_MILLISECONDS = 24 * 60 * 60 * 1000
_CONTROL = frozenset({"control_response", "control_request", "control_cancel_request"})
_HISTORY_TIME = "2026-01-01T00:00:00.000Z"


# --- what is launched: pure ----------------------------------------------------------------------


def arguments(
    cli: Path,
    spec: RunSpec,
    session: str,
    prompt_file: Path | None,
    *,
    goes_on: bool = False,
    budgeted: bool = True,
) -> list[str]:
    """Give the command line. `prompt_file` holds what is appended to the system prompt.

    `budgeted` has the CLI hold the budget by its own guess; where the gateway does, that could end a run too early.
    Raises `SpawnError` when the output schema is too large for an argument.
    """
    job, agent = spec.job, spec.agent
    argv = [str(cli), "-p", "--input-format", "stream-json", "--output-format", "stream-json", "--verbose"]
    argv += ["--include-partial-messages", "--dangerously-skip-permissions"]
    argv += ["--max-budget-usd", budget_text(job.budget_micros)] if budgeted else []
    argv += ["--setting-sources", "user,project,local" if spec.place.trust_full else "user"]
    argv += ["--resume" if job.history or goes_on else "--session-id", session]
    argv += [] if agent.definition is None else option("--agent", agent.definition)
    argv += options(spec, prompt_file)
    return [*argv, "--mcp-config", CONFIG] if job.tools else argv


def session_record(history: Sequence[Turn], directory: str, session: str) -> bytes:
    """Give earlier turns as the CLI's own record of a session, which it then resumes: one model call, true turns."""
    lines = []
    parent: str | None = None
    for index, turn in enumerate(history):
        content: Any = turn.content if isinstance(turn.content, str) else list(turn.content)
        message: dict[str, Any] = {"role": turn.role, "content": content}
        if turn.role == "assistant":
            blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
            message |= {
                "content": blocks,
                "id": f"msg_history_{index}",
                "type": "message",
                "model": "history",
            }
            message |= {"stop_reason": "end_turn", "usage": {"input_tokens": 0, "output_tokens": 0}}
        identity = str(uuid.uuid5(uuid.UUID(session), str(index)))
        entry: dict[str, Any] = {
            "type": turn.role,
            "message": message,
            "uuid": identity,
            "parentUuid": parent,
        }
        entry |= {"sessionId": session, "isSidechain": False, "userType": "external", "cwd": directory}
        entry |= {"version": "2.1.330", "timestamp": _HISTORY_TIME}
        lines.append(json.dumps(entry))
        parent = identity
    return "".join(line + "\n" for line in lines).encode()


def prompt_line(content: str | list[Mapping[str, Any]], *, verbatim: bool) -> bytes:
    """Give the prompt, text or blocks, as a message.

    When `verbatim`, the CLI expands no `@path` and runs no slash command in it.
    """
    message: dict[str, Any] = {"type": "user", "message": {"role": "user", "content": content}}
    message |= {"parent_tool_use_id": None, "session_id": "default"}
    if verbatim:
        message["client_composed"] = True
    return json.dumps(message).encode() + b"\n"


def launch_of(cli: Path, spec: RunSpec, session: str, sandbox: Sandbox, *, budgeted: bool = True) -> Launch:
    """Give what is launched, with the files that go with it."""
    place, view = spec.place, sandbox.view(spec.place)
    config = place.config or place.home / ".claude"
    files: list[tuple[Path, bytes]] = []
    more = appended(spec, view)
    if more is not None:
        files.append((more.written, more.text))
    folder, seen = told_at(place, sandbox)
    going_on = goes_on(spec, sandbox, session)
    if spec.job.history and not going_on:
        directory = where(view, sandbox)
        record = session_record(attached(spec.job, seen).history, directory, session)
        files.append((session_file(config, directory, session), record))
    env = environment(spec.environment, view) | {"CLAUDE_CODE_SDK_READS_SESSION_STATE": "1"}
    if spec.job.tools:
        # How long a call may take is the service's to say, not the CLI's.
        env["MCP_TOOL_TIMEOUT"] = str(_CALL_MILLISECONDS)
    prompt_file = None if more is None else more.seen
    argv = arguments(cli, spec, session, prompt_file, goes_on=going_on, budgeted=budgeted)
    command = Command(argv, env, view.directory, place.user)
    folders = [] if place.config is None else [scratch(place.home)]
    laid = [(folder / name, data) for name, data in files_of(spec.job, spec.earlier)]
    return Launch(sandbox.wrap(command, place, spec.agent), files=files, laid=laid, folders=folders)


# --- the transport -------------------------------------------------------------------------------


class ProcessTransport(Transport):
    """The SDK's transport over an agent's process that somebody else owns, reads and ends."""

    def __init__(self, process: AgentProcess) -> None:
        self._process = process
        self._messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._unanswered: set[str] = set()
        self._requests = 0
        self._ready = False
        self.asked = asyncio.Event()
        """Set once the first control request has been written."""

    async def connect(self) -> None:
        """The process is running already."""
        self._ready = True

    async def write(self, data: str) -> None:
        """Write lines to the agent. Raises `CLIConnectionError` when it reads no more."""
        if data.startswith('{"type": "control_request"'):
            self._unanswered.add(json.loads(data)["request_id"])
        if not self._ready or not await self._process.write(data.encode()):
            raise CLIConnectionError("The agent reads no more.")
        self.asked.set()

    def offer(self, message: dict[str, Any], size: int) -> bool:
        """Hand a control message of `size` bytes to the SDK; False when it is none that it could handle.

        At most one answer for each of its own requests and `_REQUESTS` small requests of the agent are taken, so
        what waits here has a bound.
        """
        if message["type"] == "control_response":
            response = message.get("response")
            identity = response.get("request_id") if isinstance(response, dict) else None
            if not isinstance(identity, str) or identity not in self._unanswered:
                return False
            self._unanswered.discard(identity)
        else:
            request = message.get("request", {"subtype": "cancel"})
            well_formed = isinstance(request, dict) and isinstance(request.get("subtype"), str)
            if not well_formed or not isinstance(message.get("request_id"), str):
                return False
            self._requests += 1
            if self._requests > _REQUESTS or size > _REQUEST_SIZE:
                return False
        self._messages.put_nowait(message)
        return True

    async def read_messages(self) -> AsyncIterator[dict[str, Any]]:
        """Give the control messages, until the SDK closes."""
        while True:
            yield await self._messages.get()

    async def close(self) -> None:
        """End the agent's input; the process is not the SDK's to end."""
        self._ready = False
        self._process.end_input()

    def is_ready(self) -> bool:
        """Whether messages can be written."""
        return self._ready

    async def end_input(self) -> None:
        """End the agent's input."""
        self._process.end_input()


# --- the runner ----------------------------------------------------------------------------------


class ClaudeRunner:
    """Runs agents by the CLI's streaming protocol; implements `ports.Runner`."""

    def __init__(
        self, cli: Path, sandbox: Sandbox, redactor: Redactor | None = None, *, budgeted: bool = True
    ) -> None:
        """Take the CLI, the boundary, and what takes secrets out of all that a run says.

        `budgeted` is false where the gateway holds the budget.
        """
        self._cli = cli
        self._sandbox = sandbox
        self._redactor = redactor
        self._budgeted = budgeted

    async def run(self, spec: RunSpec, emit: Emit, stop: StopSignal) -> Report:
        """See `ports.Runner.run`."""
        session = session_of(spec)
        going_on = goes_on(spec, self._sandbox, session)
        launch = launch_of(self._cli, spec, session, self._sandbox, budgeted=self._budgeted)
        spool = Spool(spec.place.files.spool(spec.number), self._redactor)
        try:
            async with AgentProcess.start(launch, spec.spawned, spec.listening) as process:
                drive = Drive(spec, emit, stop, process, spool, going_on=going_on)
                mode = _Stream(drive, told_at(spec.place, self._sandbox)[1])
                try:
                    return await drive.attend(mode)
                finally:
                    await mode.close()
        finally:
            spool.close()


class _Stream:
    """A `drive.Mode`: the SDK's client for control, everything else read here."""

    tells = True

    def __init__(self, drive: Drive, folder: PurePosixPath) -> None:
        self._drive = drive
        self._folder = folder
        self._conversation = Conversation()
        self._transport = ProcessTransport(drive.process)
        self._client = ClaudeSDKClient(ClaudeAgentOptions(), transport=self._transport)
        self._connected = asyncio.Event()
        job = drive.spec.job
        named = f"call_{job.id}_{drive.spec.number}"
        self._calls = ClientCalls(job.tools, named, one_call=job.one_call) if job.tools else None

    async def line(self, line: bytes) -> None:
        drive = self._drive
        # Once the record is full only what ends the run or answers the SDK is worth reading.
        wanted = not self._conversation.full or b'"result"' in line or b'"control_' in line
        message = parse(line) if wanted else None
        if message is None:
            if wanted:
                drive.spool.printed(line)
            return
        if message["type"] in _CONTROL:
            self._control(message, len(line))
            return
        for event in self._conversation.take(message, asyncio.get_running_loop().time()):
            if isinstance(event, ToolStarted) and event.name == STRUCTURED_OUTPUT:
                drive.tried = event.input
            await drive.emit(event)
        if self._calls is not None:
            self._calls.see(message)
        drive.session_id = self._conversation.session_id or drive.session_id
        drive.busy = self._conversation.state == "running"
        if message["type"] == "result":
            drive.answer(read_result(message), line)
            drive.process.end_input()
        elif message["type"] in ("assistant", "stream_event") and message.get("parent_tool_use_id") is None:
            drive.answered.clear()  # a turn that the agent began by itself: its result is still to come

    def _control(self, message: dict[str, Any], size: int) -> None:
        calls = self._calls
        if calls is None or not calls.request(message, size):
            self._transport.offer(message, size)
        elif self._conversation.full:
            calls.settle()  # the end of the model's message is not read any more

    async def _make_calls(self, calls: ClientCalls) -> None:
        drive = self._drive
        while True:
            turn = await calls.turn()
            if drive.spec.ask is None:
                results = dict.fromkeys(
                    (call.id for call in turn.values()), "Nobody is there to make the call."
                )
            else:
                with drive.held():
                    try:
                        results = dict(await drive.spec.ask(tuple(turn.values())))
                    except TimeoutError:
                        drive.stop.request(Stop.UNANSWERED)
                        return
            calls.answer(turn, results)

    async def talk(self) -> None:
        async with asyncio.TaskGroup() as group:
            if self._calls is not None:
                group.create_task(self._calls.write(self._drive.process.write))
                group.create_task(self._make_calls(self._calls))
            greeting = group.create_task(self._greet())
            if self._drive.spec.agent.definition is not None:
                await asyncio.wait({greeting})
                if not await self._knows_agent():
                    return
            # Without an agent to check, the prompt does not wait for the answer: 30 ms of every run.
            await self._transport.asked.wait()
            job = self._drive.spec.job
            verbatim = job.origin == "openai" or self._drive.spec.agent.lean
            content: str | list[Mapping[str, Any]] = said(self._drive.spec, going_on=self._drive.going_on)
            if content == job.prompt:
                content = attached(job, self._folder).content
            await self._drive.process.write(prompt_line(content, verbatim=verbatim))

    async def _greet(self) -> None:
        try:
            await self._client.connect()
        except Exception:  # noqa: BLE001  # the SDK raises bare ones; how the agent ended says more than they do
            self._transport.asked.set()
            self._drive.process.end_input()
            return
        self._connected.set()

    async def _knows_agent(self) -> bool:
        """Compare the agent's name with those that the CLI listed: it takes an unknown one for its default."""
        if not self._connected.is_set():
            return False
        spec = self._drive.spec
        listed = _listed(await self._client.get_server_info())
        name = spec.agent.definition or ""
        askable = sorted(
            each for each in listed if each in spec.place.definitions or each not in BUILT_IN_AGENTS
        )
        if name in askable:
            return True
        known = ", ".join(askable)
        self._drive.unknown_agent = f"--agent '{name}' not found. Available agents: {known}\n"
        self._drive.process.end_input()
        return False

    async def interrupt(self) -> None:
        drive = self._drive
        if not drive.answered.is_set() and drive.process.running:
            await bounded(self._interrupted(), INTERRUPT_SECONDS)
        drive.process.end_input()
        if drive.answered.is_set():
            await bounded(drive.process.exited(), LEAVE_SECONDS)

    async def _interrupted(self) -> None:
        with contextlib.suppress(
            Exception
        ):  # bare ones of the SDK; without an answer the agent is stopped anyway
            await self._client.interrupt()
        await self._drive.answered.wait()

    async def close(self) -> None:
        """Let go of the SDK's client."""
        await self._client.disconnect()


def _listed(answer: Mapping[str, Any] | None) -> list[str]:
    agents = (answer or {}).get("agents")
    if not isinstance(agents, list):
        return []
    return [each["name"] for each in agents if isinstance(each, dict) and isinstance(each.get("name"), str)]
