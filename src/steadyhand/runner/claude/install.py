"""Finds the CLI, and installs a copy if the agents' user cannot run it."""

import asyncio
import importlib.util
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from steadyhand.errors import ConfigError, SpawnError
from steadyhand.ports import Command, DoctorCheck
from steadyhand.runner.process.agent_process import AgentProcess, LaunchSpec
from steadyhand.runner.process.programs import accessible_program

PROGRAM_NAME = "claude"
CONFIG_DIR_NAME = ".claude"
"""The CLI's config directory in a home."""
CHECK_SECONDS = 20.0


def find_cli(configured: Path | None, *, classic: bool, path_env: str) -> Path:
    """Return the CLI: the configured path, in the classic profile a `claude` on `path_env`, then the SDK's own.

    Raises `ConfigError` if there is none.
    """
    if configured is not None:
        if not configured.is_file():
            raise ConfigError(f"runner.claude.path: {configured} is not a file.")
        return configured.absolute()
    on_path = shutil.which(PROGRAM_NAME, path=path_env) if classic else None
    if on_path is not None:
        return Path(on_path).absolute()
    bundled = _bundled()
    if not bundled.is_file():
        raise ConfigError("The claude-agent-sdk wheel for this platform has no CLI; set runner.claude.path.")
    return bundled


def _bundled() -> Path:
    # The package is only found: its import takes more than a second of processor time.
    spec = importlib.util.find_spec("claude_agent_sdk")
    if spec is None or spec.origin is None:
        raise ConfigError("claude-agent-sdk is not installed; set runner.claude.path.")
    return Path(spec.origin).parent / "_bundled" / PROGRAM_NAME


async def check_cli(
    configured: Path | None, *, classic: bool, path_env: str, data_dir: Path, uid: int | None
) -> Sequence[DoctorCheck]:
    """Check for `doctor` that the CLI exists and runs as the agents' user."""
    remedy = "set runner.claude.path to the claude program, or reinstall claude-agent-sdk"
    try:
        configured_cli = find_cli(configured, classic=classic, path_env=path_env)
        cli = await asyncio.to_thread(accessible_program, configured_cli, PROGRAM_NAME, data_dir, uid)
    except ConfigError as error:
        return [DoctorCheck("cli", False, error.detail, remedy)]
    except OSError as error:
        detail = f"{configured_cli} could not be copied to {data_dir / 'bin'}: {error.strerror}"
        return [DoctorCheck("cli", False, detail, "free space in the data directory and make it writable")]
    return [DoctorCheck("cli", True, str(configured_cli)), await _check_cli_runs(cli, uid)]


async def _check_cli_runs(cli: Path, uid: int | None) -> DoctorCheck:
    user = "the service's own user" if uid is None else f"user {uid}"
    env = {"PATH": os.defpath, "HOME": "/nonexistent", "DISABLE_AUTOUPDATER": "1", "DISABLE_TELEMETRY": "1"}
    launch = LaunchSpec(Command([str(cli), "--version"], env, Path("/"), uid))
    try:
        async with asyncio.timeout(CHECK_SECONDS), AgentProcess.start(launch) as process:
            process.end_input()
            version = (await process.stdout.read(4096)).decode("utf-8", "replace").strip()
            exit_status = await process.wait()
            containment = process.containment
    except (SpawnError, TimeoutError) as error:
        reason = error.detail if isinstance(error, SpawnError) else "it did not end in time"
        remedy = f"make {cli} and the folders above it readable and executable for {user}"
        return DoctorCheck("cli runs", False, f"not as {user}: {reason}", remedy)
    if exit_status.code != 0:
        end = exit_status.code if exit_status.signal is None else "a signal"
        detail = f"`{cli.name} --version` as {user} ended with {end}"
        return DoctorCheck("cli runs", False, detail, "run it by hand to see the error")
    return DoctorCheck(
        "cli runs", True, f"{version}, as {user}, supervised by {containment.replace('_', ' ')}"
    )
