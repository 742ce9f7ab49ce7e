"""Tries a command through the whole way that a run takes, and says what stood in it."""

import asyncio

from steadyhand.errors import SpawnError
from steadyhand.ports import Command
from steadyhand.runner.process.agent_process import AgentProcess, Launch

_SECONDS = 20.0
_MOST = 4096


async def try_command(command: Command) -> str | None:
    """Run a command that does nothing; null when it ran and ended with 0, else the reason in a sentence."""
    try:
        async with asyncio.timeout(_SECONDS), AgentProcess.start(Launch(command)) as process:
            process.end_input()
            async with asyncio.TaskGroup() as group:
                said = group.create_task(_first(process.stderr))
                heard = group.create_task(_first(process.stdout))
                ended = await process.wait()
            lines = (said.result() or heard.result()).decode("utf-8", "replace").split("\n")
    except SpawnError as error:
        return str(error)
    except TimeoutError:
        return f"It did not end within {_SECONDS:g} seconds."
    if ended.code == 0:
        return None
    how = f"signal {ended.signal}" if ended.code is None else f"exit code {ended.code}"
    return next((line.strip() for line in lines if line.strip()), f"It ended with {how} and said nothing.")


async def _first(reader: asyncio.StreamReader) -> bytes:
    """Give the beginning of what comes, and read the rest away."""
    kept = b""
    while chunk := await reader.read(_MOST):
        kept += chunk[: max(0, _MOST - len(kept))]
    return kept
