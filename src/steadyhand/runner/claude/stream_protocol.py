"""The agent's side of a run in the `stream` mode: the CLI's messages become events, and its requests are answered.

`control_client.py` has the control requests (`initialize`, `interrupt`). All other messages go from the pipe through
`messages.py` into events, so they are bounded and paced by the store.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import PurePosixPath
from typing import Any

import structlog

from steadyhand.events import SteerDropped, ToolStarted
from steadyhand.job import JobWarning, ToolOutput
from steadyhand.job_warnings import WarningCode
from steadyhand.outcome import StopReason
from steadyhand.ports import RunReport, SteerInbox, SteerMessage
from steadyhand.runner.claude.attachments import prepare_turns
from steadyhand.runner.claude.control_client import ControlClient, ControlError
from steadyhand.runner.claude.launch import encode_prompt
from steadyhand.runner.claude.mcp_tools import McpToolServer
from steadyhand.runner.claude.messages import MessageReader
from steadyhand.runner.claude.slash_commands import is_built_in, parse_commands
from steadyhand.runner.claude.steer_queue import SteerQueue, encode_note
from steadyhand.runner.claude.tool_names import TOOL_NAMES
from steadyhand.runner.claude.warm import agent_names
from steadyhand.runner.process.output import parse_message
from steadyhand.runner.process.run_loop import RunLoop, prompt_for, wait_bounded

INTERRUPT_SECONDS = 0.7
"""The time in which the agent must answer an interrupt with a result, so that its usage is known."""
EXIT_SECONDS = 0.2
"""How long it may then take to leave before it is stopped."""
BUILT_IN_AGENTS = frozenset({"claude", "Explore", "general-purpose", "Plan", "statusline-setup"})
"""Agents of the CLI itself, which callers cannot request by name."""

_CONTROL_TYPES = frozenset({"control_response", "control_request", "control_cancel_request"})
_ALWAYS_READ = (b'"result"', b'"control_', b'"background_tasks_changed"', b'"init"', b'"command_lifecycle"')


class StreamProtocol:
    """A `run_loop.AgentProtocol`: control requests by their client, everything else read here."""

    streams_output = True

    def __init__(
        self,
        run_loop: RunLoop,
        attachments_dir: PurePosixPath,
        session_holds: Callable[[Iterable[str]], bool],
        *,
        may_kill: bool,
        initialize_fields: Mapping[str, Any] | None = None,
        is_initialised: bool = False,
    ) -> None:
        self._log = structlog.get_logger("steadyhand")
        self._run_loop = run_loop
        self._attachments_dir = attachments_dir
        self._session_holds = session_holds
        self._messages = MessageReader()
        self._control = ControlClient(run_loop.process, initialize_fields)
        self._is_warm = initialize_fields is not None
        self._is_initialised = is_initialised
        self._may_kill = may_kill
        self._may_stay = False
        self._steers = SteerQueue(run_loop.process.write, self._takes_messages)
        self._prompt_sent = asyncio.Event()
        if run_loop.spec.orphan is not None:
            self._prompt_sent.set()
            self._steers.restore(run_loop.process.hold.noted_inputs())
            run_loop.keep()
        self.last_message_id: str | None = None
        """The id of the newest message of the agent, by which it is found in the session's file."""
        job = run_loop.spec.job
        id_prefix = f"call_{job.id}_{run_loop.spec.number}"
        tools, one_call = job.spec.tools, job.spec.one_call
        replied = run_loop.process.hold.noted_replies() if tools and run_loop.spec.orphan is not None else ()
        self._tool_server = (
            McpToolServer(tools, id_prefix, one_call=one_call, replied=replied) if tools else None
        )

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
        for steer_event in self._steers.observe(message, is_stopping=run_loop.stop.reason is not None):
            await run_loop.emit(steer_event)
        self._steers.confirm(message)
        for event in self._messages.feed(message, asyncio.get_running_loop().time()):
            if isinstance(event, ToolStarted) and event.name == TOOL_NAMES.structured_output:
                run_loop.last_structured_output = event.input
            await run_loop.emit(event)
        if self._tool_server is not None:
            self._tool_server.observe(message)
        run_loop.session_id = self._messages.session_id or run_loop.session_id
        self._note_busy()
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
            # One that tells its state says when nothing is left to do, and then waits for more or is killed.
            may_stay = run_loop.spec.keep_process or (self._may_kill and self._messages.state is not None)
            self._may_stay = may_stay and not result.is_error and not run_loop.background
            ends = not self._may_stay and (not run_loop.background or self._tool_server is None)
            if ends and not self._steers.waits:
                # The agent waits for its background, but the turn after that may need answers of its caller.
                run_loop.process.end_input()
        elif _begins_turn(message):
            run_loop.result_received.clear()  # a turn that the agent began by itself: its result is still to come
        elif self._may_stay and self._is_idle_with_result():
            run_loop.turn_ended.set()

    def _is_idle_with_result(self) -> bool:
        """Return True if the agent waits for more, and has not a message to read."""
        is_idle = self._messages.state == "idle" and not self._steers.has_unread
        return is_idle and self._run_loop.result_received.is_set()

    def _note_busy(self) -> None:
        """Note if the agent works on; after its result it does so for messages that came before it."""
        self._run_loop.busy = self._messages.state == "running" or self._steers.has_unread

    def _takes_messages(self) -> bool:
        """Return True while a turn goes on. Its result ends it, unless a message that came before it is to follow."""
        run_loop = self._run_loop
        has_ended = run_loop.result_received.is_set() and not self._steers.waits
        return not has_ended and run_loop.stop.reason is None and run_loop.process.input_open

    async def _take_steers(self, inbox: SteerInbox) -> None:
        """Accept messages to the running turn, from the prompt to the end of the agent."""
        await self._prompt_sent.wait()
        try:
            with inbox.open(self._deliver_steer):
                await self._run_loop.process.exited()
        finally:
            self._steers.close()

    async def _deliver_steer(self, message: SteerMessage) -> bool:
        self._run_loop.process.hold.note_input(encode_note(message))
        try:
            return await self._steers.deliver(message)
        finally:
            self._note_busy()

    async def report_unused_steers(self, report: RunReport) -> RunReport:
        """Report the messages that the agent had read and not gone on with; return the report with a warning."""
        unused = self._steers.unused()
        for message in unused:
            await self._run_loop.emit(SteerDropped(message.id))
        if not unused:
            return report
        text = f"The run ended before the agent went on with {len(unused)} of the messages to it."
        return replace(report, warnings=(*report.warnings, JobWarning(WarningCode.STEER_DROPPED, text)))

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
            if tool_server.was_answered(turn):
                continue
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
            if self._run_loop.spec.steers is not None:
                group.create_task(self._take_steers(self._run_loop.spec.steers))
            if self._tool_server is not None:
                process = self._run_loop.process
                group.create_task(self._tool_server.write_replies(process.write, process.hold.note_reply))
                group.create_task(self._serve_tool_calls(self._tool_server))
            if self._prompt_sent.is_set():  # by an earlier service
                return
            if not self._needs_initialize():
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

    def _needs_initialize(self) -> bool:
        """Return True if the run depends on `initialize`, which costs 15 ms of processor time.

        Its answer lists agents and commands; it sets what a waiting process was not started with, and the client's
        tools. The repository's own settings may hook into it.
        """
        spec = self._run_loop.spec
        if prompt_for(spec, resumed=self._run_loop.resumed).startswith("/"):
            return True
        if self._is_warm:
            return not self._is_initialised  # a second one changes nothing
        return (
            spec.agent.definition is not None
            or spec.checkout.full_trust
            or bool(spec.job.spec.tools)
            or spec.job.spec.command is not None
        )

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
        self._run_loop.keep()
        self._prompt_sent.set()

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
