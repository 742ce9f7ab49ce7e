"""The refs that a job made, moved or deleted, and their names in its bundle."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self, get_args

from steadyhand.job import RefChange, RefKind
from steadyhand.workspace.harvest_frames import HarvestFrame, malformed_reply
from steadyhand.workspace.ref_names import COMMIT

_TREE_KINDS = frozenset({"index", "forced"})
_REPLACE = "refs/replace/"
_KINDS: Mapping[str, RefKind] = {kind: kind for kind in get_args(RefKind)}
_FOLDERS = {"worktree": "worktrees", "submodule": "submodules"}


@dataclass(frozen=True, slots=True)
class GivenRefs:
    """The refs that the job's repository began with, by name; `refs` is `None` if they are not known."""

    refs: Mapping[bytes, bytes] | None

    def to_bytes(self) -> bytes:
        """Return the refs as lines."""
        return b"".join(b"%s %s\n" % (value, name) for name, value in (self.refs or {}).items())

    def before(self, name: str) -> str | None:
        """Return the object of a ref before the run."""
        value = (self.refs or {}).get(name.encode("utf-8", "surrogateescape"))
        return None if value is None else value.decode("ascii")

    def may_have(self, saved: "SavedRef") -> bool:
        """Return true for a ref that the job may have been given by an older release, which kept no record of them."""
        return self.refs is None and saved.name.startswith(("refs/remotes/origin/", "refs/tags/"))

    @property
    def commits(self) -> Sequence[str]:
        """The objects of the refs."""
        return [value.decode("ascii") for value in (self.refs or {}).values()]


@dataclass(frozen=True, slots=True)
class SavedRef:
    """A ref, a stash, the index or a folder: its object, or the tree of which a commit is to be made."""

    MAX: ClassVar[int] = 300
    kind: RefKind
    name: str
    value: str
    parent: str | None = None
    lost: str | None = None
    is_folder: bool = False

    @property
    def is_tree(self) -> bool:
        """True if `value` is a tree."""
        return self.is_folder or self.kind in _TREE_KINDS

    def replaces(self, other: "SavedRef") -> bool:
        """Return true if this is the state of a folder of which `other` is only the commit."""
        return self.is_folder and (self.kind, self.name) == (other.kind, other.name)

    @classmethod
    def parse(cls, frame: HarvestFrame) -> Self:
        """Parse a frame. Raise `WorkspaceError` if it is malformed."""
        kind, name = _KINDS.get(frame.text("kind", 20)), frame.text("name")
        if kind is None or "\n" in name or not name:
            raise malformed_reply()
        lost = frame.sentence("lost")
        if frame.fields.get("section") == "folder":
            parent = frame.text("parent", 64)
            if kind not in _FOLDERS or (parent and COMMIT.fullmatch(parent) is None):
                raise malformed_reply()
            return cls(kind, name, frame.object_id("tree"), parent, lost, is_folder=True)
        if kind == "ref":
            if not name.startswith("refs/"):
                raise malformed_reply()
            if name.startswith(_REPLACE):
                lost = "a replacement of an object is refused"
        return cls(kind, name, frame.object_id("id"), lost=lost)

    def bundle_ref(self, job_id: str, number: int) -> str:
        """Return the name of the ref in the bundle; `number` tells folders apart."""
        return f"refs/steadyhand/jobs/{job_id}/{self._short_name(number)}"

    def _short_name(self, number: int) -> str:
        if self.kind == "ref":
            rest = self.name.removeprefix("refs/")
            return rest if rest.startswith(("heads/", "tags/")) else f"other/{rest}"
        if self.kind == "stash":
            return f"stash/{self.name.removeprefix('stash@{').removesuffix('}')}"
        return f"{_FOLDERS[self.kind]}/{number}" if self.kind in _FOLDERS else self.kind

    def to_change(self, given: GivenRefs, bundle_ref: str | None) -> RefChange:
        """Return the change that the job tells of."""
        before = given.before(self.name) if self.kind == "ref" else None
        return RefChange(
            self.kind,
            _to_text(self.name),
            "created" if before is None else "moved",
            before,
            self.value,
            None if bundle_ref is None else _to_text(bundle_ref),
        )


def deleted_change(name: str, given: GivenRefs) -> RefChange | None:
    """Return the change of a ref that is gone; `None` if the job was not given it."""
    before = given.before(name)
    return None if before is None else RefChange("ref", _to_text(name), "deleted", before, None, None)


def _to_text(name: str) -> str:
    """Return a name that JSON can carry; bytes that are not UTF-8 become question marks in a diamond."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
