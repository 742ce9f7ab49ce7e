"""Harvest an agent's work inside the sandbox: its commits, its refs and its files. Standard library only.

It is a part of the program that `sandboxed_git_client` sends into the sandbox. The harvest is a stream of frames: a
line of JSON, and the bytes of a pack if it has a `size`. The commits come first, so that what follows cannot cost them.
"""

import contextlib
import os
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from steadyhand.workspace.sandboxed_command import MAX_REASON_LENGTH, GitError, decode_line, git
from steadyhand.workspace.sandboxed_commits import AgentRepository, pack_parts
from steadyhand.workspace.sandboxed_files import GITLINK, Access, Given, make_git_dir
from steadyhand.workspace.sandboxed_frames import Frames, named_if_lost
from steadyhand.workspace.sandboxed_staging import Losses, Staging, StagingLimits, losses_of

_MAX_NAMED = 50
_FILES_SECONDS = 60.0
_MAX_REFS = 200
_MAX_FOLDERS = 20
_SENT_OBJECTS = "sent"
_SENT_BYTES = 16 << 20


class Paths(NamedTuple):
    """The folders of a harvest: the tree, the service's copy of the base, a scratch folder, and given objects."""

    tree: Path
    base: Path
    scratch: Path
    objects: str


def harvest(request: Mapping[str, Any]) -> None:
    """Write the agent's commits, refs and files as frames."""
    paths = Paths(Path.cwd(), Path(request["base_dir"]), Path(request["scratch"]), request["objects"])
    paths.scratch.mkdir(exist_ok=True)
    access = Access()
    try:
        _Harvest(request, paths, access, Frames(sys.stdout.buffer)).run()
    finally:
        access.restore()


