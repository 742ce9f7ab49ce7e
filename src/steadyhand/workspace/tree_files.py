"""Read files of a commit, as committed: without a checkout and without filters."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from steadyhand.workspace.git import Git


@dataclass(frozen=True, slots=True)
class TreeEntry:
    """A regular file in a commit: its path from the root, its blob, its size in bytes."""

    path: str
    blob: str
    size: int


async def list_tree_files(git: Git, folder: Path, commit: str, paths: Sequence[str]) -> Sequence[TreeEntry]:
    """Return part of a commit's tree; see `Mirror.list_files`."""
    result = await git.run("ls-tree", "-r", "-z", "--long", "--full-tree", commit, "--", *paths, cwd=folder)
    entries = []
    for line in result.stdout.split(b"\x00"):
        head, _, name = line.partition(b"\t")
        fields = head.split()
        if len(fields) == 4 and fields[0].startswith(b"100"):  # noqa: PLR2004  # mode, type, blob, size
            with contextlib.suppress(UnicodeDecodeError):
                entries.append(TreeEntry(name.decode("utf-8"), fields[2].decode(), int(fields[3])))
    return entries


async def read_tree_blobs(
    git: Git, folder: Path, entries: Sequence[TreeEntry], limit: int
) -> Sequence[bytes]:
    """Return blobs by their ids; see `Mirror.read_blobs`."""
    if not entries:
        return []
    ids = "".join(f"{entry.blob}\n" for entry in entries).encode()
    result = await git.run("cat-file", "--batch", cwd=folder, stdin=ids, limit=limit + 128 * len(entries))
    contents, offset = [], 0
    for _ in entries:
        end = result.stdout.index(b"\n", offset)
        size = int(result.stdout[offset:end].split()[2])
        contents.append(result.stdout[end + 1 : end + 1 + size])
        offset = end + 1 + size + 1
    return contents
