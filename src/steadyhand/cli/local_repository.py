"""The git repository that `run` works on: its state, and its uncommitted changes as a commit to send along.

Git runs as the user, with the user's own configuration, but without hooks and file system monitors: the repository
may be somebody else's.
"""

import os
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from shutil import copyfile

from steadyhand.cli.sanitize import one_line
from steadyhand.errors import InvalidRequest

MAX_FILES = 10_000
"""The most files that are taken along."""
MAX_FILE_BYTES = 64 * 1024 * 1024
"""The most bytes of these files together, before they are packed."""
MAX_PACK_BYTES = 5 * 1024 * 1024
"""The most bytes of their pack: the service takes a request of 8 MiB, and base64 adds a third."""
_MAX_STATUS_BYTES = 8 * 1024 * 1024
_STATUS_SECONDS = 60.0
_PACK_SECONDS = 120.0
_MESSAGE = b"Uncommitted changes\n"
_AUTHOR = {
    f"GIT_{role}_{field}": value
    for role in ("AUTHOR", "COMMITTER")
    for field, value in (("NAME", "Steadyhand"), ("EMAIL", "steadyhand@localhost"))
}
_CONFIG = (
    "core.fsmonitor=false",
    f"core.hooksPath={os.devnull}",
    "core.quotePath=false",
    "core.safecrlf=false",
)
_OWN_VARIABLES = (
    "GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX", "GIT_OBJECT_DIRECTORY",
    "GIT_ALTERNATE_OBJECT_DIRECTORIES", "GIT_NAMESPACE", "GIT_CEILING_DIRECTORIES",
)  # fmt: skip
"""Variables of a git hook around this command; they name another repository."""


class GitFailed(Exception):  # the result of git, which callers translate
    """A git command failed; the text is its reason."""


@dataclass(frozen=True, slots=True)
class ChangedFile:
    """A file that differs from the commit: its path from the top, and one letter as `git status` prints it."""

    path: bytes
    letter: str

    @property
    def name(self) -> str:
        """The path as one line of text."""
        return one_line(os.fsdecode(self.path), 200)


@dataclass(frozen=True, slots=True)
class RepositoryState:
    """A repository and what is not committed in it; `branch` is `None` if HEAD is detached."""

    root: Path
    commit: str
    branch: str | None
    subject: str
    is_bare: bool = False
    files: tuple[ChangedFile, ...] = ()
    conflicts: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    """Repositories inside it and the uncommitted work of submodules, which cannot be taken along."""

    @property
    def position(self) -> str:
        """The branch and the commit, for messages."""
        commit = self.commit[:12]
        return f"{one_line(self.branch, 80)} at {commit}" if self.branch else f"{commit} (HEAD is detached)"


@dataclass(frozen=True, slots=True)
class PackedChanges:
    """Uncommitted changes as a commit, and the pack of all that the service may lack; `base` is what it must have."""

    base: str
    commit: str
    pack: bytes
    unpushed: int = 0
    """The number of commits in the pack that are in no remote-tracking branch."""


def read_state(path: Path) -> RepositoryState | None:
    """Return the state of the repository at or around `path`; `None` if git is missing or refuses to read it.

    Raise `InvalidRequest` if there is no repository, or one without a commit; the text names the remedy.
    """
    try:
        inside = _line(path, "rev-parse", "--is-inside-work-tree") == "true"
        root = Path(_line(path, "rev-parse", "--show-toplevel")) if inside else path
    except GitFailed as error:
        if "not a git repository" in str(error):
            raise InvalidRequest(
                f"{one_line(path)} is not in a git repository, and an agent works on a commit. Make it one: "
                "git init && git add . && git commit -m 'First commit'"
            ) from error
        return None
    except FileNotFoundError:  # git
        return None
    if root != path and inside and not _tracks_anything(path):
        raise InvalidRequest(
            f"{one_line(path)} is not part of the repository around it, {one_line(root)}. Make it one of its own: "
            "git init && git add . && git commit -m 'First commit'"
        )
    commit = _try_line(root, "rev-parse", "--verify", "--quiet", "HEAD^{commit}")
    if not commit:
        raise InvalidRequest(
            f"{one_line(root)} is a git repository without a commit, and an agent works on one. Commit first: "
            "git add . && git commit -m 'First commit'"
        )
    branch = _try_line(root, "symbolic-ref", "--quiet", "--short", "HEAD") or None
    subject = _try_line(root, "log", "-1", "--format=%s", "--no-show-signature", commit)
    state = RepositoryState(root, commit, branch, one_line(subject, 60), is_bare=not inside)
    return _with_status(state) if inside else state


def _tracks_anything(folder: Path) -> bool:
    try:
        return bool(_git(folder, "ls-files", "-z", "--", ".", limit=1, cut=True))
    except GitFailed:
        return False


