"""What `doctor` looks at in this room; each fault has its remedy."""

import asyncio
import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from steadyhand.agents import Workspace
from steadyhand.errors import WorkspaceError
from steadyhand.ports import Check
from steadyhand.workspace.git import Git
from steadyhand.workspace.in_place import folder_of, may_use
from steadyhand.workspace.mirror import Mirrors

OLDEST_GIT = (2, 35)
"""The first git that has all that is used here."""
REACH_SECONDS = 15.0


async def checks(
    data_dir: Path,
    mirrors: Mirrors,
    workspaces: Iterable[Workspace],
    *,
    agent_uid_base: int = 64000,
) -> Sequence[Check]:
    """Look at git, the data directory and each configured workspace; never raises."""
    user = agent_uid_base if os.geteuid() == 0 else None
    found = [await _git(), await _data_directory(data_dir, user)]
    for workspace in workspaces:
        if workspace.repository is None:
            continue
        found.append(await _reachable(workspace, workspace.repository, mirrors))
        if workspace.mode == "in_place":
            found.append(await _writable_in_place(workspace, user))
    return found


async def _git() -> Check:
    remedy = f"Install git {OLDEST_GIT[0]}.{OLDEST_GIT[1]} or newer."
    try:
        ran = await Git().run("version", cwd=Path("/"), seconds=10)
    except WorkspaceError as error:
        return Check("git", ok=False, detail=error.detail, remedy=remedy)
    version = ran.text.removeprefix("git version ").split()[0]
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    ok = numbers >= OLDEST_GIT
    return Check("git", ok=ok, detail=f"git {version}", remedy=None if ok else remedy)


async def _data_directory(data_dir: Path, user: int | None) -> Check:
    try:
        await asyncio.to_thread(_try_to_write, data_dir)
    except OSError as error:
        remedy = "Make the service's user its owner, or choose another with --data-dir."
        return Check("data directory", ok=False, detail=f"cannot be written: {error.strerror}", remedy=remedy)
    closed = await asyncio.to_thread(closed_ancestor, data_dir, user)
    if closed is not None:
        detail = f"agents (uid {user}) cannot pass through {closed}"
        remedy = f"Run `chmod o+x {closed}`, or choose a data directory elsewhere with --data-dir."
        return Check("data directory", ok=False, detail=detail, remedy=remedy)
    return Check(
        "data directory", ok=True, detail=f"{data_dir} can be written, and agents can reach their part"
    )


def _try_to_write(data_dir: Path) -> None:
    data_dir.mkdir(mode=0o711, parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=data_dir) as file:
        file.write(b"x")


def closed_ancestor(data_dir: Path, user: int | None) -> Path | None:
    """Give the outermost folder above the data directory that an agent's uid may not pass through."""
    if user is None:
        return None
    for folder in reversed(data_dir.resolve().parents):
        found = folder.stat()
        bit = 0o100 if found.st_uid == user else 0o010 if found.st_gid == user else 0o001
        if not found.st_mode & bit:
            return folder
    return None


async def _reachable(workspace: Workspace, repository: str, mirrors: Mirrors) -> Check:
    name = f"workspace {workspace.name}"
    try:
        if workspace.mode == "in_place":
            folder_of(workspace)
        else:
            await mirrors.reach(repository, seconds=REACH_SECONDS)
    except WorkspaceError as error:
        remedy = "Check `repository`, and `credential_file`, `ssh_key_file` or `ca_file` in [git]."
        return Check(name, ok=False, detail=error.detail, remedy=remedy)
    return Check(name, ok=True, detail="can be reached")


async def _writable_in_place(workspace: Workspace, user: int | None) -> Check:
    name = f"workspace {workspace.name} in place"
    try:
        folder = folder_of(workspace)
        owner = await asyncio.to_thread(lambda: folder.stat().st_uid)
        agent = user if user is None or owner == 0 else owner
        ok = await may_use(folder, agent)
    except (WorkspaceError, OSError) as error:
        return Check(name, ok=False, detail=str(error), remedy="Make the directory, or correct `repository`.")
    who = "the service's user" if agent is None else f"uid {agent}"
    if ok:
        return Check(name, ok=True, detail=f"agents run in it as {who}")
    remedy = (
        f"Run `chown -R {agent}:{agent}` on it." if agent is not None else "Give the service's user leave."
    )
    return Check(name, ok=False, detail=f"agents run as {who}, who may not write there", remedy=remedy)
