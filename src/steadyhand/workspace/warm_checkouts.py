"""Warm checkouts: one work tree for each commit (and setup), made in the sandbox, shared by jobs and read-only."""

import asyncio
import contextlib
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from steadyhand.agents import Agent, Workspace
from steadyhand.errors import WorkspaceError
from steadyhand.ports import (
    BindMount,
    Checkout,
    JobPaths,
    ProgressRelay,
    SandboxExec,
    is_reported,
    report_phase,
    report_progress,
)
from steadyhand.workspace.clean_checkouts import is_clean
from steadyhand.workspace.content_plan import NO_CONTENT, ContentPlan
from steadyhand.workspace.fetch_errors import is_permanent_checkout_error
from steadyhand.workspace.fetched_refs import read_refs
from steadyhand.workspace.filesystem import (
    PRIVATE,
    TRAVERSABLE,
    chown_tree,
    disk_usage,
    make_dir,
    remove_tree,
)
from steadyhand.workspace.git import MIB, GitSettings
from steadyhand.workspace.git_dir import write_git_dir
from steadyhand.workspace.git_progress import GitProgress
from steadyhand.workspace.mirror import Mirror
from steadyhand.workspace.sandboxed_git_client import (
    LFS_DIR,
    MIRROR_DIR,
    SandboxReply,
    run_sandboxed_git,
)
from steadyhand.workspace.saved_refs import GivenRefs
from steadyhand.workspace.setup_phases import SetupPhases
from steadyhand.workspace.submodules import check_out_modules, write_module_dirs

BRANCH = "steadyhand/work"
"""The branch of every sandboxed checkout. The prompt names it, and prompts of one commit are alike for the cache."""
MAX_CHECKOUTS = 16
MAX_BYTES = 20 * 1024 * MIB
CHECKOUT_SECONDS = 300.0
SETUP_SECONDS = 1800.0
_INDEX_BYTES = 256 * MIB
_BUILD_PREFIX = ".build-"
_CLEAN_FILE = "clean"
_BASE_FILES = ("index", "exclude", "filters", "given")
_MIRROR_NAME = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True, slots=True)
class WarmCheckout:
    """One warm checkout: `tree` belongs to the agents' common owner, the rest to the service."""

    folder: Path

    @property
    def tree(self) -> Path:
        """The work tree, with `.git` in it."""
        return self.folder / "checkout"

    @property
    def base(self) -> Path:
        """The service's own copy of the index, the excludes and the filters, which a harvest uses."""
        return self.folder / "base"

    @property
    def size_file(self) -> Path:
        """A file that holds the size in bytes; its modification time is the time of the last use."""
        return self.folder / "whole"

    @property
    def clean_file(self) -> Path:
        """A file that is there if a harvest of the checkout as it is brings nothing; see `clean_checkouts`."""
        return self.folder / _CLEAN_FILE


