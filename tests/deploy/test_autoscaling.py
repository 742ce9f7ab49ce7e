"""The query of the chart counts the jobs that need a worker, and its user needs no more than the how-to grants."""

import asyncio
import re
from contextlib import AsyncExitStack
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from tests.docs.pages import text_of

from steadyhand.queue.procrastinate.cluster_queue import ProcrastinateQueue
from steadyhand.store import SqlStore, open_store
from steadyhand.store.postgres.listener import Listener
from steadyhand.testing.cluster import listening
from steadyhand.testing.contracts.samples import accepted_draft, make_job

pytest.importorskip("helm_python", reason="it has no wheel for this machine")

from tests.deploy.chart import FULL, render

PASSWORD = "a-password"


def queue_of(url: str, store: SqlStore, listener: Listener, node: str, capacity: int) -> ProcrastinateQueue:
    return ProcrastinateQueue(
        url,
        store,
        node=node,
        capacity=capacity,
        max_queued=100,
        max_suspended=2,
        listen_to=listener.on,
    )


def test_keda_counts_the_jobs_that_wait_and_those_that_run(postgres_url: str) -> None:
    asyncio.run(check_counts(postgres_url))


async def check_counts(postgres_url: str) -> None:
    (trigger,) = render(FULL).one("ScaledObject")["spec"]["triggers"]
    query = trigger["metadata"]["query"]
    grants = re.findall(r"^(GRANT .*);$", text_of("how-to/kubernetes.md"), re.MULTILINE)
    assert len(grants) == 1
    role = f"keda_{urlsplit(postgres_url).path[1:]}"
    store = await open_store(postgres_url)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(store.close)
        listener = await stack.enter_async_context(listening(postgres_url))
        serving = queue_of(postgres_url, store, listener, "serving", 0)
        working = queue_of(postgres_url, store, listener, "working", 2)
        for queue in (serving, working):
            await stack.enter_async_context(queue.opened())
        owner = await psycopg.AsyncConnection.connect(postgres_url, autocommit=True)
        stack.push_async_callback(owner.close)
        await owner.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{PASSWORD}'".encode())
        await owner.execute(grants[0].replace(" keda", f" {role}").encode())
        try:
            parts = urlsplit(postgres_url)
            host = f"{role}:{PASSWORD}@{parts.hostname}:{parts.port}"
            async with await psycopg.AsyncConnection.connect(
                urlunsplit(parts._replace(netloc=host))
            ) as reader:

                async def count() -> int:
                    cursor = await reader.execute(query.encode())
                    row = await cursor.fetchone()
                    await reader.commit()
                    assert row is not None
                    return int(row[0])

                assert await count() == 0
                for _ in range(5):
                    await serving.enqueue(make_job(), accepted_draft())
                assert await count() == 5
                async with asyncio.timeout(20):
                    claims = [await working.claim() for _ in range(2)]
                assert await count() == 5, "those that run still need their worker"
                await working.release(claims[0])
                assert await count() == 4
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    await reader.execute("SELECT count(*) FROM jobs")
        finally:
            await owner.execute(f"DROP OWNED BY {role}".encode())
            await owner.execute(f"DROP ROLE {role}".encode())
