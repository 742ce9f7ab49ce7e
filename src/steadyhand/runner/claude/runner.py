"""The `stream` mode: the CLI's own protocol, by the SDK's client over a transport of ours.

The SDK handles the control protocol (`initialize`, `interrupt`) and sees nothing else. The agent's messages go from the
pipe through `messages.py` into events, so they are bounded and paced by the store; the SDK's buffer of a hundred
messages of any size is not.
"""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import structlog
from claude_agent_sdk import ClaudeAgentOptions, ClaudeSDKClient, CLIConnectionError, Transport

from steadyhand.events import ToolStarted
from steadyhand.job import ToolOutput, Turn
from steadyhand.outcome import StopReason
from steadyhand.ports import Command, Emit, RunReport, RunSpec, Sandbox, StopSignal
from steadyhand.redact import Redactor
from steadyhand.runner.claude.argv import common_options, format_budget, format_option, system_prompt_file
from steadyhand.runner.claude.attachments import attachment_dirs, attachment_files, prepare_turns
from steadyhand.runner.claude.environment import agent_environment, temp_dir
from steadyhand.runner.claude.mcp_tools import MCP_CONFIG, McpToolServer
from steadyhand.runner.claude.messages import MessageReader
from steadyhand.runner.claude.session import (
    config_dir_of,
    resumes_session,
    session_directory,
    session_file,
    session_id_for,
)
from steadyhand.runner.claude.slash_commands import is_built_in, parse_commands
from steadyhand.runner.claude.tool_names import TOOL_NAMES
from steadyhand.runner.claude.transcript import session_holds
from steadyhand.runner.process.agent_process import AgentProcess, LaunchSpec
from steadyhand.runner.process.output import OutputCapture, parse_message
from steadyhand.runner.process.run_loop import RunLoop, prompt_for, wait_bounded

INTERRUPT_SECONDS = 0.7
"""The time in which the agent must answer an interrupt with a result, so that its usage is known."""
EXIT_SECONDS = 0.2
"""How long it may then take to leave before it is stopped."""
DISCONNECT_SECONDS = 5.0
BUILT_IN_AGENTS = frozenset({"claude", "Explore", "general-purpose", "Plan", "statusline-setup"})
"""Agents of the CLI itself, which callers cannot request by name."""

_MAX_REQUESTS = 64  # control requests of the agent that are passed on; it has no reason for any
_MAX_REQUEST_BYTES = 64 * 1024
_TOOL_TIMEOUT_MILLISECONDS = 24 * 60 * 60 * 1000
_CONTROL_TYPES = frozenset({"control_response", "control_request", "control_cancel_request"})
_ALWAYS_READ = (b'"result"', b'"control_', b'"background_tasks_changed"', b'"init"')
_HISTORY_TIME = "2026-01-01T00:00:00.000Z"


# --- what is launched: pure ----------------------------------------------------------------------


def stream_argv(
    cli: Path,
    spec: RunSpec,
    session: str,
    prompt_file: Path | None,
    *,
    resumed: bool = False,
    enforce_budget: bool = True,
) -> list[str]:
    """Return the command line. `prompt_file` holds the text that is appended to the system prompt.

    With `budgeted` the CLI enforces the budget by its own estimate; where the gateway enforces it, that could end a run
    too early. Raises `SpawnError` if the output schema is too large for an argument.
    """
    job, agent = spec.job, spec.agent
    argv = [str(cli), "-p", "--input-format", "stream-json", "--output-format", "stream-json", "--verbose"]
    argv += ["--include-partial-messages", "--dangerously-skip-permissions"]
    argv += ["--max-budget-usd", format_budget(job.budget_micros)] if enforce_budget else []
    argv += ["--setting-sources", "user,project,local" if spec.checkout.full_trust else "user"]
    argv += ["--resume" if job.spec.history or resumed else "--session-id", session]
    argv += [] if agent.definition is None else format_option("--agent", agent.definition)
    argv += common_options(spec, prompt_file)
    return [*argv, "--mcp-config", MCP_CONFIG] if job.spec.tools else argv


def render_session(history: Sequence[Turn], directory: str, session: str) -> bytes:
    """Return earlier turns in the CLI's own format of a session, which it then resumes: one model call, true turns."""
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
        entry_uuid = str(uuid.uuid5(uuid.UUID(session), str(index)))
        entry: dict[str, Any] = {
            "type": turn.role,
            "message": message,
            "uuid": entry_uuid,
            "parentUuid": parent,
        }
        entry |= {"sessionId": session, "isSidechain": False, "userType": "external", "cwd": directory}
        entry |= {"version": "2.1.332", "timestamp": _HISTORY_TIME}
        lines.append(json.dumps(entry))
        parent = entry_uuid
    return "".join(line + "\n" for line in lines).encode()


