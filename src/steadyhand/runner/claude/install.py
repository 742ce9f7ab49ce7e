"""Finds the CLI, and installs a copy if the agents' user cannot run it."""

import asyncio
import importlib.util
import os
import shutil
import stat
from collections.abc import Sequence
from pathlib import Path

from steadyhand.errors import ConfigError, SpawnError
from steadyhand.ports import Command, DoctorCheck
from steadyhand.runner.process.agent_process import AgentProcess, LaunchSpec

PROGRAM_NAME = "claude"
CONFIG_DIR_NAME = ".claude"
"""The CLI's config directory in a home."""
CHECK_SECONDS = 20.0
_READ_EXECUTE = 0o005


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


def accessible_cli(cli: Path, data_dir: Path, uid: int | None) -> Path:
    """Return a path to the CLI that `uid` can run: its own path if possible, else one in `<data-dir>/bin`.

    There it is a hard link, or a copy on another file system. Its name has the size and time of the original, so an
    upgrade gets a new one. A script stays in its place, as it needs the files beside it. If `uid` is None it is the
    service's own user.
    """
    if uid is None or can_execute(cli, uid):
        return cli
    original = cli.resolve()
    if _is_script(original):
        return cli
    info = original.stat()
    folder = data_dir.absolute() / "bin"
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)
    target = folder / f"claude-{info.st_size}-{info.st_mtime_ns}"
    if not target.exists():
        _install_copy(original, target)
    return target


def _is_script(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"#!"


def _install_copy(original: Path, target: Path) -> None:
    # Under another name first: an incomplete copy must never be used as the CLI.
    part = target.with_name(f"{target.name}.{os.getpid()}")
    part.unlink(missing_ok=True)
    if original.stat().st_mode & _READ_EXECUTE == _READ_EXECUTE:
        try:
            part.hardlink_to(original)
        except OSError:
            shutil.copyfile(original, part)
    else:
        shutil.copyfile(original, part)  # a link would require a change of the original's mode
    if part.stat().st_mode & _READ_EXECUTE != _READ_EXECUTE:
        part.chmod(0o755)
    part.replace(target)


def can_execute(program: Path, uid: int) -> bool:
    """Return True if a user without groups may run a program, by the modes of it and of every folder above it."""
    try:
        resolved = program.resolve(strict=True)
        paths = [resolved, *program.absolute().parents, *resolved.parents]
        modes = [(path.stat(), 0o5 if path == resolved else 0o1) for path in paths]
    except OSError:
        return False
    return all(_permission_bits(info, uid) & needed == needed for info, needed in modes)


def _permission_bits(info: os.stat_result, uid: int) -> int:
    mode = stat.S_IMODE(info.st_mode)
    return (mode >> 6 if info.st_uid == uid else mode >> 3 if info.st_gid == uid else mode) & 0o7


async def check_cli(
    configured: Path | None, *, classic: bool, path_env: str, data_dir: Path, uid: int | None
) -> Sequence[DoctorCheck]:
    """Check for `doctor` that the CLI exists and runs as the agents' user."""
    remedy = "set runner.claude.path to the claude program, or reinstall claude-agent-sdk"
    try:
        configured_cli = find_cli(configured, classic=classic, path_env=path_env)
        cli = await asyncio.to_thread(accessible_cli, configured_cli, data_dir, uid)
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
