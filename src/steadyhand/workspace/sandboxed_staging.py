"""Stage the changes of a work tree inside the sandbox, in batches. Standard library only.

It is a part of the program that `sandboxed_git_client` sends into the sandbox.
"""

import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from steadyhand.workspace.sandboxed_command import MAX_REASON_LENGTH, GitError, git
from steadyhand.workspace.sandboxed_files import (
    GITLINK,
    Access,
    Given,
    batches,
    classify_names,
    is_entry,
    is_real_folder,
    nul_terminated,
    raw_entry,
)

_MAX_NAMED = 50
_MAX_NESTED = 50
_MAX_NESTED_DEPTH = 8
_MAX_FAILED_CALLS = 400
_MAX_SUBMODULES = 1000
_EMPTY_GIT_DIR = "nested.git"
_FEW_NAMES, _FEW_BYTES = 50, 16 * 1024
_LITERAL = {"GIT_LITERAL_PATHSPECS": "1"}


class Losses:
    """Names that could not be kept as they are, by the reason."""

    def __init__(self, nested: Iterable[bytes] = ()) -> None:
        self.large: list[bytes] = []
        self.nested = list(nested)
        self.lost: list[bytes] = []
        self.unencoded: list[bytes] = []
        self.reason = ""
        """Git's words about the last of the lost files."""


class StagingLimits(NamedTuple):
    """The limits of the files of one snapshot, in bytes."""

    file_bytes: int
    total_bytes: int
    batch_bytes: int
    """The size of the files that are staged, and packed, at once."""


