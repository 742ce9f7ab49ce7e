"""Reads of requests from a server that answers nothing, or only others."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psycopg
import pytest
from tests.async_tests import in_loop

from steadyhand import read_patience
from steadyhand.errors import StoreUnavailable
from steadyhand.read_patience import set_read_patience
from steadyhand.store import SqlStore, open_store
from steadyhand.testing.contracts.samples import accepted_draft, expect_error, make_job


@asynccontextmanager
async def locked_jobs(url: str) -> AsyncIterator[None]:
    """Let no statement read jobs for the length of the block: to the store the server looks frozen."""
    async with await psycopg.AsyncConnection.connect(url) as connection:
        await connection.execute("LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE")
        yield


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[tuple[SqlStore, str]]:
    store = await open_store(url)
    try:
        job = make_job()
        await store.add(job, accepted_draft())
        yield store, job.id
    finally:
        await store.close()


async def read_for(method: str, store: SqlStore, job_id: str) -> str:
    set_read_patience(method)
    job = await store.get(job_id)
    assert job is not None
    return job.id


@in_loop
async def test_a_read_for_a_request_gives_up_and_the_service_s_own_waits(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_patience, "REQUEST_READ_SECONDS", 0.2)
    async with opened(postgres_url) as (store, job_id), asyncio.TaskGroup() as group:
        async with locked_jobs(postgres_url):
            others = [
                group.create_task(store.get(job_id)),
                group.create_task(read_for("POST", store, job_id)),
            ]
            for _ in range(3):  # also when each thread for such reads is taken
                reading = asyncio.create_task(read_for("HEAD", store, job_id))
                refused = await expect_error(StoreUnavailable, reading)
                assert refused.detail == "The store cannot be read: the database does not answer."
            assert not any(each.done() for each in others)
        assert [await each for each in others][1] == job_id
        monkeypatch.setattr(read_patience, "REQUEST_READ_SECONDS", 30.0)  # the machine may be busy
        assert await group.create_task(read_for("GET", store, job_id)) == job_id


@in_loop
async def test_a_read_waits_on_while_the_server_answers_others(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_patience, "REQUEST_READ_SECONDS", 0.2)
    async with opened(postgres_url) as (store, job_id), asyncio.TaskGroup() as group:
        async with locked_jobs(postgres_url):
            reading = group.create_task(read_for("GET", store, job_id))
            await asyncio.sleep(0)
            store._readers._answered_at = asyncio.get_running_loop().time() + 60  # as if others were answered
            done, _ = await asyncio.wait([reading], timeout=0.6)
            assert not done
        assert await reading == job_id
