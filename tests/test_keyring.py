"""The directory of keys: who is known, what is kept, and what ends a key."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path

import pytest

from steadyhand.errors import Conflict, NotFound, StoreError, Unauthenticated
from steadyhand.keyring import Keyring, secret_digest
from steadyhand.ports import ALL_SCOPES, NO_LIMITS, ApiKey, KeyLimits, Scope
from steadyhand.store import SqlStore, open_store
from steadyhand.testing.contracts.samples import NOON, FakeClock, expect_error

SUBMIT: frozenset[Scope] = frozenset({"submit"})
ADMIN: frozenset[Scope] = frozenset({"admin"})
FIXED = ApiKey("k_admin", "STEADYHAND_API_KEY", secret_digest(b"fixed"), ALL_SCOPES, NOON)


class Bench:
    def __init__(self, store: SqlStore, clock: FakeClock) -> None:
        self.store = store
        self.clock = clock

    async def keyring(self, *fixed: ApiKey) -> Keyring:
        made = Keyring(fixed, self.store, clock=self.clock)
        await made.load()
        return made


@asynccontextmanager
async def a_bench(path: Path) -> AsyncIterator[Bench]:
    store = await open_store(f"sqlite:///{path}/jobs.db")
    try:
        yield Bench(store, FakeClock())
    finally:
        await store.close()


def play(path: Path, scene: Callable[[Bench], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60), a_bench(path) as bench:
            await scene(bench)

    asyncio.run(bounded())


def contents(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in folder.iterdir()]


def opens(keyring: Keyring, secret: str) -> bool:
    try:
        keyring.authenticate(secret.encode())
    except Unauthenticated:
        return False
    return True


def test_a_key_is_told_once_and_only_its_digest_is_kept(tmp_path: Path) -> None:
    async def scene(bench: Bench) -> None:
        keyring = await bench.keyring(FIXED)
        key, secret = await keyring.create("ci", SUBMIT, NO_LIMITS)
        assert re.fullmatch(rf"sh_{key.id}_[A-Za-z0-9]{{43}}", secret)
        assert re.fullmatch("k_[a-z0-9]{10}", key.id)
        assert keyring.authenticate(secret.encode()) == key
        kept = contents(tmp_path)
        assert any(key.digest.encode() in each for each in kept)
        assert not any(secret[-43:].encode() in each for each in kept)

    play(tmp_path, scene)


def test_keys_and_what_became_of_them_survive_a_restart(tmp_path: Path) -> None:
    async def scene(bench: Bench) -> None:
        first = await bench.keyring(FIXED)
        limits = KeyLimits(agents=("claude",), per_minute=3)
        kept, secret = await first.create("kept", SUBMIT, limits)
        _, lost = await first.create("lost", SUBMIT, NO_LIMITS)
        await first.revoke(first.authenticate(lost.encode()).id)
        rotated, old = await first.create("rotated", SUBMIT, NO_LIMITS)
        _, new = await first.rotate(rotated.id, grace_seconds=60)
        again = await bench.keyring(FIXED)
        assert again.list_keys() == first.list_keys()
        assert again.limits_of(kept.id) == limits
        assert [opens(again, each) for each in (secret, lost, old, new)] == [True, False, True, True]
        bench.clock.advance(timedelta(seconds=60))
        assert [opens(again, each) for each in (old, new)] == [False, True]

    play(tmp_path, scene)


def test_a_revoked_key_opens_nothing_at_once_and_stays_known_by_its_id(tmp_path: Path) -> None:
    async def scene(bench: Bench) -> None:
        keyring = await bench.keyring(FIXED)
        limits = KeyLimits(day_micros=1)
        key, secret = await keyring.create("ci", SUBMIT, limits)
        _, newer = await keyring.rotate(key.id, grace_seconds=3600)
        bench.clock.advance(timedelta(seconds=5))
        revoked = await keyring.revoke(key.id)
        assert revoked.revoked_at == NOON + timedelta(seconds=5)
        assert not opens(keyring, secret)
        assert not opens(keyring, newer)
        # Jobs that it has asked for are still bound by its limits.
        assert keyring.limits_of(key.id) == limits
        bench.clock.advance(timedelta(seconds=5))
        assert await keyring.revoke(key.id) == revoked
        await expect_error(Conflict, keyring.rotate(key.id))

    play(tmp_path, scene)


def test_a_key_is_shut_even_when_the_store_cannot_keep_that_it_was_revoked(tmp_path: Path) -> None:
    async def scene(bench: Bench) -> None:
        keyring = await bench.keyring(FIXED)
        key, secret = await keyring.create("ci", SUBMIT, NO_LIMITS)
        await bench.store.close()
        await expect_error(StoreError, keyring.revoke(key.id))
        assert not opens(keyring, secret)

    play(tmp_path, scene)


@pytest.mark.parametrize("grace", [0, 30])
def test_a_rotated_key_keeps_its_id_and_limits_and_its_old_secret_ends(tmp_path: Path, grace: int) -> None:
    async def scene(bench: Bench) -> None:
        keyring = await bench.keyring(FIXED)
        key, old = await keyring.create("ci", SUBMIT, KeyLimits(running=2))
        rotated, new = await keyring.rotate(key.id, grace_seconds=grace)
        assert (rotated.id, rotated.limits, rotated.created_at) == (key.id, key.limits, key.created_at)
        assert opens(keyring, new)
        assert opens(keyring, old) is bool(grace)
        bench.clock.advance(timedelta(seconds=grace))
        assert opens(keyring, new)
        assert not opens(keyring, old)

    play(tmp_path, scene)


def test_a_second_rotation_ends_the_first_secret_whatever_was_promised(tmp_path: Path) -> None:
    async def scene(bench: Bench) -> None:
        keyring = await bench.keyring(FIXED)
        key, first = await keyring.create("ci", SUBMIT, NO_LIMITS)
        _, second = await keyring.rotate(key.id, grace_seconds=600)
        _, third = await keyring.rotate(key.id, grace_seconds=600)
        assert [opens(keyring, each) for each in (first, second, third)] == [False, True, True]

    play(tmp_path, scene)


def test_a_fixed_key_cannot_be_changed_and_says_where_it_is_set(tmp_path: Path) -> None:
    async def scene(bench: Bench) -> None:
        keyring = await bench.keyring(FIXED)
        for attempt in (keyring.revoke("k_admin"), keyring.rotate("k_admin")):
            error = await expect_error(Conflict, attempt)
            assert "STEADYHAND_API_KEY" in error.detail
        assert opens(keyring, "fixed")

    play(tmp_path, scene)


def test_the_last_key_that_may_do_everything_cannot_be_revoked(tmp_path: Path) -> None:
    async def scene(bench: Bench) -> None:
        bearer = ApiKey("k_bearer", "API_BEARER_TOKEN", secret_digest(b"b"), SUBMIT, NOON)
        keyring = await bench.keyring(bearer)
        first, secret = await keyring.create("first", ADMIN, NO_LIMITS)
        error = await expect_error(Conflict, keyring.revoke(first.id))
        assert "last key" in error.detail
        assert opens(keyring, secret)
        second, _ = await keyring.create("second", ADMIN, NO_LIMITS)
        await keyring.revoke(first.id)
        await expect_error(Conflict, keyring.revoke(second.id))

    play(tmp_path, scene)


def test_of_many_changes_at_once_none_undoes_a_revocation(tmp_path: Path) -> None:
    async def scene(bench: Bench) -> None:
        keyring = await bench.keyring(FIXED)
        key, _ = await keyring.create("ci", SUBMIT, NO_LIMITS)

        async def rotate() -> None:
            with suppress(Conflict):
                await keyring.rotate(key.id)

        async with asyncio.TaskGroup() as group:
            for number in range(20):
                group.create_task(keyring.revoke(key.id) if number == 7 else rotate())
        assert keyring.get(key.id).revoked_at is not None
        assert (await bench.keyring(FIXED)).get(key.id) == keyring.get(key.id)

    play(tmp_path, scene)


def test_a_fixed_key_with_the_secret_of_a_kept_one_comes_first(tmp_path: Path) -> None:
    async def scene(bench: Bench) -> None:
        key, secret = await (await bench.keyring(FIXED)).create("ci", SUBMIT, NO_LIMITS)
        fixed = ApiKey("k_admin", "STEADYHAND_API_KEY", secret_digest(secret.encode()), ALL_SCOPES, NOON)
        keyring = await bench.keyring(fixed)
        assert keyring.authenticate(secret.encode()) == fixed
        await keyring.revoke(key.id)
        assert keyring.authenticate(secret.encode()) == fixed

    play(tmp_path, scene)


def test_nobody_gets_in_without_a_key_and_an_unknown_id_is_not_found(tmp_path: Path) -> None:
    async def scene(bench: Bench) -> None:
        keyring = await bench.keyring()
        for token in (b"", b"x", b"\xff", secret_digest(b"x").encode()):
            with pytest.raises(Unauthenticated):
                keyring.authenticate(token)
        for attempt in (keyring.revoke("k_none"), keyring.rotate("k_none")):
            await expect_error(NotFound, attempt)
        assert keyring.limits_of("k_none") is NO_LIMITS

    play(tmp_path, scene)
