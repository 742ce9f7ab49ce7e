"""The messages between the service and an agent: those that the library may read, and how they are sent."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any

Message = dict[str, Any]
MAX_OPEN_REQUESTS = 32
"""The most requests of an agent that wait for their answers; more of them are refused."""
METHOD_NOT_FOUND, TOO_MANY = -32601, -32000
PROMPT, PERMISSION = "session/prompt", "session/request_permission"
_MAX_ID_LENGTH = 200
_MAX_ERROR_LENGTH = 2000


class AcpTransport:
    """A `Transport` of the library. Messages to the library are checked before.

    `answered` are the keys of the agent's requests that an earlier service has answered: its output is read again.
    """

    def __init__(
        self,
        write: Callable[[bytes], Awaitable[bool]],
        on_reply: Callable[[str], None],
        on_prompt: Callable[[], None],
        *,
        answered: Collection[str] = (),
    ) -> None:
        """Create it. `on_reply` gets the key of a request once it is answered; `on_prompt` is called after a prompt."""
        self._write = write
        self._on_reply = on_reply
        self._on_prompt = on_prompt
        self._answered = frozenset(answered)
        self._received: asyncio.Queue[Message | None] = asyncio.Queue(2 * MAX_OPEN_REQUESTS)
        self._refusals: asyncio.Queue[Message] = asyncio.Queue(MAX_OPEN_REQUESTS)
        self._lock = asyncio.Lock()
        self._sent: set[int] = set()
        self._open: set[str] = set()
        self.newest_request = -1
        """The id of the newest request to the agent."""

    # --- the library's side ----------------------------------------------------------------------

    async def send(self, message: Message) -> None:
        """Send a message. It waits until the agent reads."""
        method, message_id = message.get("method"), message.get("id")
        if method is None:
            self._open.discard(_key(message_id))
        elif isinstance(message_id, int):
            self._sent.add(message_id)
            self.newest_request = message_id
        await self._send(message)
        if method is None:
            self._on_reply(_key(message_id))
        elif method == PROMPT:
            self._on_prompt()

    async def receive(self) -> Message | None:
        """Return the next message for the library; None once it is closed."""
        return await self._received.get()

    async def close(self) -> None:
        """Let `receive` return None, if it still waits for something."""
        if self._received.empty():
            self._received.put_nowait(None)

    # --- the agent's side ------------------------------------------------------------------------

    def deliver(self, message: Mapping[str, Any]) -> None:
        """Pass a message of the agent on, if the library may read it. Refuse a request that it may not."""
        message_id, method = message.get("id"), message.get("method")
        if isinstance(method, str):
            if _is_request_id(message_id):
                self._deliver_request(message)
        elif isinstance(message_id, int) and message_id in self._sent:
            self._sent.discard(message_id)  # of two answers to one request the first counts
            self._received.put_nowait(answer_of(message))

    def _deliver_request(self, message: Mapping[str, Any]) -> None:
        key = _key(message["id"])
        if key in self._answered:
            return
        is_known = message["method"] == PERMISSION and isinstance(message.get("params"), dict)
        if is_known and key not in self._open and len(self._open) < MAX_OPEN_REQUESTS:
            self._open.add(key)
            self._received.put_nowait({**message})
        elif not self._refusals.full():  # an agent that does not read them gets no more
            error = (
                {"code": TOO_MANY, "message": "too many open requests"}
                if is_known
                else {"code": METHOD_NOT_FOUND, "message": "method not found"}
            )
            self._refusals.put_nowait({"jsonrpc": "2.0", "id": message["id"], "error": error})

    @property
    def refusals_waiting(self) -> int:
        """The number of refusals that are not sent yet."""
        return self._refusals.qsize()

    async def send_refusals(self) -> None:
        """Send the refusals of requests until it is cancelled."""
        while True:
            await self._send(await self._refusals.get())

    async def _send(self, message: Message) -> None:
        data = json.dumps(message, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        async with self._lock:
            await self._write(data)


def _is_request_id(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) <= _MAX_ID_LENGTH
    return isinstance(value, int) and not isinstance(value, bool)


def _key(request_id: Any) -> str:
    return json.dumps(request_id)


def answer_of(message: Mapping[str, Any]) -> Message:
    """Return the answer to a request in a form that the library can read: an `error` has a code and one message."""
    answer = {"jsonrpc": "2.0", "id": message.get("id")}
    if "error" not in message and "result" in message:
        return {**answer, "result": message["result"]}
    error = message.get("error")
    given: Mapping[str, Any] = error if isinstance(error, dict) else {}
    code, detail = given.get("code"), given.get("data")
    if isinstance(detail, dict):
        detail = next((detail[name] for name in ("details", "message") if name in detail), None)
    parts = [each for each in (given.get("message"), detail) if isinstance(each, str) and each]
    text = ": ".join(dict.fromkeys(parts))[:_MAX_ERROR_LENGTH] or "The agent names no reason."
    is_code = isinstance(code, int) and not isinstance(code, bool)
    return {**answer, "error": {"code": code if is_code else 0, "message": text}}