def _with_status(state: RepositoryState) -> RepositoryState:
    """Add the files that differ from the commit. Raise `GitFailed` for more than can be listed."""
    out = _git(
        state.root, "status", "--porcelain=v2", "-z", "--untracked-files=all", "--no-renames",
        limit=_MAX_STATUS_BYTES,
    )  # fmt: skip
    files, conflicts, left_out = [], [], []
    for entry in out.split(b"\x00"):
        kind = entry[:1]
        if kind == b"?":
            name = entry[2:]
            if name.endswith(b"/"):  # a repository inside this one
                left_out.append(ChangedFile(name, "?").name)
            else:
                files.append(ChangedFile(name, "?"))
        elif kind == b"1":
            _, states, submodule, *_, name = entry.split(b" ", 8)
            letters = states.decode("ascii", "replace").replace(".", "")
            if submodule[:1] == b"S" and submodule[2:4] != b"..":
                left_out.append(ChangedFile(name, "M").name)
            if submodule[:1] != b"S" or submodule[1:2] == b"C" or states[:1] != b".":
                files.append(ChangedFile(name, letters[-1:] or "M"))
        elif kind == b"u":
            conflicts.append(ChangedFile(entry.split(b" ", 10)[-1], "U").name)
    return RepositoryState(
        state.root, state.commit, state.branch, state.subject, state.is_bare,
        tuple(files), tuple(conflicts), tuple(left_out),
    )  # fmt: skip


def pack_changes(state: RepositoryState, *, is_local: bool) -> PackedChanges | None:
    """Return the uncommitted changes as a commit on HEAD, packed; `None` if the service has all of it already.

    The commit is an object of the repository without a ref, as `git stash create` makes it, so that a job's bundle
    and diff apply there. With `is_local` the service reads this repository itself; else it has what a
    remote-tracking branch has. Ignored files are never part of it. Raise `InvalidRequest`.
    """
    _check_bounds(state)
    try:
        with ExitStack() as stack:
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="steadyhand-")))
            env = _write_env(state.root, scratch)
            commit = _commit_files(state, scratch, env) if state.files else None
            known, unpushed = ([state.commit], 0) if is_local else _pushed_commits(state)
            if commit is None and not unpushed:
                return None
            commit = commit or state.commit
            revisions = "\n".join([commit, *(f"^{each}" for each in known), ""])
            pack = _git(
                state.root, "pack-objects", "--quiet", "--stdout", "--revs", "--delta-base-offset",
                stdin=revisions.encode(), env=env, limit=MAX_PACK_BYTES, seconds=_PACK_SECONDS,
            )  # fmt: skip
    except GitFailed as error:
        raise InvalidRequest(f"The changes could not be taken along: {one_line(error, 300)}") from error
    except OSError as error:
        raise InvalidRequest(f"The changes could not be taken along: {error.strerror}.") from error
    return PackedChanges(known[0], commit, pack, unpushed)


def _check_bounds(state: RepositoryState) -> None:
    if state.conflicts:
        raise InvalidRequest(
            f"The changes cannot be taken along: {', '.join(state.conflicts[:3])} has conflicts. Resolve them, then "
            "`git add` the files."
        )
    if len(state.files) > MAX_FILES:
        raise InvalidRequest(
            f"The changes are {len(state.files)} files; at most {MAX_FILES} can be taken along. Commit them, or "
            "list in .gitignore what is not wanted."
        )
    sizes = []
    for file in state.files:
        try:
            sizes.append((os.lstat(state.root / os.fsdecode(file.path)).st_size, file.name))
        except OSError:
            continue  # deleted
    if sum(size for size, _ in sizes) > MAX_FILE_BYTES:
        size, name = max(sizes)
        raise InvalidRequest(
            f"The changed files have more than {MAX_FILE_BYTES >> 20} MiB together; the largest is {name} "
            f"({size / 2**20:.1f} MiB). Commit them, or list in .gitignore what is not wanted."
        )


def _write_env(root: Path, scratch: Path) -> dict[str, str]:
    """Return the variables for a second index, and for a second objects folder if the first is not writable."""
    env = {"GIT_INDEX_FILE": str(scratch / "index")}
    index = root / _line(root, "rev-parse", "--git-path", "index")
    if index.is_file():
        copyfile(index, scratch / "index")
    objects = root / _line(root, "rev-parse", "--git-path", "objects")
    if not os.access(objects, os.W_OK):
        (scratch / "objects").mkdir()
        env |= {
            "GIT_OBJECT_DIRECTORY": str(scratch / "objects"),
            "GIT_ALTERNATE_OBJECT_DIRECTORIES": str(objects.resolve()),
        }
    return env


