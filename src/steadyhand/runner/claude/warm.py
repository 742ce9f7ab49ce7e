"""Processes of the CLI that are started before their job is there: their key, and the steps that make them ready.

A process is started, initialised, and rehearses two turns, which the gateway answers by itself. `rewind_conversation`
then takes the turns out of the conversation. Unlike `/clear` it leaves nothing behind: after `/clear` the next request
holds three more blocks of text (490 bytes) that tell the model of the command.
"""

import asyncio
import hashlib
import json
import os
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from steadyhand.agents import Agent
from steadyhand.errors import SpawnError
from steadyhand.job import ClientTool, Job
from steadyhand.json_schema import agent_schema
from steadyhand.ports import Checkout, WarmKey
from steadyhand.runner.claude.argv import system_prompt_text
from steadyhand.runner.claude.mcp_tools import McpToolServer
from steadyhand.runner.claude.tool_names import MCP_SERVER_NAME
from steadyhand.runner.claude.transcript import ends_with, remove_session, user_messages
from steadyhand.runner.process.agent_process import AgentProcess
from steadyhand.runner.process.output import LineSplitter, parse_message

PREPARE_SECONDS = 60.0
"""The time limit of each step of a preparation, which runs only while the processor has nothing else to do."""
ANSWER_SECONDS = 1.5
"""The time for a waiting process to answer before it is given a job."""
REHEARSAL_PROMPT = "Hello."
REHEARSED_TURNS = 2
"""The second turn makes the first one of a job another eighth cheaper; a third has no effect."""
_FIRST_POLL_SECONDS, _LONGEST_POLL_SECONDS = 0.002, 0.05
"""The pauses between two looks at a file, for which there is no event: the CLI writes it in a few milliseconds."""
_CHUNK = 1 << 16
T = TypeVar("T")
_COMMAND_KEYS = ("hooks:", "mcpServers:")
"""The keys of a definition that may start a command."""


# --- keys: pure ----------------------------------------------------------------------------------


def warm_key(cli: Path, job: Job, agent: Agent) -> WarmKey | None:
    """Return the key of the processes that the first run of a job can have; None if it needs one of its own.

    Everything that a request can set and that is fixed at the start of the process, or at `initialize`, is in it.
    """
    if job.parent_job_id is not None or job.begin == "resume" or job.spec.history:
        return None
    return turn_key(cli, job, agent)


def turn_key(cli: Path, job: Job, agent: Agent) -> WarmKey | None:
    """Return the same for a job that continues the conversation of another one in the process of that."""
    spec = job.spec
    if job.runs or spec.attachments or spec.uncommitted is not None or job.is_on_uncommitted:
        return None
    process = [repr(agent), spec.model, spec.effort, spec.max_turns, _fingerprint(cli)]
    details = [system_prompt_text(job, agent), spec.output_schema, [asdict(tool) for tool in spec.tools]]
    return WarmKey(_digest(process), _digest(details))


def _fingerprint(cli: Path) -> list[int]:
    """Return the numbers by which a changed program is noticed."""
    try:
        info = os.stat(cli)  # noqa: PTH116  # for every job
    except OSError:
        return []
    return [info.st_ino, info.st_size, info.st_mtime_ns]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, default=str).encode("utf-8", "surrogatepass")).hexdigest()


def may_initialise(agent: Agent, checkout: Checkout) -> bool:
    """Return True if nothing that could run a command, or read a secret, is there before the job is."""
    return not checkout.full_trust and not agent.secrets and not starts_commands(checkout)


def may_kill(checkout: Checkout) -> bool:
    """Return True if nothing could be lost that the CLI does at its exit, such as hooks, or the end of servers."""
    return checkout.config_dir is not None and not checkout.full_trust and not starts_commands(checkout)


def starts_commands(checkout: Checkout) -> bool:
    """Return True if the definitions of a checkout may start commands beside the agent."""
    return any(key in each.text for each in checkout.definitions.values() for key in _COMMAND_KEYS)


