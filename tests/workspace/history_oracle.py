"""What a harvest has to hold, read from a plain clone in which the same history was played.

The clone is read as root and with the service's own git directory over its files, as the harvest's contract has it: the
tree is HEAD's and every change that .gitignore does not hide; a file whose bytes and mode are as they were given keeps
its entry; a repository in the repository is its files, and a submodule is its HEAD.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha1
from pathlib import Path
from tempfile import mkdtemp

from tests.workspace.history_bases import JOB_BRANCH, Base, Snapshot, take_snapshot
from tests.workspace.history_git import Entry, Environment, git, read_entries, read_refs, succeeds

GITLINK = b"160000"


@dataclass(frozen=True, slots=True)
class Inner:
    """A worktree or a submodule, which has a state of its own: its HEAD, and the entries that differ from it."""

    name: bytes
    head: str | None
    changed: Mapping[bytes, Entry]


@dataclass(slots=True)
class Expected:
    """What a harvest has to hold."""

    head: str
    """HEAD's commit; the base's if the repository has no HEAD any more."""
    is_repository: bool
    tree: dict[bytes, Entry] = field(default_factory=dict)
    committed: dict[bytes, Entry] = field(default_factory=dict)
    """The entries of HEAD whose files have these very bytes: they may stay, whatever attributes make of them."""
    raw: set[bytes] = field(default_factory=set)
    """Files that git cannot encode: their bytes are kept as they are."""
    refs: dict[str, str] = field(default_factory=dict)
    stash: Sequence[str] = ()
    index_tree: str | None = None
    nested: set[bytes] = field(default_factory=set)
    worktrees: list[Inner] = field(default_factory=list)
    submodules: list[Inner] = field(default_factory=list)


def expect(base: Base, plain: Path, scratch: Path) -> Expected:
    """Return what a harvest of this clone has to hold; `scratch` is an empty folder."""
    git_dir = _git_dir_of(plain / ".git")
    head = _head_of(plain)
    expected = Expected(head or base.commit, is_repository=git_dir is not None)
    if git_dir is not None:
        expected.refs = read_refs(git_dir)
        expected.stash = _stash_of(plain, git_dir)
        expected.index_tree = _index_tree(plain, git_dir, scratch)
        expected.worktrees.extend(_worktrees(base, git_dir, scratch))
    _read_tree(expected, base, plain, git_dir, scratch)
    return expected


def _git_dir_of(path: Path) -> Path | None:
    """Return the git directory that a `.git` is or names; None if it is none."""
    if path.is_file():
        try:
            target = path.read_text(encoding="utf-8").removeprefix("gitdir: ").rstrip("\n")
        except UnicodeDecodeError:
            return None
        path = (path.parent / target).resolve()
    return path if (path / "HEAD").is_file() else None


def _stash_of(plain: Path, git_dir: Path) -> Sequence[str]:
    log = git(
        "log", "-g", "--format=%H", "refs/stash", "--", cwd=plain, env={"GIT_DIR": git_dir}, check=False
    )
    return log.decode().split()


def _index_tree(plain: Path, git_dir: Path, scratch: Path) -> str | None:
    """Return the tree of the agent's own index; None if it has none, or if a merge left it unfinished."""
    try:
        content = (git_dir / "index").read_bytes()
    except OSError:
        return None
    (scratch / "index").write_bytes(content)
    env = {"GIT_DIR": git_dir, "GIT_INDEX_FILE": scratch / "index", "GIT_OBJECT_DIRECTORY": scratch}
    env["GIT_ALTERNATE_OBJECT_DIRECTORIES"] = git_dir / "objects"
    return git("write-tree", "--missing-ok", cwd=plain, check=False, env=env).decode().strip() or None


