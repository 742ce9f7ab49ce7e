"""Times jobs of a Procrastinate worker around a restart of Postgres.

Usage: python3 procrastinate-deaf-after-restart.py FOLDER BIN.
FOLDER/data is a new database and its owner runs the server; BIN has the programs of Postgres.
"""

import asyncio
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psycopg
from procrastinate import App, PsycopgConnector

FOLDER, BIN = Path(sys.argv[1]), Path(sys.argv[2])
URL = f"host={FOLDER} user=postgres dbname=postgres"
POLL_SECONDS = 30.0
"""How often the worker looks by itself: so long that a job that was heard of can be told from one that was found."""
HEARD_SECONDS = 10.0
REST_SECONDS = 3.0
"""After a job the worker looks for the next one at once, and then waits."""
OWNER = (FOLDER / "data").stat()

logging.getLogger("procrastinate").setLevel(logging.CRITICAL)
logging.getLogger("psycopg.pool").setLevel(logging.CRITICAL)
logging.getLogger("asyncio").setLevel(logging.CRITICAL)


def start_server() -> subprocess.Popen[bytes]:
    """Start the server and wait until it answers."""
    settings = ["listen_addresses=", f"unix_socket_directories={FOLDER}", "fsync=off"]
    options = [part for setting in settings for part in ("-c", setting)]
    command = [BIN / "postgres", "-D", FOLDER / "data", *options]
    identity = {"user": OWNER.st_uid, "group": OWNER.st_gid, "extra_groups": []} if os.getuid() == 0 else {}
    server = subprocess.Popen(command, stderr=subprocess.DEVNULL, cwd=FOLDER, **identity)
    for _ in range(600):
        try:
            psycopg.connect(URL).close()
        except psycopg.OperationalError:
            time.sleep(0.1)
        else:
            return server
    raise TimeoutError("Postgres did not start")


class Trial:
    """A server and workers on it."""

    def __init__(self) -> None:
        self.server = start_server()
        self.started: asyncio.Queue[float] = asyncio.Queue()

    def app(self, *, is_periodic: bool = False) -> App:
        """Return an app with one task, and one more that is due on New Year's Day."""
        app = App(connector=PsycopgConnector(conninfo=URL))

        @app.task(name="note")
        async def note() -> None:
            self.started.put_nowait(time.monotonic())

        if is_periodic:

            @app.periodic(cron="0 0 1 1 *")
            @app.task(name="greet")
            async def greet(timestamp: int) -> None:
                pass

        return app

    def restart(self) -> None:
        """Restart the server."""
        self.server.send_signal(signal.SIGINT)
        self.server.wait(60)
        self.server = start_server()

    async def way_of_a_job(self) -> str:
        """Enqueue a job and tell how the worker came to it."""
        await asyncio.sleep(REST_SECONDS)
        async with self.app().open_async() as client:
            enqueued = time.monotonic()
            await client.configure_task("note").defer_async()
        seconds = await asyncio.wait_for(self.started.get(), 120) - enqueued
        return "heard of" if seconds < HEARD_SECONDS else "found by a look at the queue"

    async def run(self, app: App) -> None:
        """Print how the worker of an app comes to jobs before and after a restart of the server."""
        async with app.open_async():
            options = {"fetch_job_polling_interval": POLL_SECONDS, "install_signal_handlers": False}
            worker = asyncio.create_task(app.run_worker_async(**options))
            print(f"  the job before: {await self.way_of_a_job()}", flush=True)
            await asyncio.to_thread(self.restart)
            await asyncio.wait([worker], timeout=2 * POLL_SECONDS)
            if worker.done():
                print(f"  the worker has ended, exception: {worker.exception()}", flush=True)
                return
            await self.way_of_a_job()  # the worker has just looked, and looks again in POLL_SECONDS
            for number in (1, 2):
                print(f"  job {number} after: {await self.way_of_a_job()}", flush=True)
            worker.cancel()
            await asyncio.wait([worker])


async def main() -> None:
    """Try an app without a periodic task, and one with it."""
    trial = Trial()
    try:
        async with trial.app().open_async() as app:
            await app.schema_manager.apply_schema_async()
        print("The server is restarted")
        await trial.run(trial.app())
        print("The server is restarted, and the app has a periodic task")
        await trial.run(trial.app(is_periodic=True))
    finally:
        trial.server.send_signal(signal.SIGINT)
        trial.server.wait(60)


signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the server is to end with this program
asyncio.run(main())
