"""The `stream` mode: the CLI's own protocol.

`control_client.py` has its control requests (`initialize`, `interrupt`). All other messages go from the pipe through
`messages.py` into events, so they are bounded and paced by the store.
"""

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import structlog

from steadyhand.agents import Agent
from steadyhand.errors import SpawnError
from steadyhand.events import ToolStarted
from steadyhand.job import Job, ToolOutput
from steadyhand.outcome import StopReason
from steadyhand.ports import Checkout, Emit, RunReport, RunSpec, Sandbox, StopSignal, WarmKey
from steadyhand.redact import Redactor
from steadyhand.runner.claude.attachments import attachment_dirs, prepare_turns
from steadyhand.runner.claude.control_client import ControlClient, ControlError
from steadyhand.runner.claude.home_snapshot import HomeSnapshot
from steadyhand.runner.claude.launch import build_launch, encode_prompt
from steadyhand.runner.claude.mcp_tools import McpToolServer
from steadyhand.runner.claude.messages import MessageReader
from steadyhand.runner.claude.session import (
    config_dir_of,
    resumes_session,
    session_directory,
    session_id_for,
)
from steadyhand.runner.claude.slash_commands import is_built_in, parse_commands
from steadyhand.runner.claude.tool_names import TOOL_NAMES
from steadyhand.runner.claude.transcript import session_holds
from steadyhand.runner.claude.warm import (
    WarmUp,
    agent_names,
    answers,
    initialize_fields,
    may_initialise,
    turn_key,
    wait_for_line,
    warm_key,
)
from steadyhand.runner.process.agent_process import AgentProcess
from steadyhand.runner.process.output import OutputCapture, parse_message
from steadyhand.runner.process.paused_processes import lower_priority, restore_priority
from steadyhand.runner.process.run_loop import RunLoop, prompt_for, wait_bounded

INTERRUPT_SECONDS = 0.7
"""The time in which the agent must answer an interrupt with a result, so that its usage is known."""
EXIT_SECONDS = 0.2
"""How long it may then take to leave before it is stopped."""
BUILT_IN_AGENTS = frozenset({"claude", "Explore", "general-purpose", "Plan", "statusline-setup"})
"""Agents of the CLI itself, which callers cannot request by name."""

