"""Plan the content of a checkout that its commit only points to, and fetch it: submodules and files of Git LFS."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from steadyhand.agents import Workspace
from steadyhand.errors import WorkspaceError
from steadyhand.job import JobWarning
from steadyhand.job_warnings import WarningCode
from steadyhand.workspace.external_content import (
    ExternalContent,
    ExternalContentCache,
    LfsFile,
    list_names,
    missing_content_warnings,
)
from steadyhand.workspace.git import GitSettings
from steadyhand.workspace.mirror import Mirror
from steadyhand.workspace.remote_hosts import RemoteHosts, UrlRefused
from steadyhand.workspace.submodule_mirror import SubmoduleMirrors
from steadyhand.workspace.submodules import PlannedModule, SubmoduleCollector

if TYPE_CHECKING:
    from steadyhand.workspace.lfs import LfsStore

_MAX_CACHED = 64


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """A file of Git LFS to be put at `path`; `content` is its content in the store of the service."""

    path: str
    oid: str
    content: Path


@dataclass(frozen=True, slots=True)
class ContentPlan:
    """The submodules and LFS files that a checkout gets, and the warnings about content that it does not get."""

    modules: tuple[PlannedModule, ...] = ()
    lfs_files: tuple[PlannedFile, ...] = ()
    warnings: tuple[JobWarning, ...] = ()

    @property
    def digest(self) -> str:
        """A part of a warm checkout's name; empty without such content."""
        if not self.modules and not self.lfs_files:
            return ""
        modules = [(module.path, module.commit, module.mirror.remote.url) for module in self.modules]
        text = json.dumps([modules, [(file.path, file.oid) for file in self.lfs_files]])
        return "-m" + hashlib.sha256(text.encode()).hexdigest()[:12]


NO_CONTENT = ContentPlan()


class ContentPlanner:
    """Finds the content that commits point to, and fetches what their workspaces ask for."""

    def __init__(self, folder: Path, settings: GitSettings, *, sandboxed: bool) -> None:
        """Keep mirrors of submodules, and files of Git LFS, in `folder`."""
        self._mirrors = SubmoduleMirrors(folder / "submodules", settings)
        self._folder = folder
        self._settings = settings
        self._content = ExternalContentCache()
        self._sandboxed = sandboxed
        self._plans: dict[tuple[object, ...], ContentPlan] = {}

    async def plan(self, mirror: Mirror, commit: str, workspace: Workspace) -> ContentPlan:
        """Return the plan of a commit; its content is fetched. Raise `WorkspaceError`."""
        content = await self._content.load(mirror, commit)
        with_modules = workspace.submodules and content.submodules != ()
        with_lfs = workspace.lfs and content.lfs_files != ()
        if not with_modules and not with_lfs:
            return ContentPlan(warnings=missing_content_warnings(content))
        if not self._sandboxed:
            return ContentPlan(
                warnings=missing_content_warnings(content, "the workspace's settings need isolation 'bwrap'")
            )
        key = (mirror.folder.name, commit, workspace.submodules, workspace.lfs, workspace.fetch_hosts)
        if key not in self._plans:
            plan = await self._fetch(content, mirror, workspace)
            while len(self._plans) >= _MAX_CACHED:
                self._plans.pop(next(iter(self._plans)))
            self._plans[key] = plan
        return self._plans[key]

    async def _fetch(self, content: ExternalContent, mirror: Mirror, workspace: Workspace) -> ContentPlan:
        hosts = RemoteHosts(mirror.source, workspace.fetch_hosts)
        modules: tuple[PlannedModule, ...] = ()
        files: tuple[PlannedFile, ...] = ()
        if workspace.submodules:
            collector = SubmoduleCollector(self._mirrors, hosts)
            await collector.collect(content, base_url=mirror.source.url)
            modules, warnings = tuple(collector.modules), list(collector.warnings())
        else:
            warnings = list(missing_content_warnings(ExternalContent(content.submodules)))
        if workspace.lfs:
            files, lfs_warnings = await self._fetch_lfs_files(content, mirror, hosts)
        else:
            lfs_warnings = missing_content_warnings(ExternalContent(lfs_files=content.lfs_files))
        return ContentPlan(modules, files, (*warnings, *lfs_warnings))

    async def _fetch_lfs_files(
        self, content: ExternalContent, mirror: Mirror, hosts: RemoteHosts
    ) -> tuple[tuple[PlannedFile, ...], tuple[JobWarning, ...]]:
        """Fetch the files and return them, and a warning about those that are not fetched. Raise `WorkspaceError`."""
        # Loaded after the service listens (`serve/late_imports.py`): it needs an HTTP client.
        from steadyhand.workspace.lfs import endpoint_of  # noqa: PLC0415

        unusual = set(content.unusual_pointers)
        files = [each for each in content.lfs_files if each.path not in unusual]
        warnings = _lfs_warning(content.unusual_pointers, "their pointers have an unusual form")
        try:
            endpoint = endpoint_of(hosts, mirror.source.url, content.lfs_url)
        except UrlRefused as error:
            names = [each.path for each in files]
            return (), (*warnings, *_lfs_warning(names, f"of the address of their server: {error}"))
        try:
            await self._store.fetch(files, endpoint, hosts.authorization_for(endpoint))
        except WorkspaceError as error:
            raise WorkspaceError(
                f"The files of Git LFS could not be fetched: {error.detail}.", retryable=error.retryable
            ) from error
        return tuple(self._planned(each) for each in files), warnings

    def _planned(self, file: LfsFile) -> PlannedFile:
        return PlannedFile(file.path, file.oid, self._store.path_of(file.oid))

    @cached_property
    def _store(self) -> "LfsStore":
        from steadyhand.workspace.lfs import LfsStore  # noqa: PLC0415  # as above

        return LfsStore(self._folder / "lfs", self._settings)


def _lfs_warning(paths: Sequence[str], reason: str) -> tuple[JobWarning, ...]:
    if not paths:
        return ()
    text = f"Files of Git LFS are pointers without their content: {list_names(paths)} ({reason})."
    return (JobWarning(WarningCode.LFS_POINTERS, text),)