def encode_prompt(content: str | list[Mapping[str, Any]], *, verbatim: bool) -> bytes:
    """Return the prompt, text or blocks, as a message.

    If `verbatim`, the CLI expands no `@path` and runs no slash command in it.
    """
    message: dict[str, Any] = {"type": "user", "message": {"role": "user", "content": content}}
    message |= {"parent_tool_use_id": None, "session_id": "default"}
    if verbatim:
        message["client_composed"] = True
    return json.dumps(message).encode() + b"\n"


def build_launch(
    cli: Path, spec: RunSpec, session: str, sandbox: Sandbox, *, enforce_budget: bool = True
) -> LaunchSpec:
    """Return the launch spec, with its files."""
    checkout, view = spec.checkout, sandbox.agent_paths(spec.checkout)
    files: list[tuple[Path, bytes]] = []
    system_prompt = system_prompt_file(spec, view)
    if system_prompt is not None:
        files.append((system_prompt.host_path, system_prompt.content))
    folder, agent_dir = attachment_dirs(checkout, sandbox)
    resumed = resumes_session(spec, sandbox, session)
    if spec.job.spec.history and not resumed:
        directory = session_directory(view, sandbox)
        record = render_session(prepare_turns(spec.job, agent_dir).history, directory, session)
        files.append((session_file(config_dir_of(checkout), directory, session), record))
    env = agent_environment(spec, view) | {"CLAUDE_CODE_SDK_READS_SESSION_STATE": "1"}
    if spec.job.spec.tools:
        # How long a call may take is the service's to say, not the CLI's.
        env["MCP_TOOL_TIMEOUT"] = str(_TOOL_TIMEOUT_MILLISECONDS)
    prompt_file = None if system_prompt is None else system_prompt.agent_path
    argv = stream_argv(cli, spec, session, prompt_file, resumed=resumed, enforce_budget=enforce_budget)
    needs_socket = spec.model_access is not None and spec.model_access.socket is not None
    command = Command(argv, env, view.directory, checkout.uid, needs_model_socket=needs_socket)
    folders = [] if checkout.config_dir is None else [temp_dir(checkout.home)]
    optional_files = [(folder / name, data) for name, data in attachment_files(spec.job, spec.earlier_files)]
    return LaunchSpec(
        sandbox.wrap(command, checkout, spec.agent),
        files=files,
        optional_files=optional_files,
        folders=folders,
    )


# --- the transport -------------------------------------------------------------------------------


class ProcessTransport(Transport):
    """The SDK's transport over an agent's process that somebody else owns, reads and ends."""

    def __init__(self, process: AgentProcess) -> None:
        self._process = process
        self._messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._pending_requests: set[str] = set()
        self._requests = 0
        self._ready = False
        self.first_request_sent = asyncio.Event()
        """Set once the first control request has been written."""

    async def connect(self) -> None:
        """Do nothing: the process is running already."""
        self._ready = True

    async def write(self, data: str) -> None:
        """Write lines to the agent. Raises `CLIConnectionError` when it reads no more."""
        if data.startswith('{"type": "control_request"'):
            self._pending_requests.add(json.loads(data)["request_id"])
        if not self._ready or not await self._process.write(data.encode()):
            raise CLIConnectionError("The agent reads no more.")
        self.first_request_sent.set()

    def deliver(self, message: dict[str, Any], size: int) -> bool:
        """Send a control message of `size` bytes to the SDK; return False if the SDK could not handle it.

        At most one answer for each of its own requests and `_REQUESTS` small requests of the agent are accepted, so the
        number of waiting messages is bounded.
        """
        if message["type"] == "control_response":
            response = message.get("response")
            request_id = response.get("request_id") if isinstance(response, dict) else None
            if not isinstance(request_id, str) or request_id not in self._pending_requests:
                return False
            self._pending_requests.discard(request_id)
        else:
            request = message.get("request", {"subtype": "cancel"})
            well_formed = isinstance(request, dict) and isinstance(request.get("subtype"), str)
            if not well_formed or not isinstance(message.get("request_id"), str):
                return False
            self._requests += 1
            if self._requests > _MAX_REQUESTS or size > _MAX_REQUEST_BYTES:
                return False
        self._messages.put_nowait(message)
        return True

    async def read_messages(self) -> AsyncIterator[dict[str, Any]]:
        """Yield the control messages, until the SDK closes."""
        while True:
            yield await self._messages.get()

    async def close(self) -> None:
        """End the agent's input; the process is not the SDK's to end."""
        self._ready = False
        self._process.end_input()

    def is_ready(self) -> bool:
        """Return True if messages can be written."""
        return self._ready

    async def end_input(self) -> None:
        """End the agent's input."""
        self._process.end_input()


