"""The control requests of the CLI's protocol: `initialize`, `interrupt`, their answers, and the agent's own requests.

The SDK has a client for them, too. Its import takes more than a second of processor time and 35 MB, most of it for
servers of MCP tools that no run has.
"""

import asyncio
import json
import uuid
from collections.abc import Mapping
from typing import Any

from steadyhand.runner.process.agent_process import AgentProcess

ANSWER_SECONDS = 60.0
"""The time for the agent to answer a request."""
_MAX_REQUESTS = 64  # control requests of the agent that are answered; it has no reason for any
_MAX_REQUEST_BYTES = 64 * 1024


class ControlError(Exception):
    """A request was refused, not answered in time, or not read."""


class ControlClient:
    """The control requests to an agent's process that somebody else owns, reads and ends."""

    def __init__(self, process: AgentProcess, initialize_fields: Mapping[str, Any] | None = None) -> None:
        """Create the client; `initialize_fields` are added to the first request."""
        self._process = process
        self._initialize_fields = initialize_fields or {}
        self._answers: dict[str, asyncio.Future[Mapping[str, Any]]] = {}
        self._refused: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
        self._requests = 0
        self.first_request_sent = asyncio.Event()
        """Set once the first request has been written."""
        self.server_info: Mapping[str, Any] | None = None
        """The answer to `initialize`: the agents and the commands of the CLI; None before it."""

    async def initialize(self) -> None:
        """Send the first request and wait for its answer. Raises `ControlError`."""
        self.server_info = await self._request("initialize", hooks=None, **self._initialize_fields)

    async def interrupt(self) -> None:
        """Ask the agent to end its turn, and wait for its answer. Raises `ControlError`."""
        await self._request("interrupt")

    async def _request(self, subtype: str, **fields: Any) -> Mapping[str, Any]:
        request_id = str(uuid.uuid4())
        answer: asyncio.Future[Mapping[str, Any]] = asyncio.get_running_loop().create_future()
        self._answers[request_id] = answer
        request = {"type": "control_request", "request_id": request_id}
        try:
            if not await self._write({**request, "request": {"subtype": subtype, **fields}}):
                raise ControlError("The agent reads no more.")
            self.first_request_sent.set()
            async with asyncio.timeout(ANSWER_SECONDS):
                return await answer
        except TimeoutError as error:
            raise ControlError(f"The agent did not answer {subtype!r} in time.") from error
        finally:
            self._answers.pop(request_id, None)

    async def _write(self, message: Mapping[str, Any]) -> bool:
        return await self._process.write(json.dumps(message).encode() + b"\n")

    def deliver(self, message: Mapping[str, Any], size: int) -> bool:
        """Handle a control message of `size` bytes; return False if nothing waits for it, or if it is malformed.

        At most one answer for each request and `_MAX_REQUESTS` small requests of the agent are accepted.
        """
        if message["type"] == "control_response":
            return self._accept_answer(message.get("response"))
        request, request_id = message.get("request", {"subtype": "cancel"}), message.get("request_id")
        subtype = request.get("subtype") if isinstance(request, dict) else None
        self._requests += 1
        if (
            not isinstance(subtype, str)
            or not isinstance(request_id, str)
            or self._requests > _MAX_REQUESTS
            or size > _MAX_REQUEST_BYTES
        ):
            return False
        if message["type"] == "control_request":
            self._refused.put_nowait((request_id, subtype))
        return True

    def _accept_answer(self, response: Any) -> bool:
        request_id = response.get("request_id") if isinstance(response, dict) else None
        answer = self._answers.pop(request_id, None) if isinstance(request_id, str) else None
        if answer is None or answer.done():
            return False
        if response.get("subtype") == "error":
            answer.set_exception(ControlError(str(response.get("error"))[:1000]))
            return True
        content = response.get("response")
        answer.set_result(content if isinstance(content, dict) else {})
        return True

    async def refuse_requests(self) -> None:
        """Answer each request of the agent with an error until it reads no more: nothing here serves them."""
        while True:
            request_id, subtype = await self._refused.get()
            error = f"Unsupported control request subtype: {subtype}"
            response = {"subtype": "error", "request_id": request_id, "error": error}
            if not await self._write({"type": "control_response", "response": response}):
                return
