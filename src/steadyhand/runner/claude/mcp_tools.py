"""The caller's own tools, as a server of the Model Context Protocol over the agent's pipes.

The CLI sends the protocol's messages as control requests, so a sandboxed run needs no network for them. The tool calls
of one model turn are collected: they are handed out together once the model's message has ended, or one by one.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any

from steadyhand.job import ClientTool, ToolOutput
from steadyhand.ports import ClientToolCall
from steadyhand.runner.claude.tool_names import MCP_SERVER_NAME, TOOL_NAMES

MCP_CONFIG = json.dumps({"mcpServers": {MCP_SERVER_NAME: {"type": "sdk", "name": MCP_SERVER_NAME}}})
"""The server's entry for the command line."""
MAX_REQUESTS = 4_096
MAX_REQUEST_BYTES = 1024 * 1024
"""Limits of an agent's requests to the server in one run: their number, and the size of each."""
_TOOL_USE_ID_KEY = "claudecode/toolUseId"
_PROTOCOL_VERSION = "2025-06-18"
_METHOD_NOT_FOUND = -32601
_INTERNAL_ERROR = -32603


class McpToolServer:
    """Reads the agent's requests and replies to them.

    The ids of the tool calls begin with `id_prefix`. With `one_call` the caller gets each tool call as its own turn.
    The agent has the replies to the requests in `replied` from an earlier service: these requests are read again.
    """

    def __init__(
        self,
        tools: Sequence[ClientTool],
        id_prefix: str,
        *,
        one_call: bool = False,
        replied: Collection[str] = (),
    ) -> None:
        self._tools = tools
        self._replied = frozenset(replied)
        self._one_call = one_call
        self._id_prefix = id_prefix
        self._count = 0
        self._requests = 0
        self._message_open = False
        self._tool_uses: dict[str, tuple[str, Mapping[str, Any]]] = {}
        """Tool calls that are not handed out yet, by the model's id, in its order."""
        self._pending: dict[str, tuple[str, Any]] = {}
        """Tool calls that the agent waits for: the id of its request, and the protocol's id in it."""
        self._early_results: dict[str, ToolOutput] = {}
        """Results of tool calls that the agent does not wait for yet."""
        self._replies: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue()
        """The ids of requests, and the replies to them."""
        self._turns: asyncio.Queue[Mapping[str, ClientToolCall]] = asyncio.Queue()

    # --- requests --------------------------------------------------------------------------

    def observe(self, message: Mapping[str, Any]) -> None:
        """Record the tool calls in a message of the agent's conversation."""
        if message.get("parent_tool_use_id") is not None:
            return
        if message["type"] == "stream_event":
            event = message.get("event")
            kind = event.get("type") if isinstance(event, dict) else None
            if kind == "message_start":
                self._message_open = True
                # Tool calls of an earlier turn without a request get none any more: the agent refused them.
                self._tool_uses = {key: call for key, call in self._tool_uses.items() if key in self._pending}
                self._early_results.clear()
            elif kind == "message_stop":
                self.end_message()
        elif message["type"] == "assistant":
            inner = message.get("message")
            content = inner.get("content") if isinstance(inner, dict) else None
            for block in content if isinstance(content, list) else ():
                self._record_tool_use(block)

    def _record_tool_use(self, block: Any) -> None:
        if not isinstance(block, dict) or block.get("type") != "tool_use":
            return
        tool_use_id, name, arguments = block.get("id"), block.get("name"), block.get("input")
        if (
            isinstance(tool_use_id, str)
            and isinstance(name, str)
            and name.startswith(TOOL_NAMES.client_prefix)
        ):
            self._tool_uses[tool_use_id] = (
                name.removeprefix(TOOL_NAMES.client_prefix),
                arguments if isinstance(arguments, dict) else {},
            )

    def end_message(self) -> None:
        """Hand out the tool calls of the model's message, which has ended or is not read any further."""
        self._message_open = False
        self._release_turn()

    def handle_request(self, message: Mapping[str, Any], size: int) -> bool:
        """Handle a control request; return False if it is not for this server."""
        request = message.get("request")
        if not isinstance(request, dict) or request.get("subtype") != "mcp_message":
            return False
        rpc, request_id = request.get("message"), message.get("request_id")
        self._requests += 1
        if (
            not isinstance(rpc, dict)
            or not isinstance(request_id, str)
            or request.get("server_name") != MCP_SERVER_NAME
        ):
            return False
        if self._requests > MAX_REQUESTS:
            return True  # the limit is reached; the deadline of the run ends it
        method, rpc_id = rpc.get("method"), rpc.get("id")
        if size > MAX_REQUEST_BYTES:
            self._reply_error(request_id, rpc_id, _INTERNAL_ERROR, "The call is too large.")
        elif method == "tools/call":
            self._call_tool(request_id, rpc_id, rpc.get("params"))
        elif method == "initialize":
            self._reply(request_id, rpc_id, self._initialize_result(rpc.get("params")))
        elif method == "tools/list":
            self._reply(request_id, rpc_id, {"tools": [_tool_listing(tool) for tool in self._tools]})
        elif method == "ping" or rpc_id is None:
            self._reply(request_id, rpc_id, {})
        else:
            self._reply_error(request_id, rpc_id, _METHOD_NOT_FOUND, "There is no such method.")
        return True

    def _initialize_result(self, params: Any) -> Mapping[str, Any]:
        version = params.get("protocolVersion") if isinstance(params, dict) else None
        return {
            "protocolVersion": version if isinstance(version, str) else _PROTOCOL_VERSION,
            "capabilities": {"tools": {}},
            "serverInfo": {"name": MCP_SERVER_NAME, "version": "1"},
        }

    def _call_tool(self, request_id: str, rpc_id: Any, params: Any) -> None:
        params = params if isinstance(params, dict) else {}
        meta, name, arguments = params.get("_meta"), params.get("name"), params.get("arguments")
        tool_use_id = meta.get(_TOOL_USE_ID_KEY) if isinstance(meta, dict) else None
        tool_use_id = tool_use_id if isinstance(tool_use_id, str) else f"request {request_id}"
        if name not in {tool.name for tool in self._tools}:
            self._reply(request_id, rpc_id, _tool_result("There is no such tool.", is_error=True))
            return
        if tool_use_id in self._early_results:
            self._reply(request_id, rpc_id, _tool_result(self._early_results.pop(tool_use_id)))
            return
        self._pending[tool_use_id] = (request_id, rpc_id)
        self._tool_uses.setdefault(tool_use_id, (str(name), arguments if isinstance(arguments, dict) else {}))
        self._release_turn()

    def _release_turn(self) -> None:
        if self._message_open or not any(tool_use_id in self._pending for tool_use_id in self._tool_uses):
            return
        turn: dict[str, ClientToolCall] = {}
        for tool_use_id, (name, arguments) in self._tool_uses.items():
            self._count += 1
            turn[tool_use_id] = ClientToolCall(f"{self._id_prefix}_{self._count}", name, arguments)
        self._tool_uses = {}
        for batch in (
            [{tool_use_id: call} for tool_use_id, call in turn.items()] if self._one_call else [turn]
        ):
            self._turns.put_nowait(batch)

    # --- replies ---------------------------------------------------------------------------

    async def write_replies(
        self, write: Callable[[bytes], Awaitable[bool]], note: Callable[[str], None] = lambda _id: None
    ) -> None:
        """Write replies until cancelled. This is a task of its own, as an agent may read only after it has written.

        `note` is called with the id of each request whose reply was written. The agent drops a reply that comes twice.
        """
        while True:
            request_id, reply = await self._replies.get()
            if not await write(reply):
                return
            note(request_id)

    def pop_replies(self) -> Sequence[bytes]:
        """Return the replies that are not written yet."""
        return [self._replies.get_nowait()[1] for _ in range(self._replies.qsize())]

    def was_answered(self, turn: Mapping[str, ClientToolCall]) -> bool:
        """Return True if the agent has all results of a turn, from an earlier service; then forget the turn."""
        requests = {self._pending[each][0] for each in turn if each in self._pending}
        if not requests or not requests <= self._replied:
            return False
        for tool_use_id in turn:
            self._pending.pop(tool_use_id, None)
        return True

    async def next_turn(self) -> Mapping[str, ClientToolCall]:
        """Wait for the next turn with tool calls and return them by the model's ids."""
        return await self._turns.get()

    def set_results(self, turn: Mapping[str, ClientToolCall], results: Mapping[str, ToolOutput]) -> None:
        """Send the agent the results of a turn's tool calls, which are by their ids."""
        for tool_use_id, call in turn.items():
            pending = self._pending.pop(tool_use_id, None)
            if pending is None:
                self._early_results[tool_use_id] = results[call.id]
            else:
                self._reply(*pending, _tool_result(results[call.id]))

    def _reply(self, request_id: str, rpc_id: Any, result: Mapping[str, Any]) -> None:
        self._send(request_id, {"jsonrpc": "2.0", "id": rpc_id, "result": result})

    def _reply_error(self, request_id: str, rpc_id: Any, code: int, text: str) -> None:
        self._send(request_id, {"jsonrpc": "2.0", "id": rpc_id, "error": {"code": code, "message": text}})

    def _send(self, request_id: str, rpc: Mapping[str, Any]) -> None:
        if request_id in self._replied:
            return
        response = {"subtype": "success", "request_id": request_id, "response": {"mcp_response": rpc}}
        line = json.dumps({"type": "control_response", "response": response})
        self._replies.put_nowait((request_id, line.encode() + b"\n"))


def _tool_listing(tool: ClientTool) -> Mapping[str, Any]:
    # With the read-only hint the CLI makes calls of one turn in parallel; `alwaysLoad` shows a tool without a search.
    return {
        "name": tool.name,
        "description": tool.description or "",
        "inputSchema": tool.parameters,
        "annotations": {"readOnlyHint": True},
        "_meta": {"anthropic/alwaysLoad": True},
    }


def _tool_result(output: ToolOutput, *, is_error: bool = False) -> Mapping[str, Any]:
    blocks = ({"type": "text", "text": output},) if isinstance(output, str) else output
    return {"content": [_mcp_content(block) for block in blocks], "isError": is_error}


def _mcp_content(block: Mapping[str, Any]) -> Mapping[str, Any]:
    if block["type"] != "image":
        return block
    return {"type": "image", "data": block["source"]["data"], "mimeType": block["source"]["media_type"]}