class WarmCheckouts:
    """The warm checkouts of a data directory, in `folder`."""

    def __init__(
        self,
        folder: Path,
        sandbox_exec: SandboxExec,
        settings: GitSettings,
        *,
        owner: int,
        max_checkouts: int = MAX_CHECKOUTS,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        """Keep the settings. `owner` is the uid of the checkouts; the limits count the unused ones."""
        self._folder = folder
        self._sandbox_exec = sandbox_exec
        self.settings = settings
        self.owner = owner
        self._max_checkouts = max_checkouts
        self._max_bytes = max_bytes
        self._use_counts: Counter[Path] = Counter()
        self._ready: set[Path] = set()
        self._locks: dict[Path, asyncio.Lock] = {}
        self._relays: dict[Path, ProgressRelay] = {}
        self.build_count = 0
        """The number of checkouts that were built."""

    async def acquire(
        self, mirror: Mirror, commit: str, workspace: Workspace, plan: ContentPlan = NO_CONTENT
    ) -> WarmCheckout:
        """Return the warm checkout of a commit and its planned content, and build it if there is none.

        `release` ends its use. Calls that come during the build wait for it. Raise `WorkspaceError`.
        """
        warm = WarmCheckout(
            self._folder / mirror.folder.stem / f"{commit}{plan.digest}{_setup_digest(workspace)}"
        )
        self._use_counts[warm.folder] += 1
        try:
            if warm.folder not in self._ready:
                await self._ensure_built(warm, mirror, commit, workspace, plan)
        except BaseException:  # also when cancelled: the caller has no use to release
            self._drop_use(warm)
            raise
        return warm

    def relative_name(self, warm: WarmCheckout) -> str:
        """Return the name by which `retain` finds a checkout again after a restart of the service."""
        return str(warm.folder.relative_to(self._folder))

    def retain(self, name: str) -> WarmCheckout:
        """Mark a checkout as in use, by its name. If it is gone, `acquire` builds it again."""
        warm = WarmCheckout(self._folder / name)
        self._use_counts[warm.folder] += 1
        return warm

    async def release(self, warm: WarmCheckout) -> None:
        """End the use of a checkout, and evict the oldest unused ones if there are too many."""
        self._drop_use(warm)
        with contextlib.suppress(OSError):
            os.utime(warm.size_file)
        await self.evict()

    def _drop_use(self, warm: WarmCheckout) -> None:
        self._use_counts[warm.folder] -= 1
        if self._use_counts[warm.folder] <= 0:
            del self._use_counts[warm.folder]
            self._locks.pop(warm.folder, None)
            self._relays.pop(warm.folder, None)

    async def _ensure_built(
        self, warm: WarmCheckout, mirror: Mirror, commit: str, workspace: Workspace, plan: ContentPlan
    ) -> None:
        lock = self._locks.setdefault(warm.folder, asyncio.Lock())
        relay = self._relays.setdefault(warm.folder, ProgressRelay())
        if lock.locked() or not warm.size_file.is_file():
            await report_phase("checking_out")
        try:
            async with asyncio.timeout(CHECKOUT_SECONDS + SETUP_SECONDS):
                with relay.joined():
                    await lock.acquire()
                try:
                    if not warm.size_file.is_file():
                        await self._build(warm, mirror, commit, workspace, plan)
                    self._ready.add(warm.folder)
                finally:
                    lock.release()
        except TimeoutError as error:
            raise WorkspaceError("The checkout took too long.") from error

    # --- building --------------------------------------------------------------------------

    async def _build(
        self, warm: WarmCheckout, mirror: Mirror, commit: str, workspace: Workspace, plan: ContentPlan
    ) -> None:
        files = JobPaths(warm.folder.with_name(_BUILD_PREFIX + warm.folder.name))
        try:
            await asyncio.to_thread(self._make_dirs, files)
            git = files.checkout / ".git"
            write_alternates(git)
            refs = await mirror.refs_file()
            await asyncio.to_thread(
                write_git_dir, git, mirror, self.settings, BRANCH, refs=refs, commit=commit
            )
            await write_module_dirs(git, plan.modules, self.settings)
            await asyncio.to_thread(chown_tree, files.checkout, self.owner)
            binds = (objects_bind(mirror), *secret_binds(workspace))
            checkout = service_checkout(workspace, files, self.owner, commit, binds)
            relay = self._relays.get(warm.folder, ProgressRelay())
            parts = await check_out(
                self._sandbox_exec, checkout, plan, wait_for_clock=True, report=relay.report
            )
            await asyncio.to_thread(write_base, files.root / "base", parts)
            if await self._is_clean(checkout, mirror, plan, refs):
                (files.root / _CLEAN_FILE).touch()
            await asyncio.to_thread(self._finish, files)
            await asyncio.to_thread(remove_tree, warm.folder)
            files.root.rename(warm.folder)
            self.build_count += 1
        finally:
            await asyncio.to_thread(remove_tree, files.root)
        await self.evict()

    def _make_dirs(self, files: JobPaths) -> None:
        remove_tree(files.root)
        for folder in (self._folder, files.root.parent, files.root):
            make_dir(folder, TRAVERSABLE)
        for folder in (files.checkout, files.home, files.config_dir):
            make_dir(folder, PRIVATE, self.owner)

    async def _is_clean(self, checkout: Checkout, mirror: Mirror, plan: ContentPlan, refs: Path) -> bool:
        """Return True if a harvest of the new checkout brings nothing; git alone leaves nothing in a checkout."""
        if not checkout.workspace.setup and not plan.modules and not plan.lfs_files:
            return True
        assert checkout.commit is not None  # noqa: S101  # it is a checkout of one
        try:
            tree = await mirror.tree_of(checkout.commit)
            given = GivenRefs(await asyncio.to_thread(read_refs, refs))
            base = checkout.paths.root / "base"
            return await is_clean(self._sandbox_exec, checkout, base, tree=tree, refs=given)
        except WorkspaceError:
            return False  # the harvests of its jobs look at the whole tree

    def _finish(self, files: JobPaths) -> None:
        remove_tree(files.home)
        remove_tree(files.config_dir)
        (files.root / "whole").write_text(str(disk_usage(files.root)), encoding="ascii")

    # --- eviction --------------------------------------------------------------------------

    async def evict(self) -> None:
        """Remove the checkouts with the oldest last use until the limits hold, but none that is in use."""
        for warm in await asyncio.to_thread(self._eviction_candidates):
            if warm.folder in self._use_counts:
                continue
            # A call that comes meanwhile waits, finds it gone and builds it again.
            lock = self._locks.setdefault(warm.folder, asyncio.Lock())
            async with lock:
                self._ready.discard(warm.folder)
                await asyncio.to_thread(remove_tree, warm.folder)
            if warm.folder not in self._use_counts:
                self._locks.pop(warm.folder, None)

    def _eviction_candidates(self) -> list[WarmCheckout]:
        by_last_use: list[tuple[float, int, WarmCheckout]] = []
        for folder in self._folder.glob("*/*"):
            warm = WarmCheckout(folder)
            with contextlib.suppress(OSError, ValueError):
                size = int(warm.size_file.read_text("ascii"))
                by_last_use.append((warm.size_file.stat().st_mtime, size, warm))
        by_last_use.sort(key=lambda item: item[0], reverse=True)
        excess, total = [], 0
        for number, (_, size, warm) in enumerate(by_last_use, 1):
            total += size
            if number > self._max_checkouts or total > self._max_bytes:
                excess.append(warm)
        return excess[::-1]

    async def sweep(self) -> None:
        """Remove checkouts that an earlier process left incomplete. Call it before the first use."""
        await asyncio.to_thread(self._sweep)

    def _sweep(self) -> None:
        if not self._folder.is_dir() or self._folder.is_symlink():
            return
        for folder in self._folder.iterdir():
            if folder.is_symlink() or _MIRROR_NAME.fullmatch(folder.name) is None:
                remove_tree(folder)
                continue
            for inner in folder.iterdir():
                if inner.name.startswith(".") or not WarmCheckout(inner).size_file.is_file():
                    remove_tree(inner)


async def check_out(
    sandbox_exec: SandboxExec,
    checkout: Checkout,
    plan: ContentPlan,
    *,
    wait_for_clock: bool,
    report: Callable[[str], None] = report_progress,
) -> Sequence[bytes]:
    """Check out the planned submodules and the commit, and run the workspace's setup, inside the sandbox.

    Return the contents of the files of the base. Raise `WorkspaceError`.
    """
    workspace = checkout.workspace
    await check_out_modules(sandbox_exec, checkout, plan.modules)
    if plan.lfs_files:
        await asyncio.to_thread(_link_lfs_files, checkout.paths, plan)
        checkout = replace(checkout, binds=(*checkout.binds, BindMount(_lfs_dir(checkout.paths), LFS_DIR)))
    request = {
        "verb": "warm",
        "branch": BRANCH,
        "commit": checkout.commit,
        "lfs": [{"path": os.fsencode(file.path).hex(), "oid": file.oid} for file in plan.lfs_files],
        "setup": list(workspace.setup),
        "settle": wait_for_clock,
        "progress": is_reported(),
    }
    try:
        reply = await _build_in_sandbox(sandbox_exec, request, checkout, report)
    finally:
        await asyncio.to_thread(remove_tree, _lfs_dir(checkout.paths))
    if isinstance(reply, WorkspaceError):
        permanent = not reply.retryable or is_permanent_checkout_error(reply.detail)
        raise WorkspaceError(
            f"The checkout could not be made: {reply.detail}.", retryable=not permanent
        ) from reply
    failed_command = reply.sentence("failed")
    if failed_command is not None:
        raise WorkspaceError(
            f"The setup command '{failed_command[:80]}' failed: {reply.sentence('line')}{_network_advice(workspace)}"
        )
    if len(reply.parts) != len(_BASE_FILES):
        raise WorkspaceError("The checkout could not be made: it has no index.")
    return [bytes(part) for part in reply.parts]


async def _build_in_sandbox(
    sandbox_exec: SandboxExec,
    request: Mapping[str, Any],
    checkout: Checkout,
    report: Callable[[str], None],
) -> SandboxReply | WorkspaceError:
    """Run the program that builds a checkout, and report its progress and its setup commands; return its error."""
    workspace = checkout.workspace
    phases, progress = SetupPhases(workspace.setup), GitProgress(report)

    def read_stderr(chunk: bytes) -> None:
        progress.feed(chunk)
        phases.feed(chunk)

    async def build() -> SandboxReply | WorkspaceError:
        try:
            return await run_sandboxed_git(
                sandbox_exec,
                request,
                checkout,
                Agent("setup", egress=workspace.setup_egress),
                seconds=CHECKOUT_SECONDS + (SETUP_SECONDS if workspace.setup else 0),
                max_output=_INDEX_BYTES,
                parts=len(_BASE_FILES),
                on_stderr=read_stderr if is_reported() else None,
            )
        except WorkspaceError as error:
            return error  # a task group would wrap it
        finally:
            phases.close()

    async with asyncio.TaskGroup() as group:
        group.create_task(phases.report(), name="setup phases")
        return await build()


async def read_given(sandbox_exec: SandboxExec, checkout: Checkout) -> bytes:
    """Return the record of the files that were converted at the checkout. Raise `WorkspaceError`."""
    reply = await run_sandboxed_git(
        sandbox_exec, {"verb": "given"}, checkout, Agent("setup"),
        seconds=CHECKOUT_SECONDS, max_output=_INDEX_BYTES, parts=1,
    )  # fmt: skip
    return bytes(reply.parts[0])


def _lfs_dir(files: JobPaths) -> Path:
    return files.root / "lfs"


def _link_lfs_files(files: JobPaths, plan: ContentPlan) -> None:
    """Make a folder with this checkout's LFS files alone: setup commands see it, and are a repository's code."""
    folder = _lfs_dir(files)
    remove_tree(folder)
    make_dir(folder, TRAVERSABLE)
    for file in plan.lfs_files:
        with contextlib.suppress(FileExistsError):  # two paths with the same content
            (folder / file.oid).hardlink_to(file.content)


def _network_advice(workspace: Workspace) -> str:
    """Return the end of an error text: most setups that fail need a host that they cannot reach."""
    if not workspace.setup_egress:
        return (
            " (The setup reaches no network: list the hosts that it needs in the workspace's setup_egress.)"
        )
    if workspace.setup_egress == ("host",):
        return ""
    return f" (The setup reaches only {', '.join(workspace.setup_egress)[:200]}, by the workspace's setup_egress.)"


def write_base(folder: Path, parts: Sequence[bytes]) -> None:
    """Write the base of a harvest so that each agent's uid can read it through a mount."""
    make_dir(folder, 0o755)
    for name, part in zip(_BASE_FILES, parts, strict=True):
        (folder / name).write_bytes(part)
        (folder / name).chmod(0o644)


def write_alternates(git: Path) -> None:
    """Create a checkout's `.git` that reads the mirror's objects at their path in the sandbox."""
    (git / "objects" / "info").mkdir(parents=True)
    (git / "objects" / "info" / "alternates").write_text(f"{MIRROR_DIR}\n", encoding="ascii")


def objects_bind(mirror: Mirror) -> BindMount:
    """Return the mount of a mirror's objects at the path that the checkout's `.git` names."""
    return BindMount(mirror.objects, MIRROR_DIR, owner=mirror.objects.stat().st_uid)


def service_checkout(
    workspace: Workspace, files: JobPaths, user: int | None, commit: str, binds: tuple[BindMount, ...]
) -> Checkout:
    """Return a checkout for the service's own commands, before an agent uses it."""
    return Checkout(
        workspace=workspace,
        paths=files,
        directory=files.checkout,
        home=files.home,
        config_dir=files.config_dir,
        uid=user,
        commit=commit,
        binds=binds,
    )


def secret_binds(workspace: Workspace) -> tuple[BindMount, ...]:
    """Return the mounts of the setup's secret files at their own paths. Raise `WorkspaceError` if one is missing."""
    binds = []
    for name in workspace.setup_secrets:
        path = Path(name)
        if not path.is_absolute() or not path.is_file():
            raise WorkspaceError(f"The setup secret '{path.name}' is not a file.", retryable=False)
        binds.append(BindMount(path, path, owner=path.stat().st_uid))
    return tuple(binds)


def _setup_digest(workspace: Workspace) -> str:
    """Return a digest of the setup and of its secrets, so that a changed secret makes another checkout."""
    if not workspace.setup:
        return ""
    stamps: list[object] = []
    for name in workspace.setup_secrets:
        with contextlib.suppress(OSError):
            info = Path(name).stat()
            stamps.append((name, info.st_size, info.st_mtime_ns))
    text = json.dumps([workspace.setup, workspace.setup_egress, stamps])
    return "-" + hashlib.sha256(text.encode()).hexdigest()[:12]