class _Harvest:
    def __init__(self, request: Mapping[str, Any], paths: Paths, access: Access, frames: Frames) -> None:
        self._request = request
        self._paths = paths
        self._access = access
        self._frames = frames
        self._base: str = request["base"]
        self._head: str = request["head"]
        self._limits = StagingLimits(request["file_bytes"], request["all_bytes"], request["batch_bytes"])
        self._snapshot = paths.scratch / "snapshot"
        self._repository: AgentRepository | None = None
        self._index_tree_id: str | None = None
        self._submodules: dict[bytes, bytes] = {}
        self._given_submodules: dict[bytes, bytes] = {}
        self._filled: list[bytes] = []
        self._bytes_left = self._limits.total_bytes
        self._given_files = _read_given(paths.base)
        self._changed_names = self._read_changed_names()

    def _read_changed_names(self) -> list[bytes] | None:
        """Return the only names that can have changed, by the upper layer; `None` if it is not known.

        What git makes of the folder of a submodule is not said by the names in it.
        """
        file = self._request["changed_names"]
        if file is None or self._given_files is None or self._given_files.submodules:
            return None
        return [name for name in Path(file).read_bytes().split(b"\x00") if name]

    def run(self) -> None:
        if self._changed_names is not None and not self._request["git_dir"]:
            self._send_given_repository()
        else:
            self._run_with_repository()
        self._frames.write(section="end")

    def _send_given_repository(self) -> None:
        """Write that commits and refs are as they were given, and the files."""
        self._frames.write(section="head", head=self._base)
        self._frames.write(section="changed", omitted=0, deleted=[], deleted_count=0)
        self._send_files()

    def _run_with_repository(self) -> None:
        reason = ""
        try:
            seconds = self._request["commits_seconds"]
            self._repository = AgentRepository(
                self._paths.tree, self._paths.scratch, self._access, seconds=seconds, digits=len(self._base)
            )
        except (GitError, OSError) as error:
            reason = str(error)
        if self._request["commits"]:
            self._send_head(self._repository, reason)
            if self._repository is not None:
                with named_if_lost(self._frames, "refs"):
                    self._send_refs(self._repository)
        staging = self._send_files()
        if self._request["commits"] and self._repository is not None:
            with named_if_lost(self._frames, "index"):
                self._send_forced(self._repository, staging)
            with named_if_lost(self._frames, "folders"):
                self._send_worktrees(self._repository)
        with named_if_lost(self._frames, "folders"):
            self._send_submodules()

    # --- commits and refs ------------------------------------------------------------------

    def _send_head(self, repository: AgentRepository | None, reason: str) -> None:
        if repository is None:
            self._frames.write(section="head", lost=reason[:MAX_REASON_LENGTH])
            return
        try:
            head = repository.head() or self._base
            if head != self._base:
                for pack in repository.pack_new([head], [self._base, *self._given()], self._request["limit"]):
                    self._frames.write_pack(pack, "head")
                    self._keep_sent(repository, pack)
        except (GitError, OSError) as error:
            shutil.rmtree(self._paths.scratch / _SENT_OBJECTS, ignore_errors=True)
            self._frames.write(section="head", lost=str(error)[:MAX_REASON_LENGTH])
            return
        self._head = head
        self._frames.write(section="head", head=head)

    def _given(self) -> list[str]:
        return [value.decode("ascii") for value in self._given_refs().values()]

    def _given_refs(self) -> dict[bytes, bytes]:
        """Return the refs that the job was given, by name; the service checks all that follows from them."""
        try:
            lines = Path(self._request["given_refs"]).read_bytes().split(b"\n")
        except OSError:
            return {}
        pairs = (line.partition(b" ") for line in lines if line and not line.startswith((b"#", b"^")))
        return {name: value for value, _, name in pairs}

    def _send_refs(self, repository: AgentRepository) -> None:
        given = self._given_refs()
        refs = repository.refs()
        own = os.fsencode(self._request["branch"])
        if refs.get(own) in {self._head.encode(), self._base.encode()}:
            given[own] = refs[own]
        has_stash = refs.pop(b"refs/stash", None) is not None
        changed = {name: value for name, value in refs.items() if given.get(name) != value}
        deleted = [name for name in given if name not in refs]
        saved: list[tuple[str, str, str]] = []  # kind, name, object id
        for name, value in sorted(changed.items())[:_MAX_REFS]:
            if name.startswith(b"refs/replace/"):
                refused = {"kind": "ref", "name": os.fsdecode(name), "id": value.decode("ascii")}
                self._frames.write(section="saved", **refused, lost="a replacement of an object is refused")
            else:
                saved.append(("ref", os.fsdecode(name), value.decode("ascii")))
        for number, value in enumerate(repository.stashes() if has_stash else ()):
            saved.append(("stash", f"stash@{{{number}}}", value.decode("ascii")))
        for worktree, folder in self._worktrees(repository):
            saved.append(("worktree", worktree, folder))
        self._frames.write(
            section="changed", omitted=max(0, len(changed) - _MAX_REFS),
            deleted=[os.fsdecode(name) for name in sorted(deleted)[:_MAX_REFS]], deleted_count=len(deleted),
        )  # fmt: skip
        self._index_tree_id = self._index_tree(repository)
        if self._index_tree_id is not None:
            saved.append(("index", "index", self._index_tree_id))
        self._pack_saved(repository, saved)

    def _worktrees(self, repository: AgentRepository) -> Iterable[tuple[str, str]]:
        """Return the commits of detached work trees, which no ref names."""
        for name, folder in list(repository.worktrees())[:_MAX_FOLDERS]:
            with contextlib.suppress(GitError):
                env = {**repository.env, "GIT_DIR": str(repository.git_dir / "worktrees" / name)}
                command = ("rev-parse", "--verify", "--quiet", "HEAD^{commit}")
                yield name, decode_line(git(*command, env=env, cwd=folder, seconds=repository.seconds))

    def _index_tree(self, repository: AgentRepository) -> str | None:
        """Return the tree of the index if it differs from HEAD's."""
        try:
            tree = repository.index_tree()
            command = ("rev-parse", "--verify", "--quiet", f"{self._head}^{{tree}}")
            head_tree = decode_line(git(*command, env=repository.reading_env, seconds=repository.seconds))
        except GitError as error:
            conflicts = repository.conflicts()
            reason = f"it has conflicts in {', '.join(conflicts)}" if conflicts else str(error)
            self._frames.write(section="lost", what="index", reason=reason[:MAX_REASON_LENGTH])
            return None
        return None if tree == head_tree else tree

    def _pack_saved(self, repository: AgentRepository, saved: Sequence[tuple[str, str, str]]) -> None:
        """Pack what these refs reach; if that fails, each for itself, and those that fail are named as lost."""
        given = [self._base, self._head, *self._given()]
        limit = self._request["limit"]
        groups = [list(saved)]
        while groups:
            group = groups.pop()
            try:
                for pack in repository.pack_new([value for _, _, value in group], given, limit):
                    self._frames.write_pack(pack, "refs")
            except (GitError, OSError) as error:
                if len(group) > 1:
                    groups += [[each] for each in reversed(group)]
                else:
                    kind, name, value = group[0]
                    reason = str(error)[:MAX_REASON_LENGTH]
                    self._frames.write(section="saved", kind=kind, name=name, id=value, lost=reason)
                continue
            for kind, name, value in group:
                self._frames.write(section="saved", kind=kind, name=name, id=value)

    # --- files -----------------------------------------------------------------------------

    def _send_files(self) -> Staging:
        staging = self._open_snapshot()
        try:
            self._vendor_submodules(staging)
            sparse = self._sparse_names()
            names = [
                name for name in self._names(staging) if name not in sparse and not self._is_excluded(name)
            ]
            for size, waiting in staging.stage(names):
                self._send_snapshot(staging, size, waiting)
        except GitError as error:
            self._frames.write(section="files", failed=str(error)[:MAX_REASON_LENGTH])
        for losses in losses_of(staging.losses):
            self._frames.write(section="losses", **losses)
        return staging

    def _names(self, staging: Staging) -> list[bytes]:
        """Return the changed names: of the whole tree, or of those that can have changed."""
        if self._changed_names is None or self._submodules:
            return staging.changed_names()
        names = set(self._changed_names)
        if self._head != self._base and self._repository is not None:
            names.update(self._repository.names_between(self._base, self._head))
        return staging.changed_among(sorted(names))

    def _open_snapshot(self) -> Staging:
        """Create a git directory without hooks, with the service's own copy of the filters and of the base's index."""
        folder, paths = self._snapshot, self._paths
        _make_snapshot(folder, paths.base, len(self._base))
        if (paths.tree / ".git" / "git-crypt").is_dir():
            (folder / "git-crypt").symlink_to(paths.tree / ".git" / "git-crypt")
        if self._head != self._base and self._repository is not None:
            objects = os.pathsep.join(each for each in (str(self._repository.objects), paths.objects) if each)
            git(
                "read-tree", f"--index-output={folder / 'index'}", "-i", "-m", self._base, self._head,
                env={"GIT_DIR": str(folder), "GIT_ALTERNATE_OBJECT_DIRECTORIES": objects},
            )  # fmt: skip
        env = {"GIT_DIR": str(folder), "GIT_WORK_TREE": str(paths.tree)}
        # Under `text=auto` git looks into the blob of the index before it changes the ends of lines.
        env["GIT_ALTERNATE_OBJECT_DIRECTORIES"] = os.pathsep.join(self._sent_objects())
        skipped = [] if self._repository is None else self._repository.moved_into()
        return Staging(
            paths.tree, env, paths.scratch, self._limits, self._access,
            given=self._given_files, skipped=skipped,
        )  # fmt: skip

    def _sparse_names(self) -> set[bytes]:
        """Return the names that a sparse checkout took away: nobody deleted them."""
        try:
            names = self._repository.sparse_names() if self._repository is not None else set()
        except GitError:
            return set()
        return {name for name in names if not os.path.lexists(self._paths.tree / os.fsdecode(name))}

    def _sent_objects(self) -> list[str]:
        """Return the folders of objects that the service has: what is staged and is in them is not sent again."""
        sent = self._paths.scratch / _SENT_OBJECTS
        return [each for each in (self._paths.objects, str(sent) if sent.is_dir() else "") if each]

    def _keep_sent(self, repository: AgentRepository, pack: Path) -> None:
        """Keep the objects of a pack that was sent readable; one that is large is not worth the time."""
        if pack.stat().st_size > _SENT_BYTES:
            return
        folder = self._paths.scratch / _SENT_OBJECTS / "pack"
        folder.mkdir(parents=True, exist_ok=True)
        copy = folder / f"pack-{len(list(folder.iterdir()))}.pack"
        shutil.copyfile(pack, copy)
        with contextlib.suppress(GitError):
            git("index-pack", str(copy), env=repository.reading_env, seconds=repository.seconds)

    def _is_excluded(self, name: bytes) -> bool:
        return bool(self._request["without_gitmodules"]) and b"gitmod" in name.rpartition(b"/")[2].lower()

    def _vendor_submodules(self, staging: Staging) -> None:
        """Let files take the place of a submodule that the agent dropped from its index."""
        self._submodules = staging.submodules(from_index=self._head != self._base)
        self._given_submodules = staging.given_submodules()
        filled = [path for path in self._submodules if _is_filled(self._paths.tree / os.fsdecode(path))]
        if not filled:
            return
        try:
            entries = self._repository.index_entries() if self._repository is not None else {}
        except GitError:
            entries = {}
        if entries:
            staging.replace_by_files([path for path in filled if entries.get(path) != GITLINK])
        self._filled = [path for path in filled if not entries or entries.get(path) == GITLINK]

    def _send_snapshot(self, staging: Staging, size: int, waiting: Sequence[bytes]) -> None:
        """Write the new objects of the snapshot and its tree, and forget them."""
        env = staging.env
        tree = decode_line(git("write-tree", "--missing-ok", env=env))
        self._frames.write(section="progress", bytes=size)
        own = {**env, "GIT_ALTERNATE_OBJECT_DIRECTORIES": ""}
        command = ("cat-file", "--batch-all-objects", "--unordered", "--batch-check=%(objectname)")
        listing = git(*command, env=own)
        if listing:
            limit = 4 * self._limits.total_bytes
            for pack in pack_parts(
                listing, env, self._paths.tree, self._paths.scratch, limit=limit, seconds=_FILES_SECONDS
            ):
                self._frames.write_pack(pack, "files")
            _remove_objects(self._snapshot / "objects")
        named = [os.fsdecode(name)[:MAX_REASON_LENGTH] for name in waiting[:_MAX_NAMED]]
        self._frames.write(section="files", tree=tree, waiting=named, count=len(waiting))

    # --- beside the tree -------------------------------------------------------------------

    def _scratch_env(self, repository: AgentRepository, tree: Path, index: Path) -> dict[str, str]:
        """Return the environment of an index beside the snapshot's: it reads the agent's objects and changes none."""
        env = {
            **repository.reading_env,
            "GIT_DIR": str(self._snapshot),
            "GIT_OBJECT_DIRECTORY": str(repository.own_objects),
        }
        return {**env, "GIT_WORK_TREE": str(tree), "GIT_INDEX_FILE": str(index)}

    def _send_forced(self, repository: AgentRepository, staging: Staging) -> None:
        """Write the tree of the index with the files on disk that only the index has, if they differ."""
        if self._index_tree_id is None:
            return
        kept = staging.entries()
        names = [
            name for name, mode in repository.index_entries().items() if mode != GITLINK and name not in kept
        ]
        if not names:
            return
        env = self._scratch_env(repository, self._paths.tree, repository.index_copy)
        forced = self._staging(self._paths.tree, env)
        for size, _ in forced.stage(
            [name for name in names if _is_file(self._paths.tree / os.fsdecode(name))]
        ):
            self._frames.write(section="progress", bytes=size)
        tree = decode_line(git("write-tree", env=env))
        if tree != self._index_tree_id:
            self._pack_saved(repository, [("forced", "forced", tree)])

    def _staging(self, tree: Path, env: Mapping[str, str]) -> Staging:
        limits = self._limits._replace(total_bytes=self._bytes_left)
        return Staging(tree, env, self._paths.scratch, limits, self._access)

    def _send_worktrees(self, repository: AgentRepository) -> None:
        for number, (name, folder) in enumerate(list(repository.worktrees())[:_MAX_FOLDERS]):
            index = self._paths.scratch / f"worktree-{number}.index"
            with contextlib.suppress(OSError):
                shutil.copyfile(repository.git_dir / "worktrees" / name / "index", index)
            own = {**repository.env, "GIT_DIR": str(repository.git_dir / "worktrees" / name)}
            head = decode_line(git("rev-parse", "--verify", "--quiet", "HEAD^{commit}", env=own, cwd=folder))
            env = self._scratch_env(repository, folder, index)
            tree = self._stage_folder(folder, env)
            given = [self._base, self._head, head, *self._given()]
            self._send_folder(repository, "worktree", name, tree, given, parent=head)

    def _stage_folder(self, folder: Path, env: Mapping[str, str]) -> str:
        staging = self._staging(folder, env)
        for size, _ in staging.stage(staging.changed_names()):
            self._bytes_left -= size
            self._frames.write(section="progress", bytes=size)
        for losses in losses_of(staging.losses, os.fsencode(folder) + b"/"):
            self._frames.write(section="losses", **losses)
        return decode_line(git("write-tree", "--missing-ok", env=env))

    def _send_folder(
        self,
        repository: AgentRepository,
        kind: str,
        name: str,
        tree: str,
        given: Sequence[str],
        *,
        parent: str,
    ) -> None:
        for pack in repository.pack_new([tree], given, self._request["limit"]):
            self._frames.write_pack(pack, "refs")
        self._frames.write(section="folder", kind=kind, name=name, tree=tree, parent=parent)

    def _send_submodules(self) -> None:
        """Write the files in the folders of submodules, whose place in the tree the submodule has."""
        for number, path in enumerate(self._filled[:_MAX_FOLDERS]):
            folder = self._paths.tree / os.fsdecode(path)
            git_dir = self._paths.scratch / f"submodule-{number}.git"
            make_git_dir(git_dir, len(self._base))
            env = {
                "GIT_DIR": str(git_dir),
                "GIT_WORK_TREE": str(folder),
                "GIT_INDEX_FILE": str(git_dir / "index"),
            }
            head = self._send_submodule_commits(folder, path, git_dir / "commits")
            if self._is_as_given(folder, self._submodules[path], env):
                continue
            tree = self._stage_folder(folder, env)
            if not head and os.path.lexists(folder / ".git"):
                named = losses_of(Losses(nested=(path + b"/",)))
                self._frames.write(section="losses", **named[0])
            listing = git(
                "cat-file", "--batch-all-objects", "--unordered", "--batch-check=%(objectname)", env=env
            )
            limit = 4 * self._limits.total_bytes
            for pack in pack_parts(
                listing, env, folder, self._paths.scratch, limit=limit, seconds=_FILES_SECONDS
            ):
                self._frames.write_pack(pack, "refs")
            self._frames.write(
                section="folder", kind="submodule", name=os.fsdecode(path), tree=tree, parent=head
            )

    def _send_submodule_commits(self, folder: Path, path: bytes, scratch: Path) -> str:
        """Write the commits of the repository in a submodule's folder; return its HEAD, or an empty text.

        The service has no object of a submodule, so its whole history comes along, unless its HEAD is as it was given.
        """
        if not os.path.lexists(folder / ".git"):
            return ""
        scratch.mkdir()
        seconds = self._request["commits_seconds"]
        try:
            repository = AgentRepository(
                folder, scratch, self._access, seconds=seconds, digits=len(self._base)
            )
            head = repository.head()
        except (GitError, OSError):
            return ""
        if head is None or head.encode() == self._given_submodules.get(path):
            return ""
        self._pack_saved(repository, [("submodule", os.fsdecode(path), head)])
        return head

    def _is_as_given(self, folder: Path, commit: bytes, env: Mapping[str, str]) -> bool:
        """Return true if a folder is a clean checkout of a submodule's commit; the index is empty again afterwards."""
        own = {"GIT_DIR": str(folder / ".git")}
        try:
            head = git("rev-parse", "--verify", "--quiet", "HEAD^{commit}", env=own, cwd=folder).strip()
            objects = folder / decode_line(git("rev-parse", "--git-path", "objects", env=own, cwd=folder))
            reading = {**env, "GIT_ALTERNATE_OBJECT_DIRECTORIES": str(objects)}
            git("read-tree", commit.decode("ascii"), env=reading, cwd=folder)
            changed = self._staging(folder, reading).changed_names()
        except GitError:
            return False
        finally:
            Path(env["GIT_INDEX_FILE"]).unlink(missing_ok=True)
        return head == commit and not changed


def _make_snapshot(folder: Path, base: Path, digits: int) -> None:
    """Create a git directory without hooks, with the service's own copy of the index and of the setup's filters."""
    filters = b""
    if (base / "filters").is_file():
        filters = (base / "filters").read_bytes()
    make_git_dir(folder, digits, filters)
    if filters or (base / "exclude").is_file():
        shutil.copyfile(base / "exclude", folder / "info" / "exclude")
    shutil.copy2(base / "index", folder / "index")


def _read_given(base: Path) -> Given | None:
    try:
        return Given.parse((base / "given").read_bytes())
    except OSError:
        return None  # an older release made the checkout


def _is_filled(folder: Path) -> bool:
    try:
        return folder.is_dir() and not folder.is_symlink() and next(os.scandir(folder), None) is not None
    except OSError:
        return False


def _is_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _remove_objects(objects: Path) -> None:
    for folder in objects.iterdir():
        if folder.name not in {"info", "pack"}:
            shutil.rmtree(folder, ignore_errors=True)
