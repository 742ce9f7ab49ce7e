"""Import the work of a private checkout into a repository of the service: its commits, its refs and its files.

All comes as packs from a program that runs as the agent's user, in the sandbox if there is one. Each pack is checked
object by object and link by link, and a part that is refused costs no other part.
"""

import asyncio
import contextlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from steadyhand.errors import WorkspaceError
from steadyhand.job_warnings import WarningCode
from steadyhand.ports import BindMount, Checkout, SandboxExec
from steadyhand.workspace import git_index as staging
from steadyhand.workspace.filesystem import chown_tree, make_dir
from steadyhand.workspace.git import MIB, Git, GitResult, GitSettings, scrub
from steadyhand.workspace.git_dir import make_bare_repository
from steadyhand.workspace.harvest_context import HarvestContext, work_branch
from steadyhand.workspace.harvest_frames import FrameReceiver, HarvestFrame
from steadyhand.workspace.job_dirs import base_dir, base_index_path, given_path
from steadyhand.workspace.local_exec import LocalExec
from steadyhand.workspace.sandboxed_git_client import (
    BASE_DIR,
    GIVEN_DIR,
    MIRROR_DIR,
    SCRATCH_DIR,
    receive_harvest,
)
from steadyhand.workspace.saved_refs import GivenRefs, SavedRef
from steadyhand.workspace.upper_layer import LayerChanges

HARVEST_SECONDS = 30.0
COMMITS_SECONDS = 12.0
"""The time limit of one git command on the agent's own `.git`; the packed bytes add to it."""
COMMIT_BYTES = 256 * MIB
"""The size limit of the commits that come out, and of the refs beside them."""
MAX_RECEIVED = 1024 * MIB
"""The size limit of all packs of a harvest; they go to the disk."""
BATCH_BYTES = 32 * MIB
"""The size of the files that come out at once: a harvest that is cut keeps the batches before."""
MAX_OBJECTS = 1_000_000
_INDEX_SECONDS = 30.0
IMPORT_CONFIG = (("core.bigFileThreshold", "32m"), ("pack.threads", "1"), ("core.fsync", "none"))
"""Blobs above the threshold are streamed, never held in memory whole, while foreign packs are checked."""
IMPORT_BOUNDS = {"GIT_ALLOC_LIMIT": "512m"}
"""A small pack can hold an object of any size: none is taken into memory that is larger."""
_REFS_FILE, _CHANGED_FILE = "refs", "changed"


@dataclass
class Imported:
    """The result of an import: the agent's commit, the commit with its files on top, and the refs beside them."""

    commit: str
    head: str
    saved: list[SavedRef] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    omitted: int = 0


@dataclass
class _Sections:
    """The content of a stream of frames: the results of each section, and the reasons of refused ones."""

    head: str | None = None
    tree: str | None = None
    saved: list[SavedRef] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    omitted: int = 0
    waiting: list[str] = field(default_factory=list)
    waiting_count: int = 0
    refused: dict[str, str] = field(default_factory=dict)
    losses: list[HarvestFrame] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)


