"""A plain wrapper, as anybody would write it in 40 lines: `POST /chat` starts `claude -p` and streams its text.

It is a baseline: `python -m bench.wrapper CLI USER ARGUMENTS` serves on a free port of loopback and prints it. USER is
the user id of the CLI, or `-` for that of the wrapper; ARGUMENTS, a list in JSON, are added to the command line.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse

STREAM_ARGUMENTS = (
    "-p",
    "--output-format",
    "stream-json",
    "--verbose",
    "--include-partial-messages",
)


def app(cli: str, user: int | None, arguments: Sequence[str] = ()) -> FastAPI:
    """Make the app."""
    made = FastAPI(docs_url=None, redoc_url=None)

    async def answer(prompt: str) -> AsyncIterator[bytes]:
        home = tempfile.mkdtemp(prefix="home-", dir=os.environ["HOMES"])
        who: dict[str, Any] = {}
        if user is not None:
            who = {"user": user, "group": user, "extra_groups": []}
        if user is not None:
            os.chown(home, user, user)
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            cli, *STREAM_ARGUMENTS, *arguments, stdin=pipe, stdout=pipe, cwd=home, limit=1 << 24,
            env={**os.environ, "HOME": home, "TMPDIR": home, "CLAUDE_CONFIG_DIR": f"{home}/.claude"}, **who,
        )  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(prompt.encode())
        process.stdin.close()
        async for line in process.stdout:
            if b'"text_delta"' in line:
                text = json.loads(line)["event"]["delta"]["text"]
                yield b"data: " + json.dumps({"content": text}).encode() + b"\n\n"
        await process.wait()
        shutil.rmtree(home, ignore_errors=True)
        yield b"data: [DONE]\n\n"

    @made.post("/chat")
    async def chat(request: Request) -> StreamingResponse:
        return StreamingResponse(answer((await request.json())["prompt"]), media_type="text/event-stream")

    return made


def main() -> None:
    """Serve on a free port of loopback and print it."""
    cli, user, arguments = sys.argv[1:]
    made = app(cli, None if user == "-" else int(user), json.loads(arguments))
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as sock:
        sock.bind(("127.0.0.1", 0))
        print(sock.getsockname()[1], flush=True)
        config = uvicorn.Config(
            made, loop="asyncio", http="httptools", lifespan="off", log_config=None, access_log=False
        )  # fmt: skip
        asyncio.run(uvicorn.Server(config).serve(sockets=[sock]))


if __name__ == "__main__":
    main()
