"""Pack what an agent's own repository has and the job was not given, inside the sandbox. Standard library only.

It is a part of the program that `sandboxed_git_client` sends into the sandbox.
"""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from steadyhand.workspace.sandboxed_command import MIB, GitError, decode_line, git
from steadyhand.workspace.sandboxed_files import Access, make_git_dir

PART_BYTES = 64 * MIB
"""The size of the objects of one pack; a larger object is a pack of its own."""
COMMITS_SECONDS = 12.0
"""The time limit of one git command in the agent's own `.git`; each MiB of a pack adds a second."""
_MAX_NEGATIVE = 2000
_MAX_LISTED = 5_000_000
_MAX_STASHES = 50


class AgentRepository:
    """The agent's own `.git`, wherever it was moved to. Raise `GitError` if there is none that git can read."""

    def __init__(self, tree: Path, scratch: Path, access: Access, *, seconds: float, digits: int) -> None:
        self.seconds = seconds
        self._tree = tree
        self._scratch = scratch
        for folder in _git_dirs(tree):
            access.open_git_dir(folder)
        self.env: dict[str, str] = {"GIT_DIR": str(tree / ".git"), "GIT_GRAFT_FILE": os.devnull}
        git_dir = Path(self._line("rev-parse", "--absolute-git-dir"))
        self.env["GIT_DIR"] = str(git_dir)
        self.git_dir = git_dir
        self._clean = scratch / "clean.git"
        make_git_dir(self._clean, digits)
        self.objects = tree / self._line("rev-parse", "--git-path", "objects")

    @property
    def reading_env(self) -> dict[str, str]:
        """The environment that reads the agent's objects and nothing else of its `.git`: no filter of it can run."""
        return {
            **self.env,
            "GIT_DIR": str(self._clean),
            "GIT_WORK_TREE": str(self._tree),
            "GIT_ALTERNATE_OBJECT_DIRECTORIES": str(self.objects),
        }

    @property
    def own_objects(self) -> Path:
        """The folder for objects that are made beside the agent's."""
        return self._clean / "objects"

    def _line(self, *arguments: str) -> str:
        out = git(*arguments, env=self.env, cwd=self._tree, seconds=self.seconds)
        return os.fsdecode(out.removesuffix(b"\n"))

    def moved_into(self) -> list[bytes]:
        """Return the folder of the tree that is the git directory now, if it was moved to one."""
        tree, git_dir = self._tree.resolve(), self.git_dir.resolve()
        if git_dir == tree / ".git" or not git_dir.is_relative_to(tree):
            return []
        return [os.fsencode(git_dir.relative_to(tree)) + b"/"]

    # --- reading ---------------------------------------------------------------------------

    def head(self) -> str | None:
        """Return the commit that is checked out; `None` on a branch without a commit. Raise `GitError`."""
        try:
            return self._line("rev-parse", "--verify", "--quiet", "HEAD^{commit}")
        except GitError:
            target = self._line("symbolic-ref", "--quiet", "HEAD")
            if git(
                "for-each-ref",
                "--format=%(objectname)",
                target,
                env=self.env,
                cwd=self._tree,
                seconds=self.seconds,
            ):
                raise GitError("HEAD names no commit") from None
            return None

    def refs(self) -> dict[bytes, bytes]:
        """Return every ref with its object id."""
        out = git(
            "for-each-ref",
            "--format=%(objectname) %(refname)",
            env=self.env,
            cwd=self._tree,
            seconds=self.seconds,
        )
        pairs = (line.partition(b" ") for line in out.split(b"\n") if line)
        return {name: value for value, _, name in pairs}

    def names_between(self, one: str, other: str) -> list[bytes]:
        """Return the paths in which two commits differ; no file of the tree is read."""
        command = ("diff-tree", "-r", "-z", "--name-only", "--no-renames", one, other, "--")
        out = git(*command, env=self.reading_env, cwd=self._tree, seconds=self.seconds)
        return [name for name in out.split(b"\x00") if name]

    def stashes(self) -> list[bytes]:
        """Return the stashed commits, the newest first."""
        command = ("log", "--walk-reflogs", "--format=%H", f"--max-count={_MAX_STASHES}", "refs/stash", "--")
        return git(*command, env=self.env, cwd=self._tree, seconds=self.seconds).split()

    def index_tree(self) -> str | None:
        """Return the tree of the agent's index; `None` if there is no index. Raise `GitError` during a merge."""
        index = self.git_dir / "index"
        if not index.is_file():
            return None
        shutil.copyfile(index, self.index_copy)
        env = {**self.reading_env, "GIT_INDEX_FILE": str(self.index_copy)}
        return decode_line(git("write-tree", env=env, cwd=self._tree, seconds=self.seconds))

    @property
    def index_copy(self) -> Path:
        """The copy of the agent's index that `index_tree` makes."""
        return self._scratch / "agent.index"

    def index_entries(self) -> dict[bytes, bytes]:
        """Return the mode of each entry of the agent's index, by name."""
        return {name: mode for name, (_, mode) in self._tagged_entries().items()}

    def sparse_names(self) -> set[bytes]:
        """Return the names that a sparse checkout of the agent leaves out of the tree."""
        if not (self.git_dir / "info" / "sparse-checkout").is_file():
            return set()
        return {name for name, (tag, _) in self._tagged_entries().items() if tag == b"S"}

    def _tagged_entries(self) -> dict[bytes, tuple[bytes, bytes]]:
        index = self.git_dir / "index"
        if not index.is_file():
            return {}
        shutil.copyfile(index, self.index_copy)
        env = {**self.reading_env, "GIT_INDEX_FILE": str(self.index_copy)}
        entries = {}
        out = git("ls-files", "-z", "--stage", "-t", env=env, cwd=self._tree, seconds=self.seconds)
        for line in out.split(b"\x00"):
            head, _, name = line.partition(b"\t")
            if name:
                tag, mode = head.split()[:2]
                entries[name] = (tag, mode)
        return entries

    def conflicts(self) -> list[str]:
        """Return the paths of the agent's index that a merge left in conflict."""
        env = {**self.reading_env, "GIT_INDEX_FILE": str(self.index_copy)}
        try:
            out = git("ls-files", "-z", "--unmerged", env=env, cwd=self._tree, seconds=self.seconds)
        except GitError:
            return []
        names = {line.partition(b"\t")[2]: True for line in out.split(b"\x00") if line}
        return [os.fsdecode(name) for name in names]

    def worktrees(self) -> Iterator[tuple[str, Path]]:
        """Return each work tree that was added: its name in the repository and its folder."""
        for folder in sorted((self.git_dir / "worktrees").glob("*")):
            try:
                path = Path(os.fsdecode((folder / "gitdir").read_bytes().rstrip(b"\n"))).parent
            except OSError:
                continue
            if path.is_dir():
                yield folder.name, path

    # --- packing ---------------------------------------------------------------------------

    def pack_new(self, tips: Sequence[str], given: Sequence[str], limit: int) -> Iterator[Path]:
        """Pack what the tips reach and the given commits do not, in parts. Raise `GitError` above `limit` bytes."""
        env = self.reading_env
        lines = [*tips, *(f"^{commit}" for commit in given[:_MAX_NEGATIVE])]
        listing = git(
            "rev-list", "--objects", "--ignore-missing", "--stdin",
            stdin="".join(f"{line}\n" for line in lines).encode(), env=env, cwd=self._tree, seconds=self.seconds,
        )  # fmt: skip
        if not listing:
            return
        yield from pack_parts(listing, env, self._tree, self._scratch, limit=limit, seconds=self.seconds)


