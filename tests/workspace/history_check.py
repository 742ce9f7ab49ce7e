"""The comparison of a harvest with what it has to hold."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.workspace.history_bases import Base
from tests.workspace.history_git import Entry, git, read_entries, read_refs
from tests.workspace.history_oracle import Expected, Inner, changed_refs

from steadyhand.ports import Harvest, JobPaths

NO_EXCUSE = frozenset({"nested_repository", "files_unencoded", "diff_differs", "harvest_failed"})
"""Warnings that tell of something else than of a thing that is missing."""
INNER_KINDS = ("worktree", "submodule")
"""A worktree in the checkout may be a submodule too: to its index it is one."""


class Comparison:
    """One harvest beside what it has to hold, in a repository that has what the job was given and its bundle."""

    def __init__(
        self, harvest: Harvest, paths: JobPaths, base: Base, expected: Expected, folder: Path
    ) -> None:
        self._harvest, self._paths, self._base, self._expected = harvest, paths, base, expected
        self._folder = folder / "compare.git"
        self._changes = harvest.changes
        self._listed = [] if self._changes is None else list(getattr(self._changes, "refs", ()))
        self._excuses = " ".join(
            " ".join(each.message.split()) for each in harvest.warnings if each.code not in NO_EXCUSE
        )
        self._codes = [str(each.code) for each in harvest.warnings]

    def problems(self) -> list[str]:
        """Return what is lost, hidden or invented, each with its kind and a colon before it."""
        found = [f"{each.code}: {each.message}" for each in self._harvest.warnings if each.code in _NEVER]
        self._open()
        head = self._base.commit if self._changes is None else self._changes.head
        if not self._has(head):
            return [*found, f"lost: head {head} is neither in the bundle nor was it given"]
        tree = read_entries(git("ls-tree", "-r", "-z", "--full-tree", head, cwd=self._folder))
        found += self._diff_problems(head, tree)
        found += self._tree_problems(tree)
        if self._expected.is_repository:
            found += self._ref_problems()
            found += self._index_problems()
        elif not self._excuses:
            found.append("not named: there is no repository any more")
        for kind, inner in (("worktree", self._expected.worktrees), ("submodule", self._expected.submodules)):
            for each in inner:
                found += self._inner_problems(kind, each)
        for path in self._expected.nested:
            has_files = any(name.startswith(path + b"/") for name in self._expected.tree)
            if has_files and "nested_repository" not in self._codes and not self._is_named(path):
                found.append(f"not named: the repository in {path!r}")
        return found

    def _open(self) -> None:
        for name in ("objects/info", "refs"):
            (self._folder / name).mkdir(parents=True)
        (self._folder / "HEAD").write_text("ref: refs/heads/none\n", encoding="ascii")
        (self._folder / "config").write_text(
            "[core]\n\trepositoryformatversion = 0\n\tbare = true\n", encoding="ascii"
        )
        (self._folder / "packed-refs").write_text(self._base.packed_refs, encoding="utf-8")
        (self._folder / "objects/info/alternates").write_text(
            f"{self._base.pristine}/objects\n", encoding="utf-8"
        )
        if self._paths.bundle.is_file():
            git("fetch", "-q", "--no-tags", self._paths.bundle, "+refs/*:refs/bundle/*", cwd=self._folder)
        self._bundle = {
            "refs/" + name.removeprefix("refs/bundle/"): value
            for name, value in read_refs(self._folder).items()
            if name.startswith("refs/bundle/")
        }

    def _has(self, thing: str) -> bool:
        return bool(git("cat-file", "-t", thing, cwd=self._folder, check=False))

    def _is_named(self, path: bytes) -> bool:
        """Return True if a warning of something lost names the path or a folder above it."""
        parts = _shown(path).split("/")
        names = ["/".join(parts[: count + 1]) for count in range(len(parts))]
        return any(name in self._excuses for name in names)

    # --- the diff and the tree -------------------------------------------------------------

    def _diff_problems(self, head: str, tree: Mapping[bytes, Entry]) -> Iterator[str]:
        changes = self._changes
        patch = self._paths.diff.read_bytes() if self._paths.diff.is_file() else b""
        index = {"GIT_INDEX_FILE": self._folder / "index.diff", "GIT_DIR": self._folder}
        git("read-tree", self._base.commit, cwd=self._folder, env=index)
        if patch:
            try:
                git("apply", "--cached", "--whitespace=nowarn", cwd=self._folder, stdin=patch, env=index)
            except AssertionError as error:
                yield f"hidden: the diff does not apply: {error}"
        applied = read_entries(git("ls-files", "-s", "-z", cwd=self._folder, env=index))
        for path, (got, wanted) in _differences(applied, tree):
            yield f"hidden: {path!r} is {got} by the diff and {wanted} in the pushed tree"
        if changes is not None:
            differs = bool(list(_differences(self._base.entries, tree)))
            if bool(changes.files) != differs:
                yield f"hidden: {changes.files} changed files are told"
        if changes is None or not changes.published:
            return
        branch = git(
            "rev-parse", "-q", "--verify", f"refs/heads/{changes.branch}", cwd=self._base.folder, check=False
        )
        if branch.decode().strip() != head:
            yield f"pushed: {branch!r}, not {head}"

    def _tree_problems(self, tree: Mapping[bytes, Entry]) -> Iterator[str]:
        for path, (got, wanted) in _differences(tree, self._expected.tree):
            if got == self._base.entries.get(path) or got is None:
                kind = "lost"
            else:
                kind = "invented" if wanted == self._base.entries.get(path) else "wrong"
            if got != self._expected.committed.get(path, ()) and not self._is_named(path):
                yield f"{kind}: {path!r} is {got}, not {wanted}"
        for path in self._expected.raw - self._expected.committed.keys():
            if not any(_shown(path) in " ".join(each.message.split()) for each in self._harvest.warnings):
                yield f"not named: {path!r} cannot be encoded"

    # --- refs, stash and index -------------------------------------------------------------

    def _ref_problems(self) -> Iterator[str]:
        listed = {each.name: each for each in self._listed if each.kind in ("branch", "tag", "ref")}
        wanted = {name: (old, new) for name, old, new in changed_refs(self._base, self._expected)}
        for name in listed.keys() - wanted.keys():
            yield f"invented: {name} is listed as {listed[name]}"
        for name, (old, new) in wanted.items():
            entry = listed.get(name)
            if name.startswith("refs/replace/"):
                if name not in self._excuses:
                    yield f"not named: {name} is refused"
            elif entry is None:
                if not self._is_named(name.encode("utf-8", "surrogateescape")):
                    yield f"lost: {name} went from {old} to {new}"
            elif (entry.before, entry.after) != (old, new):
                yield f"listed: {name} went from {old} to {new}, not as {entry}"
            elif new is not None:
                yield from self._carried(name, new, entry.bundle_ref)
        stash = [each for each in self._listed if each.kind == "stash"]
        for number, commit in enumerate(self._expected.stash):
            entry = next((each for each in stash if each.after == commit), None)
            if entry is None:
                yield f"lost: stash@{{{number}}}, {commit}"
            else:
                yield from self._carried(f"stash@{{{number}}}", commit, entry.bundle_ref)

    def _carried(self, name: str, value: str, bundle_ref: str | None) -> Iterator[str]:
        if bundle_ref is not None and self._bundle.get(bundle_ref) != value:
            yield f"carried: {name} is {value}, and {bundle_ref} of the bundle is {self._bundle.get(bundle_ref)}"
        elif not self._has(value) or not self._is_whole(value):
            yield f"lost: {name} is listed, and {value} is not in the bundle"

    def _is_whole(self, value: str) -> bool:
        return bool(git("rev-list", "--objects", "--max-count=1", value, cwd=self._folder, check=False)) or (
            git("cat-file", "-t", value, cwd=self._folder, check=False).strip() in (b"blob", b"tree")
        )

    def _index_problems(self) -> Iterator[str]:
        wanted = self._expected.index_tree
        head_tree = (
            git("rev-parse", f"{self._expected.head}^{{tree}}", cwd=self._folder, check=False)
            .decode()
            .strip()
        )
        if not head_tree:
            yield f"lost: HEAD's commit {self._expected.head}"
        if wanted is None or wanted == head_tree:
            return
        entry = next((each for each in self._listed if each.kind == "index"), None)
        if entry is None:
            if "index" not in self._excuses:
                yield f"lost: the index, {wanted}"
            return
        tree = git("rev-parse", f"{entry.after}^{{tree}}", cwd=self._folder, check=False).decode().strip()
        if tree != wanted and "index" not in self._excuses:
            yield f"carried: the index is {wanted}, and {entry} holds {tree}"

    # --- worktrees and submodules ----------------------------------------------------------

    def _inner_problems(self, kind: str, inner: Inner) -> Iterator[str]:
        name = inner.name.decode("utf-8", "surrogateescape")
        held: dict[bytes, Entry] = {}
        for each in self._listed:
            if each.kind in INNER_KINDS and each.name.rstrip("/").endswith(name) and each.after is not None:
                listing = git("ls-tree", "-r", "-z", "--full-tree", each.after, cwd=self._folder, check=False)
                held |= read_entries(listing)
        for path, entry in inner.changed.items():
            if held.get(path) != entry and not self._is_named(inner.name + b"/" + path):
                yield f"lost: {path!r} of the {kind} {name!r}, {entry}"
        if inner.head is not None and not self._has(inner.head) and not self._is_named(inner.name):
            yield f"lost: HEAD of the {kind} {name!r}, {inner.head}"


_NEVER = frozenset({"diff_differs", "harvest_failed"})


def _differences(
    got: Mapping[bytes, Entry], wanted: Mapping[bytes, Entry]
) -> Iterator[tuple[bytes, tuple[Entry | None, Entry | None]]]:
    for path in sorted({*got, *wanted}):
        if got.get(path) != wanted.get(path):
            yield path, (got.get(path), wanted.get(path))


def _shown(path: bytes) -> str:
    """Return a path as a warning shows it."""
    return " ".join(path.decode("utf-8", "surrogateescape").encode("utf-8", "replace").decode().split())
