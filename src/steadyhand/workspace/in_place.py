"""A directory that is used in place. Every git call in it runs as the agent's uid: its configuration is not trusted."""

import asyncio
import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

from steadyhand.agents import Agent, Workspace
from steadyhand.errors import SpawnError, WorkspaceError
from steadyhand.job import JobWarning
from steadyhand.job_warnings import WarningCode
from steadyhand.ports import (
    DEFAULT_PATH,
    AgentFilesOf,
    Checkout,
    ExecResult,
    Instructions,
    JobPaths,
    SandboxExec,
)
from steadyhand.workspace.filesystem import PRIVATE, make_dir, remove_tree
from steadyhand.workspace.git import MIB, Git, error_line, git_environment
from steadyhand.workspace.instructions import (
    instruction_paths,
    is_fully_trusted,
    read_instructions,
)
from steadyhand.workspace.repository_source import parse_source
from steadyhand.workspace.tree_files import list_tree_files, read_tree_blobs

PULL_SECONDS = 60.0
_ACCESS_SECONDS = 10.0


class InPlaceCheckouts:
    """Directories in place, as the profile uses them."""

    def __init__(
        self,
        base_uid: int | None,
        agent_files_of: AgentFilesOf,
        *,
        classic: bool,
        home: Path | None,
        sandbox_exec: SandboxExec | None = None,
    ) -> None:
        """Keep the settings. `base_uid` is the first agent's uid, `None` if agents run as the service.

        `home` is the service's own. With `sandbox_exec`, agents and the pull run in the sandbox.
        """
        self._sandbox_exec = sandbox_exec
        self._base_uid = base_uid
        self._agent_files_of = agent_files_of
        self._classic = classic
        self._home = home

    def user_for(self, folder: Path, slot: int) -> int | None:
        """Return the uid of agents in this folder: its owner, unless that is root; `None` is the service."""
        if self._base_uid is None:
            return None
        owner = folder.stat().st_uid
        return owner if owner != 0 else self._base_uid + slot

    async def prepare(
        self, workspace: Workspace, files: JobPaths, slot: int, runner: str, *, update: bool = True
    ) -> Checkout:
        """Update the directory, unless `update` is false, and return the checkout. A failed pull becomes a warning."""
        folder = directory_of(workspace)
        user = self.user_for(folder, slot)
        warnings: list[JobWarning] = []
        home_usable = self._home is not None and await can_write(self._home, user)
        if not await can_write(folder, user):
            text = "The agent's user cannot write in the workspace; make it the owner, or allow it to write."
            warnings.append(JobWarning(WarningCode.WORKSPACE_NOT_WRITABLE, text))
        if workspace.ref is not None:
            warnings.append(
                JobWarning(
                    WarningCode.REF_IGNORED, "A workspace in place is used as it stands; the ref was ignored."
                )
            )
        git = read_only_git(user)
        commit = None
        if await _is_repository(git, folder):
            failure = None
            if update and self._sandbox_exec is not None:
                failure = await _pull_sandboxed(self._sandbox_exec, workspace, files, user, slot)
            elif update:
                failure = await _pull(user, folder, self._home if home_usable else None)
            if failure is not None:
                warnings.append(failure)
            commit = await head_of(git, folder)
        # A sandboxed agent never sees the service's own home.
        uses_service_home = self._classic and home_usable and self._sandbox_exec is None
        return Checkout(
            workspace=workspace,
            paths=files,
            directory=folder,
            home=self._home if uses_service_home and self._home is not None else files.home,
            config_dir=None if uses_service_home else files.config_dir,
            uid=user,
            commit=commit,
            full_trust=self._classic or is_fully_trusted(workspace),
            warnings=tuple(warnings),
            runner=runner,
        )

    async def instructions(self, workspace: Workspace, runner: str) -> Instructions:
        """Return the instructions of the directory's HEAD for a runner, as far as the workspace's trust allows."""
        folder = directory_of(workspace)
        agent_files = self._agent_files_of(runner)
        paths = instruction_paths(agent_files)
        if workspace.trust == "none" or not paths:
            return Instructions()
        git = read_only_git(self.user_for(folder, 0))
        if not await _is_repository(git, folder):
            return Instructions()
        commit = await head_of(git, folder)
        if commit is None:
            return Instructions()
        tree_entries = await list_tree_files(git, folder, commit, paths)
        full = self._classic or is_fully_trusted(workspace)
        return await read_instructions(
            agent_files,
            tree_entries,
            lambda entries, limit: read_tree_blobs(git, folder, entries, limit),
            full_trust=full,
        )