def initialize_fields(job: Job, agent: Agent) -> Mapping[str, Any]:
    """Return the fields of `initialize` that stand for options of the command line."""
    text = system_prompt_text(job, agent)
    fields: dict[str, Any] = {} if text is None else {"appendSystemPrompt": text}
    if job.spec.output_schema is not None:
        fields["jsonSchema"] = agent_schema(job.spec.output_schema)
    if job.spec.tools:
        fields["sdkMcpServers"] = [MCP_SERVER_NAME]
    return fields


def agent_names(server_info: Mapping[str, Any] | None) -> list[str]:
    """Return the names of the agents in the answer to `initialize`."""
    agents = (server_info or {}).get("agents")
    if not isinstance(agents, list):
        return []
    return [each["name"] for each in agents if isinstance(each, dict) and isinstance(each.get("name"), str)]


# --- messages ------------------------------------------------------------------------------------


class _Messages:
    """Reads the messages of a process that has no job. What is no message is dropped."""

    def __init__(self, process: AgentProcess) -> None:
        self._process = process
        self._lines = LineSplitter()
        self._waiting: list[dict[str, Any]] = []
        self._ends_with_line = True

    async def next(self) -> dict[str, Any]:
        """Return the next message. Raise `SpawnError` at the end of the output."""
        while not self._waiting:
            chunk = await self._process.stdout.read(_CHUNK)
            if not chunk:
                raise SpawnError("The waiting process ended.")
            self._ends_with_line = chunk.endswith(b"\n")
            parsed = (parse_message(line) for is_line, line in self._lines.feed(chunk) if is_line)
            self._waiting += [message for message in parsed if message is not None]
        return self._waiting.pop(0)

    async def drain(self) -> None:
        """Read on until the output is at the end of a line."""
        self._waiting.clear()
        while not self._ends_with_line:
            await self.next()
            self._waiting.clear()


async def answers(process: AgentProcess) -> bool:
    """Return True if a process answers a small request in time. All that it printed before is dropped."""
    messages, request_id = _Messages(process), f"ping-{uuid.uuid4()}"
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            if not await process.write(_control_request(request_id, "get_session_cost")):
                return False
            while not _is_answer(await messages.next(), request_id):
                pass
            await messages.drain()
    except (TimeoutError, SpawnError):
        return False
    return True


def _control_request(request_id: str, subtype: str, **fields: Any) -> bytes:
    request = {"subtype": subtype, **fields}
    line = {"type": "control_request", "request_id": request_id, "request": request}
    return json.dumps(line).encode() + b"\n"


def _is_answer(message: Mapping[str, Any], request_id: str) -> bool:
    response = message.get("response")
    return (
        message["type"] == "control_response"
        and isinstance(response, dict)
        and response.get("request_id") == request_id
    )


async def wait_for_line(
    config_dir: Path, directory: str, session: str, text: bytes, seconds: float | None = None
) -> bool:
    """Wait until the end of a session's file holds a text; return False if it does not in time.

    The time is `ANSWER_SECONDS` by default.
    """
    try:
        async with asyncio.timeout(ANSWER_SECONDS if seconds is None else seconds):
            await _until(partial(ends_with, config_dir, directory, session, text))
    except TimeoutError:
        return False
    return True


async def _until(look: Callable[[], T]) -> T:
    """Look at files, in a thread, until the result is true, and return it. The caller bounds the wait."""
    seconds = _FIRST_POLL_SECONDS
    while not (found := await asyncio.to_thread(look)):
        await asyncio.sleep(seconds)
        seconds = min(2 * seconds, _LONGEST_POLL_SECONDS)
    return found


# --- the steps -----------------------------------------------------------------------------------


