"""The refs that a job's repository begins with: the branches and tags of the repository, as they were fetched.

They are kept in the format of git's `packed-refs`. Names are bytes: they need not be UTF-8, and they may hold
characters at which Python splits lines, so lines are split at newlines alone.
"""

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from steadyhand.errors import WorkspaceError
from steadyhand.job import JobWarning
from steadyhand.job_warnings import WarningCode
from steadyhand.ports import JobPaths
from steadyhand.workspace.filesystem import PRIVATE, make_dir, remove_tree
from steadyhand.workspace.git import MIB
from steadyhand.workspace.job_dirs import fetched_refs_path, refs_layer_dir
from steadyhand.workspace.sandboxed_git import read_packed_refs

_HEADER = b"# pack-refs with: sorted \n"
_HEADS, _TAGS = b"refs/heads/", b"refs/tags/"
ORIGIN = b"refs/remotes/origin/"
"""The prefix of a mirror's branches in a job's repository."""
_PACKED_REFS = "packed-refs"
_READABLE = 0o644
MAX_REFS_BYTES = 64 * MIB


@dataclass(frozen=True, slots=True)
class MirrorRef:
    """One branch or tag of a mirror: its full name and the id of its object."""

    name: bytes
    value: bytes


def to_packed_refs(refs: Iterable[MirrorRef]) -> bytes:
    """Return the content of a job's `packed-refs`: a mirror's branches are those of `origin`, its tags are tags."""
    lines = []
    for ref in refs:
        name = ref.name
        if name.startswith(_HEADS):
            name = ORIGIN + name.removeprefix(_HEADS)
        elif not name.startswith(_TAGS):
            continue
        lines.append((name, ref.value))
    lines.sort()
    return _HEADER + b"".join(b"%s %s\n" % (value, name) for name, value in lines)


def parse_ref_listing(out: bytes) -> list[MirrorRef]:
    """Parse `for-each-ref` with the format `%(objectname) %(refname)`."""
    pairs = (line.partition(b" ") for line in out.split(b"\n") if line)
    return [MirrorRef(name, value) for value, _, name in pairs]


def read_refs(path: Path) -> dict[bytes, bytes] | None:
    """Return the ids by name in a file of fetched refs; `None` if there is none."""
    try:
        return read_packed_refs(path.read_bytes())
    except FileNotFoundError:
        return None


def store_refs(files: JobPaths, snapshot: Path, *, owner: int | None) -> Path:
    """Store a job's fetched refs, and return a folder to lay over its checkout; blocks, at a constant cost.

    `snapshot` is a mirror's file, whose content never changes; the job has it as a hard link.
    `owner` is the uid of the warm checkout below.
    """
    layer = refs_layer_dir(files)
    remove_tree(layer.parent)
    make_dir(layer.parent, PRIVATE)
    git = layer / ".git"
    for folder in (layer, git):
        make_dir(folder, 0o755, owner)
    _link(snapshot, git / _PACKED_REFS)
    _link(git / _PACKED_REFS, fetched_refs_path(files))
    if owner is not None:
        os.chown(git / _PACKED_REFS, owner, owner)
    return layer


def write_if_changed(path: Path, content: bytes) -> None:
    """Write a file of refs as a new file, unless it has this content; blocks."""
    if path.is_file() and path.read_bytes() == content:
        return
    part = path.with_suffix(".part")
    part.write_bytes(content)
    part.chmod(_READABLE)
    part.replace(path)


def read_refs_state(folder: Path) -> object:
    """Return a value that differs after each change of a ref of a bare repository of the service; blocks.

    Git writes a loose ref by a rename in its folder, and the others by a new file. `None` if it cannot be read.
    """
    try:
        packed = (folder / _PACKED_REFS).stat()
        packed_state = (packed.st_mtime_ns, packed.st_size, packed.st_ino)
    except OSError:
        packed_state = None
    try:
        top = folder / "refs"
        top.stat()
        loose = [(path, Path(path).stat().st_mtime_ns, sorted(files)) for path, _, files in os.walk(top)]
    except OSError:
        return None
    return packed_state, sorted(loose)


def _link(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except OSError:  # too many links, or another file system
        shutil.copyfile(source, target)
        target.chmod(_READABLE)


def stale_refs_warning(failure: WorkspaceError) -> JobWarning:
    """Return the warning that the branches and tags of a job may be older than those of the repository."""
    return JobWarning(WarningCode.REFS_STALE, f"The branches and tags may be old. {failure.detail}")
