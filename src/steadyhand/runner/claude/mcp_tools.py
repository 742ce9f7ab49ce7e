"""The caller's own tools, as a server of the Model Context Protocol that speaks over the agent's pipes.

The CLI sends the protocol's messages as control requests, so that a sealed run needs no network for it. Calls of one
turn of the model are gathered: they are handed out together once the model's message has ended, or one after another.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from steadyhand.job import ClientTool
from steadyhand.ports import ClientCall
from steadyhand.tool_calls import PREFIX, SERVER

CONFIG = json.dumps({"mcpServers": {SERVER: {"type": "sdk", "name": SERVER}}})
"""What the command line is told of the server."""
MOST_REQUESTS = 4_096
MOST_REQUEST_BYTES = 1024 * 1024
"""What an agent may ask of the server in one run."""
_USE_ID = "claudecode/toolUseId"
_VERSION = "2025-06-18"
_NO_METHOD = -32601
_INTERNAL = -32603


class ClientCalls:
    """Reads what the agent asks of the server, and answers it.

    `named` is what the calls' ids begin with; with `one_call` those of one turn are turns of their own to the caller.
    """

    def __init__(self, tools: Sequence[ClientTool], named: str, *, one_call: bool = False) -> None:
        self._tools = tools
        self._one_call = one_call
        self._named = named
        self._count = 0
        self._requests = 0
        self._open = False
        self._blocks: dict[str, tuple[str, Mapping[str, Any]]] = {}
        """Calls that are not handed out yet, by the model's id, in its order."""
        self._pending: dict[str, tuple[str, Any]] = {}
        """Calls that the agent waits for: its request, and the protocol's id in it."""
        self._early: dict[str, str] = {}
        """Results of calls that the agent itself does not wait for yet."""
        self._replies: asyncio.Queue[bytes] = asyncio.Queue()
        self._turns: asyncio.Queue[Mapping[str, ClientCall]] = asyncio.Queue()

    # --- what is read ----------------------------------------------------------------------

    def see(self, message: Mapping[str, Any]) -> None:
        """Take a message of the agent's conversation."""
        if message.get("parent_tool_use_id") is not None:
            return
        if message["type"] == "stream_event":
            event = message.get("event")
            kind = event.get("type") if isinstance(event, dict) else None
            if kind == "message_start":
                self._open = True
                # What of an earlier turn was not asked for until now never will be: the agent refused it.
                self._blocks = {key: call for key, call in self._blocks.items() if key in self._pending}
                self._early.clear()
            elif kind == "message_stop":
                self.settle()
        elif message["type"] == "assistant":
            inner = message.get("message")
            content = inner.get("content") if isinstance(inner, dict) else None
            for block in content if isinstance(content, list) else ():
                self._note(block)

    def _note(self, block: Any) -> None:
        if not isinstance(block, dict) or block.get("type") != "tool_use":
            return
        identity, name, given = block.get("id"), block.get("name"), block.get("input")
        if isinstance(identity, str) and isinstance(name, str) and name.startswith(PREFIX):
            self._blocks[identity] = (name.removeprefix(PREFIX), given if isinstance(given, dict) else {})

    def settle(self) -> None:
        """The model's message has ended, or no more of it is read: what it calls can be handed out."""
        self._open = False
        self._gather()

    def request(self, message: Mapping[str, Any], size: int) -> bool:
        """Take a control request; false when it is none for this server."""
        request = message.get("request")
        if not isinstance(request, dict) or request.get("subtype") != "mcp_message":
            return False
        said, identity = request.get("message"), message.get("request_id")
        self._requests += 1
        if (
            not isinstance(said, dict)
            or not isinstance(identity, str)
            or request.get("server_name") != SERVER
        ):
            return False
        if self._requests > MOST_REQUESTS:
            return True  # it has had all that it may have; its own deadline ends it
        method, number = said.get("method"), said.get("id")
        if size > MOST_REQUEST_BYTES:
            self._fail(identity, number, _INTERNAL, "The call is too large.")
        elif method == "tools/call":
            self._called(identity, number, said.get("params"))
        elif method == "initialize":
            self._reply(identity, number, self._welcome(said.get("params")))
        elif method == "tools/list":
            self._reply(identity, number, {"tools": [_listed(tool) for tool in self._tools]})
        elif method == "ping" or number is None:
            self._reply(identity, number, {})
        else:
            self._fail(identity, number, _NO_METHOD, "There is no such method.")
        return True

    def _welcome(self, params: Any) -> Mapping[str, Any]:
        asked = params.get("protocolVersion") if isinstance(params, dict) else None
        return {
            "protocolVersion": asked if isinstance(asked, str) else _VERSION,
            "capabilities": {"tools": {}},
            "serverInfo": {"name": SERVER, "version": "1"},
        }

    def _called(self, request: str, number: Any, params: Any) -> None:
        params = params if isinstance(params, dict) else {}
        meta, name, given = params.get("_meta"), params.get("name"), params.get("arguments")
        use = meta.get(_USE_ID) if isinstance(meta, dict) else None
        use = use if isinstance(use, str) else f"request {request}"
        if name not in {tool.name for tool in self._tools}:
            self._reply(request, number, _result("There is no such tool.", is_error=True))
            return
        if use in self._early:
            self._reply(request, number, _result(self._early.pop(use)))
            return
        self._pending[use] = (request, number)
        self._blocks.setdefault(use, (str(name), given if isinstance(given, dict) else {}))
        self._gather()

    def _gather(self) -> None:
        if self._open or not any(use in self._pending for use in self._blocks):
            return
        turn: dict[str, ClientCall] = {}
        for use, (name, given) in self._blocks.items():
            self._count += 1
            turn[use] = ClientCall(f"{self._named}_{self._count}", name, given)
        self._blocks = {}
        for part in [{use: call} for use, call in turn.items()] if self._one_call else [turn]:
            self._turns.put_nowait(part)

    # --- what is answered ------------------------------------------------------------------

    async def write(self, to: Callable[[bytes], Awaitable[bool]]) -> None:
        """Write replies until cancelled: apart from what reads, since an agent may do one thing at a time."""
        while await to(await self._replies.get()):
            pass

    async def turn(self) -> Mapping[str, ClientCall]:
        """Wait for the next turn with calls and give them by the model's ids."""
        return await self._turns.get()

    def answer(self, turn: Mapping[str, ClientCall], results: Mapping[str, str]) -> None:
        """Give the agent what came of a turn's calls."""
        for use, call in turn.items():
            pending = self._pending.pop(use, None)
            if pending is None:
                self._early[use] = results[call.id]
            else:
                self._reply(*pending, _result(results[call.id]))

    def _reply(self, request: str, number: Any, result: Mapping[str, Any]) -> None:
        self._send(request, {"jsonrpc": "2.0", "id": number, "result": result})

    def _fail(self, request: str, number: Any, code: int, text: str) -> None:
        self._send(request, {"jsonrpc": "2.0", "id": number, "error": {"code": code, "message": text}})

    def _send(self, request: str, said: Mapping[str, Any]) -> None:
        response = {"subtype": "success", "request_id": request, "response": {"mcp_response": said}}
        line = json.dumps({"type": "control_response", "response": response})
        self._replies.put_nowait(line.encode() + b"\n")


def _listed(tool: ClientTool) -> Mapping[str, Any]:
    # Said to change nothing here, calls of one turn are made side by side; and the model sees a tool without a search.
    return {
        "name": tool.name,
        "description": tool.description or "",
        "inputSchema": tool.parameters,
        "annotations": {"readOnlyHint": True},
        "_meta": {"anthropic/alwaysLoad": True},
    }


def _result(text: str, *, is_error: bool = False) -> Mapping[str, Any]:
    return {"content": [{"type": "text", "text": text}], "isError": is_error}