class WarmUp:
    """The steps that make a new process ready. Each raises `SpawnError` if the process does not do it."""

    def __init__(self, process: AgentProcess, tools: Sequence[ClientTool]) -> None:
        self._process = process
        self._tool_server = McpToolServer(tools, "call_rehearsal") if tools else None
        self._messages = _Messages(process)
        self._prompt_id = str(uuid.uuid4())

    async def wait_until_started(self) -> None:
        """Wait until the process reads requests."""
        async with self._step("It did not start"):
            await self._request("get_session_cost")

    async def initialise(self, fields: Mapping[str, Any], agent: Agent) -> None:
        """Initialise it, and check that it knows its agent's definition."""
        async with self._step("It was not initialised"):
            info = await self._request("initialize", hooks=None, **fields)
            if agent.definition is not None and agent.definition not in agent_names(info):
                raise SpawnError(f"The waiting process does not know the agent {agent.definition!r}.")

    async def rehearse(self) -> None:
        """Play some turns and take them out of the conversation."""
        async with self._step("It did not play its turns"):
            last_id = self._prompt_id
            await self._play_turn(self._prompt_id)
            for _ in range(REHEARSED_TURNS - 1):
                last_id = str(uuid.uuid4())
                await self._play_turn(last_id)
            answer = await self._request(
                "rewind_conversation",
                target_message_uuid=self._prompt_id,
                last_seen_user_message_uuid=last_id,
            )
            if answer.get("rewound") is not True:
                raise SpawnError("The waiting process did not forget its turn.")

    async def _play_turn(self, prompt_id: str) -> None:
        content = {"role": "user", "content": REHEARSAL_PROMPT}
        prompt: dict[str, Any] = {"type": "user", "message": content, "parent_tool_use_id": None}
        prompt |= {"session_id": "default", "uuid": prompt_id, "client_composed": True}
        await self._process.write(json.dumps(prompt).encode() + b"\n")
        while (message := await self._next_message())["type"] != "result":
            pass
        if message.get("is_error") or message.get("subtype") != "success":
            raise SpawnError("The waiting process could not play its turn.")

    async def forget_conversation(self, config_dir: Path, directory: str) -> str:
        """Begin a new session without a trace of the earlier one, or of the reset, and return its id."""
        async with self._step("It did not begin a new session"):
            message = {"role": "user", "content": "/clear"}
            line = {"type": "user", "message": message, "parent_tool_use_id": None, "session_id": "default"}
            await self._process.write(json.dumps(line).encode() + b"\n")
            while (result := await self._next_message())["type"] != "result":
                pass
            session = str(uuid.UUID(str(result.get("session_id"))))
            traces = await _until(partial(user_messages, config_dir, directory, session))
            answer = await self._request(
                "rewind_conversation", target_message_uuid=traces[0], last_seen_user_message_uuid=traces[-1]
            )
            if answer.get("rewound") is not True:
                raise SpawnError("The process did not forget its reset.")
            self._prompt_id = traces[0]
        await self.forget_session(config_dir, directory, session)
        return session

    async def forget_session(self, config_dir: Path, directory: str, session: str) -> None:
        """Remove the file of the session once the process has written that the turn is taken back."""
        async with self._step("It did not write its session"):
            await _until(partial(remove_session, config_dir, directory, session, self._prompt_id.encode()))

    @asynccontextmanager
    async def _step(self, failure: str) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(PREPARE_SECONDS):
                yield
        except TimeoutError as error:
            raise SpawnError(f"A waiting process was not ready in time: {failure}.") from error

    async def _request(self, subtype: str, **fields: Any) -> Mapping[str, Any]:
        request_id = f"warm-{uuid.uuid4()}"
        if not await self._process.write(_control_request(request_id, subtype, **fields)):
            raise SpawnError("The waiting process reads no more.")
        while True:
            message = await self._next_message()
            if _is_answer(message, request_id):
                response = message["response"]
                if response.get("subtype") != "success":
                    raise SpawnError(f"The waiting process refused {subtype!r}.")
                answer = response.get("response")
                return answer if isinstance(answer, dict) else {}

    async def _next_message(self) -> dict[str, Any]:
        """Return the next message; requests to the server of the client's tools are answered on the way."""
        while True:
            message = await self._messages.next()
            server = self._tool_server
            if server is None or message["type"] != "control_request":
                return message
            if server.handle_request(message, 0):
                for reply in server.pop_replies():
                    await self._process.write(reply)
