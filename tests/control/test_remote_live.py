"""Live text from the node of a run to followers on another node, over notifications that may be lost."""

import asyncio
from datetime import timedelta

import pytest

from steadyhand.control.remote_live import (
    FOLLOWED_CHANNEL,
    FORGET_SECONDS,
    MAX_UNSENT,
    RemoteLive,
    live_channel,
)
from steadyhand.event_log import EventFeed, LiveItem
from steadyhand.events import LiveProgress, LiveText, PhaseProgress, TextDelta, ThinkingDelta
from steadyhand.testing.contracts.samples import NOON

MAX_BYTES = 7_900


class World:
    """Two nodes, and notifications between them that arrive at once unless they are `cut`."""

    def __init__(self) -> None:
        self.now = 100.0
        self.cut = False
        self.sent: list[tuple[str, str]] = []
        self.feeds = {name: EventFeed() for name in ("reader", "worker")}
        self.nodes = {
            name: RemoteLive(feed, name, self.send, monotonic=lambda: self.now)
            for name, feed in self.feeds.items()
        }

    def send(self, channel: str, payload: str) -> None:
        assert len(payload.encode()) <= MAX_BYTES
        self.sent.append((channel, payload))
        for name, node in self.nodes.items():
            if self.cut:
                continue
            if channel == FOLLOWED_CHANNEL:
                node.hear_followed(payload)
            elif channel == live_channel(name):
                node.hear_text(payload)

    async def relay(self, *items: LiveItem) -> list[LiveItem]:
        """Send items while the reader follows the job; return those that came."""
        with self.feeds["reader"].subscribe("job") as subscription:
            for item in items:
                self.nodes["worker"].relay(item)
            async with asyncio.timeout(30):
                while self.nodes["worker"]._unsent:  # noqa: ASYNC110  # a timer sends it
                    await asyncio.sleep(0.005)
            received: list[LiveItem] = []
            if any(channel == live_channel("reader") for channel, _ in self.sent) and not self.cut:
                received = [item for item in await subscription.receive() if isinstance(item, LiveItem)]
            return received


def text(value: str, *, offset: int = 0, taken_back: int = 0, kind: type[TextDelta] = TextDelta) -> LiveText:
    return LiveText("job", 2, NOON, kind("msg_1", value), steps=3, offset=offset, taken_back=taken_back)


def test_text_thinking_and_progress_arrive_as_they_were() -> None:
    items: list[LiveItem] = [
        text("one"),
        text("two \x00 \ud800 \U0001f600 é", offset=3, taken_back=2),
        text("three", kind=ThinkingDelta),
        LiveProgress("job", 2, NOON + timedelta(seconds=1), PhaseProgress("checkout", "12 of 30")),
    ]
    assert asyncio.run(World().relay(*items)) == items


def test_a_long_text_is_sent_in_pieces_with_their_offsets() -> None:
    value = "\U0001f600" * 5_000
    received = asyncio.run(World().relay(text(value, offset=7, taken_back=1)))
    pieces = [item for item in received if isinstance(item, LiveText)]
    assert len(pieces) > 1
    assert "".join(piece.body.text for piece in pieces) == value
    assert [piece.offset - 7 for piece in pieces] == [
        sum(len(before.body.text) for before in pieces[:at]) for at in range(len(pieces))
    ]
    assert [piece.taken_back for piece in pieces] == [1] + [0] * (len(pieces) - 1)


def test_nothing_is_sent_of_a_job_that_nobody_follows_elsewhere() -> None:
    async def scenario() -> None:
        world = World()
        world.nodes["worker"].relay(text("unheard"))
        with world.feeds["worker"].subscribe("job"):  # a follower on the node of the run itself
            world.nodes["worker"].relay(text("unheard"))
            await asyncio.sleep(0.05)
        assert [channel for channel, _ in world.sent] == [FOLLOWED_CHANNEL]

    asyncio.run(scenario())


def test_a_node_that_says_nothing_for_a_while_is_sent_nothing_until_it_does() -> None:
    async def scenario() -> None:
        world = World()
        assert await world.relay(text("one"))
        world.now += FORGET_SECONDS
        before = len(world.sent)
        world.nodes["worker"].relay(text("two"))
        assert not world.nodes["worker"]._unsent
        with world.feeds["reader"].subscribe("job"):
            world.nodes["reader"].tell_of_all()
            world.nodes["worker"].relay(text("three"))
            assert world.nodes["worker"]._unsent
        assert len(world.sent) == before + 2

    asyncio.run(scenario())


def test_after_a_gap_a_node_tells_again_what_it_follows() -> None:
    async def scenario() -> None:
        world = World()
        world.cut = True
        with world.feeds["reader"].subscribe("job"):
            world.nodes["worker"].relay(text("one"))
            assert not world.nodes["worker"]._unsent
            world.cut = False
            world.nodes["reader"].hear_followed(None)
            world.nodes["worker"].relay(text("two"))
            assert world.nodes["worker"]._unsent

    asyncio.run(scenario())


def test_a_flood_of_text_is_bounded() -> None:
    received = asyncio.run(World().relay(*(text(f"{number},") for number in range(MAX_UNSENT + 100))))
    assert len(received) == MAX_UNSENT


@pytest.mark.parametrize(
    "payload",
    [
        "",
        "[",
        "{}",
        '["a"]',
        '["a", {}]',
        '["a", [1, null, []]]',
        '["a",[["job",1,"no time","text.delta","m","t",0,0,0]]]',
        '["a",[["job",1,"2026-01-01T00:00:00Z","other","m","t",0,0,0]]]',
    ],
)
def test_a_payload_of_another_form_is_ignored(payload: str) -> None:
    world = World()
    world.nodes["worker"].hear_text(payload)
    world.nodes["worker"].hear_followed(payload)
    world.nodes["worker"].hear_text(None)
    assert not world.nodes["worker"]._unsent
    assert not world.sent
