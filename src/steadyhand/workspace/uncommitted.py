"""Import the uncommitted changes that a caller sends: a pack, checked apart from the mirror before it gets there.

The commit is in the mirror under a ref of its own, so all that works on a commit works on it. It is not a commit of the
repository, so the repository's rights do not hold on it; see `without_repository_rights`.
"""

import asyncio
import base64
import binascii
import json
import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from steadyhand.agents import Workspace
from steadyhand.errors import WorkspaceError
from steadyhand.job import UNCOMMITTED_REF, UncommittedChanges
from steadyhand.ports import JobPaths
from steadyhand.workspace.filesystem import remove_tree
from steadyhand.workspace.git import MIB, Git
from steadyhand.workspace.git_dir import make_bare_repository
from steadyhand.workspace.mirror import Mirror, Mirrors

IMPORT_SECONDS = 60.0
MAX_OBJECTS = 100_000
MAX_OBJECT_BYTES = 256 * MIB
"""The most bytes of all objects together, unpacked."""
MAX_TREE_BYTES = 64 * MIB
"""The most bytes of the names of all files of the commit."""
_MAX_LIST_BYTES = 8 * MIB
_HEADER_BYTES = 12
_NOTE_FILE = "uncommitted.json"
_CONFIG = (("core.bigFileThreshold", "32m"), ("pack.threads", "1"))
# A small pack can hold an object of any size: none is taken into memory that is larger.
_MEMORY_LIMIT = {"GIT_ALLOC_LIMIT": "256m"}


async def import_uncommitted(mirror: Mirror, changes: UncommittedChanges, files: JobPaths) -> str:
    """Bring the changes into the mirror and return their commit. Raise `WorkspaceError`.

    The job's folder has a note of the ref, by which `forget_uncommitted` removes it.
    """
    if await mirror.find_commit(changes.ref) is None:
        try:
            await mirror.resolve(changes.base)
        except WorkspaceError as error:
            if error.retryable:
                raise
            raise WorkspaceError(
                f"The commit {changes.base[:12]}, which the changes are based on, is not in the repository "
                f"'{mirror.source.display_name}': push it first.",
                retryable=False,
            ) from error
        scratch = files.root / "uncommitted"
        await asyncio.to_thread(remove_tree, scratch)
        try:
            await _check_pack(scratch, mirror, changes)
            await mirror.import_commit(scratch, changes.commit, changes.ref)
        finally:
            await asyncio.to_thread(remove_tree, scratch)
    note = json.dumps({"mirror": mirror.folder.name, "ref": changes.ref})
    (files.root / _NOTE_FILE).write_text(note, encoding="ascii")
    return changes.commit


async def _check_pack(scratch: Path, mirror: Mirror, changes: UncommittedChanges) -> None:
    """Make a repository of the pack over the mirror's objects. Raise `WorkspaceError` unless it is whole and small."""
    await asyncio.to_thread(make_bare_repository, scratch, mirror.objects, changes.base)
    pack = scratch / "objects" / "pack" / "pack-uncommitted.pack"
    await asyncio.to_thread(_write_pack, pack, changes.pack)
    git = Git(env={"GIT_DIR": str(scratch), "GIT_NO_REPLACE_OBJECTS": "1", **_MEMORY_LIMIT}, config=_CONFIG)
    try:
        async with asyncio.timeout(IMPORT_SECONDS):
            await _check_objects(git, scratch, pack, changes)
    except TimeoutError as error:
        raise _refused(f"it took longer than {IMPORT_SECONDS:g} s.") from error
    except WorkspaceError as error:
        raise _refused(error.detail) from error


async def _check_objects(git: Git, scratch: Path, pack: Path, changes: UncommittedChanges) -> None:
    await git.run("index-pack", "--strict=badFilemode=error", str(pack), cwd=scratch)
    await _check_sizes(git, scratch, pack)
    kind = await git.run("cat-file", "-t", changes.commit, cwd=scratch, check=False)
    if kind.text != "commit":
        raise WorkspaceError("the pack does not hold their commit")
    below = await git.run(
        "merge-base", "--is-ancestor", changes.base, changes.commit, cwd=scratch, check=False
    )
    if below.code != 0:
        raise WorkspaceError("their commit is not based on the commit that they name")
    # A few trees that hold each other many times are a checkout without end. `ls-tree` prints as it goes, so the limit
    # ends it; `diff-tree` would collect all names first.
    with _open_nowhere() as nowhere:
        await git.run(
            "ls-tree", "-r", "-z", "--name-only", changes.commit,
            cwd=scratch, limit=MAX_TREE_BYTES, stdout_file=nowhere,
        )  # fmt: skip
    await git.run("update-ref", "refs/heads/uncommitted", changes.commit, cwd=scratch)


def _open_nowhere() -> BinaryIO:
    return Path(os.devnull).open("wb")


def _write_pack(path: Path, text: str) -> None:
    try:
        data = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise _refused("the pack is not base64") from error
    if int.from_bytes(data[8:_HEADER_BYTES], "big") > MAX_OBJECTS:
        raise _refused(f"the pack has more than {MAX_OBJECTS} objects")
    path.write_bytes(data)


async def _check_sizes(git: Git, scratch: Path, pack: Path) -> None:
    index = await asyncio.to_thread(pack.with_suffix(".idx").read_bytes)
    entries = await git.run("show-index", cwd=scratch, stdin=index, limit=_MAX_LIST_BYTES)
    ids = b"".join(line.split()[1] + b"\n" for line in entries.stdout.split(b"\n") if line)
    sizes = await git.run(
        "cat-file", "--batch-check=%(objectsize)", cwd=scratch, stdin=ids, limit=_MAX_LIST_BYTES
    )
    if sum(int(size) for size in sizes.stdout.split()) > MAX_OBJECT_BYTES:
        raise WorkspaceError(f"the pack holds more than {MAX_OBJECT_BYTES // MIB} MiB")


def _refused(reason: str) -> WorkspaceError:
    return WorkspaceError(f"The uncommitted changes could not be taken in: {reason}", retryable=False)


def without_repository_rights(workspace: Workspace) -> Workspace:
    """Return the workspace for a commit that is none of the repository's: anybody who may submit may have written it.

    Its settings, hooks and servers are not used, its setup gets no secrets, the caches of other jobs are not shared
    with it, and the submodules that it names are not fetched with the service's credentials.
    """
    trust = "instructions" if workspace.trust == "full" else workspace.trust
    return replace(workspace, trust=trust, setup_secrets=(), caches=(), submodules=False, lfs=False)


async def forget_uncommitted(mirrors: Mirrors, files: JobPaths) -> None:
    """Remove the ref of a job's changes from the mirror, which then drops their objects in its own time."""
    try:
        note = json.loads(await asyncio.to_thread((files.root / _NOTE_FILE).read_text, "ascii"))
        mirror, ref = str(note["mirror"]), str(note["ref"])
    except (OSError, ValueError, KeyError, TypeError):
        return
    if ref.startswith(UNCOMMITTED_REF):
        with suppress(WorkspaceError):
            await mirrors.delete_ref(mirror, ref)
