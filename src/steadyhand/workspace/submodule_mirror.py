"""The mirror of a submodule: single commits without their history, fetched within a size limit and over no redirect."""

import asyncio
import hashlib
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from steadyhand.errors import WorkspaceError
from steadyhand.ports import ProgressRelay, is_reported, report_phase
from steadyhand.workspace.external_content import ExternalContent, find_external_content
from steadyhand.workspace.filesystem import PRIVATE, disk_usage, make_dir, remove_tree
from steadyhand.workspace.git import MIB, Git, GitSettings
from steadyhand.workspace.git_progress import GitProgress, wait_for_fetch
from steadyhand.workspace.remote_hosts import RemoteUrl
from steadyhand.workspace.repository_source import RepositorySource, remote_config, remote_environment

MAX_BYTES = 1024 * MIB
"""The size of the largest mirror of a submodule."""
FETCH_SECONDS = 300.0
_WATCH_SECONDS = 1.0


class SubmoduleMirror:
    """The mirror of one submodule's repository in `folder`."""

    def __init__(
        self, remote: RemoteUrl, folder: Path, settings: GitSettings, authorization: str | None
    ) -> None:
        """Keep the settings; nothing is created before the first fetch."""
        self.remote = remote
        self.folder = folder
        self._git = Git()
        source = RepositorySource(remote.url)
        config = [*remote_config(source, settings), ("http.followRedirects", "false")]
        if authorization is not None:
            config.append((f"http.{remote.origin}.extraHeader", authorization))
        protocols = "https:ssh:http" if remote.scheme == "http" else "https:ssh"
        # The known hosts of ssh are those of the mirrors of repositories, one folder up.
        env = remote_environment(settings, folder.parent.parent) | {"GIT_ALLOW_PROTOCOL": protocols}
        self._remote_git = Git(env=env, config=config)
        self._lock = asyncio.Lock()
        self._relay = ProgressRelay()

    async def fetch(self, commit: str) -> None:
        """Fetch a commit, unless the mirror has it. Raise `WorkspaceError`."""
        if await self._has(commit):
            return
        try:
            async with asyncio.timeout(3 * FETCH_SECONDS):
                await wait_for_fetch(self._lock, self._relay)
                try:
                    await self._fetch_once(commit)
                finally:
                    self._lock.release()
        except TimeoutError as error:
            raise WorkspaceError(f"the fetch of {self.remote.url} took too long") from error

    async def _fetch_once(self, commit: str) -> None:
        if await self._has(commit):
            return
        await report_phase("fetching")
        await self._init(commit)
        await self._within_size(self._fetch(commit))
        if not await self._has(commit):
            raise WorkspaceError(
                f"the commit {commit[:12]} is not in the repository {self.remote.url}", retryable=False
            )

    async def size(self) -> int:
        """Return the bytes of the mirror on disk."""
        return await asyncio.to_thread(disk_usage, self.folder)

    async def external_content(self, commit: str) -> ExternalContent:
        """Return the content that a commit of the mirror points to. Raise `WorkspaceError`."""
        return await find_external_content(self.folder, commit)

    async def _has(self, commit: str) -> bool:
        if not self.folder.is_dir():
            return False
        name = f"refs/steadyhand/commits/{commit}^{{commit}}"
        result = await self._git.run("rev-parse", "--verify", "--quiet", name, cwd=self.folder, check=False)
        return result.code == 0

    async def _init(self, commit: str) -> None:
        if (self.folder / "HEAD").is_file():
            return
        make_dir(self.folder.parent, PRIVATE)
        make_dir(self.folder, PRIVATE)
        object_format = "sha256" if len(commit) == 64 else "sha1"  # noqa: PLR2004  # digits of an id
        await self._git.run(
            "init",
            "--quiet",
            "--bare",
            "--template=",
            f"--object-format={object_format}",
            ".",
            cwd=self.folder,
        )

    async def _fetch(self, commit: str) -> None:
        """Fetch the commit by its id; a server that refuses that may have it on a branch or a tag."""
        own = f"refs/steadyhand/commits/{commit}"
        by_id = await self._fetch_refs("--depth=1", "--", self.remote.url, f"+{commit}:{own}", check=False)
        if by_id:
            return
        refspecs = ("+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*")
        await self._fetch_refs("--prune", "--", self.remote.url, *refspecs, check=True)
        exists = await self._git.run("cat-file", "-e", f"{commit}^{{commit}}", cwd=self.folder, check=False)
        if exists.code == 0:
            await self._git.run("update-ref", own, commit, cwd=self.folder)

    async def _fetch_refs(self, *arguments: str, check: bool) -> bool:
        progress = ("--progress",) if is_reported() else ()
        result = await self._remote_git.run(
            "fetch", "--quiet", *progress, "--no-write-fetch-head", "--no-auto-maintenance", "--no-tags",
            "--update-shallow", *arguments, cwd=self.folder, seconds=FETCH_SECONDS, check=check,
            on_stderr=GitProgress(self._report).feed if progress else None,
        )  # fmt: skip
        return result.code == 0

    def _report(self, detail: str) -> None:
        self._relay.report(f"submodules: {detail}")

    async def _within_size(self, fetch: Coroutine[Any, Any, None]) -> None:
        """Run a fetch, stop it once the mirror is too large, and remove what came."""
        too_large = False
        failure: Exception | None = None
        try:
            async with (
                asyncio.TaskGroup() as group
            ):  # its end waits for git, which is stopped within its own bounds
                task = group.create_task(fetch)
                while not too_large and not (await asyncio.wait({task}, timeout=_WATCH_SECONDS))[0]:
                    too_large = await self._is_too_large()
                task.cancel()
        except ExceptionGroup as errors:
            failure = errors.exceptions[0]  # raised below, as it is
        if too_large or await self._is_too_large():
            await asyncio.to_thread(remove_tree, self.folder)
            raise WorkspaceError(
                f"the repository {self.remote.url} is larger than {MAX_BYTES // MIB} MiB", retryable=False
            ) from failure
        if failure is not None:
            raise failure

    async def _is_too_large(self) -> bool:
        try:
            return await asyncio.to_thread(disk_usage, self.folder) > MAX_BYTES
        except OSError:  # git renames and removes files meanwhile
            return False


class SubmoduleMirrors:
    """The mirrors of the submodules of a data directory."""

    def __init__(self, folder: Path, settings: GitSettings) -> None:
        """Keep mirrors in `folder`."""
        self._folder = folder
        self._settings = settings
        self._mirrors: dict[str, SubmoduleMirror] = {}

    def get(self, remote: RemoteUrl, authorization: str | None) -> SubmoduleMirror:
        """Return the mirror of an address; another password means another mirror."""
        identity = f"{remote.url}\n{authorization or ''}".encode("utf-8", "surrogateescape")
        name = hashlib.sha256(identity).hexdigest()[:16]
        if name not in self._mirrors:
            folder = self._folder / f"{name}.git"
            self._mirrors[name] = SubmoduleMirror(remote, folder, self._settings, authorization)
        return self._mirrors[name]
