"""Sessions of browsers and sign-in links that one node begins and another one sees."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta

from tests.store.nodes import Node, run, running_nodes, until

from steadyhand.store.announcements import SESSIONS_CHANNEL
from steadyhand.testing.contracts.samples import FakeClock
from steadyhand.web.browser_sessions import (
    IDLE_SECONDS,
    LINK_SECONDS,
    LONGEST_SECONDS,
    BrowserSessions,
    new_token,
    token_digest,
)
from steadyhand.web.shared_sessions import TOUCH_SECONDS, SharedSessions


@dataclass
class Pages:
    """The page of one node."""

    local: BrowserSessions
    shared: SharedSessions


@asynccontextmanager
async def two_pages(url: str, clock: FakeClock) -> AsyncIterator[tuple[Pages, Pages]]:
    pages: list[Pages] = []

    def prepare(node: Node) -> None:
        local = BrowserSessions(clock=lambda: clock().timestamp())
        pages.append(Pages(local, SharedSessions(local, node.store.page_sessions, clock=clock)))
        node.shared.refresh(SESSIONS_CHANNEL, node.store.page_sessions.check)

    async with running_nodes(url, prepare=prepare):
        yield pages[0], pages[1]


async def begin(page: Pages) -> str:
    token = new_token()
    await page.shared.begin(token, "digest of a key")
    return token


def test_a_session_that_begins_on_one_node_holds_on_the_other_with_its_forms_and_ends_on_both(
    postgres_url: str,
) -> None:
    async def scenario() -> None:
        async with two_pages(postgres_url, FakeClock()) as (here, there):
            token = await begin(here)
            assert there.local.find(token) is None
            assert await there.shared.learn(token)
            session, own = there.local.find(token), here.local.find(token)
            assert session is not None
            assert own is not None
            assert session.key_digest == "digest of a key"
            assert session.has_csrf_token(own.csrf_token)
            assert not await there.shared.learn(new_token())
            here.local.end(token)
            await here.shared.end(token)
            await until(lambda: not session.is_open)  # a stream of the page there ends as well
            assert not await there.shared.learn(token)

    run(scenario)


def test_a_session_ends_by_its_age_and_by_its_last_use_on_any_node(postgres_url: str) -> None:
    async def scenario() -> None:
        clock = FakeClock()
        async with two_pages(postgres_url, clock) as (here, there):
            token = await begin(here)
            for _ in range(4):  # used on one node alone
                clock.advance(timedelta(seconds=IDLE_SECONDS - 1))
                assert here.local.find(token) is not None
                await here.shared.touch(token)
            assert await there.shared.learn(token)
            clock.advance(timedelta(seconds=LONGEST_SECONDS - 4 * IDLE_SECONDS + 5))
            assert here.local.find(token) is None
            assert not await here.shared.learn(token)
            idle = await begin(here)
            clock.advance(timedelta(seconds=IDLE_SECONDS + 1))
            assert not await there.shared.learn(idle)

    run(scenario)


def test_the_use_of_a_session_is_stored_once_in_an_hour(postgres_url: str) -> None:
    async def scenario() -> None:
        clock = FakeClock()
        async with two_pages(postgres_url, clock) as (here, _):
            token = await begin(here)
            digest, began = token_digest(token), clock()
            for seconds, expected in ((TOUCH_SECONDS - 1, 0.0), (1, TOUCH_SECONDS), (9, TOUCH_SECONDS)):
                clock.advance(timedelta(seconds=seconds))
                await here.shared.touch(token)
                stored = await here.shared._table.find(digest)
                assert stored is not None
                assert (stored.seen_at - began).total_seconds() == expected

    run(scenario)


def test_a_link_opens_one_session_on_any_node_within_its_time(postgres_url: str) -> None:
    async def scenario() -> None:
        clock = FakeClock()
        async with two_pages(postgres_url, clock) as (here, there):
            link = await here.shared.create_link("digest of a key")
            answers = await asyncio.gather(
                *(page.shared.redeem_link(link) for page in (here, there) for _ in range(5))
            )
            assert sorted(each is not None for each in answers) == [False] * 9 + [True]
            old = await here.shared.create_link("digest of a key")
            clock.advance(timedelta(seconds=LINK_SECONDS))
            assert await there.shared.redeem_link(old) is None
            assert await there.shared.redeem_link("no link") is None

    run(scenario)


def test_all_nodes_of_a_database_have_one_secret_for_callbacks(postgres_url: str) -> None:
    async def scenario() -> None:
        async with running_nodes(postgres_url) as (here, there):
            shares = [node.store.page_sessions.share_secret for node in (here, there) for _ in range(3)]
            found = await asyncio.gather(
                *(share("callbacks", f"secret {number}") for number, share in enumerate(shares))
            )
            assert len(set(found)) == 1

    run(scenario)
