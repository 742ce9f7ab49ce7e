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
from steadyhand.ports import Bind, Errands, JobFiles, Place
from steadyhand.workspace.filesystem import PRIVATE, TRAVERSABLE, hand_over, make_folder, remove_tree, size_of
from steadyhand.workspace.git import MIB, GitSettings
from steadyhand.workspace.git_dir import describe
from steadyhand.workspace.mirror import Mirror
from steadyhand.workspace.sandboxed_git_client import MIRROR, ask

BRANCH = "steadyhand/work"
"""The branch of every sealed checkout: its name is in the prompt, and prompts of one commit are to be alike."""
MOST = 16
MOST_BYTES = 20 * 1024 * MIB
CHECKOUT_SECONDS = 300.0
SETUP_SECONDS = 1800.0
_INDEX_BYTES = 256 * MIB
_BUILDING = ".build-"
_BASE = ("index", "exclude", "filters")
_PARTS = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True, slots=True)
class Warm:
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
    def whole(self) -> Path:
        """A file that holds the size in bytes; its time is that of the last use."""
        return self.folder / "whole"


class WarmCheckouts:
    """The warm checkouts of a data directory, in `folder`."""

    def __init__(
        self,
        folder: Path,
        errands: Errands,
        settings: GitSettings,
        *,
        owner: int,
        most: int = MOST,
        most_bytes: int = MOST_BYTES,
    ) -> None:
        """`owner` is the uid that they belong to; at most so many, or so many bytes, are kept unused."""
        self._folder = folder
        self._errands = errands
        self.settings = settings
        self.owner = owner
        self._most = most
        self._most_bytes = most_bytes
        self._held: Counter[Path] = Counter()
        self._ready: set[Path] = set()
        self._locks: dict[Path, asyncio.Lock] = {}
        self.built = 0
        """How many were really made."""

    async def take(self, mirror: Mirror, commit: str, workspace: Workspace) -> Warm:
        """Give the warm checkout of a commit, made now when there is none; `give_back` lets go of it.

        Who asks meanwhile waits for the same one. Raises `WorkspaceError`.
        """
        warm = Warm(self._folder / mirror.folder.stem / f"{commit}{_digest(workspace)}")
        self._held[warm.folder] += 1
        try:
            if warm.folder not in self._ready:
                await self._make_sure(warm, mirror, commit, workspace)
        except BaseException:
            self._let_go(warm)
            raise
        return warm

    def name(self, warm: Warm) -> str:
        """Give the name by which `hold` finds a checkout again, in a later life of the service."""
        return str(warm.folder.relative_to(self._folder))

    def hold(self, name: str) -> Warm:
        """Count a checkout as in use, by its name; it may have gone meanwhile, then `take` makes it anew."""
        warm = Warm(self._folder / name)
        self._held[warm.folder] += 1
        return warm

    async def give_back(self, warm: Warm) -> None:
        """Let go of a checkout; the oldest unused ones go when there are too many."""
        self._let_go(warm)
        with contextlib.suppress(OSError):
            os.utime(warm.whole)
        await self.collect()

    def _let_go(self, warm: Warm) -> None:
        self._held[warm.folder] -= 1
        if self._held[warm.folder] <= 0:
            del self._held[warm.folder]
            self._locks.pop(warm.folder, None)

    async def _make_sure(self, warm: Warm, mirror: Mirror, commit: str, workspace: Workspace) -> None:
        lock = self._locks.setdefault(warm.folder, asyncio.Lock())
        try:
            async with asyncio.timeout(CHECKOUT_SECONDS + SETUP_SECONDS), lock:
                if not warm.whole.is_file():
                    await self._build(warm, mirror, commit, workspace)
                self._ready.add(warm.folder)
        except TimeoutError as error:
            raise WorkspaceError("The checkout took too long to be made.") from error

    # --- making one ------------------------------------------------------------------------

    async def _build(self, warm: Warm, mirror: Mirror, commit: str, workspace: Workspace) -> None:
        files = JobFiles(warm.folder.with_name(_BUILDING + warm.folder.name))
        try:
            await asyncio.to_thread(self._make_folders, files)
            git = files.checkout / ".git"
            share_objects(git)
            await describe(git, mirror, self.settings, BRANCH)
            await asyncio.to_thread(hand_over, files.checkout, self.owner)
            binds = (shown_objects(mirror), *secrets_of(workspace))
            place = bare_place(workspace, files, self.owner, commit, binds)
            parts = await check_out(self._errands, place, settle=True)
            await asyncio.to_thread(self._finish, files, parts)
            await asyncio.to_thread(remove_tree, warm.folder)
            files.root.rename(warm.folder)
            self.built += 1
        finally:
            await asyncio.to_thread(remove_tree, files.root)
        await self.collect()

    def _make_folders(self, files: JobFiles) -> None:
        remove_tree(files.root)
        for folder in (self._folder, files.root.parent, files.root):
            make_folder(folder, TRAVERSABLE)
        for folder in (files.checkout, files.home, files.config):
            make_folder(folder, PRIVATE, self.owner)

    def _finish(self, files: JobFiles, parts: tuple[bytes, bytes, bytes]) -> None:
        write_base(files.root / "base", parts)
        remove_tree(files.home)
        remove_tree(files.config)
        (files.root / "whole").write_text(str(size_of(files.root)), encoding="ascii")

    # --- letting go of old ones ------------------------------------------------------------

    async def collect(self) -> None:
        """Remove what has been unused longest, while there is too much; never what is in use."""
        for warm in await asyncio.to_thread(self._too_many):
            if warm.folder in self._held:
                continue
            # Who asks for it meanwhile waits, finds it gone and makes it anew.
            lock = self._locks.setdefault(warm.folder, asyncio.Lock())
            async with lock:
                self._ready.discard(warm.folder)
                await asyncio.to_thread(remove_tree, warm.folder)
            if warm.folder not in self._held:
                self._locks.pop(warm.folder, None)

    def _too_many(self) -> list[Warm]:
        found: list[tuple[float, int, Warm]] = []
        for folder in self._folder.glob("*/*"):
            warm = Warm(folder)
            with contextlib.suppress(OSError, ValueError):
                size = int(warm.whole.read_text("ascii"))
                found.append((warm.whole.stat().st_mtime, size, warm))
        found.sort(key=lambda item: item[0], reverse=True)
        over, total = [], 0
        for number, (_, size, warm) in enumerate(found, 1):
            total += size
            if number > self._most or total > self._most_bytes:
                over.append(warm)
        return over[::-1]

    async def sweep(self) -> None:
        """Remove what an earlier life left half made; nothing may be in use yet."""
        await asyncio.to_thread(self._sweep)

    def _sweep(self) -> None:
        if not self._folder.is_dir() or self._folder.is_symlink():
            return
        for folder in self._folder.iterdir():
            if folder.is_symlink() or _PARTS.fullmatch(folder.name) is None:
                remove_tree(folder)
                continue
            for inner in folder.iterdir():
                if inner.name.startswith(".") or not Warm(inner).whole.is_file():
                    remove_tree(inner)


