"""Warm checkouts: a work tree per commit (and setup), made once in the sandbox, shared by jobs and never written."""

import asyncio
import contextlib
import hashlib
import json
import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from steadyhand.agents import Agent, Workspace
from steadyhand.errors import WorkspaceError
from steadyhand.ports import BindMount, Checkout, JobPaths, SandboxExec
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
from steadyhand.workspace.mirror import Mirror
from steadyhand.workspace.sandboxed_git_client import MIRROR_DIR, run_sandboxed_git

BRANCH = "steadyhand/work"
"""The branch of every sealed checkout: its name is in the prompt, and prompts of one commit are to be alike."""
MAX_CHECKOUTS = 16
MAX_BYTES = 20 * 1024 * MIB
CHECKOUT_SECONDS = 300.0
SETUP_SECONDS = 1800.0
_INDEX_BYTES = 256 * MIB
_BUILD_PREFIX = ".build-"
_BASE_FILES = ("index", "exclude", "filters")
_MIRROR_NAME = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True, slots=True)
class WarmCheckout:
    """One warm checkout: `tree` belongs to the agents' common owner, the rest to the service."""

    folder: Path

    @property
    def tree(self) -> Path:
        """The work tree, `.git` in it."""
        return self.folder / "checkout"

    @property
    def base(self) -> Path:
        """The service's own copy of the index, the excludes and the filters; what a harvest stands on."""
        return self.folder / "base"

    @property
    def size_file(self) -> Path:
        """A file that holds the size in bytes; its time is that of the last use."""
        return self.folder / "whole"


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
        """`owner` is the uid that they belong to; at most so many, or so many bytes, are kept unused."""
        self._folder = folder
        self._sandbox_exec = sandbox_exec
        self.settings = settings
        self.owner = owner
        self._max_checkouts = max_checkouts
        self._max_bytes = max_bytes
        self._use_counts: Counter[Path] = Counter()
        self._ready: set[Path] = set()
        self._locks: dict[Path, asyncio.Lock] = {}
        self.build_count = 0
        """How many were really made."""

    async def acquire(self, mirror: Mirror, commit: str, workspace: Workspace) -> WarmCheckout:
        """Give the warm checkout of a commit, made now when there is none; `give_back` lets go of it.

        Who asks meanwhile waits for the same one. Raises `WorkspaceError`.
        """
        warm = WarmCheckout(self._folder / mirror.folder.stem / f"{commit}{_setup_digest(workspace)}")
        self._use_counts[warm.folder] += 1
        try:
            if warm.folder not in self._ready:
                await self._ensure_built(warm, mirror, commit, workspace)
        except BaseException:
            self._drop_use(warm)
            raise
        return warm

    def relative_name(self, warm: WarmCheckout) -> str:
        """Give the name by which `hold` finds a checkout again, in a later life of the service."""
        return str(warm.folder.relative_to(self._folder))

    def retain(self, name: str) -> WarmCheckout:
        """Count a checkout as in use, by its name; it may have gone meanwhile, then `take` makes it anew."""
        warm = WarmCheckout(self._folder / name)
        self._use_counts[warm.folder] += 1
        return warm

    async def release(self, warm: WarmCheckout) -> None:
        """Let go of a checkout; the oldest unused ones go when there are too many."""
        self._drop_use(warm)
        with contextlib.suppress(OSError):
            os.utime(warm.size_file)
        await self.evict()

    def _drop_use(self, warm: WarmCheckout) -> None:
        self._use_counts[warm.folder] -= 1
        if self._use_counts[warm.folder] <= 0:
            del self._use_counts[warm.folder]
            self._locks.pop(warm.folder, None)

    async def _ensure_built(
        self, warm: WarmCheckout, mirror: Mirror, commit: str, workspace: Workspace
    ) -> None:
        lock = self._locks.setdefault(warm.folder, asyncio.Lock())
        try:
            async with asyncio.timeout(CHECKOUT_SECONDS + SETUP_SECONDS), lock:
                if not warm.size_file.is_file():
                    await self._build(warm, mirror, commit, workspace)
                self._ready.add(warm.folder)
        except TimeoutError as error:
            raise WorkspaceError("The checkout took too long to be made.") from error

    # --- making one ------------------------------------------------------------------------

    async def _build(self, warm: WarmCheckout, mirror: Mirror, commit: str, workspace: Workspace) -> None:
        files = JobPaths(warm.folder.with_name(_BUILD_PREFIX + warm.folder.name))
        try:
            await asyncio.to_thread(self._make_dirs, files)
            git = files.checkout / ".git"
            write_alternates(git)
            await write_git_dir(git, mirror, self.settings, BRANCH)
            await asyncio.to_thread(chown_tree, files.checkout, self.owner)
            binds = (objects_bind(mirror), *secret_binds(workspace))
            checkout = service_checkout(workspace, files, self.owner, commit, binds)
            parts = await check_out(self._sandbox_exec, checkout, wait_for_clock=True)
            await asyncio.to_thread(self._finish, files, parts)
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

    def _finish(self, files: JobPaths, parts: tuple[bytes, bytes, bytes]) -> None:
        write_base(files.root / "base", parts)
        remove_tree(files.home)
        remove_tree(files.config_dir)
        (files.root / "whole").write_text(str(disk_usage(files.root)), encoding="ascii")

    # --- letting go of old ones ------------------------------------------------------------

    async def evict(self) -> None:
        """Remove what has been unused longest, while there is too much; never what is in use."""
        for warm in await asyncio.to_thread(self._eviction_candidates):
            if warm.folder in self._use_counts:
                continue
            # Who asks for it meanwhile waits, finds it gone and makes it anew.
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
        """Remove what an earlier life left half made; nothing may be in use yet."""
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
    sandbox_exec: SandboxExec, checkout: Checkout, *, wait_for_clock: bool
) -> tuple[bytes, bytes, bytes]:
    """Check the place's commit out and run its workspace's setup, inside the sandbox.

    Gives the index, what git is not to see, and the filters that were defined. Raises `WorkspaceError`.
    """
    workspace = checkout.workspace
    request = {
        "verb": "warm",
        "branch": BRANCH,
        "commit": checkout.commit,
        "setup": list(workspace.setup),
        "settle": wait_for_clock,
    }
    seconds = CHECKOUT_SECONDS + (SETUP_SECONDS if workspace.setup else 0)
    agent = Agent("setup", egress=workspace.setup_egress)
    try:
        reply = await run_sandboxed_git(
            sandbox_exec,
            request,
            checkout,
            agent,
            seconds=seconds,
            max_output=_INDEX_BYTES,
            parts=len(_BASE_FILES),
        )
    except WorkspaceError as error:
        raise WorkspaceError(f"The checkout could not be made: {error.detail}.") from error
    failed_command = reply.sentence("failed")
    if failed_command is not None:
        raise WorkspaceError(f"The setup command '{failed_command[:80]}' failed: {reply.sentence('line')}")
    if len(reply.parts) != len(_BASE_FILES):
        raise WorkspaceError("The checkout could not be made: it has no index.")
    index, exclude, filters = (bytes(part) for part in reply.parts)
    return index, exclude, filters