def pack_parts(
    listing: bytes, env: Mapping[str, str], cwd: Path, scratch: Path, *, limit: int, seconds: float
) -> Iterator[Path]:
    """Pack listed objects: blobs first, in parts, then all that refers to them. Each pack is gone at the next one."""
    ids = b"".join(line.partition(b" ")[0] + b"\n" for line in listing.split(b"\n") if line)
    command = ("cat-file", "--batch-check=%(objectname) %(objecttype) %(objectsize:disk)")
    checked = git(*command, stdin=ids, env=env, cwd=cwd, seconds=seconds)
    groups = list(_group(listing, checked, limit))
    for group, size in groups:
        pack = scratch / "part.pack"
        allowed = seconds + size / MIB
        git(
            "pack-objects", "--quiet", "--stdout",
            stdin=b"".join(group), stdout_file=pack, env=env, cwd=cwd, seconds=allowed,
        )  # fmt: skip
        if pack.stat().st_size > 2 * limit:
            raise GitError(f"it is larger than {limit // MIB} MiB")
        yield pack
        pack.unlink()


def _group(listing: bytes, checked: bytes, limit: int) -> Iterator[tuple[list[bytes], int]]:
    """Group the lines of objects for one pack each, with their size on disk."""
    lines = [line for line in listing.split(b"\n") if line]
    infos = [line.split() for line in checked.split(b"\n") if line]
    blobs: list[tuple[bytes, int]] = []
    others: list[tuple[bytes, int]] = []
    for line, info in zip(lines, infos, strict=True):
        if len(info) != 3:  # noqa: PLR2004  # id, type, size; else it is missing
            raise GitError("an object is missing")
        (blobs if info[1] == b"blob" else others).append((line + b"\n", int(info[2])))
    total = sum(size for _, size in (*blobs, *others))
    if total > limit:
        raise GitError(f"it is larger than {limit // MIB} MiB")
    group: list[bytes] = []
    size = 0
    for line, line_size in blobs:
        if group and size + line_size > PART_BYTES:
            yield group, size
            group, size = [], 0
        group.append(line)
        size += line_size
    rest = sum(line_size for _, line_size in others)
    if group and size + rest > PART_BYTES:
        yield group, size
        group, size = [], 0
    group += [line for line, _ in others]
    if group:
        yield group, size + rest


def _git_dirs(tree: Path) -> Iterator[Path]:
    """Return `.git`, and the folder that it names if it is a file."""
    path = tree / ".git"
    yield path
    try:
        text = path.read_bytes()[:4096] if path.is_file() else b""
    except OSError:
        return
    if text.startswith(b"gitdir: "):
        yield tree / os.fsdecode(text.removeprefix(b"gitdir: ").rstrip(b"\n"))
