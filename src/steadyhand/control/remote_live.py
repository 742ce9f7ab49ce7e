"""Brings live text from the node of a run to the followers on other nodes.

Live text is not stored, so it has no transaction. A node tells the others which jobs are followed on it, again and
again; the node of a run sends the text of these jobs alone, to these nodes alone. What is lost on the way a follower
notices by the offsets, and the finished message is an event, which comes from the table.
"""

import asyncio
import json
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, Final

from steadyhand.event_log import EventFeed, LiveItem
from steadyhand.events import LiveProgress, LiveText, PhaseProgress, TextDelta, ThinkingDelta, format_rfc3339

FOLLOWED_CHANNEL: Final = "steadyhand_followed"
RENEW_SECONDS: Final = 5.0
"""The time between two messages about the jobs that are followed here."""
FORGET_SECONDS: Final = 13.0
"""The time after which a node that was not heard of follows a job no more."""
FLUSH_SECONDS: Final = 0.01
"""The time in which pieces for one node are sent together."""
MAX_UNSENT: Final = 500
"""The pieces for one node within that time; further ones are dropped."""
MAX_FOLLOWED: Final = 20_000
"""The jobs that are known to be followed elsewhere."""
_MAX_PAYLOAD: Final = 7_800
_PIECE_LENGTH: Final = 600
"""The characters of a piece of a text that is too long for one payload: each takes at most 12 bytes."""
_BODIES: Final = {body.type: body for body in (TextDelta, ThinkingDelta)}

SendNotification = Callable[[str, str], None]


def live_channel(origin: str) -> str:
    """Return the channel on which the node of a store hears live text."""
    return f"steadyhand_live_{origin}"


class RemoteLive:
    """Sends and receives live text. It belongs to one event loop; `run` is its only task.

    `send` sends a notification on a channel, or nothing while there is no connection.
    """

    def __init__(
        self,
        feed: EventFeed,
        origin: str,
        send: SendNotification,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._feed = feed
        self._origin = origin
        self._send = send
        self._monotonic = monotonic
        self._followed: OrderedDict[str, dict[str, float]] = OrderedDict()
        self._unsent: dict[str, list[str]] = {}
        feed.on_followed = self._tell_of

    # --- the node of the followers ---------------------------------------------------------

    async def run(self) -> None:
        """Notify other nodes of the jobs that are followed here, until cancelled."""
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            self.tell_of_all()

    def tell_of_all(self) -> None:
        """Notify other nodes of all jobs that are followed here."""
        for payload in _payloads(self._origin, [json.dumps(job_id) for job_id in self._feed.followed_jobs()]):
            self._send(FOLLOWED_CHANNEL, payload)

    def _tell_of(self, job_id: str) -> None:
        for payload in _payloads(self._origin, [json.dumps(job_id)]):
            self._send(FOLLOWED_CHANNEL, payload)

    def hear_text(self, payload: str | None) -> None:
        """Publish the live items of a payload to the followers here."""
        for entry in _entries(payload)[1]:
            item = _decode(entry)
            if item is not None:
                self._feed.publish(item.job_id, [item])

    # --- the node of the run ---------------------------------------------------------------

    def hear_followed(self, payload: str | None) -> None:
        """Remember which jobs are followed on another node."""
        if payload is None:
            self.tell_of_all()  # others may not have heard of them either
            return
        origin, job_ids = _entries(payload)
        if origin == self._origin:
            return
        until = self._monotonic() + FORGET_SECONDS
        for job_id in job_ids:
            if isinstance(job_id, str):
                followers = self._followed.pop(job_id, {})
                followers[origin] = until
                self._followed[job_id] = followers  # as the newest
        self._forget()

    def relay(self, item: LiveItem) -> None:
        """Send a live item of a run on this node to the nodes that follow it."""
        followers = self._followed.get(item.job_id)
        if not followers:
            return
        now = self._monotonic()
        entries = [json.dumps(each, separators=(",", ":")) for each in _encode(item)]
        for origin, until in followers.items():
            if until <= now:
                continue
            unsent = self._unsent.get(origin)
            if unsent is None:
                unsent = self._unsent[origin] = []
                asyncio.get_running_loop().call_later(FLUSH_SECONDS, self._flush, origin)
            unsent += entries[: MAX_UNSENT - len(unsent)]

    def _flush(self, origin: str) -> None:
        for payload in _payloads(self._origin, self._unsent.pop(origin, ())):
            self._send(live_channel(origin), payload)

    def _forget(self) -> None:
        now = self._monotonic()
        while self._followed:
            job_id, followers = next(iter(self._followed.items()))
            if len(self._followed) <= MAX_FOLLOWED and max(followers.values()) > now:
                return
            del self._followed[job_id]


def _payloads(origin: str, entries: Sequence[str]) -> Iterator[str]:
    """Return payloads with the origin and these entries, each of which is JSON in ASCII."""
    begin = f"[{json.dumps(origin)},["
    part: list[str] = []
    length = len(begin) + 2
    for entry in entries:
        if len(begin) + len(entry) + 2 > _MAX_PAYLOAD:
            continue
        if part and length + len(entry) + 1 > _MAX_PAYLOAD:
            yield f"{begin}{','.join(part)}]]"
            part, length = [], len(begin) + 2
        part.append(entry)
        length += len(entry) + 1
    if part:
        yield f"{begin}{','.join(part)}]]"


def _entries(payload: str | None) -> tuple[str, Sequence[Any]]:
    """Return the origin and the entries of a payload; none of one that another program sent."""
    try:
        origin, entries = json.loads(payload or "")
    except (ValueError, TypeError):
        return "", ()
    return (origin, entries) if isinstance(origin, str) and isinstance(entries, list) else ("", ())


def _encode(item: LiveItem) -> Iterator[list[Any]]:
    """Return an item as lists, in pieces if it is too long for one payload."""
    head = [item.job_id, item.run, format_rfc3339(item.at)]
    if isinstance(item, LiveProgress):
        yield [*head, item.body.type, item.body.phase, item.body.detail[:_PIECE_LENGTH]]
        return
    body, text = item.body, item.body.text
    for at in range(0, len(text) or 1, _PIECE_LENGTH):
        taken_back = 0 if at else item.taken_back
        piece = text[at : at + _PIECE_LENGTH]
        yield [*head, body.type, body.message_id, piece, item.steps, item.offset + at, taken_back]


def _decode(entry: Any) -> LiveItem | None:
    """Return the item of a list, or None if it is none."""
    try:
        job_id, run, at, kind, *values = entry
        moment = datetime.fromisoformat(at)
        if kind == PhaseProgress.type:
            phase, detail = values
            return LiveProgress(str(job_id), int(run), moment, PhaseProgress(str(phase), str(detail)))
        message_id, text, steps, offset, taken_back = values
        body = _BODIES[kind](str(message_id), str(text))
        item = LiveText(str(job_id), int(run), moment, body)
        return replace(item, steps=int(steps), offset=int(offset), taken_back=int(taken_back))
    except (ValueError, TypeError, KeyError):
        return None