def directory_of(workspace: Workspace) -> Path:
    """Return the directory of a workspace in place. Raise `WorkspaceError` if there is none."""
    folder = parse_source(workspace.repository or "").folder
    if folder is None:
        raise WorkspaceError("A workspace in place needs a directory, not a URL.", retryable=False)
    if not folder.is_dir():
        raise WorkspaceError(f"The workspace directory '{folder.name}' does not exist.", retryable=False)
    return folder


def directories_in_place(workspaces: Mapping[str, Workspace]) -> Mapping[str, str]:
    """Return the directory of each workspace in place, by the workspace's name. Symbolic links are resolved.

    Names of one directory have the same value: one job at a time works in it. A workspace without a directory is left
    out; its jobs end with the reason.
    """
    directories = {}
    for name, workspace in workspaces.items():
        with contextlib.suppress(WorkspaceError):
            folder = None
            if workspace.mode == "in_place":
                folder = parse_source(workspace.repository or "").folder
            if folder is not None:
                directories[name] = os.path.realpath(folder)
    return directories


async def _is_repository(git: Git, folder: Path) -> bool:
    result = await git.run("rev-parse", "--is-inside-work-tree", cwd=folder, check=False)
    return result.code == 0 and result.text == "true"


async def head_of(git: Git, folder: Path) -> str | None:
    """Return the commit that is checked out; `None` before the first commit."""
    result = await git.run("rev-parse", "--verify", "--quiet", "HEAD^{commit}", cwd=folder, check=False)
    return result.text if result.code == 0 else None


def read_only_git(user: int | None) -> Git:
    """Return a `Git` that only reads and has no transports, so that a missing object cannot start a command."""
    return Git(user=user, env={"GIT_ALLOW_PROTOCOL": "none"})


async def _pull_sandboxed(
    sandbox_exec: SandboxExec, workspace: Workspace, files: JobPaths, user: int | None, slot: int
) -> JobWarning | None:
    """Pull inside the sandbox, where the directory's git configuration may run commands.

    The sandbox can reach the hosts of the workspace's `setup_egress`.
    """
    checkout = Checkout(
        workspace, files, directory_of(workspace), files.home, files.config_dir, user, commit=None, slot=slot
    )  # fmt: skip
    agent = Agent("pull", egress=workspace.setup_egress)
    env = git_environment({"HOME": "/home/agent"})

    async def git(*arguments: str) -> ExecResult:
        return await sandbox_exec.run(
            ["git", *arguments], checkout, agent, env=env, timeout_seconds=PULL_SECONDS, max_output=MIB
        )  # fmt: skip

    for path in (files.home, files.config_dir):
        make_dir(path, PRIVATE, user)
    try:
        result = await git("pull", "--rebase", "--quiet")
        if result.exit_code == 0:
            return None
        await git("rebase", "--abort")
        slow = f"git pull took longer than {PULL_SECONDS:g} s."
        reason = slow if result.exit_code is None else error_line(result.stderr.decode("utf-8", "replace"))
    except SpawnError as error:
        reason = error.detail
    finally:
        for path in (files.home, files.config_dir):
            await asyncio.to_thread(remove_tree, path)
    return JobWarning(WarningCode.PULL_FAILED, f"The workspace was not brought up to date: {reason}")


async def _pull(user: int | None, folder: Path, home: Path | None) -> JobWarning | None:
    """Run `git pull --rebase` as the agent's user, with that user's own configuration."""
    env = {} if home is None else {"HOME": str(home)}
    git = Git(user=user, env=env, user_config=home is not None)
    try:
        await git.run("pull", "--rebase", "--quiet", cwd=folder, seconds=PULL_SECONDS)
    except WorkspaceError as error:
        with contextlib.suppress(WorkspaceError):
            await _abort_rebase(user, folder)
        return JobWarning(
            WarningCode.PULL_FAILED, f"The workspace was not brought up to date: {error.detail}"
        )
    return None


async def _abort_rebase(user: int | None, folder: Path) -> None:
    """Abort a rebase that stopped half way, so that the agent finds the directory as it was."""
    git = Git(user=user)
    for name in ("rebase-merge", "rebase-apply"):
        result = await git.run("rev-parse", "--git-path", name, cwd=folder, check=False)
        if result.code == 0 and (folder / result.text).is_dir():
            await git.run("rebase", "--abort", cwd=folder, check=False)
            return


async def can_write(folder: Path, user: int | None) -> bool:
    """Return true if this uid can enter the folder and write in it."""
    if user is None:
        return os.access(folder, os.W_OK | os.X_OK)
    process = await asyncio.create_subprocess_exec(
        "test", "-w", str(folder), "-a", "-x", str(folder), env={"PATH": DEFAULT_PATH},
        cwd="/", user=user, group=user, extra_groups=[], stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        async with asyncio.timeout(_ACCESS_SECONDS):
            return await process.wait() == 0
    except TimeoutError:
        return False  # its disk does not answer
    finally:
        if process.returncode is None:
            process.kill()