_CONTROL_TYPES = frozenset({"control_response", "control_request", "control_cancel_request"})
_ALWAYS_READ = (b'"result"', b'"control_', b'"background_tasks_changed"', b'"init"')


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
        with self._capture(spec) as capture:
            async with AgentProcess.start(launch, spec.on_spawned, spec.on_listening, stop) as process:
                run_loop = RunLoop(spec, emit, stop, process, capture, resumed=resumed)
                return (await self._drive(run_loop, session))[0]

    @contextmanager
    def _capture(self, spec: RunSpec) -> Iterator[OutputCapture]:
        capture = OutputCapture(spec.checkout.paths.run_output(spec.number), self._redactor)
        try:
            yield capture
        finally:
            capture.close()

    async def _drive(
        self,
        run_loop: RunLoop,
        session: str,
        *,
        initialize_fields: Mapping[str, Any] | None = None,
        is_initialised: bool = False,
    ) -> tuple[RunReport, "_StreamProtocol"]:
        checkout = run_loop.spec.checkout
        protocol = _StreamProtocol(
            run_loop,
            attachment_dirs(checkout, self._sandbox)[1],
            partial(
                session_holds,
                config_dir_of(checkout),
                session_directory(self._sandbox.agent_paths(checkout), self._sandbox),
                session,
            ),
            initialize_fields=initialize_fields,
            is_initialised=is_initialised,
        )
        return await run_loop.run(protocol), protocol

    # --- processes that wait for a job -------------------------------------------------------

    def warm_key(self, job: Job, agent: Agent) -> WarmKey | None:
        """See `ports.WarmRunner.warm_key`."""
        return None if self._enforce_budget else warm_key(self._cli, job, agent)

    def may_initialise(self, agent: Agent, checkout: Checkout) -> bool:
        """See `ports.WarmRunner.may_initialise`."""
        return may_initialise(agent, checkout)

    def set_background(self, supervisor: int, *, is_background: bool) -> None:
        """See `ports.WarmRunner.set_background`."""
        if is_background:
            lower_priority(supervisor)
        else:
            restore_priority(supervisor)

    @asynccontextmanager
    async def prepare(
        self,
        spec: RunSpec,
        rehearsing: Callable[[], AbstractContextManager[None]] | None,
        *,
        initialise: bool,
    ) -> AsyncIterator["WarmClaude"]:
        """See `ports.WarmRunner.prepare`."""
        session = str(uuid.uuid4())
        launch = build_launch(
            self._cli, spec, session, self._sandbox, enforce_budget=self._enforce_budget, details_later=True
        )
        async with AgentProcess.start(launch, spec.on_spawned, spec.on_listening) as process:
            checkout = spec.checkout
            warm_up = WarmUp(process, spec.job.spec.tools)
            if initialise:
                await warm_up.initialise(initialize_fields(spec.job, spec.agent), spec.agent)
                if rehearsing is not None:
                    with rehearsing():
                        await warm_up.rehearse()
                    directory = session_directory(self._sandbox.agent_paths(checkout), self._sandbox)
                    await warm_up.forget_session(config_dir_of(checkout), directory, session)
            else:
                await warm_up.wait_until_started()
            snapshot = await asyncio.to_thread(HomeSnapshot.of, (checkout.home, config_dir_of(checkout)))
            yield WarmClaude(self, process, session, snapshot, is_initialised=initialise)

    def turn_key(self, job: Job, agent: Agent) -> WarmKey | None:
        """See `ports.WarmRunner.turn_key`."""
        return None if self._enforce_budget else turn_key(self._cli, job, agent)

    async def run_warm(
        self, warm: "WarmClaude", process: AgentProcess, spec: RunSpec, emit: Emit, stop: StopSignal
    ) -> RunReport:
        """Run a job in a process that waited for it."""
        fields = {} if warm.is_initialised else initialize_fields(spec.job, spec.agent)
        with self._capture(spec) as capture:
            run_loop = RunLoop(
                spec, emit, stop, process, capture, resumed=spec.job.begin == "resume" and warm.has_run
            )
            report, protocol = await self._drive(
                run_loop,
                warm.session_id,
                initialize_fields=fields,
                is_initialised=warm.is_initialised,
            )
        if report.process_kept:
            warm.is_initialised = warm.has_run = True
            if not await self._is_written(spec.checkout, warm.session_id, protocol.last_message_id):
                await process.stop()
                return replace(report, process_kept=False)
        return report

    async def _is_written(self, checkout: Checkout, session: str, message_id: str | None) -> bool:
        """Wait until the session's file holds the newest message; return False if it does not within a limit."""
        directory = session_directory(self._sandbox.agent_paths(checkout), self._sandbox)
        return message_id is not None and await wait_for_line(
            config_dir_of(checkout), directory, session, message_id.encode()
        )

    async def reset(self, warm: "WarmClaude", process: AgentProcess, checkout: Checkout) -> bool:
        """Make a kept process as new; see `ports.WarmAgent.reset`."""
        config, view = config_dir_of(checkout), self._sandbox.agent_paths(checkout)
        directory = session_directory(view, self._sandbox)
        try:
            warm.session_id = await WarmUp(process, ()).forget_conversation(config, directory)
        except SpawnError:
            return False
        warm.has_run = False
        process.pause()
        return await asyncio.to_thread(warm.snapshot.restore, (checkout.home, config))


class WarmClaude:
    """A process of the CLI that waits for a job; see `ports.WarmAgent`."""

    def __init__(
        self,
        runner: ClaudeRunner,
        process: AgentProcess,
        session: str,
        snapshot: HomeSnapshot,
        *,
        is_initialised: bool,
    ) -> None:
        self.session_id = session
        self.is_initialised = is_initialised
        self.has_run = False
        self.snapshot = snapshot
        self._runner = runner
        self._process = process

    @property
    def supervisor(self) -> tuple[int, int]:
        """Return the supervisor's pid and start time."""
        return self._process.pid, self._process.started_ticks

    @property
    def root(self) -> Path | None:
        """Return the path of the root directory of the CLI's process."""
        return self._process.root

    def pause(self) -> None:
        """Stop the processes until `wake`."""
        self._process.pause()

    async def wake(self) -> bool:
        """Let the processes go on; return True if the agent answers within `warm.ANSWER_SECONDS`."""
        self._process.resume()
        return await answers(self._process)

    async def exited(self) -> None:
        """Wait for the end of the agent."""
        await self._process.exited()

    async def run(self, spec: RunSpec, emit: Emit, stop: StopSignal) -> RunReport:
        """See `ports.WarmAgent.run`."""
        spec.on_spawned(*self.supervisor)
        return await self._runner.run_warm(self, self._process, spec, emit, stop)

    async def reset(self, checkout: Checkout) -> bool:
        """See `ports.WarmAgent.reset`."""
        return await self._runner.reset(self, self._process, checkout)


