"""The baseline of the first row: a FastAPI app that answers `POST /execute` with a constant, served as ours is."""

from __future__ import annotations

import asyncio
import socket

import uvicorn
from fastapi import FastAPI


def app() -> FastAPI:
    """Make the app, as anybody would write it."""
    made = FastAPI(docs_url=None, redoc_url=None)

    @made.post("/execute", status_code=202)
    async def execute() -> dict[str, str]:
        return {"job_id": "000000000000", "status": "running"}

    return made


def main() -> None:
    """Serve on a free port of loopback and print it."""
    with socket.socket(
        socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP
    ) as sock:  # asyncio sets TCP_NODELAY by it
        sock.bind(("127.0.0.1", 0))
        print(sock.getsockname()[1], flush=True)
        # The settings of `steadyhand.serve`, so that only the work differs.
        config = uvicorn.Config(
            app(),
            loop="asyncio",
            http="httptools",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
        )
        asyncio.run(uvicorn.Server(config).serve(sockets=[sock]))


if __name__ == "__main__":
    main()
