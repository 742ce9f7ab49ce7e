"""Messages to the CLI while it works: it queues them and takes each up before its next call of the model.

A user message with a `uuid` is answered by `command_lifecycle` messages: `queued` once it is read, `started` when it
goes to the model. One that comes with the last words of a turn begins another turn of the same process.
"""

import asyncio
import json
import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from steadyhand.events import EventBody, SteerAccepted, SteerUsed
from steadyhand.ports import SteerMessage

ACK_SECONDS = 10.0
"""The time in which the CLI has to say that it has read a message."""
_NAMESPACE = uuid.UUID("6f1b5a52-5f0e-4d0f-8a34-6c9a3c1c8a70")


def encode_steer(message: SteerMessage) -> bytes:
    """Return a message as a line for the CLI, which runs no slash command and expands no `@path` in it."""
    line = {
        "type": "user",
        "message": {"role": "user", "content": message.text},
        "parent_tool_use_id": None,
        "session_id": "default",
        "uuid": steer_uuid(message.id),
        "client_composed": True,
    }
    return json.dumps(line).encode() + b"\n"


def steer_uuid(steer_id: str) -> str:
    """Return the uuid by which the CLI knows a message."""
    return str(uuid.uuid5(_NAMESPACE, steer_id))


def encode_note(message: SteerMessage) -> str:
    """Return a message as a line for a later service, which reads that the CLI has taken it."""
    return json.dumps([message.id, message.text])


@dataclass(slots=True)
class _Sent:
    message: SteerMessage
    read: asyncio.Future[bool] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    is_accepted: bool = False
    is_used: bool = False
    is_given_up: bool = False
    """True if nobody waits for the CLI to read it."""


class SteerQueue:
    """The messages to one run of the CLI."""

    def __init__(self, write: Callable[[bytes], Awaitable[bool]], takes_messages: Callable[[], bool]) -> None:
        """Create it. `takes_messages` returns False once the agent will read none any more."""
        self._write = write
        self._takes_messages = takes_messages
        self._sent: dict[str, _Sent] = {}

    def restore(self, notes: Iterable[str]) -> None:
        """Restore the messages that an earlier service sent, as `encode_note` wrote them."""
        for note in notes:
            steer_id, text = json.loads(note)
            self._sent[steer_uuid(steer_id)] = _Sent(SteerMessage(steer_id, text), is_given_up=True)

    @property
    def waits(self) -> bool:
        """True while the CLI has yet to read a message, or to go on with it."""
        return any(not sent.is_used and not sent.is_given_up for sent in self._sent.values())

    @property
    def has_unread(self) -> bool:
        """True while the CLI has yet to read a message."""
        return any(not sent.is_accepted and not sent.is_given_up for sent in self._sent.values())

    def unused(self) -> Sequence[SteerMessage]:
        """Return the messages that the CLI has read and not gone on with."""
        return [sent.message for sent in self._sent.values() if sent.is_accepted and not sent.is_used]

    async def deliver(self, message: SteerMessage) -> bool:
        """Send a message; return True once the CLI has read it, and False if it takes none or does not read it.

        A message that was given up is not sent again: the CLI may still read it.
        """
        key = steer_uuid(message.id)
        sent, is_new = self._sent.get(key), key not in self._sent
        if sent is None:
            if not self._takes_messages():
                return False
            sent = self._sent[key] = _Sent(message)
        sent.is_given_up = False
        try:
            async with asyncio.timeout(ACK_SECONDS):
                if is_new and not await self._write(encode_steer(message)):
                    return False
                return await asyncio.shield(sent.read)
        except TimeoutError:
            return False
        finally:
            sent.is_given_up = not sent.is_accepted

    def observe(self, message: Mapping[str, Any], *, is_stopping: bool = False) -> Sequence[EventBody]:
        """Return the events of a `command_lifecycle` message, if it is about one of the messages.

        A CLI that is stopped begins what waits before it ends: that uses no message.
        """
        sent = self._sent.get(str(message.get("command_uuid")))
        events: list[EventBody] = []
        if sent is None:
            return events
        if not sent.is_accepted:
            sent.is_accepted, sent.is_given_up = True, False
            events.append(SteerAccepted(sent.message.id, sent.message.text))
        if message.get("state") in ("started", "completed") and not (sent.is_used or is_stopping):
            sent.is_used = True
            events.append(SteerUsed(sent.message.id))
        return events

    def confirm(self, message: Mapping[str, Any]) -> None:
        """Let `deliver` return, once the event of the message is on its way to the store."""
        sent = self._sent.get(str(message.get("command_uuid")))
        if sent is not None and not sent.read.done():
            sent.read.set_result(True)

    def close(self) -> None:
        """End all waits: the CLI reads no more."""
        for sent in self._sent.values():
            if not sent.read.done():
                sent.read.set_result(False)
