"""A process that writes jobs and events until it is killed, and prints a line for each once it is acknowledged."""

import asyncio
import sys

from steadyhand.store import open_store
from steadyhand.testing.contracts.samples import accepted_draft, make_job, message_drafts


async def write(path: str) -> None:
    store = await open_store(f"sqlite:///{path}", linger_seconds=0.002)

    async def caller() -> None:
        while True:
            job = make_job()
            await store.add(job, accepted_draft())
            print("job", job.id, 1, flush=True)  # noqa: T201  # the parent reads it
            for number in range(2, 6):
                await store.append_events(job.id, message_drafts(f"{job.id} {number}"))
                print("event", job.id, number, flush=True)  # noqa: T201  # the parent reads it

    async with asyncio.TaskGroup() as group:
        for _ in range(8):
            group.create_task(caller())


if __name__ == "__main__":
    asyncio.run(write(sys.argv[1]))
