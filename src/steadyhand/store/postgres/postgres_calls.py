"""`ports.NodeCalls` over a table of Postgres: for nodes that reach the same database, and need not reach each other.

A call is stored for its node, which a notification wakes. The node takes each call once, also if it starts again, and
stores the answer. An outage of the database shorter than the time of a call delays the call.
"""

import asyncio
import json
import math
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any, Final, Protocol, TypeVar

import structlog

from steadyhand import errors
from steadyhand.errors import (
    InvalidRequest,
    NodeGone,
    RetryLater,
    SteadyhandError,
    StoreError,
    StoreUnavailable,
)
from steadyhand.ports import MAX_CALL_BYTES, MAX_OPEN_CALLS, CallBody, CallHandler, unknown_kind
from steadyhand.store.postgres.call_table import CallTable, SentCall, TakenCall, channel_of
from steadyhand.store.postgres.connections import parse_postgres_url

MAX_CLAIMED: Final = 16
"""The calls that a node takes at once; a body may be large."""
MAX_HANDLED: Final = 256
"""The calls that a node works on at the same time; others wait in the table."""
MAX_REPLY_BYTES: Final = 1024 * 1024
POLL_SECONDS: Final = 10.0
"""The time after which a node looks for calls without a notification."""
CLEAN_SECONDS: Final = 60.0
"""The longest time between two looks for calls that nobody removed."""
RECHECK_SECONDS: Final = 1.0
"""The time after which a caller looks for its answer without a notification, and if the node is alive."""
DEAD_SECONDS: Final = 4.0
"""The time for which a node has to look dead: after an outage of the database all do, until they write again."""
_MAX_OPEN_BYTES: Final = 2 * MAX_CALL_BYTES
_RETRY_SECONDS: Final = (0.1, 0.3, 1.0)
_LAST_SECONDS: Final = 5.0
"""The time for the last statements of a call that has ended, and of a node that stops."""
_ERRORS: Final[dict[str, type[SteadyhandError]]] = {
    each.__name__: each
    for each in (
        errors.InvalidRequest,
        errors.Forbidden,
        errors.NotFound,
        errors.Conflict,
        errors.RetryLater,
        errors.NodeGone,
        errors.QueryTooSlow,
        errors.StoreError,
        errors.StoreUnavailable,
    )
}
"""The errors that reach a caller as they are; another one is a `SteadyhandError` there."""

T = TypeVar("T")


class CallChannels(Protocol):
    """The part of `store.postgres.listener.Listener` that is used here."""

    def on(self, channel: str, callback: Callable[[str | None], None]) -> None:
        """Call back with each notification, and with None after a gap."""
        ...


