"""Submodules of a checkout: fetched by the service at the pinned commits, checked out inside the sandbox.

Each submodule is a repository of its own with one commit, in `.git/modules` as git itself lays it out. Addresses come
from `.gitmodules`, which is hostile: see `remote_hosts`.
"""

import asyncio
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from steadyhand.agents import Agent
from steadyhand.errors import SpawnError, WorkspaceError
from steadyhand.job import JobWarning
from steadyhand.job_warnings import WarningCode
from steadyhand.ports import DEFAULT_PATH, Checkout, SandboxExec
from steadyhand.workspace.external_content import (
    ExternalContent,
    Submodule,
    list_names,
)
from steadyhand.workspace.filesystem import PRIVATE, make_dir
from steadyhand.workspace.git import MIB, Git, GitSettings, git_environment, scrub
from steadyhand.workspace.remote_hosts import RemoteHosts, UrlRefused, resolve_relative
from steadyhand.workspace.sandboxed_git_client import HOME_DIR
from steadyhand.workspace.submodule_mirror import SubmoduleMirror, SubmoduleMirrors

MAX_SUBMODULES = 100
MAX_DEPTH = 5
"""The most submodules inside each other."""
MAX_TOTAL_BYTES = 4096 * MIB
"""The most bytes of all mirrors of one checkout's submodules together."""
_SECONDS = 300.0
_MAX_CACHED = 64
_OUTPUT_BYTES = MIB
_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/ -]{0,199}")
# The checkout's own commit comes after this; all of it happens inside the sandbox.
_CHECK_OUT_SCRIPT = """
while [ $# -gt 0 ]; do
    mkdir -p -- "./$1"
    printf 'gitdir: %s\\n' "$2" > "./$1/.git"
    git -C "./$1" checkout --quiet --detach "$3"
    shift 3
done
"""


@dataclass(frozen=True, slots=True)
class PlannedModule:
    """A submodule to be checked out at `path`, with its repository at `git_dir` below the checkout's `.git`."""

    path: str
    git_dir: str
    commit: str
    mirror: SubmoduleMirror
    name: str | None = None
    """Its name in `.gitmodules`, if that can stand in a configuration."""
    outer_dir: str = "."
    """The repository that it is a submodule of, below the checkout's `.git`."""

    @property
    def link(self) -> str:
        """The path from the submodule's folder to its repository."""
        return "../" * len(self.path.split("/")) + f".git/{self.git_dir}"


class SubmoduleCollector:
    """Walks through the submodules of one commit and fetches them, the outer ones first."""

    def __init__(self, mirrors: SubmoduleMirrors, hosts: RemoteHosts) -> None:
        self._mirrors = mirrors
        self._hosts = hosts
        self._refused: dict[str, list[str]] = {}
        self._total_bytes = 0
        self._lfs_paths: list[str] = []
        self.modules: list[PlannedModule] = []

    async def collect(
        self, content: ExternalContent, *, base_url: str, parent: PlannedModule | None = None, depth: int = 1
    ) -> None:
        for module in content.submodules:
            path = module.path if parent is None else f"{parent.path}/{module.path}"
            try:
                planned = self._plan(module, path, base_url, parent, depth)
            except UrlRefused as error:
                self._refused.setdefault(str(error), []).append(path)
                continue
            try:
                await planned.mirror.fetch(planned.commit)
                inner = await self._content_of(planned)
            except WorkspaceError as error:
                raise WorkspaceError(
                    f"The submodule '{list_names([path])}' could not be fetched: {error.detail}.",
                    retryable=error.retryable,
                ) from error
            self.modules.append(planned)
            self._lfs_paths += [f"{path}/{each.path}" for each in inner.lfs_files]
            await self.collect(inner, base_url=planned.mirror.remote.url, parent=planned, depth=depth + 1)

    def _plan(
        self, module: Submodule, path: str, base_url: str, parent: PlannedModule | None, depth: int
    ) -> PlannedModule:
        """Return the place and the mirror of a submodule. Raise `UrlRefused` if it is not fetched."""
        if len(self.modules) >= MAX_SUBMODULES:
            raise UrlRefused(f"there are more than {MAX_SUBMODULES}")
        if depth > MAX_DEPTH:
            raise UrlRefused(f"they are more than {MAX_DEPTH} inside each other")
        if module.url is None:
            raise UrlRefused(".gitmodules has no address for it")
        if not _is_safe_path(module.path):
            raise UrlRefused("its path is malformed")
        remote = self._hosts.check(resolve_relative(base_url, module.url))
        name = module.name or ""
        plain_name = name if _PLAIN_NAME.fullmatch(name) and ".." not in name else None
        if _SAFE_NAME.fullmatch(name) is None or name.endswith(".lock") or ".." in name:
            name = hashlib.sha256(path.encode("utf-8", "surrogateescape")).hexdigest()[:16]
        outer = "" if parent is None else f"{parent.git_dir}/"
        git_dir = f"{outer}modules/{name}"
        if any(each.git_dir == git_dir for each in self.modules):
            raise UrlRefused("another one has its name")
        mirror = self._mirrors.get(remote, self._hosts.authorization_for(remote))
        outer_dir = "." if parent is None else parent.git_dir
        return PlannedModule(path, git_dir, module.commit, mirror, plain_name, outer_dir)

    async def _content_of(self, planned: PlannedModule) -> ExternalContent:
        self._total_bytes += await planned.mirror.size()
        if self._total_bytes > MAX_TOTAL_BYTES:
            raise WorkspaceError(
                f"the submodules have more than {MAX_TOTAL_BYTES // MIB} MiB together", retryable=False
            )
        return await planned.mirror.external_content(planned.commit)

    def warnings(self) -> tuple[JobWarning, ...]:
        warnings = [
            JobWarning(
                WarningCode.SUBMODULES_EMPTY,
                f"Submodules were not fetched, and their folders are empty: {list_names(paths)} ({reason}).",
            )
            for reason, paths in self._refused.items()
        ]
        if self._lfs_paths:
            text = f"Files of Git LFS are pointers without their content: {list_names(self._lfs_paths)}."
            warnings.append(JobWarning(WarningCode.LFS_POINTERS, text))
        return tuple(warnings)


