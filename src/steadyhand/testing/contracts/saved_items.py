"""Tests of every store of saved items."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Protocol

from steadyhand.ports import ApiKey, SavedItem, SavedItems, Store
from steadyhand.testing.contracts.samples import NOON, async_test, long_text

VIEW = SavedItem("view", "Failed \u202e<b>", "state=failed", NOON)


class SavedItemStore(Store, SavedItems, Protocol):
    """A store that holds keys and what they save."""


class SavedItemsContract:
    """Tests of a store of saved items, which `open` opens."""

    @asynccontextmanager
    async def open(self) -> AsyncIterator[SavedItemStore]:
        """Open the store of the test."""
        raise NotImplementedError
        yield

    @async_test
    async def test_items_are_listed_by_name_kind_and_key_and_outlive_the_store(self) -> None:
        async with self.open() as store:
            for name in ("b", "a", "B", VIEW.name):
                assert await store.save_item("k1", replace(VIEW, name=name), 10)
            assert await store.save_item("k1", SavedItem("prompt", "a", "text\n", NOON), 10)
            assert await store.save_item("k2", replace(VIEW, name="other"), 10)
        async with self.open() as store:
            found = await store.list_saved("k1", "view")
            assert [item.name for item in found] == ["B", VIEW.name, "a", "b"]
            assert found[1] == VIEW
            assert [item.name for item in await store.list_saved("k2", "view")] == ["other"]
            assert await store.list_saved("k1", "prompt") == [SavedItem("prompt", "a", "text\n", NOON)]
            assert await store.list_saved("k3", "view") == []

    @async_test
    async def test_an_item_replaces_the_one_of_its_name_also_if_there_may_be_no_more(self) -> None:
        async with self.open() as store:
            later = replace(VIEW, content="state=error", saved_at=NOON + timedelta(days=1))
            assert await store.save_item("k1", VIEW, 1)
            assert await store.save_item("k1", later, 1)
            assert await store.list_saved("k1", "view") == [later]
            assert not await store.save_item("k1", replace(VIEW, name="one more"), 1)
            assert await store.save_item("k1", replace(VIEW, kind="prompt"), 1)
            assert await store.save_item("k2", VIEW, 1)
            assert await store.list_saved("k1", "view") == [later]

    @async_test
    async def test_the_items_of_a_key_are_gone_once_it_is_revoked_and_those_of_others_stay(self) -> None:
        async with self.open() as store:
            key = ApiKey("k1", "one", "a" * 64, frozenset({"read"}), NOON)
            await store.save_key(key)
            for item in (VIEW, replace(VIEW, kind="prompt")):
                for key_id in ("k1", "k2"):
                    await store.save_item(key_id, item, 10)
            await store.save_key(replace(key, digest="b" * 64))
            assert await store.list_saved("k1", "view") == [VIEW]
            await store.save_key(replace(key, revoked_at=NOON))
            for kind in ("view", "prompt"):
                assert await store.list_saved("k1", kind) == []
                assert len(await store.list_saved("k2", kind)) == 1

    @async_test
    async def test_a_deleted_item_is_gone_and_others_stay(self) -> None:
        async with self.open() as store:
            for item in (VIEW, replace(VIEW, name="stays"), replace(VIEW, kind="prompt")):
                await store.save_item("k1", item, 10)
            await store.save_item("k2", VIEW, 10)
            assert await store.delete_saved("k1", "view", VIEW.name)
            assert not await store.delete_saved("k1", "view", VIEW.name)
            assert [item.name for item in await store.list_saved("k1", "view")] == ["stays"]
            assert (
                len(await store.list_saved("k1", "prompt")) == len(await store.list_saved("k2", "view")) == 1
            )

    @async_test
    async def test_an_item_of_the_longest_name_is_found(self) -> None:
        async with self.open() as store:
            item = replace(VIEW, name=long_text(128), content=long_text(4000))
            assert await store.save_item("k" * 64, item, 10)
            assert await store.list_saved("k" * 64, "view") == [item]
            assert await store.delete_saved("k" * 64, "view", item.name)