async def check_out(errands: Errands, place: Place, *, settle: bool) -> tuple[bytes, bytes, bytes]:
    """Check the place's commit out and run its workspace's setup, inside the sandbox.

    Gives the index, what git is not to see, and the filters that were defined. Raises `WorkspaceError`.
    """
    workspace = place.workspace
    request = {
        "verb": "warm", "branch": BRANCH, "commit": place.commit, "setup": list(workspace.setup), "settle": settle
    }  # fmt: skip
    seconds = CHECKOUT_SECONDS + (SETUP_SECONDS if workspace.setup else 0)
    agent = Agent("setup", egress=workspace.setup_egress)
    try:
        answer = await ask(
            errands, request, place, agent, seconds=seconds, max_output=_INDEX_BYTES, parts=len(_BASE)
        )
    except WorkspaceError as error:
        raise WorkspaceError(f"The checkout could not be made: {error.detail}.") from error
    failed = answer.reason("failed")
    if failed is not None:
        raise WorkspaceError(f"The setup command '{failed[:80]}' failed: {answer.reason('line')}")
    if len(answer.parts) != len(_BASE):
        raise WorkspaceError("The checkout could not be made: it has no index.")
    index, exclude, filters = (bytes(part) for part in answer.parts)
    return index, exclude, filters


def write_base(folder: Path, parts: tuple[bytes, bytes, bytes]) -> None:
    """Keep what a harvest stands on, where any agent's uid that is shown it can read it."""
    make_folder(folder, 0o755)
    for name, part in zip(_BASE, parts, strict=True):
        (folder / name).write_bytes(part)
        (folder / name).chmod(0o644)


def share_objects(git: Path) -> None:
    """Begin a checkout's `.git` that reads the mirror's objects where the sandbox shows them."""
    (git / "objects" / "info").mkdir(parents=True)
    (git / "objects" / "info" / "alternates").write_text(f"{MIRROR}\n", encoding="ascii")


def shown_objects(mirror: Mirror) -> Bind:
    """Show a mirror's objects where the checkout's `.git` looks for them."""
    return Bind(mirror.objects, MIRROR, owner=mirror.objects.stat().st_uid)


def bare_place(
    workspace: Workspace, files: JobFiles, user: int | None, commit: str, binds: tuple[Bind, ...]
) -> Place:
    """Give a place that the service's own commands work in before an agent has it."""
    return Place(
        workspace=workspace,
        files=files,
        directory=files.checkout,
        home=files.home,
        config=files.config,
        user=user,
        commit=commit,
        binds=binds,
    )


def secrets_of(workspace: Workspace) -> tuple[Bind, ...]:
    """Show the setup's secret files at their own paths. Raises `WorkspaceError` for one that is not there."""
    binds = []
    for name in workspace.setup_secrets:
        path = Path(name)
        if not path.is_absolute() or not path.is_file():
            raise WorkspaceError(f"The setup secret '{path.name}' is not a file.", retryable=False)
        binds.append(Bind(path, path, owner=path.stat().st_uid))
    return tuple(binds)


def _digest(workspace: Workspace) -> str:
    """Tell setups apart, and the same setup with another secret."""
    if not workspace.setup:
        return ""
    stamps: list[object] = []
    for name in workspace.setup_secrets:
        with contextlib.suppress(OSError):
            found = Path(name).stat()
            stamps.append((name, found.st_size, found.st_mtime_ns))
    text = json.dumps([workspace.setup, workspace.setup_egress, stamps])
    return "-" + hashlib.sha256(text.encode()).hexdigest()[:12]
