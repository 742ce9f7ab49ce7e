"""Puts what changed in a work tree into an index, within bounds. The git given runs as the agent's uid."""

import asyncio
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from steadyhand.job import Notice
from steadyhand.workspace.git import MIB, Git, without_secrets

FILE_BYTES = 64 * MIB
ALL_BYTES = 256 * MIB
LIST_BYTES = 32 * MIB
_PATHSPECS = 2000


async def stage(git: Git, tree: Path, notices: list[Notice]) -> None:
    """Stage every change that .gitignore does not hide; what is left out is noted.

    Left out are files above 64 MiB, what goes beyond 256 MiB in all, repositories inside the tree, and
    what cannot be read.
    """
    listed = await git.run(
        "ls-files", "-z", "--modified", "--others", "--exclude-standard", "--deduplicate",
        cwd=tree, limit=LIST_BYTES,
    )  # fmt: skip
    names = [name for name in listed.out.split(b"\x00") if name]
    nested = [name for name in names if name.endswith(b"/")]
    chosen, gone, large = await asyncio.to_thread(_sort, tree, names)
    if large:
        notices.append(_note("files_too_large", "Changed files that are too large were left out", large))
    if nested:
        notices.append(_note("nested_repository", "Repositories inside the checkout were left out", nested))
    if gone:
        await git.run("update-index", "--force-remove", "-z", "--stdin", cwd=tree, stdin=_lines(gone))
    if chosen:
        await _add(git, tree, chosen, notices)


async def _add(git: Git, tree: Path, chosen: Sequence[bytes], notices: list[Notice]) -> None:
    paths = _lines(chosen)
    fast = await git.run(
        "update-index", "--add", "--replace", "-z", "--stdin", cwd=tree, stdin=paths, check=False
    )
    if fast.code == 0:
        return
    # One path that cannot be read fails them all above; `git add` goes on, at a cost that grows with their square.
    arguments = ["--literal-pathspecs", "add", "--all", "--ignore-errors"]
    if len(chosen) <= _PATHSPECS:
        slow = await git.run(
            *arguments, "--pathspec-from-file=-", "--pathspec-file-nul", cwd=tree, stdin=paths, check=False
        )
        if slow.code == 0:
            return
        fast = slow
    notices.append(Notice("harvest_partial", f"Some changed files could not be kept: {fast.reason}"))


def _sort(tree: Path, names: Sequence[bytes]) -> tuple[list[bytes], list[bytes], list[bytes]]:
    """Part what is there, what is gone and what is too large; sizes are looked at, nothing is opened.

    What lies behind a folder that became a symlink is gone.
    """
    chosen: list[bytes] = []
    gone: list[bytes] = []
    large: list[bytes] = []
    total = 0
    folders: dict[Path, bool] = {tree: True}
    for name in names:
        if name.endswith(b"/"):
            continue
        path = tree / os.fsdecode(name)
        try:
            found = path.lstat()
        except OSError:
            gone.append(name)
            continue
        if not _is_real(path.parent, folders):
            gone.append(name)
            continue
        size = found.st_size if stat.S_ISREG(found.st_mode) else 0
        if size > FILE_BYTES or total + size > ALL_BYTES:
            large.append(name)
            continue
        total += size
        chosen.append(name)
    return chosen, gone, large


def _is_real(folder: Path, known: dict[Path, bool]) -> bool:
    """Whether a folder is reached without a symlink; `known` holds the tree's root and what was asked before."""
    if folder not in known:
        known[folder] = _is_real(folder.parent, known) and not folder.is_symlink()
    return known[folder]


def _lines(names: Sequence[bytes]) -> bytes:
    return b"".join(name + b"\x00" for name in names)


def _note(code: str, what: str, names: Sequence[bytes]) -> Notice:
    shown = ", ".join(name.decode("utf-8", "replace") for name in names[:3])
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""  # noqa: PLR2004
    return Notice(code, without_secrets(f"{what}: {shown}{more}."))
