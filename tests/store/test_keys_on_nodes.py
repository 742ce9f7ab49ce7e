"""Keys that one node creates and revokes, on another node that has them in memory."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from tests.store.nodes import Node, run, running_nodes, until
from tests.store.test_listener import END_LISTENERS

from steadyhand.errors import Conflict, StoreUnavailable, Unauthenticated
from steadyhand.keyring import Keyring
from steadyhand.ports import NO_LIMITS, KeyLimits, Scope
from steadyhand.store.announcements import KEYS_CHANNEL
from steadyhand.testing.contracts.samples import expect_error
from steadyhand.testing.postgres import Postgres

SUBMIT: frozenset[Scope] = frozenset({"submit"})
ADMIN: frozenset[Scope] = frozenset({"admin"})


@asynccontextmanager
async def two_keyrings(
    url: str, *, hearing: bool = True
) -> AsyncIterator[tuple[list[Node], Keyring, Keyring]]:
    """Run two nodes with a keyring each; without `hearing` neither reads the keys when they may have changed."""
    keyrings: list[Keyring] = []

    def prepare(node: Node) -> None:
        keyrings.append(Keyring([], node.store, is_shared=True))
        if hearing:
            node.shared.refresh(KEYS_CHANNEL, keyrings[-1].refresh)

    async with running_nodes(url, prepare=prepare) as nodes:
        yield nodes, keyrings[0], keyrings[1]


def opens(keyring: Keyring, secret: str) -> bool:
    try:
        keyring.authenticate(secret.encode())
    except Unauthenticated:
        return False
    return True


def test_what_one_node_does_with_a_key_holds_on_the_other(postgres_url: str) -> None:
    async def scenario() -> None:
        async with two_keyrings(postgres_url) as (_, here, there):
            key, secret = await here.create("one", SUBMIT, KeyLimits(running=2))
            await until(lambda: opens(there, secret))
            assert there.limits_of(key.id).running == 2
            is_valid = there.validity_of(secret.encode())  # that of a stream
            _, rotated = await here.rotate(key.id)
            await until(lambda: opens(there, rotated))
            assert not opens(there, secret)
            assert not is_valid()
            await there.revoke(key.id)
            await until(lambda: not opens(here, rotated))

    run(scenario)


def test_a_key_that_is_revoked_while_nothing_is_heard_is_refused_once_the_node_looks_again(
    postgres: Postgres, postgres_url: str
) -> None:
    end_listeners = END_LISTENERS.format(postgres_url.rpartition("/")[2])

    async def scenario() -> None:
        async with two_keyrings(postgres_url) as (nodes, here, there):
            keys = [await here.create(f"key {number}", SUBMIT, NO_LIMITS) for number in range(10)]
            await until(lambda: all(opens(there, secret) for _, secret in keys))
            for key, _ in keys:
                await asyncio.to_thread(postgres.execute, end_listeners)
                await here.revoke(key.id)
            await until(lambda: not any(opens(there, secret) for _, secret in keys))
            assert nodes[1].shared.listener.connections > 1

    run(scenario)


def test_a_key_is_known_everywhere_once_its_creation_was_answered(postgres_url: str) -> None:
    async def scenario() -> None:
        async with two_keyrings(postgres_url, hearing=False) as (_, here, there):
            for number in range(3):
                _, secret = await here.create(f"key {number}", SUBMIT, NO_LIMITS)
                assert not opens(there, secret)
                await there.learn(secret.encode())
                assert opens(there, secret)

    run(scenario)


def test_strangers_cannot_make_a_node_read_the_keys_often(postgres_url: str) -> None:
    async def scenario() -> None:
        async with two_keyrings(postgres_url) as (_, _, there):
            reads = 0

            async def load() -> None:
                nonlocal reads
                reads += 1

            there.refresh = load  # type: ignore[method-assign]
            await asyncio.gather(*(there.learn(f"stranger {number}".encode()) for number in range(500)))
            assert reads == 1
            await there.learn(b"")
            assert reads == 1
            await there.learn(b"one more")
            assert reads == 2

    run(scenario)


def test_the_last_key_of_an_administrator_stays_though_two_nodes_revoke_one_each(postgres_url: str) -> None:
    async def scenario() -> None:
        async with two_keyrings(postgres_url, hearing=False) as (_, here, there):
            (one, _), (other, _) = [await here.create(name, ADMIN, NO_LIMITS) for name in ("one", "other")]
            await here.revoke(one.id)
            await expect_error(Conflict, there.revoke(other.id))  # it reads what it has not heard of

    run(scenario)


def test_a_key_that_was_revoked_here_stays_so_though_it_could_not_be_stored(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with two_keyrings(postgres_url) as (nodes, here, _):
            key, secret = await here.create("one", SUBMIT, NO_LIMITS)

            async def fail(_key: object) -> None:
                raise StoreUnavailable("of the test")

            with monkeypatch.context() as patched:
                patched.setattr(nodes[0].store, "save_key", fail)
                await expect_error(StoreUnavailable, here.revoke(key.id))
            await here.refresh()
            assert not opens(here, secret)

    run(scenario)