def write_base(folder: Path, parts: tuple[bytes, bytes, bytes]) -> None:
    """Keep what a harvest stands on, where any agent's uid that is shown it can read it."""
    make_dir(folder, 0o755)
    for name, part in zip(_BASE_FILES, parts, strict=True):
        (folder / name).write_bytes(part)
        (folder / name).chmod(0o644)


def write_alternates(git: Path) -> None:
    """Begin a checkout's `.git` that reads the mirror's objects where the sandbox shows them."""
    (git / "objects" / "info").mkdir(parents=True)
    (git / "objects" / "info" / "alternates").write_text(f"{MIRROR_DIR}\n", encoding="ascii")


def objects_bind(mirror: Mirror) -> BindMount:
    """Show a mirror's objects where the checkout's `.git` looks for them."""
    return BindMount(mirror.objects, MIRROR_DIR, owner=mirror.objects.stat().st_uid)


def service_checkout(
    workspace: Workspace, files: JobPaths, user: int | None, commit: str, binds: tuple[BindMount, ...]
) -> Checkout:
    """Give a place that the service's own commands work in before an agent has it."""
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
    """Show the setup's secret files at their own paths. Raises `WorkspaceError` for one that is not there."""
    binds = []
    for name in workspace.setup_secrets:
        path = Path(name)
        if not path.is_absolute() or not path.is_file():
            raise WorkspaceError(f"The setup secret '{path.name}' is not a file.", retryable=False)
        binds.append(BindMount(path, path, owner=path.stat().st_uid))
    return tuple(binds)


def _setup_digest(workspace: Workspace) -> str:
    """Tell setups apart, and the same setup with another secret."""
    if not workspace.setup:
        return ""
    stamps: list[object] = []
    for name in workspace.setup_secrets:
        with contextlib.suppress(OSError):
            info = Path(name).stat()
            stamps.append((name, info.st_size, info.st_mtime_ns))
    text = json.dumps([workspace.setup, workspace.setup_egress, stamps])
    return "-" + hashlib.sha256(text.encode()).hexdigest()[:12]