def _is_safe_path(path: str) -> bool:
    parts = path.split("/")
    return (
        len(path) < 1024  # noqa: PLR2004  # bytes of an argument, among up to a hundred
        and "\n" not in path
        and all(part not in {"", ".", ".."} and part.lower() != ".git" for part in parts)
    )


# --- in a checkout -------------------------------------------------------------------------


async def write_module_dirs(git_dir: Path, modules: Sequence[PlannedModule], settings: GitSettings) -> None:
    """Write the repositories of the submodules below a checkout's `.git`. Raise `WorkspaceError`."""
    for module in modules:
        folder = git_dir / module.git_dir
        await asyncio.to_thread(_write_module_dir, folder, module)
        ref = f"refs/steadyhand/commits/{module.commit}"
        await Git(env={"GIT_DIR": str(folder)}).run(
            "fetch", "--quiet", "--no-write-fetch-head", "--no-auto-maintenance", "--no-tags", "--depth=1",
            "--", str(module.mirror.folder), f"+{ref}:refs/remotes/origin/pinned", cwd=folder, seconds=_SECONDS,
        )  # fmt: skip
        await asyncio.to_thread(_write_module_config, folder, module, settings)
        if module.name is not None:
            await asyncio.to_thread(_register, git_dir / module.outer_dir / "config", module)


def _write_module_dir(folder: Path, module: PlannedModule) -> None:
    """Write a bare repository: its work tree is not there yet, and git would enter it."""
    for name in ("objects/info", "objects/pack", "refs/heads"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    make_dir(folder, PRIVATE)
    (folder / "HEAD").write_text("ref: refs/heads/none\n", encoding="ascii")
    (folder / "config").write_text("\n".join([*_core_lines(module, is_bare=True), ""]), encoding="ascii")


def _core_lines(module: PlannedModule, *, is_bare: bool) -> list[str]:
    is_sha256 = len(module.commit) == 64  # noqa: PLR2004  # digits of an id
    return [
        *(("[extensions]", "\tobjectformat = sha256") if is_sha256 else ()),
        "[core]",
        f"\trepositoryformatversion = {int(is_sha256)}",
        "\tfilemode = true",
        f"\tbare = {str(is_bare).lower()}",
    ]


def _write_module_config(folder: Path, module: PlannedModule, settings: GitSettings) -> None:
    (folder / "HEAD").write_text(f"{module.commit}\n", encoding="ascii")
    depth = len(("/.git/" + module.git_dir).split("/")) - 1
    lines = [
        *_core_lines(module, is_bare=False),
        "\tlogallrefupdates = true",
        f"\tworktree = {_quoted('../' * depth + module.path)}",
        "[user]",
        f"\tname = {_quoted(settings.author_name)}",
        f"\temail = {_quoted(settings.author_email)}",
        '[remote "origin"]',
        f"\turl = {_quoted(module.mirror.remote.url)}",
        "\tfetch = +refs/heads/*:refs/remotes/origin/*",
    ]
    text = "\n".join([*lines, ""])
    (folder / "config").write_text(text, encoding="utf-8", errors="surrogateescape")


def _register(config: Path, module: PlannedModule) -> None:
    """Make the submodule an active one of the repository around it, as `git submodule init` does."""
    url = _quoted(module.mirror.remote.url)
    with config.open("a", encoding="utf-8") as file:
        file.write(f'[submodule "{module.name}"]\n\tactive = true\n\turl = {url}\n')


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ").replace("\r", " ")
    return f'"{escaped}"'


async def check_out_modules(
    sandbox_exec: SandboxExec, checkout: Checkout, modules: Sequence[PlannedModule]
) -> None:
    """Check the submodules out inside the sandbox, before the checkout's own commit. Raise `WorkspaceError`."""
    if not modules:
        return
    arguments = [word for module in modules for word in (module.path, module.link, module.commit)]
    env = git_environment({"PATH": DEFAULT_PATH, "HOME": HOME_DIR, "TMPDIR": "/tmp"})  # noqa: S108  # the sandbox's own
    try:
        result = await sandbox_exec.run(
            ["/bin/sh", "-euc", _CHECK_OUT_SCRIPT, "sh", *arguments],
            checkout, Agent("setup"), env=env, timeout_seconds=_SECONDS, max_output=_OUTPUT_BYTES,
        )  # fmt: skip
    except SpawnError as error:
        raise WorkspaceError(f"The submodules could not be checked out: {error.detail}") from error
    if result.exit_code != 0:
        last = result.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2]
        reason = "it took too long" if result.exit_code is None else scrub(last)[:300]
        raise WorkspaceError(f"The submodules could not be checked out: {reason}.")
