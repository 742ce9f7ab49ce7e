"""The SDK's transport over a process that the runner owns: control messages go to the SDK, and no others."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

from claude_agent_sdk import CLIConnectionError, Transport

from steadyhand.runner.process.agent_process import AgentProcess

_MAX_REQUESTS = 64  # control requests of the agent that are passed on; it has no reason for any
_MAX_REQUEST_BYTES = 64 * 1024


class ProcessTransport(Transport):
    """The SDK's transport over an agent's process that somebody else owns, reads and ends."""

    def __init__(self, process: AgentProcess, initialize_fields: Mapping[str, Any] | None = None) -> None:
        """Create the transport; `initialize_fields` are added to the first request."""
        self._process = process
        self._initialize_fields = initialize_fields or {}
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
            request = json.loads(data)
            self._pending_requests.add(request["request_id"])
            if self._initialize_fields:
                request["request"] |= self._initialize_fields
                self._initialize_fields = {}
                data = json.dumps(request) + "\n"
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