def _read_tree(expected: Expected, base: Base, plain: Path, git_dir: Path | None, scratch: Path) -> None:
    store = scratch / "oracle.git"
    _make_store(store, [base.pristine / "objects", *([] if git_dir is None else [git_dir / "objects"])])
    env = {"GIT_DIR": store, "GIT_WORK_TREE": plain}
    git("read-tree", expected.head, cwd=plain, env=env)
    entries = read_entries(git("ls-files", "-s", "-z", cwd=plain, env=env))
    own = (
        {}
        if git_dir is None
        else read_entries(git("ls-files", "-s", "-z", cwd=plain, env={"GIT_DIR": git_dir}, check=False))
    )
    skipped = _read_inner(expected, plain, entries, own, scratch)
    files = take_snapshot(plain, frozenset(skipped))
    kept = _without_ignored(files, entries, plain, env)
    sparse = set() if git_dir is None else _sparse(plain, git_dir)
    stays = {path for path, entry in skipped.items() if entry is not None} | sparse
    gone = [path for path in entries if path not in kept and path not in stays]
    changed = [
        path for path in kept
        if not (files[path] == base.given.get(path) and entries.get(path) == base.entries.get(path))
    ]  # fmt: skip
    links = [path for path, entry in skipped.items() if entry is not None and entry != entries.get(path)]
    git("update-index", "--force-remove", "-z", "--stdin", cwd=plain, stdin=_nul_terminated(gone), env=env)
    expected.raw = _add(changed, files, plain, env)
    expected.committed = _committed(changed, entries, plain)
    for path in links:
        entry = skipped[path]
        if entry is not None:
            text = os.fsdecode(path)
            git(
                "update-index",
                "--add",
                "--cacheinfo",
                f"160000,{entry[1].decode()},{text}",
                cwd=plain,
                env=env,
            )
    expected.tree = read_entries(git("ls-files", "-s", "-z", cwd=plain, env=env))


def _read_inner(
    expected: Expected,
    plain: Path,
    entries: Mapping[bytes, Entry],
    own: Mapping[bytes, Entry],
    scratch: Path,
) -> dict[bytes, Entry | None]:
    """Return the folders whose files are not the tree's: worktrees, and submodules with their entry."""
    skipped: dict[bytes, Entry | None] = {}
    for path, entry in entries.items():
        folder = plain / os.fsdecode(path)
        if entry[0] != GITLINK or folder.is_symlink() or not folder.is_dir():
            continue
        head = _head_of(folder)
        if take_snapshot(folder) and own and own.get(path, (b"", b""))[0] != GITLINK:
            continue  # vendored: its files stand in its place
        skipped[path] = entry if head is None else (GITLINK, head.encode())
        expected.submodules.append(_inner(path, folder, {}, scratch))
    for folder_name, folders, names in os.walk(os.fsencode(plain)):
        where = os.path.relpath(folder_name, os.fsencode(plain))
        if where != b"." and b".git" in (*folders, *names) and where not in skipped:
            dot_git = plain / os.fsdecode(where) / ".git"
            git_dir = _git_dir_of(
                dot_git
            )  # None if the repository of a worktree is gone: then it is a folder
            if git_dir is not None and dot_git.is_file() and git_dir.parent.name == "worktrees":
                skipped[where] = None
            elif git_dir is not None:
                expected.nested.add(where)
        prefix = b"" if where == b"." else where + b"/"
        folders[:] = [name for name in folders if name != b".git" and prefix + name not in skipped]
    return skipped


def _worktrees(base: Base, git_dir: Path, scratch: Path) -> Iterable[Inner]:
    """Yield the other worktrees of a repository, wherever they are."""
    for note in sorted(git_dir.glob("worktrees/*/gitdir")):
        folder = Path(note.read_text(encoding="utf-8").rstrip("\n")).parent
        if folder.is_dir():
            yield _inner(os.fsencode(folder.name), folder, base.given, scratch)


def _inner(name: bytes, folder: Path, given: Snapshot, scratch: Path) -> Inner:
    """Return the state of a folder beside its HEAD, without files that are as they were given."""
    git_dir, head = _git_dir_of(folder / ".git"), _head_of(folder)
    store = Path(mkdtemp(dir=scratch))
    others = [] if git_dir is None else [_common_dir(git_dir) / "objects"]
    _make_store(store, others)
    env = {"GIT_DIR": store, "GIT_WORK_TREE": folder}
    if head is not None:
        git("read-tree", head, cwd=folder, env=env)
    before = read_entries(git("ls-files", "-s", "-z", cwd=folder, env=env))
    files = take_snapshot(folder)
    _add(sorted(_without_ignored(files, before, folder, env)), files, folder, env)
    after = read_entries(git("ls-files", "-s", "-z", cwd=folder, env=env))
    # Of a worktree, whose ends of lines may be its own configuration's, it is what that takes for a change.
    dirty = _dirty(folder, git_dir) if git_dir is not None and given else None
    changed = {
        path: entry for path, entry in after.items()
        if entry != before.get(path) and (path not in files or files[path] != given.get(path))
        and (dirty is None or path in dirty)
    }  # fmt: skip
    return Inner(name, head, changed)