class PostgresNodeCalls:
    """Calls by the table. `run` is to run as a task for the whole life of the service, beside that of `listener`.

    `list_alive` returns the names of the nodes that are alive; without it the leases of the queue say so.
    """

    def __init__(
        self,
        url: str,
        node: str,
        listener: CallChannels,
        *,
        list_alive: Callable[[], Awaitable[Sequence[str]]] | None = None,
        poll_seconds: float = POLL_SECONDS,
        recheck_seconds: float = RECHECK_SECONDS,
        dead_seconds: float = DEAD_SECONDS,
    ) -> None:
        self.node = node
        self._list_alive = list_alive or self._read_alive
        self._poll_seconds = poll_seconds
        self._recheck_seconds = recheck_seconds
        self._dead_seconds = dead_seconds
        self._table = CallTable(parse_postgres_url(url))
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="node calls")
        self._handlers: dict[str, CallHandler] = {}
        self._open: dict[str, asyncio.Event] = {}
        self._open_bytes = 0
        self._done: list[str] = []
        self._alive: Sequence[str] = ()
        self._alive_at = -math.inf
        self._handled: set[str] = set()
        self._token = secrets.token_hex(8)
        self._due = asyncio.Event()
        self._begun = asyncio.Event()
        self._cleaned_at = -math.inf
        self._is_out = False
        self._log = structlog.get_logger("steadyhand.calls")
        listener.on(channel_of(node), self._hear)

    # --- the port --------------------------------------------------------------------------

    def is_elsewhere(self, node: str | None) -> bool:
        """See `ports.NodeCalls.is_elsewhere`."""
        return node is not None and node != self.node

    def serve(self, kind: str, handler: CallHandler) -> None:
        """See `ports.NodeCalls.serve`."""
        self._handlers[kind] = handler

    async def list_others(self) -> Sequence[str]:
        """See `ports.NodeCalls.list_others`."""
        return [name for name in await self._list_alive() if name != self.node]

    async def call(self, node: str, kind: str, body: CallBody, timeout_seconds: float) -> CallBody:
        """See `ports.NodeCalls.call`."""
        text = json.dumps(body)
        if len(text) > MAX_CALL_BYTES:
            raise InvalidRequest("The request is too large for another node.", code="body_too_large")
        call = SentCall(secrets.token_hex(12), node, self.node, kind, text, timeout_seconds)
        deadline = time.monotonic() + timeout_seconds
        with self._opened(call) as answered:
            await self._wait_for_table(timeout_seconds)
            await self._send(call, deadline)
            return await self._wait_for_reply(call, answered, deadline)

    # --- the calls of this node ------------------------------------------------------------

    @contextmanager
    def _opened(self, call: SentCall) -> Iterator[asyncio.Event]:
        """Count a call as open for the length of the block. Raise `RetryLater` if too many are."""
        if len(self._open) >= MAX_OPEN_CALLS or self._open_bytes + len(call.body) > _MAX_OPEN_BYTES:
            raise RetryLater("Too many requests wait for other nodes.", code="node_busy", retry_after=2)
        event = self._open[call.id] = asyncio.Event()
        self._open_bytes += len(call.body)
        try:
            yield event
        finally:
            self._open_bytes -= len(call.body)
            del self._open[call.id]

    async def _wait_for_table(self, seconds: float) -> None:
        """Wait for the begin of `run`. Raise `StoreUnavailable`."""
        try:
            async with asyncio.timeout(seconds):
                await self._begun.wait()
        except TimeoutError as error:
            raise StoreUnavailable("Calls between nodes cannot be stored now.") from error

    async def _send(self, call: SentCall, deadline: float) -> None:
        pauses = iter(_RETRY_SECONDS)
        while True:
            call = replace(call, seconds=max(0.0, deadline - time.monotonic()))
            try:
                was_sent = await self._in_thread(self._table.send, call)
            except StoreUnavailable:
                pause = next(pauses, _RETRY_SECONDS[-1])
                if time.monotonic() + pause > deadline:
                    raise
                await asyncio.sleep(pause)
                continue
            if not was_sent:
                raise RetryLater(
                    f"The node {call.node!r} has too many calls.", code="node_busy", retry_after=5
                )
            return

    async def _wait_for_reply(self, call: SentCall, answered: asyncio.Event, deadline: float) -> CallBody:
        dead_since: float | None = None
        while True:
            seconds = min(self._recheck_seconds, max(0.0, deadline - time.monotonic()))
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await answered.wait()
            answered.clear()
            with suppress(StoreUnavailable):
                reply = (await self._in_thread(self._table.replies, [call.id])).get(call.id)
                if reply is not None:
                    self._remove_later(call.id)
                    return _parse_reply(reply)
                now = time.monotonic()
                dead_since = None if await self._is_alive(call.node) else dead_since or now
                if dead_since is not None and now - dead_since >= self._dead_seconds:
                    return await self._give_up(call, "is not alive")
            if time.monotonic() >= deadline:
                return await self._give_up(call, f"did not answer in {call.seconds:g} s")

    async def _read_alive(self) -> Sequence[str]:
        return await self._in_thread(self._table.list_alive)

    async def _is_alive(self, node: str) -> bool:
        now = time.monotonic()
        if now - self._alive_at >= self._recheck_seconds:  # all that wait share one look
            self._alive_at, self._alive = now, await self._list_alive()
        return node in self._alive

    async def _give_up(self, call: SentCall, reason: str) -> CallBody:
        """Withdraw a call and raise `NodeGone`, unless its answer has come meanwhile: return that."""
        state, reply = "taken", None  # nobody knows, while the database is away
        with suppress(StoreUnavailable, TimeoutError):
            async with asyncio.timeout(_LAST_SECONDS):
                withdrawn = await self._in_thread(self._table.withdraw, call.id)
                if withdrawn is not None:
                    state, reply = withdrawn
        if reply is not None:
            return _parse_reply(reply)
        raise NodeGone(f"The node {call.node!r} {reason}.", may_be_done=state != "sent")

    def _remove_later(self, call_id: str) -> None:
        self._done.append(call_id)
        self._due.set()

    def _hear(self, payload: str | None) -> None:
        """Look for what a notification tells of; None may stand for any."""
        if payload:
            answered = self._open.get(payload)
            if answered is not None:
                answered.set()
            return
        self._due.set()
        if payload is None:
            for answered in self._open.values():
                answered.set()

    # --- the calls to this node ------------------------------------------------------------

    async def run(self) -> None:
        """Answer calls until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                await self._begin()
                while True:
                    self._due.clear()
                    await self._work(group)
                    with suppress(TimeoutError):
                        async with asyncio.timeout(self._poll_seconds):
                            await self._due.wait()
        finally:
            with suppress(StoreError, TimeoutError):
                async with asyncio.timeout(_LAST_SECONDS):
                    await self._in_thread(self._table.abandon, self.node, self._gone())
            self._thread.submit(self._table.close)
            self._thread.shutdown(wait=False)

    async def _begin(self) -> None:
        """Create the table, and answer what this node had taken when it was killed: it is not done again."""
        pauses = iter(_RETRY_SECONDS)
        while True:
            try:
                await self._in_thread(self._table.create)
                await self._in_thread(self._table.abandon, self.node, self._gone())
            except StoreError as error:
                self._log.warning("calls.postponed", reason=error.detail)
                await asyncio.sleep(next(pauses, _RETRY_SECONDS[-1]))
            else:
                self._begun.set()
                return

    def _gone(self) -> str:
        return _error_reply(NodeGone(f"The node {self.node!r} has stopped.", may_be_done=True))

    async def _work(self, group: asyncio.TaskGroup) -> None:
        try:
            free = min(MAX_CLAIMED, MAX_HANDLED - len(self._handled))
            taken = await self._in_thread(self._table.claim, self.node, self._token, free) if free else []
            await self._remove_done()
        except StoreError as error:
            if not self._is_out:  # an outage has one line
                self._log.warning("calls.postponed", reason=error.detail)
            self._is_out = True
            await asyncio.sleep(_RETRY_SECONDS[-1])
            self._due.set()
            return
        self._is_out = False
        if len(taken) == MAX_CLAIMED:
            self._due.set()  # there may be more
        if taken:
            self._token = secrets.token_hex(8)  # what was claimed by the last one is here now
        for call in taken:
            self._handled.add(call.id)
            group.create_task(self._answer(call), name=f"call {call.kind}")

    async def _remove_done(self) -> None:
        """Remove the calls of this node that are answered, and now and then those that nobody removed."""
        now = time.monotonic()
        if not self._done and now - self._cleaned_at < CLEAN_SECONDS:
            return
        done, self._done, self._cleaned_at = self._done, [], now
        await self._in_thread(self._table.remove, done)

    async def _answer(self, call: TakenCall) -> None:
        """Answer a call, once. A handler is not cut off: what it has begun to store it also carries out."""
        deadline = time.monotonic() + call.seconds_left
        try:
            reply = await self._reply(call)
            if time.monotonic() > deadline:
                self._log.warning("calls.too_slow", kind=call.kind, sender=call.sender)
            await self._store_reply(call, reply, deadline)
        finally:
            if len(self._handled) >= MAX_HANDLED:
                self._due.set()  # others wait
            self._handled.discard(call.id)

    async def _reply(self, call: TakenCall) -> str:
        handler = self._handlers.get(call.kind)
        if handler is None:
            return _error_reply(unknown_kind(call.kind))
        try:
            reply = json.dumps({"result": await handler(json.loads(call.body))})
        except SteadyhandError as error:
            return _error_reply(error)
        except Exception:  # noqa: BLE001  # the boundary of a call: others go on, and its caller is told
            self._log.exception("calls.failed", kind=call.kind, sender=call.sender)
            return _error_reply(SteadyhandError("The other node failed. Its log has the reason."))
        if len(reply) > MAX_REPLY_BYTES:
            return _error_reply(SteadyhandError("The answer of the other node is too large."))
        return reply

    async def _store_reply(self, call: TakenCall, reply: str, deadline: float) -> None:
        """Store an answer, also after an outage, as long as somebody may wait for it."""
        pauses = iter(_RETRY_SECONDS)
        while True:
            try:
                await self._in_thread(self._table.answer, call, reply)
            except StoreError:
                pause = next(pauses, _RETRY_SECONDS[-1])
                if time.monotonic() + pause > deadline:
                    return
                await asyncio.sleep(pause)
            else:
                return

    async def _in_thread(self, statement: Callable[..., T], *values: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, statement, *values)


def _error_reply(error: SteadyhandError) -> str:
    fields = {
        "type": type(error).__name__,
        "detail": error.detail,
        "code": error.code,
        "retry_after": getattr(error, "retry_after", None),
        "may_be_done": getattr(error, "may_be_done", None),
    }
    return json.dumps({"error": fields})


def _parse_reply(reply: str) -> CallBody:
    """Return the result in an answer, or raise its error."""
    parsed = json.loads(reply)
    if "error" not in parsed:
        result: CallBody = parsed["result"]
        return result
    fields = parsed["error"]
    kind = _ERRORS.get(fields["type"], SteadyhandError)
    if kind is NodeGone:
        raise NodeGone(fields["detail"], may_be_done=bool(fields["may_be_done"]))
    if kind is RetryLater:
        retry_after = fields["retry_after"]
        seconds = math.ceil(retry_after) if isinstance(retry_after, int | float) else 1
        raise RetryLater(fields["detail"], code=fields["code"], retry_after=seconds)
    raise kind(fields["detail"], code=fields["code"])
