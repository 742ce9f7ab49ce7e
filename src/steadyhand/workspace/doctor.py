"""The checks of `doctor` for git, the data directory and the workspaces. Each failed check has a remedy."""

import asyncio
import errno
import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from steadyhand.agents import Workspace
from steadyhand.errors import WorkspaceError
from steadyhand.ports import DoctorCheck
from steadyhand.workspace.git import Git
from steadyhand.workspace.in_place import can_write, directory_of
from steadyhand.workspace.mirror import Mirrors

MIN_GIT_VERSION = (2, 35)
"""The oldest git that has all options that the service uses."""
REACH_SECONDS = 15.0
_DISK_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT})


async def check_workspaces(
    data_dir: Path,
    mirrors: Mirrors,
    workspaces: Iterable[Workspace],
    *,
    agent_uid_base: int = 64000,
) -> Sequence[DoctorCheck]:
    """Check git, the data directory and each configured workspace. Errors become failed checks."""
    user = agent_uid_base if os.geteuid() == 0 else None
    results = [await _check_git(), await _check_data_dir(data_dir, user)]
    for workspace in workspaces:
        if workspace.repository is None:
            continue
        results.append(await _check_reachable(workspace, workspace.repository, mirrors))
        if workspace.mode == "in_place":
            results.append(await _check_writable(workspace, user))
    return results


async def _check_git() -> DoctorCheck:
    remedy = f"Install git {MIN_GIT_VERSION[0]}.{MIN_GIT_VERSION[1]} or newer."
    try:
        result = await Git().run("version", cwd=Path("/"), seconds=10)
    except WorkspaceError as error:
        return DoctorCheck("git", ok=False, detail=error.detail, remedy=remedy)
    version = result.text.removeprefix("git version ").split()[0]
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    ok = numbers >= MIN_GIT_VERSION
    return DoctorCheck("git", ok=ok, detail=f"git {version}", remedy=None if ok else remedy)


async def _check_data_dir(data_dir: Path, user: int | None) -> DoctorCheck:
    try:
        await asyncio.to_thread(_write_probe, data_dir)
    except OSError as error:
        remedy = "Make the service's user its owner, or choose another with --data-dir."
        if error.errno in _DISK_ERRORS:
            remedy = f"Free space on the disk of {data_dir}, or choose another with --data-dir."
        return DoctorCheck(
            "data directory", ok=False, detail=f"cannot be written: {error.strerror}", remedy=remedy
        )
    closed = await asyncio.to_thread(closed_ancestor, data_dir, user)
    if closed is not None:
        detail = f"agents (uid {user}) cannot pass through {closed}"
        remedy = f"Run `chmod o+x {closed}`, or choose a data directory elsewhere with --data-dir."
        return DoctorCheck("data directory", ok=False, detail=detail, remedy=remedy)
    return DoctorCheck(
        "data directory", ok=True, detail=f"{data_dir} can be written, and agents can reach their part"
    )


def _write_probe(data_dir: Path) -> None:
    data_dir.mkdir(mode=0o711, parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=data_dir) as file:
        file.write(b"x")


def closed_ancestor(data_dir: Path, user: int | None) -> Path | None:
    """Return the outermost folder above the data directory that an agent's uid cannot enter, or `None`."""
    if user is None:
        return None
    for folder in reversed(data_dir.resolve().parents):
        info = folder.stat()
        bit = 0o100 if info.st_uid == user else 0o010 if info.st_gid == user else 0o001
        if not info.st_mode & bit:
            return folder
    return None


async def _check_reachable(workspace: Workspace, repository: str, mirrors: Mirrors) -> DoctorCheck:
    name = f"workspace {workspace.name}"
    try:
        if workspace.mode == "in_place":
            directory_of(workspace)
        else:
            await mirrors.check_reachable(repository, seconds=REACH_SECONDS)
    except WorkspaceError as error:
        remedy = "Check `repository`, and `credential_file`, `ssh_key_file` or `ca_file` in [git]."
        return DoctorCheck(name, ok=False, detail=error.detail, remedy=remedy)
    return DoctorCheck(name, ok=True, detail="can be reached")


async def _check_writable(workspace: Workspace, user: int | None) -> DoctorCheck:
    name = f"workspace {workspace.name} in place"
    try:
        folder = directory_of(workspace)
        owner = await asyncio.to_thread(lambda: folder.stat().st_uid)
        agent = user if user is None or owner == 0 else owner
        ok = await can_write(folder, agent)
    except (WorkspaceError, OSError) as error:
        return DoctorCheck(
            name, ok=False, detail=str(error), remedy="Make the directory, or correct `repository`."
        )
    user_text = "the service's user" if agent is None else f"uid {agent}"
    if ok:
        return DoctorCheck(name, ok=True, detail=f"agents run in it as {user_text}")
    remedy = (
        f"Run `chown -R {agent}:{agent}` on it."
        if agent is not None
        else "Allow the service's user to write in it."
    )
    return DoctorCheck(
        name, ok=False, detail=f"agents run as {user_text}, which cannot write there", remedy=remedy
    )