def _dirty(folder: Path, git_dir: Path) -> set[bytes]:
    """Return the files that a repository itself, by its own configuration, takes for changed or new."""
    command = ("ls-files", "-z", "-m", "-o", "--exclude-standard")
    env = {"GIT_DIR": git_dir, "GIT_WORK_TREE": folder}
    listing = git(*command, cwd=folder, env=env, check=False) + git(
        "diff-index", "--cached", "--name-only", "-z", "HEAD", "--", cwd=folder, env=env, check=False
    )
    return set(listing.split(b"\0"))


def _common_dir(git_dir: Path) -> Path:
    note = git_dir / "commondir"
    return (git_dir / note.read_text(encoding="utf-8").strip()).resolve() if note.is_file() else git_dir


def _make_store(store: Path, others: Iterable[Path]) -> None:
    """Write a git directory of one's own by hand, which reads the objects of others."""
    for name in ("objects/info", "refs"):
        (store / name).mkdir(parents=True)
    (store / "HEAD").write_text("ref: refs/heads/none\n", encoding="ascii")
    (store / "config").write_text(
        "[core]\n\trepositoryformatversion = 0\n\tfilemode = true\n", encoding="ascii"
    )
    (store / "objects/info/alternates").write_text("".join(f"{each}\n" for each in others), encoding="utf-8")


def _head_of(folder: Path) -> str | None:
    """Return HEAD's commit of the repository in a folder."""
    git_dir = _git_dir_of(folder / ".git")
    if git_dir is None:
        return None
    found = git(
        "rev-parse", "-q", "--verify", "HEAD^{commit}", cwd=folder, env={"GIT_DIR": git_dir}, check=False
    )
    return found.decode().strip() or None


def _without_ignored(
    files: Snapshot, entries: Mapping[bytes, Entry], plain: Path, env: Environment
) -> set[bytes]:
    untracked = [path for path in files if path not in entries]
    stdin = _nul_terminated(untracked)
    ignored = git("check-ignore", "-z", "--no-index", "--stdin", cwd=plain, stdin=stdin, check=False, env=env)
    return set(files) - set(ignored.split(b"\0"))


def _add(paths: Sequence[bytes], files: Snapshot, plain: Path, env: Environment) -> set[bytes]:
    """Add files to the index; return those that git cannot encode, which are added as they are."""
    add = ("update-index", "--add", "--replace", "-z", "--stdin")
    if succeeds(*add, cwd=plain, stdin=_nul_terminated(paths), env=env):
        return set()
    raw = set()
    for path in paths:
        if not succeeds(*add, cwd=plain, stdin=_nul_terminated([path]), env=env):
            name = os.fsdecode(path)
            blob = (
                git("hash-object", "-w", "--no-filters", "--", f"./{name}", cwd=plain, env=env)
                .decode()
                .strip()
            )
            entry = f"{files[path][0]:o},{blob},{name}"
            git("update-index", "--add", "--replace", "--cacheinfo", entry, cwd=plain, env=env)
            raw.add(path)
    return raw


def _sparse(plain: Path, git_dir: Path) -> set[bytes]:
    """Return the paths that a sparse checkout left out: they are not there, and nobody deleted them."""
    if not (git_dir / "info" / "sparse-checkout").is_file():
        return set()
    listing = git("ls-files", "-t", "-z", cwd=plain, env={"GIT_DIR": git_dir}, check=False)
    return {line[2:] for line in listing.split(b"\0") if line.startswith(b"S ")}


def _committed(paths: Iterable[bytes], entries: Mapping[bytes, Entry], plain: Path) -> dict[bytes, Entry]:
    """Return the entries whose blobs are the bytes of their files."""
    found = {}
    for path in paths:
        entry, file = entries.get(path), plain / os.fsdecode(path)
        if (
            entry is not None
            and entry[0] in (b"100644", b"100755")
            and file.is_file()
            and not file.is_symlink()
        ):
            content = file.read_bytes()
            blob = sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest().encode()
            if blob == entry[1]:
                found[path] = entry
    return found


def _nul_terminated(paths: Iterable[bytes]) -> bytes:
    return b"".join(path + b"\0" for path in paths)


def changed_refs(base: Base, expected: Expected) -> Iterable[tuple[str, str | None, str | None]]:
    """Return each ref that the history made, moved or deleted, with its values before and after."""
    before = base.plain_refs
    own = f"refs/heads/{JOB_BRANCH}"
    for name in sorted({*before, *expected.refs}):
        old, new = before.get(name), expected.refs.get(name)
        is_own = name == own and new in (base.commit, expected.head)
        if old != new and name != "refs/stash" and not is_own:
            yield name, old, new