# --- the runner ----------------------------------------------------------------------------------


class ClaudeRunner:
    """Runs agents by the CLI's streaming protocol; implements `ports.Runner`."""

    def __init__(
        self, cli: Path, sandbox: Sandbox, redactor: Redactor, *, enforce_budget: bool = True
    ) -> None:
        """Create a runner with the CLI, the sandbox and the redactor of its output.

        `budgeted` is False where the gateway enforces the budget.
        """
        self._cli = cli
        self._sandbox = sandbox
        self._redactor = redactor
        self._enforce_budget = enforce_budget

    async def run(self, spec: RunSpec, emit: Emit, stop: StopSignal) -> RunReport:
        """See `ports.Runner.run`."""
        session = session_id_for(spec)
        resumed = resumes_session(spec, self._sandbox, session)
        launch = build_launch(self._cli, spec, session, self._sandbox, enforce_budget=self._enforce_budget)
        capture = OutputCapture(spec.checkout.paths.run_output(spec.number), self._redactor)
        try:
            async with AgentProcess.start(launch, spec.on_spawned, spec.on_listening, stop) as process:
                run_loop = RunLoop(spec, emit, stop, process, capture, resumed=resumed)
                protocol = _StreamProtocol(
                    run_loop,
                    attachment_dirs(spec.checkout, self._sandbox)[1],
                    partial(
                        session_holds,
                        config_dir_of(spec.checkout),
                        session_directory(self._sandbox.agent_paths(spec.checkout), self._sandbox),
                        session,
                    ),
                )
                try:
                    return await run_loop.run(protocol)
                finally:
                    await protocol.close()
        finally:
            capture.close()


