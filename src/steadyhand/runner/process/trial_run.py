"""A trial run of a command by the same steps as a real run, with the reason if it fails."""

import asyncio

from steadyhand.errors import SpawnError
from steadyhand.ports import Command
from steadyhand.runner.process.agent_process import AgentProcess, LaunchSpec

_TRY_SECONDS = 20.0
_MAX_BYTES = 4096


async def try_command(command: Command) -> str | None:
    """Run a command that does nothing; return None if it exits with 0, else the reason in a sentence."""
    try:
        async with asyncio.timeout(_TRY_SECONDS), AgentProcess.start(LaunchSpec(command)) as process:
            process.end_input()
            async with asyncio.TaskGroup() as group:
                stderr_task = group.create_task(_read_start(process.stderr))
                stdout_task = group.create_task(_read_start(process.stdout))
                exit_status = await process.wait()
            lines = (stderr_task.result() or stdout_task.result()).decode("utf-8", "replace").split("\n")
    except SpawnError as error:
        return str(error)
    except TimeoutError:
        return f"It did not end within {_TRY_SECONDS:g} seconds."
    if exit_status.code == 0:
        return None
    cause = f"signal {exit_status.signal}" if exit_status.code is None else f"exit code {exit_status.code}"
    return next(
        (line.strip() for line in lines if line.strip()), f"It ended with {cause} and printed nothing."
    )


async def _read_start(reader: asyncio.StreamReader) -> bytes:
    """Return the beginning of the output, and discard the rest."""
    start = b""
    while chunk := await reader.read(_MAX_BYTES):
        start += chunk[: max(0, _MAX_BYTES - len(start))]
    return start