class HarvestImport:
    """One import into `import.git`, a bare repository that reads the mirror's objects."""

    def __init__(
        self,
        context: HarvestContext,
        mirror_objects: Path,
        settings: GitSettings,
        sandbox_exec: SandboxExec | None,
        *,
        given_refs: GivenRefs,
        layer: LayerChanges | None = None,
        on_progress: Callable[[float], None],
    ) -> None:
        """Make the repository. `layer` has the only paths that can differ from the base, if they are known."""
        self.repository = context.import_dir
        self._context = context
        self._sandbox_exec = sandbox_exec
        self._mirror_objects = mirror_objects
        self._settings = settings
        self._given_refs = given_refs
        self._layer = layer
        self._on_progress = on_progress
        self._git = Git(env={"GIT_DIR": str(self.repository), **IMPORT_BOUNDS}, config=IMPORT_CONFIG)
        self._rounds = 0
        self._work_branch = work_branch(context.job_id, sandboxed=sandbox_exec is not None)
        make_bare_repository(self.repository, mirror_objects, context.base)

    async def run(self) -> Imported:
        """Import all that can be; each part that cannot becomes a warning. Raise `WorkspaceError` if nothing can."""
        base = self._context.base
        frames = await self._receive(base, commits=True)
        sections = await self._read(frames)
        commit = sections.head or base
        if sections.head is None:
            reason = scrub(sections.refused.get("head", "they did not come out"))
            text = f"The agent's commits could not be taken in; its files were. ({reason})"
            self._context.warn(WarningCode.HARVEST_PARTIAL, text)
            if "head" in sections.refused and self._came_out(frames):
                # The files came as changes to commits that were refused, so they are read again as changes to the base.
                files = await self._read(await self._receive(base, commits=False))
                sections = replace(
                    files, saved=sections.saved, deleted=sections.deleted, omitted=sections.omitted
                )
        if "fsck" in sections.refused.get("files", ""):
            # One hostile file would cost all others: git checks the content of no others than these.
            self._context.warn_lost([".gitmodules"], 1, sections.refused["files"])
            files = await self._read(await self._receive(commit, commits=False, without_gitmodules=True))
            sections = replace(
                files, saved=sections.saved, deleted=sections.deleted, omitted=sections.omitted
            )
        self._warn(sections)
        head = commit if sections.tree is None else await self._commit_on(sections.tree, commit)
        return Imported(
            commit, head, await self._commit_trees(sections.saved, commit), sections.deleted, sections.omitted
        )

    def _came_out(self, frames: Sequence[HarvestFrame]) -> bool:
        """Return true if the agent's commits came out: then the files were read as changes to them."""
        return any(frame.fields.get("section") == "head" and "head" in frame.fields for frame in frames)

    # --- receiving -------------------------------------------------------------------------

    async def _receive(
        self, head: str, *, commits: bool, without_gitmodules: bool = False
    ) -> Sequence[HarvestFrame]:
        context = self._context
        self._rounds += 1
        folder = context.folder / f"round-{self._rounds}"
        make_dir(folder, 0o700)
        # Read again, the files are compared with another commit or without some of them: all are looked at.
        layer = self._layer if commits else None
        checkout, places = await asyncio.to_thread(self._places, folder, layer)
        request = {
            "verb": "harvest", "base": context.base, "head": head, "commits": commits,
            "without_gitmodules": without_gitmodules, "branch": self._work_branch,
            "limit": COMMIT_BYTES, "commits_seconds": COMMITS_SECONDS,
            "file_bytes": staging.FILE_BYTES, "all_bytes": staging.TOTAL_BYTES,
            "batch_bytes": BATCH_BYTES, "git_dir": layer is None or layer.git_dir, **places,
        }  # fmt: skip
        receiver = FrameReceiver(
            self.repository / "objects" / "pack", MAX_RECEIVED, prefix=f"{self._rounds}-"
        )
        frames = await receive_harvest(
            self._sandbox_exec or LocalExec(), request, checkout, receiver,
            seconds=HARVEST_SECONDS, on_progress=self._on_progress,
        )  # fmt: skip
        if not receiver.is_complete:
            reason = "the reply is malformed" if receiver.is_malformed else "the time was over"
            context.warn(WarningCode.HARVEST_PARTIAL, f"The harvest was cut: {reason}.")
        return frames

    def _places(self, folder: Path, layer: LayerChanges | None) -> tuple[Checkout, Mapping[str, str | None]]:
        """Return the checkout with what the program needs to see, and the paths of it there; blocks."""
        checkout, files = self._context.checkout, self._context.files
        given = folder / "given"
        make_dir(given, 0o755)
        (given / _REFS_FILE).write_bytes(self._given_refs.to_bytes())
        (given / _REFS_FILE).chmod(0o644)
        if layer is not None:
            (given / _CHANGED_FILE).write_bytes(b"".join(name + b"\x00" for name in sorted(layer.names)))
            (given / _CHANGED_FILE).chmod(0o644)
        if self._sandbox_exec is not None:
            layers = checkout.layers
            base = base_dir(files) if layers is None else layers.lower.parent / "base"
            binds = (*checkout.binds, BindMount(base, BASE_DIR), BindMount(given, GIVEN_DIR))
            return replace(checkout, binds=binds), {
                "base_dir": str(BASE_DIR), "given_refs": str(GIVEN_DIR / _REFS_FILE),
                "changed_names": None if layer is None else str(GIVEN_DIR / _CHANGED_FILE),
                "objects": str(MIRROR_DIR), "scratch": SCRATCH_DIR,
            }  # fmt: skip
        base, scratch = folder / "base", folder / "scratch"
        for path in (base, scratch):
            make_dir(path, 0o700)
        shutil.copy2(base_index_path(files), base / "index")
        with contextlib.suppress(FileNotFoundError):
            (base / "given").write_bytes(given_path(files).read_bytes())
        folder.chmod(0o711)
        for path in (base, scratch, given):
            chown_tree(path, checkout.uid)
        return checkout, {
            "base_dir": str(base), "given_refs": str(given / _REFS_FILE), "changed_names": None,
            "objects": "", "scratch": str(scratch),
        }  # fmt: skip

    # --- reading ---------------------------------------------------------------------------

    async def _read(self, frames: Sequence[HarvestFrame]) -> _Sections:
        """Import the packs, and read the results that they make true."""
        found = _Sections()
        for frame in frames:
            if frame.pack is not None:
                await self._import_pack(frame, frame.pack, found)
                continue
            try:
                await self._read_frame(frame, found)
            except WorkspaceError as error:
                section = frame.fields.get("section")
                key = section if section in {"head", "files"} else "refs"
                found.refused.setdefault(key, error.detail)
        return found

    async def _import_pack(self, frame: HarvestFrame, pack: Path, found: _Sections) -> None:
        section = frame.fields.get("pack")
        key = section if section in {"head", "files"} else "refs"
        try:
            await self._index_pack(pack)
        except WorkspaceError as error:
            found.refused.setdefault(key, error.detail)

    async def _index_pack(self, pack: Path) -> None:
        """Check a pack object by object and link by link, and remove it if the check fails."""
        try:
            seconds = await asyncio.to_thread(_check_pack, pack)
            self._on_progress(seconds)
            await self._git.run(
                "index-pack",
                "--strict=badFilemode=error",
                str(pack),
                cwd=self.repository,
                seconds=_INDEX_SECONDS + seconds,
            )
        except WorkspaceError:
            await asyncio.to_thread(pack.unlink, missing_ok=True)
            raise

    async def _read_frame(self, frame: HarvestFrame, found: _Sections) -> None:
        section = frame.fields.get("section")
        if section == "head":
            await self._read_head(frame, found)
        elif section == "files":
            await self._read_files(frame, found)
        elif section == "changed":
            found.deleted = frame.names("deleted", SavedRef.MAX)
            found.omitted = min(frame.number("omitted"), MAX_OBJECTS)
            found.omitted += max(0, min(frame.number("deleted_count"), MAX_OBJECTS) - len(found.deleted))
        elif section in {"saved", "folder"}:
            await self._read_saved(frame, found)
        elif section == "losses":
            found.losses.append(frame)
        elif section == "lost":
            what = frame.text("what", 20)
            reason = scrub(frame.sentence("reason") or "")
            if what == "files":
                found.refused.setdefault("files", reason)
            else:
                found.lost.append(f"{what}: {reason}")

    async def _read_head(self, frame: HarvestFrame, found: _Sections) -> None:
        if "lost" in frame.fields:
            found.refused.setdefault("head", frame.sentence("lost") or "")
        elif "head" not in found.refused:
            head = frame.object_id("head")
            await self._require(f"{head}^{{commit}}")
            found.head = head

    async def _read_files(self, frame: HarvestFrame, found: _Sections) -> None:
        if "failed" in frame.fields:
            found.refused.setdefault("files", scrub(frame.sentence("failed") or ""))
        elif "files" not in found.refused:
            tree = frame.object_id("tree")
            await self._require(f"{tree}^{{tree}}")
            found.tree = tree
            found.waiting = frame.names("waiting", 50)
            found.waiting_count = frame.number("count")

    async def _read_saved(self, frame: HarvestFrame, found: _Sections) -> None:
        saved = SavedRef.parse(frame)
        if self._given_refs.may_have(saved):
            return
        if len(found.saved) >= SavedRef.MAX:
            found.omitted += 1
            return
        if saved.lost is None and "refs" in found.refused:
            saved = replace(saved, lost=found.refused["refs"])
        if saved.lost is None and (await self._type_of(saved.value)) is None:
            saved = replace(saved, lost="its objects did not come out")
        found.saved = [each for each in found.saved if not saved.replaces(each)] + [saved]

    async def _require(self, revision: str) -> None:
        result = await self._git.run(
            "rev-parse", "--verify", "--quiet", revision, cwd=self.repository, check=False
        )
        if result.code != 0:
            raise WorkspaceError("an object that is named did not come out")

    async def _type_of(self, value: str) -> str | None:
        result = await self._git.run("cat-file", "-t", value, cwd=self.repository, check=False)
        return result.text if result.code == 0 else None

    # --- results ---------------------------------------------------------------------------

    def _warn(self, sections: _Sections) -> None:
        context = self._context
        for frame in sections.losses:
            with contextlib.suppress(WorkspaceError):
                context.warn_losses(frame)
        if "files" in sections.refused:
            reason = scrub(sections.refused["files"])
            if sections.tree is None and not sections.saved and sections.head in {None, context.base}:
                raise WorkspaceError(reason)
            context.warn(WarningCode.HARVEST_PARTIAL, f"Changed files could not be kept: {reason}")
        if sections.waiting:
            context.warn_lost(sections.waiting, sections.waiting_count, "the time was over")
        lost = [f"{each.name} ({scrub(each.lost)})" for each in sections.saved if each.lost is not None]
        lost += sections.lost
        if lost:
            context.warn_named("These could not be kept", lost, len(lost))
        if sections.omitted:
            context.warn(
                WarningCode.HARVEST_PARTIAL,
                f"{sections.omitted} changed refs are not listed: there are too many.",
            )

    async def _commit_on(self, tree: str, head: str) -> str:
        if tree == (await self._run("rev-parse", "--verify", f"{head}^{{tree}}")).text:
            return head
        return await self._commit_tree(tree, head, "Uncommitted work")

    async def _commit_trees(self, saved: Sequence[SavedRef], head: str) -> list[SavedRef]:
        """Make a commit of each saved tree: the index, and folders beside the tree."""
        made = []
        for each in saved:
            if each.lost is None and each.is_tree:
                parent = head if each.parent is None else each.parent
                if each.parent and await self._type_of(each.parent) != "commit":
                    parent = ""
                value = await self._commit_tree(each.value, parent, f"{each.name[:200]}")
                made.append(replace(each, value=value))
            else:
                made.append(each)
        return made

    async def _commit_tree(self, tree: str, parent: str, subject: str) -> str:
        name, email = self._settings.author_name, self._settings.author_email
        env = {"GIT_DIR": str(self.repository)}
        env |= {f"GIT_{role}_{field}": value for role in ("AUTHOR", "COMMITTER")
                for field, value in (("NAME", name), ("EMAIL", email))}  # fmt: skip
        message = f"{subject} of job {self._context.files.root.name}\n"
        parents = ("-p", parent) if parent else ()
        result = await Git(env=env, config=IMPORT_CONFIG).run(
            "commit-tree", tree, *parents, cwd=self.repository, stdin=message.encode("utf-8", "replace")
        )
        return result.text

    async def _run(self, *arguments: str) -> GitResult:
        return await self._git.run(*arguments, cwd=self.repository)


def _check_pack(pack: Path) -> float:
    """Return the seconds that the size of a pack adds to a time limit. Raise `WorkspaceError` if it is no pack."""
    with pack.open("rb") as file:
        start = file.read(12)
    if start[:4] != b"PACK" or int.from_bytes(start[8:12]) > MAX_OBJECTS:
        raise WorkspaceError("the output of the sandbox is not a pack, or it is too large")
    return pack.stat().st_size / MIB