class _StreamProtocol:
    """A `run_loop.AgentProtocol`: the SDK's client for control, everything else read here."""

    streams_output = True

    def __init__(
        self,
        run_loop: RunLoop,
        attachments_dir: PurePosixPath,
        session_holds: Callable[[Iterable[str]], bool],
    ) -> None:
        self._log = structlog.get_logger("steadyhand")
        self._run_loop = run_loop
        self._attachments_dir = attachments_dir
        self._session_holds = session_holds
        self._messages = MessageReader()
        self._transport = ProcessTransport(run_loop.process)
        self._client = ClaudeSDKClient(ClaudeAgentOptions(), transport=self._transport)
        self._connected = asyncio.Event()
        job = run_loop.spec.job
        id_prefix = f"call_{job.id}_{run_loop.spec.number}"
        tools, one_call = job.spec.tools, job.spec.one_call
        self._tool_server = McpToolServer(tools, id_prefix, one_call=one_call) if tools else None

    async def handle_line(self, line: bytes) -> None:
        run_loop = self._run_loop
        # Once the record is full only what ends the run or answers the SDK is worth reading.
        is_needed = not self._messages.limit_reached or any(word in line for word in _ALWAYS_READ)
        message = parse_message(line) if is_needed else None
        if message is None:
            if is_needed:
                run_loop.capture.add_printed(line)
            return
        if message["type"] in _CONTROL_TYPES:
            self._handle_control(message, len(line))
            return
        for event in self._messages.feed(message, asyncio.get_running_loop().time()):
            if isinstance(event, ToolStarted) and event.name == TOOL_NAMES.structured_output:
                run_loop.last_structured_output = event.input
            await run_loop.emit(event)
        if self._tool_server is not None:
            self._tool_server.observe(message)
        run_loop.session_id = self._messages.session_id or run_loop.session_id
        run_loop.busy = self._messages.state == "running"
        run_loop.hook = self._messages.running_hook
        if self._messages.background != run_loop.background:
            run_loop.set_background(self._messages.background)
        if message["type"] == "result" and self._messages.result is not None:
            run_loop.set_result(self._messages.whole_answer(self._messages.result), line)
            if not run_loop.background or self._tool_server is None:
                # The agent waits for its background, but the turn after that may need answers of its caller.
                run_loop.process.end_input()
        elif _begins_turn(message):
            run_loop.result_received.clear()  # a turn that the agent began by itself: its result is still to come

    def _handle_control(self, message: dict[str, Any], size: int) -> None:
        tool_server = self._tool_server
        if tool_server is None or not tool_server.handle_request(message, size):
            self._transport.deliver(message, size)
        elif self._messages.limit_reached:
            tool_server.end_message()  # the end of the model's message is not read any more

    async def _serve_tool_calls(self, tool_server: McpToolServer) -> None:
        run_loop = self._run_loop
        while True:
            turn = await tool_server.next_turn()
            if run_loop.spec.call_client_tools is None:
                results: dict[str, ToolOutput] = dict.fromkeys(
                    (call.id for call in turn.values()), "Nobody is there to make the call."
                )
            else:
                with run_loop.idle_paused():
                    try:
                        results = dict(
                            await run_loop.spec.call_client_tools(
                                tuple(turn.values()), partial(self._is_in_session, tuple(turn))
                            )
                        )
                    except TimeoutError:
                        run_loop.stop.request(StopReason.UNANSWERED)
                        return
            tool_server.set_results(turn, results)

    async def _is_in_session(self, tool_use_ids: Iterable[str]) -> bool:
        return await asyncio.to_thread(self._session_holds, tool_use_ids)

    async def send_input(self) -> None:
        async with asyncio.TaskGroup() as group:
            if self._tool_server is not None:
                group.create_task(self._tool_server.write_replies(self._run_loop.process.write))
                group.create_task(self._serve_tool_calls(self._tool_server))
            connecting = group.create_task(self._connect())
            if self._run_loop.spec.agent.definition is not None:
                await asyncio.wait({connecting})
                if not await self._check_agent():
                    return
            # Without an agent to check, the prompt does not wait for the answer: 30 ms of every run.
            await self._transport.first_request_sent.wait()
            await self._send_prompt(connecting)

    async def _send_prompt(self, connecting: asyncio.Task[None]) -> None:
        job = self._run_loop.spec.job
        content: str | list[Mapping[str, Any]] = prompt_for(
            self._run_loop.spec, resumed=self._run_loop.resumed
        )
        is_first = content == job.spec.prompt
        command = job.spec.command if is_first else None
        verbatim = command is None and (job.spec.origin == "openai" or self._run_loop.spec.agent.lean)
        if is_first:
            content = prepare_turns(job, self._attachments_dir).content
        if isinstance(content, str) and content.startswith("/") and not verbatim:
            await asyncio.wait({connecting})
            if command is not None and not self._connected.is_set():
                return
            info = await self._client.get_server_info() if self._connected.is_set() else None
            commands = parse_commands(info)
            if command is None:
                verbatim = is_built_in(content, commands)
            elif command.name not in commands.defined | commands.built_in:
                self._run_loop.unknown_command = f"Nobody defines the command {command.name!r}."
                self._run_loop.process.end_input()
                return
        await self._run_loop.process.write(encode_prompt(content, verbatim=verbatim))

    async def _connect(self) -> None:
        try:
            await self._client.connect()
        except Exception:  # noqa: BLE001  # the SDK raises bare ones; how the agent ended says more than they do
            self._log.debug("agent.connect_failed", job=self._run_loop.spec.job.id, exc_info=True)
            self._transport.first_request_sent.set()
            self._run_loop.process.end_input()
            return
        self._connected.set()

    async def _check_agent(self) -> bool:
        """Compare the agent's name with those that the CLI listed: it takes an unknown one for its default."""
        if not self._connected.is_set():
            return False
        spec = self._run_loop.spec
        agents = _agent_names(await self._client.get_server_info())
        name = spec.agent.definition or ""
        selectable = sorted(
            each for each in agents if each in spec.checkout.definitions or each not in BUILT_IN_AGENTS
        )
        if name in selectable:
            return True
        available = ", ".join(selectable)
        self._run_loop.unknown_agent = f"--agent '{name}' not found. Available agents: {available}\n"
        self._run_loop.process.end_input()
        return False

    async def interrupt(self) -> None:
        run_loop = self._run_loop
        if not run_loop.result_received.is_set() and run_loop.process.running:
            await wait_bounded(self._interrupt_and_wait(), INTERRUPT_SECONDS)
        run_loop.process.end_input()
        if run_loop.result_received.is_set():
            await wait_bounded(run_loop.process.exited(), EXIT_SECONDS)

    async def _interrupt_and_wait(self) -> None:
        try:
            await self._client.interrupt()
        except Exception:  # noqa: BLE001  # the SDK raises bare ones; without an answer the agent is stopped anyway
            self._log.debug("agent.interrupt_failed", job=self._run_loop.spec.job.id, exc_info=True)
        await self._run_loop.result_received.wait()

    async def close(self) -> None:
        """Let go of the SDK's client. Its process has ended already."""
        await wait_bounded(self._client.disconnect(), DISCONNECT_SECONDS)


def _begins_turn(message: Mapping[str, Any]) -> bool:
    if message["type"] == "system":
        return message.get("subtype") == "init"
    return message["type"] in ("assistant", "stream_event") and message.get("parent_tool_use_id") is None


def _agent_names(server_info: Mapping[str, Any] | None) -> list[str]:
    agents = (server_info or {}).get("agents")
    if not isinstance(agents, list):
        return []
    return [each["name"] for each in agents if isinstance(each, dict) and isinstance(each.get("name"), str)]