def _commit_files(state: RepositoryState, scratch: Path, env: Mapping[str, str]) -> str | None:
    root = state.root
    if not (scratch / "index").is_file():
        _git(root, "read-tree", "HEAD", env=env)
    names = b"".join(file.path + b"\x00" for file in state.files)
    _git(
        root, "update-index", "--add", "--remove", "--replace", "-z", "--stdin", stdin=names, env=env,
        seconds=_PACK_SECONDS,
    )  # fmt: skip
    tree = _git(root, "write-tree", env=env).decode().strip()
    if tree == _line(root, "rev-parse", "--verify", f"{state.commit}^{{tree}}"):
        return None
    # The date is that of HEAD: the same changes are the same commit, for which the service has one checkout.
    date = _line(root, "log", "-1", "--format=%ct +0000", "--no-show-signature", state.commit)
    dates = {"GIT_AUTHOR_DATE": date, "GIT_COMMITTER_DATE": date}
    return (
        _git(
            root, "commit-tree", "--no-gpg-sign", "-p", state.commit, tree, stdin=_MESSAGE,
            env={**env, **_AUTHOR, **dates},
        )
        .decode()
        .strip()
    )  # fmt: skip


def _pushed_commits(state: RepositoryState) -> tuple[list[str], int]:
    """Return the newest commits below HEAD that remote-tracking branches have, and the number of commits above them."""
    lines = _git(
        state.root, "rev-list", "--boundary", "HEAD", "--not", "--remotes", limit=_MAX_STATUS_BYTES
    ).split()
    unpushed = [line for line in lines if not line.startswith(b"-")]
    if not unpushed:
        return [state.commit], 0
    boundary = [line[1:].decode() for line in lines if line.startswith(b"-")]
    if not boundary:
        raise InvalidRequest(
            f"{one_line(state.root)} has no remote-tracking branch with a commit of HEAD in it, so the service "
            "cannot have the commits below the changes. Push them first, or run `git fetch`."
        )
    return boundary, len(unpushed)


# --- git -----------------------------------------------------------------------------------


def _line(cwd: Path, *arguments: str) -> str:
    return os.fsdecode(_git(cwd, *arguments)).rstrip("\n")


def _try_line(cwd: Path, *arguments: str) -> str:
    try:
        return _line(cwd, *arguments)
    except GitFailed:
        return ""


def _git(
    cwd: Path,
    *arguments: str,
    stdin: bytes = b"",
    env: Mapping[str, str] | None = None,
    limit: int = 1024 * 1024,
    seconds: float = _STATUS_SECONDS,
    cut: bool = False,
) -> bytes:
    """Run git and return its stdout, at most `limit` bytes of it with `cut`.

    Raise `GitFailed` if it fails, takes too long or, without `cut`, prints more.
    """
    config = [word for pair in _CONFIG for word in ("-c", pair)]
    with tempfile.TemporaryFile() as errors, tempfile.TemporaryFile() as given:
        given.write(stdin)
        given.seek(0)
        process = subprocess.Popen(  # git with our own arguments
            ["git", *config, *arguments],  # the user's own
            cwd=cwd, env=_environment(env or {}), stdin=given, stdout=subprocess.PIPE, stderr=errors,
        )  # fmt: skip
        expired = threading.Event()

        def kill() -> None:
            expired.set()
            process.kill()

        timer = threading.Timer(seconds, kill)
        timer.daemon = True
        timer.start()
        try:
            with process:
                out = process.stdout.read(limit + 1) if process.stdout is not None else b""
                if len(out) > limit:
                    process.kill()
        finally:
            timer.cancel()
        if len(out) > limit and cut:
            return out[:limit]
        if len(out) > limit:
            raise GitFailed(f"git {arguments[0]} printed more than {limit / 2**20:.0f} MiB")
        if expired.is_set():
            raise GitFailed(f"git {arguments[0]} took longer than {seconds:g} s")
        if process.returncode != 0:
            errors.seek(0)
            raise GitFailed(_reason(errors.read(64 * 1024)) or f"git {arguments[0]} failed")
        return out


def _environment(extra: Mapping[str, str]) -> dict[str, str]:
    env = {name: value for name, value in os.environ.items() if name not in _OWN_VARIABLES}
    return {
        **env, "LC_ALL": "C", "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "GIT_NO_LAZY_FETCH": "1", **extra,
    }  # fmt: skip


def _reason(stderr: bytes) -> str:
    lines: Sequence[str] = [
        line.strip() for line in stderr.decode("utf-8", "replace").split("\n") if line.strip()
    ]
    errors = [line for line in lines if line.startswith(("fatal:", "error:"))]
    return (errors or lines or [""])[0].removeprefix("fatal: ").removeprefix("error: ")