class _StreamProtocol:
    """A `run_loop.AgentProtocol`: control requests by their client, everything else read here."""

    streams_output = True

    def __init__(
        self,
        run_loop: RunLoop,
        attachments_dir: PurePosixPath,
        session_holds: Callable[[Iterable[str]], bool],
        *,
        initialize_fields: Mapping[str, Any] | None = None,
        is_initialised: bool = False,
    ) -> None:
        self._log = structlog.get_logger("steadyhand")
        self._run_loop = run_loop
        self._attachments_dir = attachments_dir
        self._session_holds = session_holds
        self._messages = MessageReader()
        self._control = ControlClient(run_loop.process, initialize_fields)
        self._is_initialised = is_initialised
        self._may_stay = False
        self.last_message_id: str | None = None
        """The id of the newest message of the agent, by which it is found in the session's file."""
        job = run_loop.spec.job
        id_prefix = f"call_{job.id}_{run_loop.spec.number}"
        tools, one_call = job.spec.tools, job.spec.one_call
        self._tool_server = McpToolServer(tools, id_prefix, one_call=one_call) if tools else None

    async def handle_line(self, line: bytes) -> None:
        run_loop = self._run_loop
        # Once the record is full only what ends the run or answers a request is worth reading.
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
        self._note_turn(message, line)

    def _note_turn(self, message: Mapping[str, Any], line: bytes) -> None:
        """Note the beginning, the newest message and the result of a turn."""
        run_loop = self._run_loop
        if message["type"] == "assistant" and isinstance(message.get("uuid"), str):
            self.last_message_id = message["uuid"]
        if message["type"] == "result" and self._messages.result is not None:
            result = self._messages.whole_answer(self._messages.result)
            run_loop.set_result(result, line)
            self._may_stay = run_loop.spec.keep_process and not result.is_error and not run_loop.background
            if not self._may_stay and (not run_loop.background or self._tool_server is None):
                # The agent waits for its background, but the turn after that may need answers of its caller.
                run_loop.process.end_input()
        elif _begins_turn(message):
            run_loop.result_received.clear()  # a turn that the agent began by itself: its result is still to come
        elif self._may_stay and self._messages.state == "idle" and run_loop.result_received.is_set():
            run_loop.turn_ended.set()

    def _handle_control(self, message: dict[str, Any], size: int) -> None:
        tool_server = self._tool_server
        if tool_server is None or not tool_server.handle_request(message, size):
            self._control.deliver(message, size)
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
            group.create_task(self._control.refuse_requests())
            if self._tool_server is not None:
                group.create_task(self._tool_server.write_replies(self._run_loop.process.write))
                group.create_task(self._serve_tool_calls(self._tool_server))
            if self._is_initialised and not self._run_loop.spec.job.spec.prompt.startswith("/"):
                # The name of the agent is checked already, and a second `initialize` changes nothing.
                await self._send_prompt()
                return
            connecting = group.create_task(self._connect())
            if self._run_loop.spec.agent.definition is not None:
                await asyncio.wait({connecting})
                if not await self._check_agent():
                    return
            # Without an agent to check, the prompt does not wait for the answer: 30 ms of every run.
            await self._control.first_request_sent.wait()
            await self._send_prompt(connecting)

    async def _send_prompt(self, connecting: asyncio.Task[None] | None = None) -> None:
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
            if connecting is not None:
                await asyncio.wait({connecting})
            info = self._control.server_info
            if command is not None and info is None:
                return
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
            await self._control.initialize()
        except ControlError:  # how the agent ended says more
            self._log.debug("agent.connect_failed", job=self._run_loop.spec.job.id, exc_info=True)
            self._control.first_request_sent.set()
            self._run_loop.process.end_input()

    async def _check_agent(self) -> bool:
        """Compare the agent's name with those that the CLI listed: it takes an unknown one for its default."""
        if self._control.server_info is None:
            return False
        spec = self._run_loop.spec
        agents = agent_names(self._control.server_info)
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
            await self._control.interrupt()
        except ControlError:  # without an answer the agent is stopped anyway
            self._log.debug("agent.interrupt_failed", job=self._run_loop.spec.job.id, exc_info=True)
        await self._run_loop.result_received.wait()


def _begins_turn(message: Mapping[str, Any]) -> bool:
    if message["type"] == "system":
        return message.get("subtype") == "init"
    return message["type"] in ("assistant", "stream_event") and message.get("parent_tool_use_id") is None