class Staging:
    """One index over a work tree: `env` names the git directory of the snapshot and the tree.

    `skipped` are folders of the tree, with a slash at the end, that hold no work: a git directory that was moved there.
    """

    def __init__(
        self,
        tree: Path,
        env: Mapping[str, str],
        scratch: Path,
        limits: StagingLimits,
        access: Access,
        *,
        given: Given | None = None,
        skipped: Sequence[bytes] = (),
    ) -> None:
        self.losses = Losses()
        self.worktrees: list[bytes] = []
        """Folders of the tree that are work trees of its own repository."""
        self._tree = tree
        self.env = env
        self._scratch = scratch
        self._limits = limits
        self._access = access
        self._given = given
        self._skipped = tuple(skipped)
        self._failed_calls = 0

    # --- finding changes -------------------------------------------------------------------

    def changed_names(self) -> list[bytes]:
        """Return every changed or new name, without those whose bytes and mode are as they were given."""
        names = self._list(self._tree, self.env, "--modified", "--others", "--deduplicate")
        nested = [name for name in names if name.endswith(b"/")]
        found = [name for name in names if not name.endswith(b"/") and not name.startswith(self._skipped)]
        self._name_repositories(found)
        found += self._nested_names([name for name in nested if not name.startswith(self._skipped)])
        return found if self._given is None else self._without_given(found, self._given)

    def changed_among(self, names: Sequence[bytes]) -> list[bytes]:
        """Return those of these names that `changed_names` would return. There is no repository below the tree."""
        folders = {self._tree: True}
        found: list[bytes] = []
        gone: list[bytes] = []
        new: list[bytes] = []
        entries = self.entries(set(names)) if names else {}
        for name in names:
            path = self._tree / os.fsdecode(name)
            is_there = is_real_folder(path.parent, folders) and is_entry(path)
            if name in entries:
                (found if is_there else gone).append(name)
            elif is_there:
                new.append(name)
        if found and self._given is not None:
            self._open_files(found)
            found = [name for name in found if not self._is_as_given(name, entries[name], self._given)]
        return [*gone, *found, *self._not_ignored(new)]

    def _list(self, folder: Path, env: Mapping[str, str], *options: str) -> list[bytes]:
        command = ("ls-files", "-z", "--exclude-standard", *options)
        complaints: list[bytes] = []
        out = git(*command, env=env, cwd=folder, stderr=complaints)
        if any(b"ermission denied" in complaint for complaint in complaints):
            self._access.open_tree(folder)
            out = git(*command, env=env, cwd=folder)
        return [name for name in out.split(b"\x00") if name]

    def _name_repositories(self, names: Sequence[bytes]) -> None:
        """Name the repositories that were begun in folders with files of the tree; git lists them as folders."""
        folders = {name.rpartition(b"/")[0] for name in names if b"/" in name}
        for folder in sorted(folders):
            parts = folder.split(b"/")
            folders |= {b"/".join(parts[:count]) for count in range(1, len(parts))}
        for folder in sorted(folders):
            if os.path.lexists(self._tree / os.fsdecode(folder) / ".git"):
                self.losses.nested.append(folder + b"/")

    def _nested_names(self, folders: Sequence[bytes]) -> list[bytes]:
        """Return the files of repositories inside the tree, as far as no ignore file hides them."""
        found: list[bytes] = []
        waiting = [(folder, 1) for folder in folders]
        while waiting:
            folder, depth = waiting.pop()
            path = self._tree / os.fsdecode(folder.rstrip(b"/"))
            if is_own_worktree(path, self._tree):
                self.worktrees.append(folder)
                continue
            self.losses.nested.append(folder)
            if depth > _MAX_NESTED_DEPTH or len(self.losses.nested) > _MAX_NESTED:
                self.losses.lost.append(folder)
                continue
            try:
                names = self._list(path, self._plain_env(path), "--others")
            except GitError as error:
                self.losses.lost.append(folder)
                self.losses.reason = str(error)
                continue
            waiting += [(folder + name, depth + 1) for name in names if name.endswith(b"/")]
            found += [folder + name for name in names if not name.endswith(b"/")]
        return self._not_ignored(found)

    def _plain_env(self, folder: Path) -> dict[str, str]:
        """Return the environment that reads a folder as a work tree of which nothing is tracked."""
        git_dir = self._scratch / _EMPTY_GIT_DIR
        if not git_dir.exists():
            for name in ("objects", "refs"):
                (git_dir / name).mkdir(parents=True)
            (git_dir / "HEAD").write_text("ref: refs/heads/none\n", encoding="ascii")
        index = str(git_dir / "none.index")
        return {**self.env, "GIT_DIR": str(git_dir), "GIT_WORK_TREE": str(folder), "GIT_INDEX_FILE": index}

    def _not_ignored(self, names: list[bytes]) -> list[bytes]:
        if not names:
            return names
        command = ("check-ignore", "-z", "--stdin", "--no-index")
        # A name that begins with a colon would be read as a pattern.
        stdin = nul_terminated(b"./" + name for name in names)
        ignored = git(*command, env=self.env, cwd=self._tree, stdin=stdin, accepted=(0, 1))
        hidden = set(ignored.split(b"\x00"))
        return [name for name in names if b"./" + name not in hidden]

    def _without_given(self, names: list[bytes], given: Given) -> list[bytes]:
        wanted = {name for name in names if os.path.lexists(self._tree / os.fsdecode(name))}
        entries = self.entries(wanted) if wanted else {}
        if not entries:
            return names
        self._open_files(entries)
        as_given = {name for name, entry in entries.items() if self._is_as_given(name, entry, given)}
        return [name for name in names if name not in as_given]

    def _is_as_given(self, name: bytes, entry: tuple[bytes, bytes], given: Given) -> bool:
        raw = raw_entry(self._tree / os.fsdecode(name), len(entry[1]))
        return raw is not None and given.is_as_given(name, entry, raw)

    def entries(self, names: set[bytes] | None = None, mode: bytes = b"") -> dict[bytes, tuple[bytes, bytes]]:
        """Return mode and object id of entries of the index, by name: of these names, or of a mode."""
        found = {}
        paths: list[str] = []
        env = self.env
        if names is not None and len(names) <= _FEW_NAMES and sum(map(len, names)) <= _FEW_BYTES:
            paths = [os.fsdecode(name) for name in names]  # the rest of a large index is not listed
            env = {**env, **_LITERAL}
        out = git("ls-files", "-z", "--stage", "--", *paths, env=env, cwd=self._tree)
        for line in out.split(b"\x00"):
            if not line.startswith(mode):
                continue
            head, _, name = line.partition(b"\t")
            if name and (names is None or name in names):
                fields = head.split()
                found[name] = (fields[0], fields[1])
        return found

    # --- submodules ------------------------------------------------------------------------

    def submodules(self, *, from_index: bool) -> dict[bytes, bytes]:
        """Return the commits of submodules by path; the given ones are known without a look at the whole index."""
        if not from_index and self._given is not None:
            return self.given_submodules()
        return {name: entry[1] for name, entry in self.entries(mode=GITLINK).items()}

    def given_submodules(self) -> dict[bytes, bytes]:
        """Return the commits of submodules as they were given, by path."""
        if self._given is None:
            return {}
        return {name: self._given.entries[name][1] for name in self._given.submodules}

    def replace_by_files(self, submodules: Sequence[bytes]) -> None:
        """Drop submodules from the index, so that the files in their folders count as files of the tree."""
        if submodules:
            command = ("update-index", "--force-remove", "-z", "--stdin")
            git(*command, env=self.env, cwd=self._tree, stdin=nul_terminated(submodules))

    # --- staging ---------------------------------------------------------------------------

    def stage(self, names: Sequence[bytes]) -> Iterator[tuple[int, Sequence[bytes]]]:
        """Stage names in batches; after each, yield its bytes and the names that are still to come."""
        limits = self._limits
        found = classify_names(self._tree, names, limits.file_bytes, limits.total_bytes)
        self.losses.large += found.oversized
        if found.missing:
            command = ("update-index", "--force-remove", "-z", "--stdin")
            git(*command, env=self.env, cwd=self._tree, stdin=nul_terminated(found.missing))
        self._open_files(name for name in found.present if found.sizes[name])
        done = 0
        for group in batches(found.present, found.sizes, limits.batch_bytes):
            self._add(group)
            done += len(group)
            yield sum(found.sizes[name] for name in group), found.present[done:]
        if not found.present:
            yield 0, ()
        else:
            self._check_staged(found.present)

    def _open_files(self, names: Iterable[bytes]) -> None:
        """Make the files readable that their owner closed."""
        paths = (self._tree / os.fsdecode(name) for name in names)
        self._access.open_files(path for path in paths if not os.access(path, os.R_OK))

    def _add(self, names: list[bytes]) -> None:
        """Add names to the index. Git fails for all of them if it cannot read one: halve them until it is alone."""
        waiting = [names]
        while waiting:
            group = waiting.pop()
            try:
                command = ("update-index", "--add", "--replace", "--remove", "-z", "--stdin")
                git(*command, env=self.env, cwd=self._tree, stdin=nul_terminated(group))
            except GitError as error:
                self._failed_calls += 1
                if len(group) == 1 or self._failed_calls > _MAX_FAILED_CALLS:
                    self._keep_raw_or_lose(group, str(error))
                else:
                    middle = len(group) // 2
                    waiting += [group[middle:], group[:middle]]

    def _keep_raw_or_lose(self, names: Sequence[bytes], reason: str) -> None:
        for name in names:
            if len(names) == 1 and self._has_only_an_encoding(name) and self._add_raw(name):
                self.losses.unencoded.append(name)
            else:
                self.losses.lost.append(name)
                self.losses.reason = reason

    def _has_only_an_encoding(self, name: bytes) -> bool:
        """Return true if an encoding and no filter converts a file. A filter may encrypt: its input is never kept."""
        command = ("check-attr", "-z", "--stdin", "working-tree-encoding", "filter")
        try:
            out = git(*command, env=self.env, cwd=self._tree, stdin=name + b"\x00").split(b"\x00")
        except GitError:
            return False
        values = dict(zip(out[1::3], out[2::3], strict=False))
        unset = (b"unspecified", b"unset")
        return values.get(b"working-tree-encoding") not in unset and values.get(b"filter") in unset

    def _add_raw(self, name: bytes) -> bool:
        path = self._tree / os.fsdecode(name)
        try:
            info = path.lstat()
            if not stat.S_ISREG(info.st_mode):
                return False
            command = ("hash-object", "-w", "--no-filters", "--", str(path))
            blob = git(*command, env=self.env, cwd=self._tree).strip()
            mode = b"100755" if info.st_mode & stat.S_IXUSR else b"100644"
            line = b"%s %s\t%s\x00" % (mode, blob, name)
            git(
                "update-index",
                "--add",
                "--replace",
                "-z",
                "--index-info",
                env=self.env,
                cwd=self._tree,
                stdin=line,
            )
        except (GitError, OSError):
            return False
        return True

    def _check_staged(self, names: Sequence[bytes]) -> None:
        """Name the files that git passed over without an error: it takes no path such as `git~1`."""
        lost = set(self.losses.lost)
        staged = self.entries(set(names))
        for name in names:
            if name not in staged and name not in lost:
                self.losses.lost.append(name)
                self.losses.reason = self.losses.reason or "git takes no file of this name or kind"


def is_own_worktree(folder: Path, tree: Path) -> bool:
    """Return true if a folder is a work tree that `git worktree add` made for the tree's own repository."""
    try:
        text = (folder / ".git").read_text("utf-8", "surrogateescape") if (folder / ".git").is_file() else ""
    except OSError:
        return False
    target = Path(text.removeprefix("gitdir: ").rstrip("\n"))
    common = (tree / ".git").resolve()
    return text.startswith("gitdir: ") and target.parent == common / "worktrees"


def losses_of(losses: Losses, folder: bytes = b"") -> list[dict[str, Any]]:
    """Return what could not be kept as it is, by the reason; the names are cut at a bound, the count is not."""
    groups = {
        "large": losses.large,
        "nested": losses.nested,
        "lost": losses.lost,
        "unencoded": losses.unencoded,
    }
    return [
        {
            "reason": reason,
            "names": [os.fsdecode(folder + name)[:MAX_REASON_LENGTH] for name in names[:_MAX_NAMED]],
            "count": len(names),
            "cause": losses.reason[:MAX_REASON_LENGTH] if reason == "lost" else "",
        }
        for reason, names in groups.items()
        if names
    ]
